"""The blocking front: a region of cached values, read by threads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from worker.cache import background, batch, effects, reads, writes
from worker.cache.bypass import bypass_load
from worker.cache.call import MISSING, Call, Missing
from worker.cache.declared import Declared
from worker.cache.local import drop_everywhere
from worker.cache.names import Key, each_once
from worker.cache.refreshing import Refreshed, refresh, refresh_early
from worker.cache.steps import miss
from worker.cache.waits import waits
from worker.errors import CacheValueError, StoreUnavailable
from worker.store import cache
from worker.telemetry import CACHE_FAILURES

T = TypeVar("T")
K = TypeVar("K", bound=Key)


class Region(Declared):
    """A named set of cached values with the same terms, for threads; `AsyncRegion` for tasks has the same names.

    `name` begins its keys. `ttl` is required: seconds (or a timedelta) a value is fresh, give or take `jitter`. `type` is what
    values are checked against and `version` (0 to 255) is raised when its meaning changes. A loader that returns None is cached
    for `negative_ttl` seconds, 0 for not at all. Past its ttl, a value is given for `stale_while_revalidate` seconds while one
    caller of the fleet refreshes it in the background, and until `max_stale` seconds when the load fails. `beta` moves early
    refreshes: 0 for none, more than 1 for earlier. A load is one caller's for `lease_s` seconds, renewed while it runs; others
    wait for it at most `max_wait_s`. After failed loads the next is tried later and later, at most `max_back_off` apart. Encoded
    values have at most `max_bytes`, and are compressed when over `compress_over`.

        users = Region("user", ttl=60, type=User, stale_while_revalidate=30)
        user = users.get_or_load(user_id, lambda: load_user(user_id))

    Raises `CacheConfigError` that names the argument where the terms cannot work.

    **Guarantee:** while the cache Redis works, one caller of the fleet loads a key at a time, and once an invalidation of the key
    or of one of its tags has returned, no caller that asks after that gets a value read before it. When a holder dies, the next
    loads within `lease_s`. When Redis is away or slow, callers load for themselves, a few at a time: no error of it reaches them.
    """

    def get_or_load(
        self, key: Key, loader: Callable[[], T], ttl: Any = None, *, tags: Sequence[str] = (), type: Any = None
    ) -> T:
        """Return the cached value of a key, or what the loader returns, which is then cached.

        Raises what the loader raises, when this caller ran it, and `LoadFailed` when another did and it failed; `CacheKeyError`,
        `CacheConfigError` and `CacheValueError` for what cannot be cached.
        """
        full = self.key(key)
        kept = self._kept(full, tags, type)
        if kept is not MISSING:
            self.counters.hits.inc()
            return kept  # type: ignore[no-any-return]
        call = self._call(full, tags, ttl, type)
        try:
            seen = reads.look(call, cache().ask(reads.read_commands(call)))
        except StoreUnavailable:
            return run(bypass_load(call), loader)  # type: ignore[no-any-return]
        value = reads.serve(call, seen)
        if value is MISSING:
            value = run(miss(call, seen), loader)
        if call.due:
            self._refresh_soon(call, loader)
        if call.local is not None and call.ticket < 0:
            waits().attach(call.local)
        return value  # type: ignore[no-any-return]

    def get(self, key: Key, tags: Sequence[str] = (), *, type: Any = None) -> Any | Missing:
        """Return the cached value; `MISSING` when there is none or Redis is away, None when loaders are known to find nothing."""
        full = self.key(key)
        kept = self._kept(full, tags, type)
        if kept is not MISSING:
            self.counters.hits.inc()
            return kept
        call = self._call(full, tags, None, type)
        try:
            seen = reads.look(call, cache().ask(reads.read_commands(call)))
        except StoreUnavailable:
            self.counters.bypasses.inc()
            return MISSING
        value = reads.serve(call, seen)
        return run(reads.peek(call, seen)) if value is MISSING else value

    def set(self, key: Key, value: Any, ttl: Any = None, *, tags: Sequence[str] = ()) -> bool:
        """Store a value and refuse the fills of those who load it now; False when Redis is away."""
        return self.write_through(key, value, ttl, tags=tags)

    def write_through(
        self, key: Key, value: Any, ttl: Any = None, *, version: int | None = None, tags: Sequence[str] = ()
    ) -> bool:
        """Store a value just written; False when a newer `version` was written before, or Redis is away.

        `version` is a whole number below 2^53 that grows with each write of the record. Where every writer passes it, one that
        was held up cannot put its older value over a newer one within the hour, unless the server evicted the newer one's
        version to make room; an invalidation says no version, so let no writer invalidate what others write through. Raises
        `CacheValueError`.
        """
        writes.check_version(version)
        full = self.key(key)
        stored = bool(run(writes.put(self._call(full, tags, ttl), value, version)))
        drop_everywhere((full,), ())
        return stored

    def delete(self, key: Key) -> bool:
        """Forget a value; see `invalidate`."""
        return self.invalidate(key)

    def invalidate(self, *keys: Key) -> bool:
        """Forget values and refuse the fills of those who load them now.

        Returns False, and counts it, when Redis did not answer: then the values stay until their time is over. Where that is
        not good enough, let the invalidation be a row in the writer's transaction (`worker.cache.orm`).
        """
        return invalidate([self.key(key) for key in keys], ())

    def invalidate_tags(self, *tags: str) -> bool:
        """Forget whatever was stored under these tags, however much that is; returns as `invalidate`."""
        return invalidate((), tags)

    def get_many_or_load(
        self,
        keys: Iterable[K],
        loader: Callable[[list[K]], Mapping[K, T]],
        ttl: Any = None,
        *,
        tags: Sequence[str] = (),
        type: Any = None,
    ) -> dict[K, T | None]:
        """Return the values of many keys: hits in one round trip, and one call of the loader for those this caller loads.

        The loader gets a list of the keys and returns a mapping; a key that is not in it is cached as None. Raises as
        `get_or_load`; when the loader fails, all it was to load have failed.
        """
        found, calls = self._many(keys, ttl, tags, type)
        if calls:
            found.update(run(batch.fetch_many(calls), loader))
        for call in calls.values():
            if call.due:
                self._refresh_soon(call, loader)
        return found

    def refresh(
        self, key: Key, loader: Callable[[], Any], ttl: Any = None, *, tags: Sequence[str] = (), token: str | None = None
    ) -> Refreshed:
        """Load a value anew, whatever is cached, and report whether the server's fill time really advanced."""
        call = self._call(self.key(key), tags, ttl)
        return run(refresh(call, token), loader)  # type: ignore[no-any-return]

    def _refresh_soon(self, call: Call, loader: Callable[..., Any]) -> None:
        refreshes = background.refreshes
        if refreshes.try_begin(call.key):
            later = call.again()

            def work() -> None:
                try:
                    run(refresh_early(later, getattr(loader, "job", None)), loader)
                finally:
                    refreshes.end(later.key, later.busy_s)

            if not background.try_in_thread(work):
                refreshes.end(later.key)


def invalidate(full_keys: Iterable[str], tags: Iterable[str]) -> bool:
    """Forget keys, given as `Region.key` returns them, and tags, in one round trip; True when Redis took all.

    False is counted; a caller that must not lose the invalidation tries again. Raises `CacheKeyError` for a wrong tag.
    """
    names, under = each_once(full_keys, "full_keys"), writes.tags_to_forget(tags)
    try:
        if names or under:
            cache().ask(writes.invalidate_commands(names, under))
        return True
    except StoreUnavailable:
        CACHE_FAILURES.labels("", "not invalidated").inc(len(names) + len(under))
        return False
    finally:
        drop_everywhere(names, under)  # last: what was read before Redis forgot it must not be kept


def run(walk: effects.Steps, loader: Callable[..., Any] | None = None) -> Any:
    """Walk the steps in this thread."""
    try:
        step = next(walk)
        while True:
            try:
                came = _do(step, loader)
            except BaseException as exc:
                step = walk.throw(exc)
            else:
                step = walk.send(came)
    except StopIteration as stop:
        return stop.value


def _do(step: Any, loader: Callable[..., Any] | None) -> Any:
    if isinstance(step, effects.Ask):
        return cache().ask(step.commands)
    if isinstance(step, effects.Await):
        return step.signal.wait(step.seconds)
    if isinstance(step, effects.Send):
        return step.job(step.token)
    assert loader is not None
    value = loader(*step.arguments)
    if inspect.iscoroutine(value):
        value.close()
        raise CacheValueError(f"the loader {loader!r} returned a coroutine: use AsyncRegion, or a loader that is not async")
    return value
