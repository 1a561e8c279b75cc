"""The console: what operators see of the system, and what they do with it, in a browser."""
