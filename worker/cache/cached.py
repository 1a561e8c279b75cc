"""The decorator that reads a function through the cache, and the registry of such functions, by which they can be warmed."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

import msgspec

from worker.cache import hot
from worker.cache.aio import AsyncRegion
from worker.cache.call import Missing
from worker.cache.declared import UNSET
from worker.cache.names import part_text, seconds
from worker.cache.region import Region
from worker.errors import CacheConfigError, CacheKeyError

P = ParamSpec("P")
R = TypeVar("R")

#: Argument lists of which the key is remembered, for each function.
_PLACES = 4096
#: The key of arguments that come to no text at all, such as one that is ''; no part of a key is written so.
_NOTHING = "%e"

_loaders: dict[str, Cached[Any, Any]] = {}
_refresher: list[Callable[[str, list[Any], str], None]] = []


def loaders() -> dict[str, Cached[Any, Any]]:
    """Return the functions that are read through the cache, by name."""
    return dict(_loaders)


def set_refresher(refresher: Callable[[str, list[Any], str], None]) -> None:
    """Say how a loader declared with `refresh="job"` is refreshed elsewhere.

    `refresher(name, args, token)` sends a job, quickly, that calls `loaders()[name].resume(args, token)`.
    """
    _refresher[:] = [refresher]


class _Bound(functools.partial):  # type: ignore[type-arg]
    """A loader with its arguments, and what sends its refresh elsewhere."""

    job: Callable[[str], None] | None = None


class _Place:
    """Where the value for one list of arguments is kept."""

    __slots__ = ("args", "key", "tags")

    def __init__(self, key: str, tags: tuple[str, ...], args: tuple[Any, ...]) -> None:
        self.key, self.tags, self.args = key, tags, args


class _Once(Exception):
    """A place that must not be remembered for arguments that are equal to its own."""

    def __init__(self, place: _Place) -> None:
        self.place = place


class Cached(Generic[P, R]):
    """A function read through a region; made by `cached`. Of an async function, all but `key` and `tags` are awaited."""

    def __init__(
        self,
        function: Callable[P, R],
        region: Region | AsyncRegion,
        name: str,
        template: str | None,
        tags: Sequence[str],
        ttl: Any,
        warm: Iterable[tuple[Any, ...]] | Callable[[], Iterable[tuple[Any, ...]]] | None,
        by_job: bool,
        check: Callable[..., object] | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.name, self.region = name, region
        #: Where it is defined, which may happen again when its module is loaded again.
        self.defined = (function.__module__, function.__qualname__)
        self._function: Callable[..., Any] = function
        self._signature = inspect.signature(function)
        self._template = _checked_template(name, template, self._signature)
        self._tags, self._ttl, self._warm, self._by_job, self._check = tuple(tags), ttl, warm, by_job, check
        for tag in self._tags:
            _check_fields(name, f"tag {tag!r}", tag, self._signature)
        self._named = [one.name for one in self._signature.parameters.values() if one.kind is one.KEYWORD_ONLY]
        self._remembered = functools.lru_cache(maxsize=_PLACES, typed=True)(self._find_lasting)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached value, or what the function returns. Raises as `Region.get_or_load`."""
        place = self._place(args, kwargs)
        hot.note(self.name, place.args)
        found: R = self.region.get_or_load(place.key, self._loader(place), self._ttl, tags=place.tags)  # type: ignore[assignment]
        return found

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of these arguments as the fleet knows it. Raises `CacheKeyError`."""
        return self.region.key(self._place(args, kwargs).key)

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
        """Return the tags of these arguments."""
        return self._place(args, kwargs).tags

    def get(self, *args: P.args, **kwargs: P.kwargs) -> Any | Missing:
        """Return the cached value, or `MISSING`, without running the function."""
        place = self._place(args, kwargs)
        return self.region.get(place.key, place.tags)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Forget the value of these arguments; returns as `Region.invalidate`."""
        return self.region.invalidate(self._place(args, kwargs).key)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function now, store its value, and return `Refreshed`: whether the server's fill time really advanced."""
        return self._refresh(self._place(args, kwargs), None)

    def resume(self, args: Sequence[Any], token: str | None = None) -> Any:
        """Refresh from arguments that went through JSON, under the lease of this token where it still holds; as `refresh`.

        Arguments are converted to the types the function declares. Raises `CacheKeyError` where that is not possible.
        """
        return self._refresh(self._resumed(args), token)

    def resumed_key(self, args: Sequence[Any]) -> str:
        """Return the key of arguments that went through JSON, as `resume` takes them. Raises `CacheKeyError`."""
        return self.region.key(self._resumed(args).key)

    def warm_plan(self) -> list[tuple[Any, ...]]:
        """Return the lists of arguments that are to be kept warm, as declared with `warm`."""
        plan = self._warm() if callable(self._warm) else self._warm or ()
        return [tuple(args) for args in plan]

    def _refresh(self, place: _Place, token: str | None) -> Any:
        return self.region.refresh(place.key, self._loader(place), self._ttl, tags=place.tags, token=token)

    def _loader(self, place: _Place) -> Callable[[], Any]:
        args, named = self._split(place.args)
        loader = _Bound(self._function, *args, **named)
        if self._by_job and _refresher:
            loader.job = functools.partial(_refresher[0], self.name, list(place.args))
        return loader

    def _place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Place:
        try:
            return self._remembered(*args, **kwargs)
        except _Once as found:
            return found.place
        except TypeError:  # Not hashable, or not the function's arguments: the same way without a memory says which.
            return self._find(*args, **kwargs)

    def _resumed(self, args: Sequence[Any]) -> _Place:
        return self._place(*self._split(self._converted(args)))

    def _split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments in the order of the parameters as the function takes them: by position, and by keyword alone."""
        most = len(self._signature.parameters) - len(self._named)
        return args[:most], dict(zip(self._named, args[most:], strict=False))

    def _find_lasting(self, *args: Any, **kwargs: Any) -> _Place:
        place = self._find(*args, **kwargs)
        # One moment is equal to itself in another zone, though the function may tell it otherwise.
        if any(isinstance(value, datetime) for value in place.args):
            raise _Once(place)
        return place

    def _find(self, *args: Any, **kwargs: Any) -> _Place:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        if self._check is not None:
            self._check(*bound.args, **bound.kwargs)
        try:
            parts = {name: part_text(value) for name, value in values.items()}
        except CacheKeyError as exc:
            raise CacheKeyError(f"{self.name}: {exc}") from None
        tags = tuple(tag.format_map(values) for tag in self._tags)
        return _Place(self._template.format_map(parts) or _NOTHING, tags, tuple(values.values()))

    def _converted(self, args: Sequence[Any]) -> tuple[Any, ...]:
        hints = _hints(self._function)
        wanted = [hints.get(name, Any) for name in self._signature.parameters]
        if len(args) > len(wanted):
            raise CacheKeyError(f"{self.name}: arguments {list(args)!r} do not fit it: it takes {len(wanted)}")
        try:
            return tuple(msgspec.convert(value, type, strict=False) for value, type in zip(args, wanted, strict=False))
        except msgspec.ValidationError as exc:
            raise CacheKeyError(f"{self.name}: arguments {list(args)!r} do not fit it: {exc}") from None


def cached(
    *,
    key: str | None = None,
    ttl: Any = UNSET,
    tags: Sequence[str] = (),
    name: str | None = None,
    warm: Iterable[tuple[Any, ...]] | Callable[[], Iterable[tuple[Any, ...]]] | None = None,
    region: Region | AsyncRegion | None = None,
    refresh: str = "thread",
    check: Callable[..., object] | None = None,
    **terms: Any,
) -> Callable[[Callable[P, R]], Cached[P, R]]:
    """Read a function, async or not, through the cache.

    `key` and each of `tags` are text with the parameters in braces; every parameter must stand in the key, with a colon somewhere
    between one and the next; it is made of all of them where it is not given. `check` is called with the arguments before the
    cache is asked, and raises for those that nobody should ask with. `ttl` and the further `terms` are those of `Region`, whose
    `type` is the function's return type where it is not given; or `region` says where to keep the values. `name`, by default the
    function's full name, is how the ranking of reads, the warmer and jobs call it. `warm` is the lists of arguments to keep warm,
    or a function that returns them. `refresh="job"` sends early refreshes to a worker.

        @cached(key="stats:{task}", ttl=30, tags=("task:{task}",), warm=[("mail.send",)])
        def stats(task: str) -> Stats: ...

    Raises `CacheConfigError` where the function is defined, for whatever could not work.

    **Guarantee:** that of `Region`.
    """

    def decorate(function: Callable[P, R]) -> Cached[P, R]:
        called = name or f"{function.__module__}.{function.__qualname__}"
        if refresh not in ("thread", "job"):
            raise CacheConfigError(f"{called}: refresh={refresh!r}: give 'thread' or 'job'")
        if isinstance(tags, str):
            raise CacheConfigError(f"{called}: tags={tags!r} is a str: give a tuple of str")
        where = _region_for(function, called, region, ttl, terms)
        lives = None if region is None or ttl is UNSET else seconds("ttl", ttl, above=True)
        made = Cached(function, where, called, key, tags, lives, warm, refresh == "job", check)
        known = _loaders.setdefault(called, made)
        if known.defined != made.defined:
            raise CacheConfigError(f"two functions are called {called!r}: give one of them another name=")
        _loaders[called] = made
        return made

    return decorate


def _region_for(
    function: Callable[..., Any], name: str, region: Region | AsyncRegion | None, ttl: Any, terms: dict[str, Any]
) -> Region | AsyncRegion:
    wanted = AsyncRegion if inspect.iscoroutinefunction(function) else Region
    if region is None:
        terms = {"type": _hints(function).get("return", Any), **terms}
        return wanted(name, ttl=ttl, **terms)
    if terms:
        raise CacheConfigError(f"{name}: {', '.join(terms)} and region exclude each other: the region has its own")
    if not isinstance(region, wanted):
        raise CacheConfigError(f"{name}: region={region!r}: give a {wanted.__name__} for this function")
    return region


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # A name that only type checkers import.
        return {}


def _checked_template(name: str, template: str | None, signature: inspect.Signature) -> str:
    """Return the template of the key. A parameter that is not in it would make calls with other values share one entry."""
    parameters = signature.parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CacheConfigError(f"{name}: *{parameter.name} cannot be part of a key: name the parameters")
    if template is None:
        return ":".join(f"{{{parameter}}}" for parameter in parameters) or "value"
    missing = [parameter for parameter in parameters if parameter not in _check_fields(name, "key", template, signature)]
    if missing:
        raise CacheConfigError(f"{name}: key={template!r} lacks {', '.join(f'{{{one}}}' for one in missing)}")
    # Colons within arguments are escaped, so that they divide the key; without one, ('1-2', '3') and ('1', '2-3') would be alike.
    between = [text for text, field, _, _ in string.Formatter().parse(template) if field is not None][1:]
    if any(":" not in text for text in between):
        raise CacheConfigError(f"{name}: key={template!r}: put a colon between one parameter and the next")
    return template


def _check_fields(name: str, what: str, template: str, signature: inspect.Signature) -> list[str]:
    try:
        fields = [(field, spec, how) for _, field, spec, how in string.Formatter().parse(template) if field is not None]
    except (ValueError, TypeError) as exc:
        raise CacheConfigError(f"{name}: {what}={template!r}: {exc}") from None
    for field, spec, how in fields:
        if field not in signature.parameters or spec or how:
            known = ", ".join(signature.parameters) or "none"
            raise CacheConfigError(f"{name}: {what}: {{{field}}} is not a parameter, bare: use {known}")
    return [field for field, _, _ in fields]
