"""The cache: its figures, what is read most and kept warm, what lies under a key, and forgetting."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.cache import hot, invalidate, loaders
from worker.cache.figures import figures
from worker.cache.names import full_key, tag_names
from worker.cache.peek import describe
from worker.cache.warm import planned
from worker.db import statement
from worker.errors import CacheError, CacheKeyError, StoreUnavailable
from worker.gateway.console.access import done, form, operator, viewer
from worker.gateway.console.drafts import REFUSALS, Draft, asked, lines
from worker.gateway.console.pages import confirm, page
from worker.gateway.state import gateway_of
from worker.ledger import trail
from worker.ledger.operators import Operator

_LIST = "/console/cache"
#: The hottest keys that are shown, and what one form forgets at most.
_HOT, _MOST = 25, 500


@viewer
def show(request: Request, who: Operator) -> Response:
    """Show the figures, the hottest keys, and what the code keeps warm."""
    return _page(request, Draft())


@viewer
def show_entry(request: Request, who: Operator) -> Response:
    """Show what is cached under a key."""
    key = asked(request, "key")
    try:
        found = describe(full_key("", key))
    except CacheKeyError as exc:
        return _page(request, Draft({"key": key}, str(exc), "key"), status=422)
    return page(request, "cache_entry.html", key=key, entry=found)


@operator
def forget(request: Request, who: Operator) -> Response:
    """Forget keys, and everything under tags."""
    given = form(request)
    keys, tags = lines(given.get("keys", "")), lines(given.get("tags", ""))
    try:
        _check(keys, tags)
    except REFUSALS as exc:
        return _page(request, Draft.refused(given, exc, {"keys": "keys", "tags": "tags"}), status=422)
    told = ", ".join([*keys, *(f"all under {tag}" for tag in tags)])
    warning = f"{told[:500]}. It is loaded anew when it is next asked for."
    if (question := confirm(request, "Forget this?", warning, do="Forget", danger=False)) is not None:
        return question
    with trail.recording(who.name, "cache.invalidate", told, keys=keys, tags=tags):
        if not invalidate([full_key("", key) for key in keys], tags):
            raise StoreUnavailable("Redis (cache) did not answer; nothing was forgotten for certain")
    return done(request, f"Forgotten: {told}.", to=_LIST)


@operator
def warm(request: Request, who: Operator) -> Response:
    """Have a worker refresh what would soon be out of date."""
    with trail.recording(who.name, "cache.warm"):
        job_id = gateway_of(request).celery.send_task("cache.warm").id
    return done(request, f"A worker warms the cache: job {job_id}.", to=_LIST)


def _page(request: Request, draft: Draft, status: int = 200) -> Response:
    told: dict[str, Any] = {"figures": None, "hot": [], "planned": []}
    try:
        with statement() as conn:
            told["figures"] = figures(conn)
        told["hot"] = [{"name": one.name, "args": one.args, "reads": one.reads, "key": _key(one)} for one in hot.top(_HOT)]
        told["planned"] = planned()
    except StoreUnavailable:
        pass  # the page says so: the keys can be forgotten all the same once it is back
    return page(request, "cache.html", status=status, draft=draft, **told)


def _key(found: hot.Hot) -> str | None:
    """Return under which key a hot value lies; None for one of another program's, or whose function has changed."""
    loader = loaders().get(found.name)
    try:
        return loader.resumed_key(found.args) if loader else None
    except (CacheError, ValueError, TypeError):
        return None


def _check(keys: list[str], tags: list[str]) -> None:
    if not keys and not tags:
        raise ValueError("keys: which? give keys, or tags")
    if len(keys) + len(tags) > _MOST:
        raise ValueError(f"keys: there are {len(keys) + len(tags):,}; at most {_MOST} are forgotten at once")
    for name, given, reader in (("keys", keys, lambda key: full_key("", key)), ("tags", tags, lambda tag: tag_names([tag]))):
        for one in given:
            try:
                reader(one)
            except CacheKeyError as exc:
                raise ValueError(f"{name}: {exc}") from exc


routes = [
    Route("/cache", show, methods=["GET"]),
    Route("/cache/entry", show_entry, methods=["GET"]),
    Route("/cache/forget", forget, methods=["POST"]),
    Route("/cache/warm", warm, methods=["POST"]),
]
