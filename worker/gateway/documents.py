"""What is told of a job: read by how it stands, so that many who ask for one job cost Postgres about a query a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeVar

from cachetools import TTLCache

from worker.db import repeatable
from worker.errors import JobNotFound
from worker.ledger import manage
from worker.ledger.callers import Caller
from worker.states import FINAL_STATES
from worker.store import keys

T = TypeVar("T")

#: Seconds for which a document is told again while its job stands as it did.
_AGAIN_S = 1.0
_LONGEST_ID = 255

#: The fields of a job, in this order; the rest of its row is how the ledger works.
FIELDS = ("id", "task", "queue", "priority", "state", "args", "kwargs", "attempt", "max_attempts", "progress", "result", "error",
          "caller", "idempotency_key", "callback_url", "metadata", "cancel_requested", "created_at", "available_at", "expires_at",
          "started_at", "finished_at")  # fmt: skip
_ATTEMPT = ("attempt", "started_at", "ended_at", "outcome", "error")


class Documents:
    """The jobs as one process tells of them."""

    def __init__(self, look: Callable[[list[str]], list[Any]]) -> None:
        self._look = look
        self._kept: TTLCache[tuple[str, bytes], dict[str, Any]] = TTLCache(maxsize=256, ttl=_AGAIN_S)
        self._flights: dict[Any, asyncio.Future[Any]] = {}

    async def of(self, job_id: str, caller: Caller) -> dict[str, Any]:
        """Return a job's row with its attempts, as `manage.show` but for its message.

        Raises `JobNotFound`, for another caller's job too: that it exists is not told either.
        """
        if not job_id or len(job_id) > _LONGEST_ID or "\0" in job_id:
            raise _unknown(job_id)
        (text,) = await self._once(job_id, lambda: asyncio.to_thread(self._look, [keys.result(job_id)]))
        name = (job_id, blake2b(text.encode() if isinstance(text, str) else text or b"", digest_size=16).digest())
        row = self._kept.get(name)
        if row is None:
            row = await self._once(name, lambda: asyncio.to_thread(_read, job_id))
            if text is not None:
                self._kept[name] = row
        if not caller.is_admin and row["caller"] != caller.name:
            raise _unknown(job_id)
        return row

    def forget(self, job_id: str) -> None:
        """Read a job anew, for it has just been changed here."""
        for name in [name for name in self._kept if name[0] == job_id]:
            self._kept.pop(name, None)

    async def _once(self, name: Any, work: Callable[[], Awaitable[T]]) -> T:
        """Let those who ask for the same thing at the same moment share one answer."""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = asyncio.ensure_future(work())
            flight.add_done_callback(lambda _: self._flights.pop(name, None))
        return await asyncio.shield(flight)


def _unknown(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id[:_LONGEST_ID]!r}.", job_id=job_id)


def _read(job_id: str) -> dict[str, Any]:
    try:
        row = repeatable(lambda conn: manage.show(conn, job_id))
    except JobNotFound:
        raise _unknown(job_id) from None  # in the very words in which another caller's job is
    del row["message"]  # up to a megabyte, of which nothing is told
    return row


def is_final(row: Mapping[str, Any]) -> bool:
    """Tell whether a job has ended."""
    return row["state"] in FINAL_STATES


def job_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job as it is told, moments in UTC; its result only when it succeeded, for else that is its error."""
    told = {name: _plain(row.get(name)) for name in FIELDS}
    if row["state"] != "succeeded":
        told["result"] = None
    told["cancel_requested"] = bool(told["cancel_requested"])
    if "attempts" in row:
        told["attempts"] = [{name: _plain(one[name]) for name in _ATTEMPT} for one in row["attempts"]]
    return told


def _plain(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value
