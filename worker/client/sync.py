"""The client for programs with threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from worker.client import asking
from worker.client.asking import Ask, Tries
from worker.client.forms import Call, Event, Filters, Job, Options
from worker.client.frames import Following
from worker.errors import HoldfastError

_Ids = list[str]
_Outcomes = list[str | HoldfastError]
_Documents = list[dict[str, Any]]


class Client:
    """Jobs over HTTP.

        with Client("http://127.0.0.1:8000", key) as jobs:
            job_id = jobs.enqueue("http.call", kwargs={"url": "https://example.org/"}, idempotency_key="order-4711")
            print(jobs.wait(job_id).result)

    What can be repeated without harm is, with growing pauses or as long as the gateway asks, for `patience_s`; each answer gets
    `timeout_s`. Every method raises the error that the gateway tells (`worker.errors`, by its code), with `code`, `field` and
    `status`: `GatewayError` for what only HTTP has, such as a key that does not count, and `GatewayUnreachable`. May be used from
    many threads.

    **Guarantee:** once `enqueue` has returned, the job is committed. Each try brings the same key, one of its own if need be, so
    there is one job however often it had to ask. Raised means: not known; a call with the same key finds out.
    """

    def __init__(
        self, url: str, key: str, *, timeout_s: float = 10.0, patience_s: float = 30.0, verify: ssl.SSLContext | bool = True
    ) -> None:
        self._timeout_s, self._patience_s = timeout_s, patience_s
        # Nothing of the environment: a .netrc would send other credentials than the key.
        self._http = httpx.Client(**asking.address(url, key), trust_env=False, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def enqueue(
        self, task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> str:  # fmt: skip
        """Hand a job in and return its id. Raises `InvalidJob` or one of its kinds, `IdempotencyConflict`."""
        return str(self._ask(asking.enqueue(task, args, kwargs, idempotency_key, options))["id"])

    def enqueue_many(self, calls: Iterable[Call]) -> _Ids:
        """Hand up to 10,000 jobs in, all or none; return their ids in order. Raises as `enqueue`, with `field` `jobs.3.args`."""
        jobs = list(calls)
        return [str(item["id"]) for item in self._ask(asking.batch(jobs, together=True))["items"]] if jobs else []

    def enqueue_each(self, calls: Iterable[Call]) -> _Outcomes:
        """Hand jobs in, each for itself, and return for each its id or the error for which it was refused, in order."""
        return [outcome for ask in asking.batches(calls) for outcome in asking.outcomes(self._ask(ask))]

    def get(self, job_id: str) -> Job:
        """Return how a job stands. Raises `JobNotFound`, for another caller's as well."""
        return Job.read(self._ask(asking.get(job_id)))

    def wait(self, job_id: str, timeout_s: float = 60.0) -> Job:
        """Return a job once it has ended, well or not. Raises `TimeoutError` after so many seconds, and `JobNotFound`."""
        until = time.monotonic() + timeout_s
        while True:
            job = Job.read(self._ask(asking.get(job_id, min(asking.POLL_S, max(0.0, until - time.monotonic())))))
            if job.ended:
                return job
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(asking.BETWEEN_POLLS_S)

    def cancel(self, job_id: str) -> str:
        """Cancel a job and return `cancelled`, or `asked to stop` for one that runs. Raises `GatewayError` when it has ended."""
        return str(self._ask(asking.act(job_id, "cancel"))["done"])

    def retry(self, job_id: str) -> str:
        """Let a job run now, or again, and return `due now` or `queued again`. Raises `GatewayError` for any other."""
        return str(self._ask(asking.act(job_id, "retry"))["done"])

    def tasks(self) -> _Documents:
        """Return the tasks that can be asked for: `name`, `queue`, and `arguments` as a JSON Schema."""
        return list(self._ask(Ask("GET", "/v1/tasks"))["tasks"])

    def events(self, job_id: str, *, last_id: str | None = None) -> Iterator[Event]:
        """Follow a job until it has ended, from its beginning or behind an event; a stream that breaks off is taken up again.

        Raises `GatewayUnreachable` when for `patience_s` no stream can be had, and `JobNotFound`.
        """
        following = Following(job_id, last_id, self._patience_s)
        while not following.over:
            try:
                with self._http.stream(**self._request(following.ask())) as outcome:
                    if outcome.status_code == httpx.codes.OK:
                        for piece in outcome.iter_bytes():
                            yield from following.take(piece)
                    else:
                        outcome.read()
                pause_s = following.pause(outcome)
            except httpx.TransportError as exc:
                pause_s = following.pause(exc)
            time.sleep(pause_s)

    def list(self, **filters: Unpack[Filters]) -> Iterator[Job]:
        """Go through jobs, the newest first, a page at a time."""
        cursor: str | None = None
        while True:
            page = self._ask(asking.page(filters, cursor))
            yield from map(Job.read, page["jobs"])
            cursor = page["next"]
            if not cursor:
                return

    def _ask(self, ask: Ask) -> Any:
        tries = Tries(ask, self._patience_s)
        while True:
            try:
                answer = self._http.request(**self._request(ask))
                if answer.is_success:
                    return answer.json()
                pause_s = tries.pause(answer)
            except httpx.TransportError as exc:
                pause_s = tries.pause(exc)
            time.sleep(pause_s)

    def _request(self, ask: Ask) -> dict[str, Any]:
        return asking.arguments(ask, self._timeout_s)
