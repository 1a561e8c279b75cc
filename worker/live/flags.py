"""Flags: rules that say for whom something is on, decided in this process from a snapshot of all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from worker.errors import InvalidLive

#: A roll-out is told in hundredths of a percent.
WHOLE = 10_000
#: Longest name or value, in characters.
LONGEST = 255
#: Most values that a rule lists of one attribute: more are data, not a rule.
MOST_VALUES = 1000

#: Values by attribute, such as {"caller": ["acme"]}.
Listed = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Flag:
    """One rule. What it denies is off, what it allows is on, and for the rest it is off, on, or on for a share of the keys.

        flag = Flag("new-report", on=True, share=2500, allow={"caller": frozenset({"acme"})})
        flag.is_on("job-7", {"caller": "acme"})    # True

    **Guarantee:** the same rule decides the same for the same key and attributes, in every process, release and restart, and one
    that is rolled out further stays on where it was on.
    """

    name: str
    on: bool = True
    #: Hundredths of a percent; None for all.
    share: int | None = None
    allow: Listed = field(default_factory=dict)
    deny: Listed = field(default_factory=dict)
    #: The change that made it what it is.
    revision: int = 0

    @property
    def restricts(self) -> bool:
        """Tell whether it is off for anybody."""
        return not self.on or bool(self.deny) or (self.share is not None and self.share < WHOLE)

    @property
    def is_off_for_all(self) -> bool:
        """Tell whether it is off whoever asks."""
        return (not self.on or self.share == 0) and not self.allow

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes it looks at; `key` for one rolled out in part."""
        by = {"key"} if self.on and self.share not in (None, 0, WHOLE) else set()
        return frozenset({*self.allow, *self.deny, *by})

    def is_on(self, key: str = "", attributes: Mapping[str, str | None] | None = None) -> bool:
        """Tell whether it is on for a key with these attributes; the key is an attribute too, called `key`."""
        if self.deny and _fits(self.deny, key, attributes):
            return False
        if self.allow and _fits(self.allow, key, attributes):
            return True
        if not self.on or self.share is None:
            return self.on
        return place_of(self.name, key) < self.share

    def plain(self) -> dict[str, Any]:
        """Return the rule as JSON holds it."""
        return {
            "on": self.on, "share": self.share,
            "allow": {name: sorted(values) for name, values in self.allow.items()},
            "deny": {name: sorted(values) for name, values in self.deny.items()},
        }  # fmt: skip

    def __str__(self) -> str:
        rule = "off" if not self.on else "on" if self.share is None else f"on for {self.share / 100:g} %"
        for told, listed in (("on", self.allow), ("off", self.deny)):
            if listed:
                values = (f"{name}={value}" for name, of in sorted(listed.items()) for value in sorted(of))
                rule += f", {told} for {', '.join(values)}"
        return rule


def _fits(listed: Listed, key: str, attributes: Mapping[str, str | None] | None) -> bool:
    for name, values in listed.items():
        value = attributes.get(name) if attributes is not None else None
        if (key if value is None and name == "key" else value) in values:
            return True
    return False


def place_of(name: str, key: str) -> int:
    """Return where a key stands in the roll-out of a flag, from 0 to 9,999: one that is rolled out further keeps all it had."""
    digest = hashlib.sha256(f"{name}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % WHOLE


def flag(
    name: str, *, on: bool = True, share: int | None = None, allow: Mapping[str, Iterable[str]] | None = None,
    deny: Mapping[str, Iterable[str]] | None = None, revision: int = 0,
) -> Flag:  # fmt: skip
    """Return a flag whose rule was looked through. Raises `InvalidLive` that names what is wrong with it."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable() or name != name.strip():
        raise InvalidLive(f"flag: {name!r} is not a name of 1 to {LONGEST} printable characters without blanks around it")
    if type(on) is not bool:
        raise InvalidLive(f"flag {name}: on: {on!r} is neither true nor false")
    if share is not None and (type(share) is not int or not 0 <= share <= WHOLE):
        raise InvalidLive(f"flag {name}: share: {share!r} is not a number of hundredths of a percent, from 0 to {WHOLE}")
    return Flag(name, on, share, _listed(name, "allow", allow or {}), _listed(name, "deny", deny or {}), revision)


def parse_listed(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return values by attribute out of texts like `caller=acme`. Raises `InvalidLive` that quotes what is none."""
    found: dict[str, list[str]] = {}
    for text in texts:
        attribute, _, value = text.partition("=")
        if not attribute or not value:
            raise InvalidLive(f"{text!r} is not attribute=value, such as caller=acme")
        found.setdefault(attribute, []).append(value)
    return found


def _listed(name: str, what: str, given: Mapping[str, Iterable[str]]) -> Listed:
    found = {attribute: frozenset([] if isinstance(values, str) else values) for attribute, values in given.items()}
    for attribute, values in found.items():
        if not attribute or not values or len(values) > MOST_VALUES or not all(isinstance(v, str) and v for v in values):
            raise InvalidLive(
                f"flag {name}: {what}: {attribute!r} lists {len(values)} values; write attribute=value, at most {MOST_VALUES}"
            )
    return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All flags as they stood at one version. A version grows with every change; -1 is that of a process that never saw any."""

    version: int = -1
    flags: Mapping[str, Flag] = field(default_factory=dict)

    def is_on(self, name: str, key: str = "", *, default: bool = False, **attributes: str | None) -> bool:
        """Tell whether a flag is on; one that does not exist is as `default` says."""
        found = self.flags.get(name)
        return default if found is None else found.is_on(key, attributes)

    def encode(self) -> bytes:
        """Return the snapshot as JSON."""
        rules = [{"name": f.name, "revision": f.revision, **f.plain()} for f in self.flags.values()]
        return msgspec.json.encode({"version": self.version, "flags": rules})


def decode(text: bytes) -> Snapshot:
    """Read what `Snapshot.encode` wrote. Raises `InvalidLive` for anything else."""
    try:
        found = json.loads(text)
        flags = [flag(**rule) for rule in found["flags"]]
        return Snapshot(int(found["version"]), {one.name: one for one in flags})
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidLive(f"flags: the kept snapshot cannot be read: {exc}") from exc
