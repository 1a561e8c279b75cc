"""The tasks and queues there are, and whether a call fits them."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.parse import did_you_mean
from worker.errors import InvalidJob, SettingsError, UnknownQueue, UnknownTask

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


def find_task(app: Holdfast, name: str) -> Any:
    """Return the task of this name. Raises `UnknownTask` with the names it is like."""
    if name in app.tasks:
        return app.tasks[name]
    ours = [known for known in app.tasks if not known.startswith("celery.")]
    raise UnknownTask(f"no task {name!r} is registered{did_you_mean(name, ours)}")


def check_queue(name: str, known: list[str] | None = None) -> None:
    """Raise `UnknownQueue` with the names it is like, unless there is such a queue."""
    from worker.settings import settings

    names = known if known is not None else settings().queues
    if name not in names:
        raise UnknownQueue(f"no queue {name!r} in HOLDFAST_QUEUES{did_you_mean(name, names)}")


def check_arguments(task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise `InvalidJob` unless the task can be called like this."""
    signature = inspect.signature(task.run)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        names = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        raise InvalidJob(f"{task.name}: {exc}; it is called as {task.name}{inspect.Signature(names)}") from exc
