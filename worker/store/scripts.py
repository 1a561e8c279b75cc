"""Lua scripts, one file each, loaded once and called by digest."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.commands.core import Script as _Registered

#: The scripts in use, by digest.
_sources: dict[str, str] = {}


class Script:
    """A script of `store/lua`, named as its file; `a+b` is the files a and b, one behind the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = "".join((files("worker.store") / "lua" / f"{part}.lua").read_text() for part in name.split("+"))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self._registered: _Registered | None = None

    def __call__(self, client: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Run the script on a client or a pipeline of it; a server that forgot it is taught it again."""
        if self._registered is None:
            self._registered = client.register_script(self.source)
        return self._registered(keys=keys, args=args, client=client)

    def command(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """Return the command that runs the script, for `Client.ask`."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    found = Script(name)
    _sources[found.sha] = found.source
    return found


def taught(command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the command with its script whole, for a server that does not know the script's digest."""
    return ("EVAL", _sources[command[1]], *command[2:])
