"""What stands in the log of an exception: where it came from, and nothing of what was at hand there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import structlog
from celery import signals

from worker.app import app
from worker.telemetry import log, print_lines


@pytest.fixture(autouse=True)
def _set_up_again() -> Iterator[None]:
    """Leave logging to the tests that follow as it was."""
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


def as_commands_do() -> None:
    print_lines(on_stderr=True)


def as_workers_and_beats_do() -> None:
    assert app.main == "holdfast"
    signals.after_setup_logger.send(sender=None)


@pytest.mark.parametrize("set_up", [print_lines, as_commands_do, as_workers_and_beats_do])
def test_traceback_is_logged_without_the_local_variables(
    set_up: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up()
    token = "hf_" + "secret"
    try:
        raise ValueError("what went wrong")
    except ValueError:
        log(__name__).exception("a thing failed", thing=1)
    said = "".join(capsys.readouterr())
    assert "ValueError: what went wrong" in said
    assert "thing=1" in said
    assert token not in said


def test_workers_leave_what_the_modules_of_tasks_have_set_up() -> None:
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    as_workers_and_beats_do()
    assert [type(one) for one in structlog.get_config()["processors"]] == [structlog.processors.JSONRenderer]
