"""The `holdfast` command, one file a group."""

from worker.cli.program import main

__all__ = ["main"]
