"""The application with its tasks, and the queues there are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import SettingsError, UnknownQueue
from worker.wording import did_you_mean

if TYPE_CHECKING:
    from worker.engine.application import Holdfast


def find_modules_here() -> None:
    """Let the modules of HOLDFAST_INCLUDE be found in the current folder, as Celery's own command does."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def load() -> Holdfast:
    """Return the application with all its tasks imported. Raises `SettingsError` for a module that cannot be."""
    find_modules_here()
    from worker.app import app

    try:
        app.loader.import_default_modules()
    except ImportError as exc:
        raise SettingsError(f"a module with tasks cannot be imported ({exc}); see HOLDFAST_INCLUDE") from exc
    app.finalize()
    return app


def check_queue(name: str, known: list[str] | None = None) -> None:
    """Raise `UnknownQueue` with the names it is like, unless there is such a queue."""
    from worker.settings import settings

    names = known if known is not None else settings().queues
    if name not in names:
        raise UnknownQueue(f"no queue {name!r} in HOLDFAST_QUEUES{did_you_mean(name, names)}")
