"""Celery's own commands, run in this process on our application."""

from __future__ import annotations

from worker.cli.exits import ExitCode
from worker.cli.output import note
from worker.cli.registry import find_modules_here


def celery(arguments: list[str]) -> int:
    """Run `celery -A worker.app …` in this process and return its exit code."""
    import click
    from celery import maybe_patch_concurrency

    find_modules_here()
    maybe_patch_concurrency(["celery", *arguments])
    from celery.bin.celery import celery as command

    try:
        code = command.main(
            ["-A", "worker.app", *arguments], prog_name="celery", standalone_mode=False, auto_envvar_prefix="CELERY"
        )
    except click.ClickException as exc:
        note(exc.format_message())
        return ExitCode.USAGE
    return code if isinstance(code, int) else ExitCode.OK
