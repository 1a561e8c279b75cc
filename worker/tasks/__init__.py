"""The built-in jobs: thin entry points."""
