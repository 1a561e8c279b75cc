"""What is looked at: the settings, both Redis servers and the application; what a server tells is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

import psycopg

from worker.db import is_away, statement
from worker.doctor.keyspace import Keyspace, Sized, read_keyspace, sizes
from worker.errors import LedgerUnavailable
from worker.settings import Settings, settings
from worker.store.client import Role

#: Seconds for one answer. Who looks for what is wrong waits for a slow server rather than call it gone.
_PATIENCE_S = 5.0


class Server:
    """One Redis server in one of its roles."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        self.role = Role(f"doctor-{name}", url, _PATIENCE_S)

    def ask(self, *command: Any) -> Any:
        """Return the bare answer to one command. Raises `StoreUnavailable`, and `StoreRefused` where it is not allowed."""
        return self.role.ask([command])[0]

    @cached_property
    def info(self) -> dict[str, str]:
        """What `INFO` tells, all sections."""
        lines = (line.partition(":") for line in self.ask("INFO", "all").decode(errors="replace").splitlines())
        return {name: value for name, _, value in lines if value}

    def number(self, name: str) -> float:
        """Return a figure of `INFO`; 0 where the server does not tell it."""
        return float(self.info.get(name, 0))

    @cached_property
    def config(self) -> dict[str, str]:
        """What it is configured to. Raises `StoreRefused` where `CONFIG` is not for us, as on most managed servers."""
        return {name: value.decode() for name, value in fields(self.ask("CONFIG", "GET", "*")).items()}

    @cached_property
    def keyspace(self) -> Keyspace:
        """Its keys, looked at page by page."""
        return read_keyspace(self.role)

    @cached_property
    def sample(self) -> list[Sized]:
        """Some of its keys, with their size and use."""
        lfu = self.info.get("maxmemory_policy", "").endswith("-lfu")
        return list(sizes(self.role, self.keyspace.lasting, lfu=lfu))

    def clock(self) -> float:
        """Return its time in seconds since 1970."""
        seconds, micros = self.ask("TIME")
        return int(seconds) + int(micros) / 1_000_000


class Site:
    """Everything that is looked at."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.conf: Settings = settings()
        self.coordination = Server("coordination", self.conf.redis_url)
        self.cache = Server("cache", self.conf.cache_url)
        #: Why Postgres cannot be asked; empty until it was away.
        self._silence = ""

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.coordination, self.cache

    @contextmanager
    def ledger(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection as `statement` does, and of a server that was away once say so at once: each wait is of seconds."""
        if self._silence:
            raise LedgerUnavailable(self._silence)
        try:
            with statement() as conn:
                yield conn
        except LedgerUnavailable as exc:
            if is_away(exc):
                self._silence = str(exc)
            raise

    def close(self) -> None:
        """Close the connections."""
        for server in self.servers:
            server.role.close()


@contextmanager
def visit(app: Any) -> Iterator[Site]:
    """Lend a site for the length of an examination."""
    with closing(Site(app)) as site:
        yield site


def fields(answer: Any) -> dict[str, Any]:
    """Return an answer of names and values as a dictionary, whichever way the protocol puts it."""
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}
