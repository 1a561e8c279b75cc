"""`holdfast demo`: real work through every entrance, everything broken meanwhile, and an account of what came of it."""

from worker.cli.demo.course import run_demo

__all__ = ["run_demo"]
