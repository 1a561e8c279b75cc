"""`holdfast up`: everything in one terminal."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import flower, gateway, options
from worker.cli.invitation import invite
from worker.cli.output import note
from worker.cli.services import check_servers, services
from worker.cli.worker import processes, specs
from worker.errors import SettingsError

if TYPE_CHECKING:
    from worker.cli.supervisor import Spec
    from worker.embedded import Stack


def up(
    number: Annotated[
        int, typer.Option("--processes", parser=processes, metavar="N|auto", help="Workers to run; auto: one a CPU.")
    ] = "1",  # type: ignore[assignment]
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-c", min=1, help="Jobs a worker runs at a time.")] = None,
    queues: Annotated[
        str | None, typer.Option("--queues", "-Q", metavar="NAMES", help="Queues to serve, separated by commas.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Flower; by default the first free one from 5555.")
    ] = None,
    with_flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Whether to run Flower.")] = True,
    with_gateway: Annotated[bool, typer.Option("--gateway/--no-gateway", help="Whether to run the HTTP gateway.")] = True,
    gateway_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of the gateway; by default the first free one from 8000.")
    ] = None,
    loglevel: options.LogLevel = None,
) -> None:
    """Run relay, beat, workers, gateway and Flower in this terminal, and the servers too unless real ones are configured.

    What dies is started again. Ctrl-C stops all of it: once lets running jobs finish, twice hands them back.
    """
    with services() as stack:
        check_servers()
        from worker.cli.supervisor import Supervisor

        programs = [_holdfast("relay", loglevel), _holdfast("beat", loglevel)]
        programs += specs(number, "worker", queues, concurrency, None, with_flower, loglevel, [])
        addresses: dict[str, str] = {}
        if with_gateway:
            at = _port("The gateway", "--gateway-port", gateway_port, gateway.PORT)
            programs.append(_holdfast("gateway", loglevel, "--port", str(at)))
            addresses["HOLDFAST_CONSOLE_URL"] = console = f"http://127.0.0.1:{at}/console"
            # Real servers may be others' as well: who may see them is theirs to say.
            invite(console) if stack else note(f"the console: {console}/ (`holdfast operators add` lets people in)")
        if with_flower:
            at = _port("Flower", "--port", port, flower.PORT)
            programs.append(_holdfast("flower", None, "--port", str(at)))
            addresses["HOLDFAST_FLOWER_URL"] = f"http://127.0.0.1:{at}/"
        supervisor = Supervisor([_located(spec, addresses) for spec in programs], tend=_healer(stack, note) if stack else None)
        raise typer.Exit(supervisor.run())


def _holdfast(name: str, loglevel: str | None, *arguments: str) -> Spec:
    from worker.cli.supervisor import Spec

    level = ["--loglevel", loglevel] if loglevel else []
    return Spec(name, [sys.executable, "-m", "worker.cli", name, *level, *arguments])


def _located(spec: Spec, addresses: Mapping[str, str]) -> Spec:
    """Tell a program where the servers are, so that it need not join the embedded stack by itself, and where the others."""
    from dataclasses import replace

    from worker.settings import settings

    conf = settings()
    urls = {"DATABASE_URL": conf.database_url, "REDIS_URL": conf.redis_url, "CACHE_URL": conf.cache_url}
    set_by_people = {name for name in addresses if getattr(conf, name.removeprefix("HOLDFAST_").lower())}
    return replace(spec, env={**urls, **{name: url for name, url in addresses.items() if name not in set_by_people}})


def _port(what: str, option: str, given: int | None, first: int) -> int:
    """Return a port to listen on, and say what will be there. Raises `SettingsError` when the one given is taken."""
    if given is not None and not _is_free(given):
        raise SettingsError(f"{option}: {given} is taken")
    port = given or next((port for port in range(first, first + 100) if _is_free(port)), first)
    note(f"{what} will be at http://127.0.0.1:{port}")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _healer(stack: Stack, say: Callable[[str], None]) -> Callable[[], None]:
    """Return what starts an embedded server again that has died."""

    def heal() -> None:
        for server in stack.servers:
            if server.process() is None:
                say(f"the embedded {server.name} has died; it starts again")
                try:
                    server.start()
                except SettingsError as exc:
                    say(str(exc).splitlines()[0])

    return heal
