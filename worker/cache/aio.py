"""The asynchronous front: a region of cached values, read by tasks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from worker.cache import background, batch, effects, reads, writes
from worker.cache.bypass import bypass_load
from worker.cache.call import MISSING, Call, Missing
from worker.cache.declared import Declared
from worker.cache.local import drop_everywhere
from worker.cache.names import Key, each_once
from worker.cache.refreshing import Refreshed, refresh, refresh_early
from worker.cache.signals import Signal
from worker.cache.steps import miss
from worker.cache.waits import waits
from worker.errors import StoreUnavailable
from worker.store.aio import cache
from worker.telemetry import CACHE_FAILURES

T = TypeVar("T")
K = TypeVar("K", bound=Key)

#: Refreshes under way: the event loop itself keeps only weak references to its tasks.
_tasks: set[asyncio.Task[None]] = set()


class AsyncRegion(Declared):
    """A named set of cached values with the same terms, for tasks of asyncio; declared as `Region`, which has the same names.

    Both may front the same keys. A loader may be async or not; one that is not holds up the event loop while it runs.

        users = AsyncRegion("user", ttl=60, type=User)
        user = await users.get_or_load(user_id, lambda: load_user(user_id))

    **Guarantee:** that of `Region`; a task that is cancelled while it loads gives its lease back.
    """

    async def get_or_load(
        self, key: Key, loader: Callable[[], Awaitable[T] | T], ttl: Any = None, *, tags: Sequence[str] = (), type: Any = None
    ) -> T:
        """Return the cached value of a key, or what the loader returns, which is then cached. Raises as `Region.get_or_load`."""
        full = self.key(key)
        kept = self._kept(full, tags, type)
        if kept is not MISSING:
            self.counters.hits.inc()
            return kept  # type: ignore[no-any-return]
        call = self._call(full, tags, ttl, type)
        try:
            seen = reads.look(call, await cache().ask(reads.read_commands(call)))
        except StoreUnavailable:
            return await run(bypass_load(call), loader)  # type: ignore[no-any-return]
        value = reads.serve(call, seen)
        if value is MISSING:
            value = await run(miss(call, seen), loader)
        if call.due:
            self._refresh_soon(call, loader)
        if call.local is not None and call.ticket < 0:
            waits().attach(call.local)
        return value  # type: ignore[no-any-return]

    async def get(self, key: Key, tags: Sequence[str] = (), *, type: Any = None) -> Any | Missing:
        """Return the cached value; `MISSING` when there is none or Redis is away, None when loaders are known to find nothing."""
        full = self.key(key)
        kept = self._kept(full, tags, type)
        if kept is not MISSING:
            self.counters.hits.inc()
            return kept
        return await run(reads.peek(self._call(full, tags, None, type)))

    async def set(self, key: Key, value: Any, ttl: Any = None, *, tags: Sequence[str] = ()) -> bool:
        """Store a value and refuse the fills of those who load it now; False when Redis is away."""
        return await self.write_through(key, value, ttl, tags=tags)

    async def write_through(
        self, key: Key, value: Any, ttl: Any = None, *, version: int | None = None, tags: Sequence[str] = ()
    ) -> bool:
        """Store a value just written, as `Region.write_through`."""
        writes.check_version(version)
        full = self.key(key)
        stored = bool(await run(writes.put(self._call(full, tags, ttl), value, version)))
        drop_everywhere((full,), ())
        return stored

    async def delete(self, key: Key) -> bool:
        """Forget a value; see `invalidate`."""
        return await self.invalidate(key)

    async def invalidate(self, *keys: Key) -> bool:
        """Forget values and refuse the fills of those who load them now, as `Region.invalidate`."""
        return await invalidate([self.key(key) for key in keys], ())

    async def invalidate_tags(self, *tags: str) -> bool:
        """Forget whatever was stored under these tags; returns as `invalidate`."""
        return await invalidate((), tags)

    async def get_many_or_load(
        self,
        keys: Iterable[K],
        loader: Callable[[list[K]], Awaitable[Mapping[K, T]] | Mapping[K, T]],
        ttl: Any = None,
        *,
        tags: Sequence[str] = (),
        type: Any = None,
    ) -> dict[K, T | None]:
        """Return the values of many keys, as `Region.get_many_or_load`."""
        found, calls = self._many(keys, ttl, tags, type)
        if calls:
            found.update(await run(batch.fetch_many(calls), loader))
        for call in calls.values():
            if call.due:
                self._refresh_soon(call, loader)
        return found

    async def refresh(
        self, key: Key, loader: Callable[[], Any], ttl: Any = None, *, tags: Sequence[str] = (), token: str | None = None
    ) -> Refreshed:
        """Load a value anew, whatever is cached, and report whether the server's fill time really advanced."""
        call = self._call(self.key(key), tags, ttl)
        return await run(refresh(call, token), loader)  # type: ignore[no-any-return]

    def _refresh_soon(self, call: Call, loader: Callable[..., Any]) -> None:
        refreshes = background.refreshes
        if refreshes.try_begin(call.key):
            keep(self._refresh(call.again(), loader, refreshes))

    async def _refresh(self, later: Call, loader: Callable[..., Any], refreshes: background.Refreshes) -> None:
        try:
            await run(refresh_early(later, getattr(loader, "job", None)), loader)
        finally:
            refreshes.end(later.key, later.busy_s)


def keep(work: Coroutine[Any, Any, None]) -> None:
    """Run in a task of its own, kept alive until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def invalidate(full_keys: Iterable[str], tags: Iterable[str]) -> bool:
    """Forget keys and tags in one round trip, as `worker.cache.invalidate`."""
    names, under = each_once(full_keys, "full_keys"), writes.tags_to_forget(tags)
    try:
        if names or under:
            await cache().ask(writes.invalidate_commands(names, under))
        return True
    except StoreUnavailable:
        CACHE_FAILURES.labels("", "not invalidated").inc(len(names) + len(under))
        return False
    finally:
        drop_everywhere(names, under)  # last: what was read before Redis forgot it must not be kept


async def run(walk: effects.Steps, loader: Callable[..., Any] | None = None) -> Any:
    """Walk the steps in this task."""
    try:
        step = next(walk)
        while True:
            try:
                came = await _do(step, loader)
            except BaseException as exc:
                step = walk.throw(exc)
            else:
                step = walk.send(came)
    except StopIteration as stop:
        return stop.value


async def _do(step: Any, loader: Callable[..., Any] | None) -> Any:
    if isinstance(step, effects.Ask):
        return await cache().ask(step.commands)
    if isinstance(step, effects.Await):
        return await _happens(step.signal, step.seconds)
    if isinstance(step, effects.Send):
        return await asyncio.to_thread(step.job, step.token)
    assert loader is not None
    value = loader(*step.arguments)
    return await value if inspect.isawaitable(value) else value


async def _happens(signal: Signal, seconds: float) -> bool:
    """Wait until a signal happened, at most so long; tell whether it did."""
    if signal.done:
        return True
    loop = asyncio.get_running_loop()
    happened = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():  # The thread that lets it happen may outlive the loop.
            loop.call_soon_threadsafe(happened.set)

    signal.then(wake)
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await happened.wait()
    except TimeoutError:
        return False
    return True
