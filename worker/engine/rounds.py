"""A thread that does one thing round after round and waits out the outages of either server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.errors import LedgerUnavailable, StoreUnavailable, StreamGone
from worker.telemetry import OUTAGES, log

logger = log(__name__)

#: Seconds until the next round after one that failed.
_AGAIN_S = 1.0


class Rounds(threading.Thread):
    """Runs rounds until `stopping` is set; one that tells there may be more is followed at once, else after `rest_s`."""

    def __init__(self, name: str, round: Callable[[], bool], stopping: threading.Event, rest_s: float) -> None:
        super().__init__(name=f"holdfast-{name}", daemon=True)
        self._what, self._round, self._stopping, self._rest_s = name, round, stopping, rest_s

    def run(self) -> None:
        """Work until `stopping` is set."""
        while not self._stopping.is_set():
            try:
                if not self._round():
                    self._stopping.wait(self._rest_s)
            except StreamGone as exc:
                logger.warning("the broker lost its memory", error=str(exc))
            except StoreUnavailable as exc:
                self._wait("waits for redis", exc)
            except LedgerUnavailable as exc:
                self._wait("waits for postgres", exc)
            except Exception:  # A thread that ended would be missed by nobody.
                OUTAGES.labels(self._what, "round failed").inc()
                logger.exception("a round failed and is tried again", thread=self._what)
                self._stopping.wait(_AGAIN_S)

    def _wait(self, policy: str, exc: Exception) -> None:
        OUTAGES.labels(self._what, policy).inc()
        logger.debug(policy, thread=self._what, error=str(exc))
        self._stopping.wait(_AGAIN_S)
