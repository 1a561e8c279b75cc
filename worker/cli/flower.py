"""`holdfast flower`: Flower, asking for a password, or on loopback only."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Annotated

import typer

from worker.cli.services import services
from worker.errors import SettingsError

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

        if not settings().flower_auth:
            # Its API sends tasks and refuses to without a password, unless this says that who reaches it may.
            os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
        # The password is an argument of a call in this process, so it is in no list of processes.
        raise typer.Exit(celery(arguments(settings().flower_auth, port, address, context.args)))


def arguments(auth: str, port: int, address: str | None, extra: list[str]) -> list[str]:
    """Return the arguments of `celery` that start Flower. Raises `SettingsError` for a password that is none, or is needed."""
    if auth and not all(auth.partition(":")):
        raise SettingsError("HOLDFAST_FLOWER_AUTH must be user:password")
    listen = address if address is not None else "" if auth else "127.0.0.1"
    if not auth and not _is_loopback(listen):
        raise SettingsError(f"Flower on {listen!r} would be open to all who reach it: set HOLDFAST_FLOWER_AUTH to user:password")
    given = [f"--address={listen}", f"--port={port}", "--persistent=False", *([f"--basic_auth={auth}"] if auth else [])]
    return ["flower", *extra, *given]


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
