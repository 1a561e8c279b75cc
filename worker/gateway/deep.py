"""What `holdfast doctor` finds, for an operator who asks the gateway."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from worker.doctor import Report, examine
from worker.engine.application import Holdfast

#: Seconds for which a report is given again: to look at all keys keeps a thread busy for seconds.
_AGAIN_S = 30.0


class Doctor:
    """Examines once in half a minute at most, one at a time."""

    def __init__(self, celery: Holdfast) -> None:
        self._celery = celery
        self._until = 0.0
        self._report = Report((), {})
        self._lock = asyncio.Lock()

    async def look(self) -> dict[str, Any]:
        """Return the worst severity, the findings, and the checks that could not be made."""
        async with self._lock:
            if time.monotonic() >= self._until:
                self._report = await asyncio.to_thread(examine, self._celery)
                self._until = time.monotonic() + _AGAIN_S
            return self._report.document()
