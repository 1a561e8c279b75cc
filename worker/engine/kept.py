"""Results kept in Redis in front of Postgres: Redis, miss, Postgres, fill; and waiting for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import TimeoutError
from kombu.exceptions import EncodeError

from worker.db import repeatable
from worker.engine.ending import Ending
from worker.errors import LoadFailed, StoreUnavailable
from worker.ledger import results
from worker.ledger.message import encode
from worker.ledger.publish import publish
from worker.settings import settings
from worker.states import JobState
from worker.store import cache, keys
from worker.telemetry import OUTAGES

_PREFIX = keys.result("")
#: Jobs up to which their standing is shared between those who ask; of more, one query costs less than asking about each.
_FEW = 100
#: Longest id that is shared: ours are UUIDs, callers may ask for anything.
_LONGEST = 255


class KeptResults(KeyValueStoreBackend):  # type: ignore[misc]
    """Results as Celery's clients know them, with Postgres behind.

    **Guarantee:** a result is read after a flush or an outage of Redis as well, for as long as history is kept.
    """

    supports_autoexpire = True
    supports_native_join = True
    persistent = True

    def _json(self, value: Any) -> str:
        """Return a result as JSON text. Raises `EncodeError`, which fails the task, for what Postgres would not take as JSON."""
        text = str(self.encode(value))
        if "NaN" in text or "Infinity" in text:
            try:
                json.dumps(json.loads(text), allow_nan=False)
            except ValueError as exc:
                raise EncodeError(f"the result holds NaN or Infinity, for which JSON has no word: {exc}") from exc
        return text

    def _meta(self, task_id: str, encoded: Any, state: str, traceback: Any, request: Any) -> dict[str, Any]:
        meta: dict[str, Any] = self._get_result_meta(result=encoded, state=state, traceback=traceback, request=request)
        return {**meta, "task_id": task_id}

    def _success(self, task_id: str, result: str, request: Any) -> str:
        """Return the document of a success, as `_meta` makes it, from a result that is JSON text already."""
        if self.app.conf.result_extended or request.children:
            return str(self.encode(self._meta(task_id, json.loads(result), states.SUCCESS, None, request)))
        meta = {
            "status": states.SUCCESS, "result": msgspec.Raw(result.encode()), "traceback": None, "children": [],
            "date_done": datetime.now(UTC).isoformat(), "task_id": task_id,
        }  # fmt: skip
        if request.group:
            meta["group_id"] = request.group
        if request.parent_id:
            meta["parent_id"] = request.parent_id
        return encode(meta).decode()

    def tell(self, task_id: str, state: str, meta: Any) -> None:
        """Wake whoever watches a running job; the news is not kept, since the job's row tells it for as long as it is true."""
        results.status.invalidate(task_id)
        try:
            cache().ask([("PUBLISH", keys.result(task_id), self.encode(self._meta(task_id, meta, state, None, None)))])
        except StoreUnavailable:
            OUTAGES.labels("results", "nobody woken").inc()

    def _write_through(self, task_id: str, text: str) -> None:
        self.set(keys.result(task_id), text)

    def _renew_standing(self, task_id: str) -> None:
        """Let the next who asks look how a job stands now; nobody waits for that."""
        try:
            cache().tell(results.renewing(task_id))
        except StoreUnavailable:
            OUTAGES.labels("results", "not written through").inc()

    def get(self, key: Any) -> Any:
        """Return the value of a key, from Postgres when Redis does not have it."""
        return self.mget([key])[0]

    def mget(self, wanted: Sequence[Any]) -> list[Any]:
        """Return the values of several keys; for those without a result in Redis, how their jobs stand by Postgres.

        A job that has not ended is looked up once a second, however many ask, and anew as soon as it tells its progress.
        """
        names = [key.decode() if isinstance(key, bytes) else key for key in wanted]
        found = self._from_cache(names)
        ids = [name.removeprefix(_PREFIX) for name in names]
        # What is cached and not final is a state that a task gave itself: its row may have ended meanwhile.
        doubtful = [job_id for job_id, value in zip(ids, found, strict=True) if not _is_final(value)]
        if not doubtful:
            return found
        kept = self._standing(doubtful)
        return [
            kept[job_id] if job_id in kept and (value is None or _is_final(kept[job_id])) else value
            for job_id, value in zip(ids, found, strict=True)
        ]

    def _from_cache(self, names: list[str]) -> list[Any]:
        try:
            (values,) = cache().ask([("MGET", *names)])
            return [None if _is_replayed(value) else value for value in values]
        except StoreUnavailable:
            OUTAGES.labels("results", "read from postgres").inc()
            return [None] * len(names)

    def _standing(self, job_ids: list[str]) -> dict[str, Any]:
        if len(job_ids) > _FEW or any(len(job_id) > _LONGEST for job_id in job_ids):
            return self._from_ledger(job_ids)
        try:
            found = results.status.get_many_or_load(job_ids, self._from_ledger)
        except LoadFailed:  # for somebody else, a moment ago: Postgres may be back
            return self._from_ledger(job_ids)
        return {job_id: text for job_id, text in found.items() if text is not None}

    def _from_ledger(self, job_ids: list[str]) -> dict[str, Any]:
        texts: dict[str, Any] = {}
        for row in repeatable(lambda conn: results.read(conn, job_ids)):
            text = self.encode(_meta_of(row)).encode()
            texts[row.id] = text
            if row.finished_at is not None:
                self._fill(row.id, text)
        return texts

    def _fill(self, job_id: str, text: bytes) -> None:
        try:
            cache().ask([("SET", keys.result(job_id), text, "EX", settings().result_ttl_s, "NX")])
        except StoreUnavailable:
            OUTAGES.labels("results", "not filled").inc()

    def set(self, key: Any, value: Any) -> None:
        """Write a value through to Redis with its life, and wake whoever waits for it; Postgres has it already."""
        try:
            # A worker does not wait for the answer: it would cost a fifth of a short job, to learn that a copy was kept.
            cache().tell([("SET", key, value, "EX", settings().result_ttl_s), ("PUBLISH", key, value)])
        except StoreUnavailable:
            OUTAGES.labels("results", "not written through").inc()

    def delete(self, key: Any) -> None:
        """Forget a key in Redis."""
        try:
            cache().ask([("DEL", key)])
        except StoreUnavailable:
            OUTAGES.labels("results", "not deleted").inc()

    def _forget(self, task_id: str) -> None:
        repeatable(lambda conn: results.forget(conn, task_id))
        self.delete(keys.result(task_id))
        results.status.invalidate(task_id)

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_interval: Any = None
    ) -> Any:
        """Wait for a job's end: woken by Redis, and asking by itself every `interval` seconds in case nobody wakes it.

        Raises `celery.exceptions.TimeoutError` after `timeout` seconds.
        """
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        with self._watch(task_id) as wait:
            while True:
                meta = self.get_task_meta(task_id)
                if meta["status"] in states.READY_STATES:
                    return meta
                if on_interval:
                    on_interval()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("The operation timed out.")
                wait(min(x for x in (pause, left) if x is not None))
                pause = min(pause * 2, max(interval, 0.01))

    def get_many(self, task_ids: Any, timeout: float | None = None, interval: float = 0.05, **kwargs: Any) -> Any:
        """Yield the results of many jobs as they end, asking for all that are missing in one round trip."""
        return super().get_many(task_ids, timeout=timeout, interval=min(interval, 0.05), **kwargs)

    @contextmanager
    def _watch(self, task_id: str) -> Iterator[Any]:
        try:
            pubsub = cache().pubsub()
            with cache().use():
                pubsub.subscribe(keys.result(task_id))
        except StoreUnavailable:
            yield time.sleep
            return

        def wait(seconds: float) -> None:
            until = time.monotonic() + seconds
            try:
                while (left := until - time.monotonic()) > 0:
                    with cache().use():
                        if pubsub.get_message(timeout=left) is not None:
                            return
            except StoreUnavailable:
                time.sleep(max(0.0, until - time.monotonic()))

        try:
            yield wait
        finally:
            pubsub.close()

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Do nothing when a task is called: results are subscribed to by those who wait."""
        return {}

    def tell_all(self, ending: Ending) -> None:
        for job_id, text in ending.told:
            self._write_through(job_id, text)
        publish(ending.sendables)


def _is_final(text: Any) -> bool:
    """Tell whether a cached result is there and final. A group's has no status, and is."""
    return text is not None and _status_of(text) in states.READY_STATES


def _is_replayed(text: Any) -> bool:
    """Tell whether a result only stands there to keep the one from before a replay out; the job's row knows better."""
    return text is not None and _status_of(text) == states.PENDING


def _status_of(text: Any) -> Any:
    try:
        return json.loads(text).get("status", states.SUCCESS)
    except (ValueError, AttributeError):
        return states.SUCCESS


def _meta_of(row: results.Row) -> dict[str, Any]:
    """Return a row as Celery's result document."""
    meta: dict[str, Any] = {
        "status": results.CELERY_STATUS[row.state], "result": row.result, "traceback": row.traceback,
        "children": row.children or [], "date_done": row.finished_at and row.finished_at.isoformat(), "task_id": row.id,
    }  # fmt: skip
    if row.state == JobState.RUNNING and row.progress:
        meta.update(status="PROGRESS", result=row.progress)
    elif row.state == JobState.SCHEDULED and row.attempt:
        meta.update(status=states.RETRY)
    if meta["status"] in states.EXCEPTION_STATES and meta["result"] is None:
        kind = "TaskRevokedError" if meta["status"] == states.REVOKED else "JobFailed"
        meta["result"] = {"exc_type": kind, "exc_message": [row.error or row.state], "exc_module": "celery.exceptions"}
    if row.group_id:
        meta["group_id"] = row.group_id
    if row.parent_id:
        meta["parent_id"] = row.parent_id
    return meta
