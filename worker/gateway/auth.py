"""Who sends a request, by the key it brings, what that caller may do, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, get_args, get_origin

from cachetools import TTLCache
from starlette.requests import Request

from worker.gateway.problems import Problem
from worker.ledger import callers
from worker.ledger.callers import Caller
from worker.limits import AsyncLimiter, Decision

#: Seconds a gateway remembers a caller by itself, on top of what the cache does: together less than the second in which a
#: revocation is seen everywhere.
_REMEMBERED_S = 0.4
_remembered: TTLCache[str, Caller | None] = TTLCache(maxsize=10_000, ttl=_REMEMBERED_S)


async def authenticate(request: Request, scope: str, *, cost: int = 1) -> Caller:
    """Return who sends a request, if it has the scope, and charge it for that.

    Raises `Problem`: 401 without a key that counts, 403 for one without the scope, 429 over the caller's rate.
    """
    caller = await _caller_of(request)
    if not caller.may(scope):
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        raise Problem(403, f"This takes a key with the scope {scope}.", headers={"WWW-Authenticate": challenge})
    if cost:
        await charge(request, caller, cost)
    return caller


def needs(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """Return the dependency of a route that only callers with a scope may use."""

    async def dependency(request: Request) -> Caller:
        caller = await authenticate(request, scope)
        check_parameters(request)
        return caller

    return dependency


async def _caller_of(request: Request) -> Caller:
    header = request.headers.get("authorization")
    if header is None:
        raise Problem(401, "A key is needed: Authorization: Bearer hf_…", headers={"WWW-Authenticate": "Bearer"})
    scheme, _, key = header.partition(" ")
    prefix = callers.prefix_of(key.strip()) if scheme.lower() == "bearer" else None
    caller = await _look_up(prefix) if prefix else None
    if not callers.matches(key.strip(), caller) or caller is None:
        raise Problem(401, "This key does not count, or no more.", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
    return caller


async def _look_up(prefix: str) -> Caller | None:
    try:
        return _remembered[prefix]
    except KeyError:
        caller = _remembered[prefix] = await callers.by_prefix(prefix)
        return caller


def forget() -> None:
    """Forget what this process remembers of callers."""
    _remembered.clear()


def check_parameters(request: Request) -> None:
    """Raise `Problem` 422 that names a query parameter the route does not have, or not more than once.

    A filter that is misspelt filters nothing, and of one that is repeated only the last would.
    """
    if not request.scope["query_string"]:
        return
    dependant = getattr(request.scope["route"], "dependant", None)
    known = {parameter.alias: _is_list(parameter) for parameter in dependant.query_params} if dependant else {}
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            raise Problem(422, f"There is no parameter {name[:60]!r} here.", field=name[:60])
        if count > 1 and not known[name]:
            raise Problem(422, f"{name}: it is given {count} times.", field=name)


def _is_list(parameter: Any) -> bool:
    annotation = parameter.field_info.annotation
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


# ---- rates


async def charge(request: Request, caller: Caller, cost: int) -> None:
    """Charge a caller's rate and tell what is left in the answer's headers. Raises `Problem` 429, and `CostTooHigh`."""
    if caller.rate is None:
        return
    limiter = _limiter(caller.rate)
    decision = await limiter.try_acquire(caller.name, cost)
    request.scope["state"]["headers"] += _headers(limiter, decision)
    if not decision:
        wait_s = max(1, -int(-decision.retry_after_s // 1))
        raise Problem(429, f"The rate of this caller is {limiter.rate}; come again in {wait_s} s.", code="rate_limited",
                      headers={"Retry-After": str(wait_s)})  # fmt: skip


@lru_cache(maxsize=1024)
def _limiter(rate: str) -> AsyncLimiter:
    # With Redis away each process lets a caller have its share of the rate, and counts that: a limit is no reason to be down.
    return AsyncLimiter(rate, name="caller", on_outage="local")


def _headers(limiter: AsyncLimiter, decision: Decision) -> list[tuple[bytes, bytes]]:
    """Return what is left as draft-ietf-httpapi-ratelimit-headers-10 writes it: quota and window, remaining and reset."""
    rate = limiter.rate
    reset_s = -int(-max(decision.reset_after_s, decision.retry_after_s) // 1)
    return [
        (b"ratelimit-policy", f'"caller";q={rate.limit};w={max(1, round(rate.period_s))}'.encode()),
        (b"ratelimit", f'"caller";r={max(0, decision.remaining)};t={reset_s}'.encode()),
    ]
