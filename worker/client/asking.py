"""What a client asks and how it reads the answers, without sending anything: the clients share it."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from worker import errors
from worker.client.forms import Call, Filters, Options

#: Most jobs of one batch, as the gateway has it.
BATCH = 10_000
#: Seconds of one long poll; the gateway may answer sooner.
POLL_S = 30.0
#: Seconds between two of them, so that a gateway that is about to end is not asked in a rush.
BETWEEN_POLLS_S = 0.1
#: Seconds of silence after which a stream of events is taken for dead: twice what the gateway lets pass without a word.
SILENCE_S = 30.0
#: Jobs of one page of a list.
_PAGE = 500
#: The first pause before another try, doubled each time up to the longest, in seconds; half to all of it is waited.
_PAUSE_S, _LONGEST_S = 0.1, 5.0

#: Answers that say: come again, nothing was done or it does no harm.
_AGAIN = {429, 502, 503, 504}
#: The connection was not made, so nothing was sent.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: An answer, or that there was none.
Outcome = httpx.Response | httpx.TransportError

#: What can stand in the header `Idempotency-Key`.
_KEY = re.compile(r"[ -~]{1,255}")

_JSON = {"Content-Type": "application/json"}

_ERRORS: dict[str, type[errors.HoldfastError]] = {
    "unknown_task": errors.UnknownTask, "unknown_queue": errors.UnknownQueue, "too_large": errors.MessageTooLarge,
    "invalid_arguments": errors.InvalidArguments, "invalid_job": errors.InvalidJob,
    "idempotency_conflict": errors.IdempotencyConflict, "job_not_found": errors.JobNotFound,
    "rate_limited": errors.LimitExceeded, "schema_outdated": errors.SchemaOutdated,
    "ledger_unavailable": errors.LedgerUnavailable, "overloaded": errors.LedgerUnavailable,
    "store_unavailable": errors.StoreUnavailable,
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A request."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Seconds for which the gateway may let it wait.
    wait_s: float = 0.0
    #: Whether sending it twice is as sending it once.
    repeatable: bool = True


def address(url: str, key: str) -> dict[str, Any]:
    """Return where requests go and the key they bring, as arguments of httpx. Raises `ValueError`."""
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"url: {url!r} is not an address such as http://127.0.0.1:8000")
    if not re.fullmatch(r"[!-~]+", key):  # not shown: it is a secret
        raise ValueError("key: it is not a key such as hf_…, which `holdfast callers add` prints")
    return {"base_url": url, "headers": {"Authorization": f"Bearer {key}"}}


# ---- handing in


def enqueue(task: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, key: str | None, options: Options) -> Ask:
    """Return the request that hands a job in; it always has a key, so it can be repeated. Raises `InvalidJob`."""
    key = str(uuid4()) if key is None else key
    if not _KEY.fullmatch(key):
        why = f"{key!r:.60} is not a text of 1 to 255 visible characters of ASCII"
        raise errors.InvalidJob(f"idempotency_key: {why}", field="idempotency_key")
    escaped = re.sub(r'(["\\])', r"\\\1", key)
    content = _encode({"task": task, "args": args, "kwargs": dict(kwargs or {}), **options})
    return Ask("POST", "/v1/jobs", content=content, headers={**_JSON, "Idempotency-Key": f'"{escaped}"'})


def batches(calls: Iterable[Call]) -> Iterator[Ask]:
    """Return the requests that hand many jobs in, each for itself; they have keys, so they can be repeated."""
    rest = iter(calls)
    while some := list(islice(rest, BATCH)):
        yield batch(some, together=False)


def batch(calls: Iterable[Call], *, together: bool) -> Ask:
    """Return the request that hands these jobs in. Raises `InvalidJob`, for more than the gateway takes as well."""
    jobs = [{"idempotency_key": str(uuid4()), **call} for call in calls]
    if len(jobs) > BATCH:
        raise errors.InvalidJob(f"jobs: {len(jobs):,} are more than {BATCH:,}, which go together at most", field="jobs")
    return Ask("POST", "/v1/jobs:batch", content=_encode({"jobs": jobs, "all": together}), headers=_JSON)


def outcomes(answer: Mapping[str, Any]) -> list[str | errors.HoldfastError]:
    """Return for each job of a batch the id under which it is known, or why it was refused."""
    return [item["id"] if item.get("id") else error_of(item["problem"], {}) for item in answer["items"]]


def _encode(document: Any) -> bytes:
    try:
        return json.dumps(document, default=_plain, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise errors.InvalidJob(f"args: the call cannot be written as JSON: {exc}", field="args") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


# ---- looking and acting


def get(job_id: str, wait_s: float = 0.0) -> Ask:
    """Return the request for one job, which may wait for its end."""
    return Ask("GET", _path(job_id), params={"wait": f"{wait_s:.3f}s"} if wait_s else {}, wait_s=wait_s)


def act(job_id: str, what: str) -> Ask:
    """Return the request to cancel or retry; a repeat of one that worked would be refused, so it is repeated only if unsent."""
    return Ask("POST", f"{_path(job_id)}:{what}", repeatable=False)


def page(filters: Filters, cursor: str | None) -> Ask:
    """Return the request for a page of jobs, the one behind `cursor`."""
    told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()}
    return Ask("GET", "/v1/jobs", params={"limit": _PAGE, **told, **({"cursor": cursor} if cursor else {})})


def follow(job_id: str, last_id: str | None) -> Ask:
    """Return the request for the events of a job, those behind `last_id`."""
    return Ask("GET", f"{_path(job_id)}/events", headers={"Last-Event-ID": last_id} if last_id else {}, wait_s=SILENCE_S)


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def arguments(ask: Ask, timeout_s: float) -> dict[str, Any]:
    """Return the request as the arguments that httpx takes."""
    return {"method": ask.method, "url": ask.path, "params": ask.params, "content": ask.content, "headers": ask.headers,
            "timeout": httpx.Timeout(timeout_s, read=timeout_s + ask.wait_s)}  # fmt: skip


# ---- outcomes


def error_of(problem: Mapping[str, Any], headers: Mapping[str, str]) -> errors.HoldfastError:
    """Return the error of a problem, with `code`, `field`, `status` and `instance`, by which the gateway's log finds it."""
    kind = _ERRORS.get(problem["code"], errors.GatewayError)
    data = {name: problem.get(name) or "" for name in ("code", "field", "instance")}
    return kind(problem.get("detail"), **data, status=problem.get("status", 0), retry_after=asked_pause(headers) or 0.0)


def _problem(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("code"), str):
        return document
    # Something between here and the gateway.
    detail = f"the answer is HTTP {answer.status_code}, and not the gateway's"
    return {"code": "no_gateway", "status": answer.status_code, "detail": detail}


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks to wait; None where it does not say or names a moment."""
    said = headers.get("retry-after", "")
    return float(said) if said.isdecimal() and len(said) < 10 else None


class Tries:
    """How often a request is sent: again while that is safe and may help, with growing pauses, until the patience is over."""

    def __init__(self, ask: Ask, patience_s: float) -> None:
        self._ask = ask
        self._until = time.monotonic() + patience_s
        self._pause_s = _PAUSE_S

    def pause(self, outcome: Outcome) -> float:
        """Return the seconds to wait before the next try. Raises what the outcome tells when there is to be none."""
        if self._worth_another(outcome):
            asked = None if isinstance(outcome, httpx.TransportError) else asked_pause(outcome.headers)
            pause_s = max(asked or 0.0, self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, _LONGEST_S)
            if time.monotonic() + pause_s < self._until:
                return pause_s
        if isinstance(outcome, httpx.TransportError):
            raise errors.GatewayUnreachable(f"no answer from the gateway: {type(outcome).__name__}: {outcome}") from outcome
        raise error_of(_problem(outcome), outcome.headers)

    def _worth_another(self, outcome: Outcome) -> bool:
        if isinstance(outcome, httpx.TransportError):
            return self._ask.repeatable or isinstance(outcome, _NOT_SENT)
        if outcome.status_code == 429:  # refused before anything was done
            return True
        in_flight = outcome.status_code == 409 and b'"idempotency_in_flight"' in outcome.content
        return self._ask.repeatable and (in_flight or outcome.status_code in _AGAIN)
