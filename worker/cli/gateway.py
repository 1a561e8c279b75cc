"""`holdfast gateway`: HTTP for services in any language."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from worker.cli import options
from worker.cli.output import note
from worker.cli.registry import load
from worker.cli.services import check_servers, services

#: Where the gateway listens unless told.
PORT = 8000


def gateway(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; by default loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = PORT,
    loglevel: options.LogLevel = None,
) -> None:
    """Serve HTTP: services hand in jobs, follow them and look at the system, each with a key of `holdfast callers add`.

    SIGTERM and Ctrl-C end it once all requests are answered. It speaks plain HTTP: put what ends TLS before it.
    """
    with services():
        from worker import telemetry
        from worker.db import name_connections
        from worker.gateway import create_app
        from worker.gateway.server import listen, make_server, serve
        from worker.settings import settings

        celery = load()
        check_servers()
        telemetry.configure(loglevel or settings().log_level, as_json=settings().log_json)
        name_connections("holdfast gateway")
        app, shared = create_app(celery)
        gc.freeze()  # what was imported stays: a full collection, a tenth of a second for all that wait, need not walk it
        with listen(host, port) as sock:
            server = make_server(
                app, shared, grace_s=settings().shutdown_grace_s,
                ready=lambda: note(f"gateway ready at http://{host}:{port}"),
            )  # fmt: skip
            serve(server, sock)
