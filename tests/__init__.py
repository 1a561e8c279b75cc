"""The tests, by what they need: nothing, servers, worker processes, faults."""
