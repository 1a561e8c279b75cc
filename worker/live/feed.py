"""The newest flags a process knows, kept current by a thread: a nudge through Redis, and a look at the record every so often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import uniform

from worker.errors import HoldfastError, InvalidLive
from worker.live.flags import Snapshot, decode
from worker.live.hearing import hub
from worker.settings import settings
from worker.store import cache, coordination, keys, script
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: Milliseconds for which the kept snapshot outlives the last look that confirmed it.
_KEPT_MS = 86_400_000
#: Looks between two confirmations of the kept snapshot: minutes, against a life of a day.
_CONFIRM_EVERY = 600
#: Seconds a stopped feed may take for the look it is at.
_STOP_S = 5.0

_keep = script("flags_keep")

#: Reads the flags from the record: given the version known, it returns a newer or older snapshot, or None for the same.
#: It raises `HoldfastError` when the record is away.
Read = Callable[[int], Snapshot | None]


class Feed:
    """The flags of one process. `read` asks the record, which alone is right; without it the last snapshot goes on.

        feed = Feed(read_flags)
        if feed.snapshot.is_on("new-report", user_id): ...

    **Guarantee:** a change is seen within the setting `flags_poll_s` and a read of the record, mostly at once; while the record
    is away, each process goes by the last flags it saw, and one that starts then by the copy in the cache's Redis, if that is
    there. Nothing here fails for it. It goes by no clock of a server.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._poll_s = settings().flags_poll_s
        self.snapshot = Snapshot()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._looks = 0
        #: One looks at a time, or a slow one would put an older snapshot in the place of a newer.
        self._looking = threading.Lock()
        self.look()
        self._thread = threading.Thread(target=self._run, name="holdfast-flags", daemon=True)
        self._thread.start()
        hub().join(keys.flags(), self)

    def look(self) -> bool:
        """Look for a newer snapshot here and now; tell whether the record answered."""
        with self._looking:
            self._looks += 1
            try:
                found = self._read(self.snapshot.version)
            except HoldfastError as exc:
                OUTAGES.labels("flags", "last snapshot").inc()
                logger.debug("the flags could not be read", error=str(exc))
                self._take_kept()
                return False
            except Exception:  # whatever it is: who asks for a flag goes by the last ones
                logger.exception("the flags could not be read")
                return False
            if found is not None:
                self.snapshot = found
            if found is not None or self._looks % _CONFIRM_EVERY == 0:
                self._keep_copy()
            return True

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._wake.set()
        hub().leave(keys.flags(), self)
        if self._thread is not threading.current_thread():
            self._thread.join(_STOP_S)

    # ---- called in the listener's thread

    def heard(self, channel: str, message: bytes) -> None:
        """Look at once."""
        self._wake.set()

    def listening(self, channel: str) -> None:
        """Look at once: what was nudged before this was not heard."""
        self._wake.set()

    def deaf(self) -> None:
        """Go by looking every so often until it hears again."""

    def _run(self) -> None:
        while not self._stop.is_set():
            # Not all processes at once: a hundred would ask in the same moment, twice a second.
            self._wake.wait(self._poll_s * uniform(0.8, 1.0))
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self.look()
            except Exception:  # whatever it is: a thread that ended would leave this process with old flags for ever
                logger.exception("the flags could not be looked at")

    def _keep_copy(self) -> None:
        try:
            cache().ask([_keep.command([keys.flags()], [self.snapshot.version, self.snapshot.encode(), _KEPT_MS])])
        except HoldfastError:
            OUTAGES.labels("flags", "not kept").inc()

    def _take_kept(self) -> None:
        try:
            (kept,) = cache().ask([("HGET", keys.flags(), "flags")])
            found = decode(kept) if kept is not None else None
        except InvalidLive as exc:
            logger.warning("the kept flags cannot be read", error=str(exc))
            return
        except HoldfastError:
            return
        if found is not None and found.version > self.snapshot.version:
            self.snapshot = found


def nudge() -> None:
    """Tell every process that flags have changed. One that does not hear it finds out by itself."""
    try:
        coordination().ask([("PUBLISH", keys.flags(), "!")])
    except HoldfastError:
        OUTAGES.labels("flags", "found by polling").inc()
