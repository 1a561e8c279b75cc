"""`holdfast version`."""

from __future__ import annotations

import platform
import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from worker.cli import options
from worker.cli.output import emit

_SHOWN = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "flower")


def version(as_json: options.AsJson = False) -> None:
    """Print the version of Holdfast, of Python and of what it stands on."""
    versions = {"holdfast": _own(), "python": platform.python_version(), **{name: installed(name) for name in _SHOWN}}
    if as_json:
        emit(versions)
        return
    for name, number in versions.items():
        print(f"{name} {number}")


def _own() -> str:
    try:
        return installed("holdfast")
    except PackageNotFoundError:  # run from its source tree
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])
