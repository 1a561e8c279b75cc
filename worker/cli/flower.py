"""`holdfast flower`: Flower, which always asks for a password or for the console's login."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from worker.cli.output import note
from worker.cli.services import services

#: Where Flower listens unless told.
PORT = 5555


def flower(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = PORT,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to listen on; by default all with HOLDFAST_FLOWER_AUTH, loopback without."),
    ] = None,
) -> None:
    """Run Flower. Options that Holdfast does not know are passed on to it."""
    with services():
        from worker.cli.stock import celery
        from worker.settings import settings

        conf = settings()
        if conf.console_url and not conf.flower_auth:
            from worker.cli import flower_login

            flower_login.install()
            raise typer.Exit(celery(behind_the_console(flower_login.PROVIDER, port, address, context.args)))
        # The password is an argument of a call in this process, so it is in no list of processes.
        raise typer.Exit(celery(arguments(conf.flower_auth, port, address, context.args)))


def arguments(auth: str, port: int, address: str | None, extra: list[str]) -> list[str]:
    """Return the arguments of `celery` that start Flower; where no password is set, one is made up and told.

    Flower can send tasks and stop workers: without a password, a page in the browser of whoever runs it could do so as well.
    """
    listen = address if address is not None else "" if auth else "127.0.0.1"
    if not auth:
        auth = f"holdfast:{secrets.token_urlsafe(12)}"
        note(f"Flower asks for user and password: {auth.replace(':', ' ')} (HOLDFAST_FLOWER_AUTH sets your own)")
    return ["flower", *extra, f"--address={listen}", f"--port={port}", "--persistent=False", f"--basic_auth={auth}"]


def behind_the_console(provider: str, port: int, address: str | None, extra: list[str]) -> list[str]:
    """Return the arguments of `celery` that start Flower behind the console's login.

    With `--auth` it asks for its own token with each form as well; whom that names is never looked at.
    """
    return ["flower", *extra, f"--address={address or '127.0.0.1'}", f"--port={port}", "--persistent=False", "--auth=console",
            f"--auth_provider={provider}"]  # fmt: skip
