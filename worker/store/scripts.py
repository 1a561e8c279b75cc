"""Lua scripts, one file each, loaded once and called by digest."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.commands.core import Script as _Registered


class Script:
    """A script of `store/lua`, named as its file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (files("worker.store") / "lua" / f"{name}.lua").read_text()
        self._registered: dict[int, _Registered] = {}

    def __call__(self, client: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Run the script on a client or a pipeline of it; a server that forgot it is taught it again."""
        registered = self._registered.get(id(client))
        if registered is None:
            # A pipeline lives for one call: what it registers is not kept.
            registered = client.register_script(self.source)
            if not isinstance(client, redis.client.Pipeline):
                self._registered[id(client)] = registered
        return registered(keys=keys, args=args, client=client)


@cache
def script(name: str) -> Script:
    """Return the script of this name."""
    return Script(name)
