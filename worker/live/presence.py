"""Who is at a place: members with their devices, by signs of life; and who is typing there."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.errors import HoldfastError, InvalidLive
from worker.live.hearing import hub
from worker.settings import settings
from worker.store import coordination, keys, script
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: The life of a sign, in heartbeats. Whoever dies is off the list after so many at most, and the diff that tells of it comes with
#: the next look, a quarter later: two in all. A living one may be late by three quarters of a heartbeat.
LIFE_BEATS = 1.75
#: Looks for the silent that a watcher takes in each heartbeat.
_LOOKS = 4
#: Seconds for which somebody is shown typing after the last stroke.
TYPING_S = 4.0
#: Longest name, in characters, and most devices of one call.
LONGEST, _AT_ONCE = 255, 500
#: Diffs that wait for a watcher; one that reads none for so long begins anew with the whole list.
_WAITING = 1000

_beat, _look = script("presence_beat"), script("presence_look")


class Diff(NamedTuple):
    """What has changed at a place. With `whole` set, `came` is everybody who is there, and nothing else is to be believed."""

    came: list[str]
    went: list[str]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is at a place. A member is there as long as one of its devices is.

        fleet = Presence("fleet")
        with fleet.keep("ann", "phone"):     # beats in a thread until the block ends
            print(fleet.online())            # {'ann': ['phone']}

    **Guarantee:** who stops giving signs is off the list within two heartbeats, and who gives one in each, at most three quarters
    of one late, is never off it. It fails open: while Redis is away, `online` raises `StoreUnavailable` and beats are counted as
    missed; a Redis that has lost its memory has the list back after a heartbeat. Lives are by the server's clock: when that jumps
    ahead all are off the list until their next sign, when it jumps back the dead stay for as much longer.
    """

    place: str
    #: Seconds between two signs; by default the setting `presence_beat_s`.
    beat_s: float | None = None

    def __post_init__(self) -> None:
        _checked("place", self.place)
        if self.beat_s is not None and not 0.1 <= self.beat_s <= 3600:
            raise InvalidLive(f"beat_s: {self.beat_s!r} is not a number of seconds from 0.1 to 3600")

    @property
    def key(self) -> str:
        """The devices that are here, and the channel on which it is told who comes and goes."""
        return keys.presence(self.place)

    @property
    def period_s(self) -> float:
        """The seconds between two signs."""
        return self.beat_s if self.beat_s is not None else settings().presence_beat_s

    @property
    def life_s(self) -> float:
        """The seconds after which somebody silent is taken for gone."""
        return LIFE_BEATS * self.period_s

    def beat(self, member: str, device: str = "") -> None:
        """Give a sign of life. Raises `StoreUnavailable`."""
        self.beat_all([(member, device)])

    def beat_all(self, devices: Iterable[tuple[str, str]]) -> None:
        """Give a sign of life of many members and devices, in few round trips. Raises `StoreUnavailable`."""
        self._tell(devices, self.life_s)

    def leave(self, member: str, device: str = "") -> None:
        """Say good-bye: it is told at once. Raises `StoreUnavailable`."""
        self._tell([(member, device)], 0.0)

    def sweep(self) -> None:
        """Evict the silent and tell of it, as every beat does. Raises `StoreUnavailable`."""
        coordination().ask([self._command([], self.life_s)])

    def _tell(self, devices: Iterable[tuple[str, str]], life_s: float) -> None:
        given = [[_checked("member", member), _checked("device", device, least=0)] for member, device in devices]
        parts = [given[start : start + _AT_ONCE] for start in range(0, len(given), _AT_ONCE)]
        coordination().ask([self._command(part, life_s) for part in parts])

    def _command(self, devices: list[list[str]], life_s: float) -> tuple[Any, ...]:
        args = [json.dumps(devices), int(life_s * 1000), int(2 * self.life_s * 1000) + 1000]
        return _beat.command([self.key, keys.members(self.key)], args)

    def online(self) -> dict[str, list[str]]:
        """Return the members that are here with their devices. Raises `StoreUnavailable`."""
        (found,) = coordination().ask([_look.command([self.key], [])])
        devices: dict[str, list[str]] = defaultdict(list)
        for member, device in map(json.loads, found):
            devices[member].append(device)
        return {member: sorted(devices[member]) for member in sorted(devices)}

    @contextmanager
    def keep(self, member: str, device: str = "") -> Iterator[Heart]:
        """Give signs of life in a thread for the length of the block. A Redis that is away only delays them."""
        heart = Heart(self, member, device)
        heart.start()
        try:
            yield heart
        finally:
            heart.stop()

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Hear who comes and goes for the length of the block: first everybody who is here, then the diffs."""
        watch = Watch(self)
        try:
            yield watch
        finally:
            watch.close()


@dataclass(frozen=True, slots=True)
class Typing(Presence):
    """Who is typing at a place: a member is, for four seconds after the last stroke it told of, or until it stops.

        typing = Typing("job:7")
        typing.beat("ann")          # with each stroke, or once a second
        typing.leave("ann")         # sent

    **Guarantee:** as `Presence`, with a life of its own: what is not told any more is over in four seconds.
    """

    @property
    def key(self) -> str:
        """Who is typing here, and the channel."""
        return keys.typing(self.place)

    @property
    def period_s(self) -> float:
        """The seconds within which the next stroke is expected."""
        return TYPING_S / LIFE_BEATS


class Heart:
    """The signs of life of one device, given by a thread."""

    def __init__(self, presence: Presence, member: str, device: str) -> None:
        self._presence, self._member, self._device = presence, _checked("member", member), _checked("device", device, least=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye, if it began and Redis is there to hear it."""
        self._stop.set()
        if self._thread.ident is None:
            return
        self._thread.join(settings().redis_timeout_s)
        try:
            self._presence.leave(self._member, self._device)
        except HoldfastError:
            OUTAGES.labels("presence", "runs out").inc()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                self._presence.beat(self._member, self._device)
            except HoldfastError:
                OUTAGES.labels("presence", "beat missed").inc()
            except Exception:  # whatever it is: who lives must not look dead for it
                logger.exception("a sign of presence could not be given")
            # By a grid, so that the time a beat takes does not add up; after a long halt, at once and then anew.
            due = max(due + self._presence.period_s, time.monotonic())
            self._stop.wait(due - time.monotonic())


class Watch:
    """Hears who comes and goes at one place, and looks for the silent itself, as the others there may all be dead."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._diffs: queue.Queue[Diff] = queue.Queue(_WAITING)
        self._stop = threading.Event()
        self._behind = False
        hub().join(presence.key, self)
        self._thread = threading.Thread(target=self._sweep, name="holdfast-presence-watch", daemon=True)
        self._thread.start()

    def next(self, timeout: float | None = None) -> Diff | None:
        """Return the next diff, waiting `timeout` seconds at most; None when there was none.

        After each time that something may have been missed it is the whole list.
        """
        try:
            return self._diffs.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop hearing."""
        self._stop.set()
        hub().leave(self._presence.key, self)

    # ---- called in the listener's thread

    def heard(self, channel: str, message: bytes) -> None:
        """Take a diff."""
        found = json.loads(message)
        self._put(Diff(found["came"], found["went"]))

    def listening(self, channel: str) -> None:
        """Begin with everybody who is here: from now on no diff is missed."""
        self._tell_whole()

    def deaf(self) -> None:
        """Learn that diffs are missed; the whole list comes once it hears again."""

    def _put(self, diff: Diff) -> None:
        try:
            self._diffs.put_nowait(diff)
        except queue.Full:
            self._behind = True

    def _tell_whole(self) -> None:
        try:
            self._put(Diff(list(self._presence.online()), [], whole=True))
        except HoldfastError:
            self._behind = True

    def _sweep(self) -> None:
        while not self._stop.wait(self._presence.period_s / _LOOKS):
            try:
                self._presence.sweep()
            except HoldfastError:
                OUTAGES.labels("presence", "not swept").inc()
                continue
            if self._behind and self._diffs.empty():
                self._behind = False
                self._tell_whole()


def _checked(what: str, name: str, *, least: int = 1) -> str:
    if not isinstance(name, str) or not least <= len(name) <= LONGEST:
        raise InvalidLive(f"{what}: {str(name)[:40]!r} is not a text of {least} to {LONGEST} characters")
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise InvalidLive(f"{what}: {name[:40]!r} holds half a character, which no JSON can") from exc
    return name
