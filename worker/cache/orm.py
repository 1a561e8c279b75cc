"""SQLAlchemy in front of the cache: rows and queries of tracked models, read through it into the caller's session."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import CompoundSelect, Connection, Engine, Select, Table, inspect
from sqlalchemy.orm import Mapper, Session, lazyload
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.sql import visitors

from worker.cache.binds import alone, is_shared
from worker.cache.names import each_once, seconds
from worker.cache.noting import invalidate_in, touched
from worker.cache.rows import (
    checked_identity,
    freeze,
    is_loaded,
    parts_of,
    python_type,
    region,
    row_key,
    tables_of,
    thaw,
    type_of,
)
from worker.cache.tracking import checked_tables, queries_tag, rows_tag, tags_of, track
from worker.errors import CacheConfigError

__all__ = ["cached_get", "cached_query", "invalidate_in", "tags_of", "track"]

T = TypeVar("T")

#: Statements of which tables and row types are kept, by SQLAlchemy's own key of a statement's shape.
_PLANS = 1000


def cached_get(session: Session, model: type[T], pk: Any, *, ttl: float) -> T | None:
    """Return the row with this primary key as an instance in the session, or None; without SQL when the cache has it.

        book = cached_get(session, Book, 7, ttl=60)

    Columns that are loaded with the row come from the cache; relations and deferred columns load as ever when they are used. A
    composite key is a tuple. What the session's transaction has changed itself is read by the session, and so is all of a session
    that renames schemas (`schema_translate_map`) or is on another database than Holdfast's. Raises `CacheConfigError` for a model
    that is not tracked or a `ttl` that is not positive, `CacheKeyError` for a primary key of another type.

    **Guarantee:** after a commit that changed the row was invalidated, no caller anywhere gets the row as it was before. Until
    then, usually a millisecond and at most a second after the commit, the old row may be seen: decide nothing by it that another
    transaction must not have changed meanwhile, and lock the row for that.
    """
    life = seconds("ttl", ttl, above=True)
    mapper: Mapper[T] = inspect(model)
    identity = checked_identity(mapper, pk)
    tags = [rows_tag(name) for name in checked_tables(tables_of(mapper))]
    known = session.identity_map.get(mapper.identity_key_from_primary_key(identity))
    bind = session.get_bind(mapper)
    if (known is not None and is_loaded(known, inspect(type(known)))) or not is_shared(session, bind):
        return session.get(model, identity)
    _autoflush(session)
    own = touched(session)
    if row_key(mapper, identity) in own.keys or not own.tags.isdisjoint(tags):
        return session.get(model, identity)
    row = region.get_or_load(
        parts_of(mapper, identity), lambda: _load_row(bind, mapper, identity), life, tags=tags, type=type_of(mapper)
    )
    instance = thaw(session, mapper, row) if row is not None else None
    return instance if isinstance(instance, model) else None


def cached_query(session: Session, statement: Any, *, key: Any, ttl: float, tags: Iterable[str] = ()) -> list[Any]:
    """Return what a select gives: instances in the session for one model, named tuples for columns; without SQL on a hit.

        top = cached_query(session, select(Book).order_by(Book.sold.desc()).limit(10), key="top-books", ttl=300)

    The `key` stands for the statement with its parameters: name every one of these in it. Each change of one of its tables makes
    the cache forget it, and so do changes of the `tags`. What the session's transaction has changed itself is read by the
    session. Raises `CacheConfigError` for a table that is not tracked, a statement that is no select or that mixes models with
    columns.

    **Guarantee:** as `cached_get`.
    """
    life, plan = seconds("ttl", ttl, above=True), _plan_of(statement)
    all_tags = [*plan.tags, *each_once(tags, "tags")]
    _autoflush(session)
    bind = session.get_bind(plan.mapper, clause=statement)
    if touched(session).tags.isdisjoint(all_tags) and is_shared(session, bind, statement):
        rows = region.get_or_load(_query_key(key), lambda: plan.read(bind, statement), life, tags=all_tags, type=plan.rows)
    else:
        rows = plan.frozen(session.execute(statement))
    return rows if plan.mapper is None else [thaw(session, plan.mapper, row) for row in rows]


def _autoflush(session: Session) -> None:
    """Write what the session's instances have become, as a query would, so that it is known as the session's own."""
    if session.autoflush and (session.new or session.dirty or session.deleted):
        session.flush()


def _query_key(key: Any) -> tuple[Any, ...]:
    return ("query", *(key if isinstance(key, tuple) else (key,)))


# ---- loading


def _load_row(bind: Engine | Connection, mapper: Mapper[Any], identity: Sequence[Any]) -> Any:
    with alone(bind) as session:
        instance = session.get(mapper.base_mapper.class_, tuple(identity), options=[lazyload("*")])
        return None if instance is None else freeze(instance, mapper)


class _Plan(NamedTuple):
    """What is known of a statement's shape: its tags, how the cache holds its rows, and what they are: tuples, or instances."""

    tags: tuple[str, ...]
    rows: Any
    row: Any
    mapper: Mapper[Any] | None

    def read(self, bind: Engine | Connection, statement: Any) -> list[Any]:
        """Run the statement on a connection of its own and return its rows as the cache holds them."""
        with alone(bind) as session:
            return self.frozen(session.execute(statement))

    def frozen(self, result: Any) -> list[Any]:
        """Return the rows of a result as the cache holds them."""
        if self.mapper is not None:
            return [freeze(instance, self.mapper) for instance in result.unique().scalars()]
        return [self.row(*row) for row in result]


_plans: dict[Any, _Plan] = {}


def _plan_of(statement: Any) -> _Plan:
    if not isinstance(statement, Select | CompoundSelect):
        raise CacheConfigError(f"cached_query takes a select, not {type(statement).__name__}; cache that with a region and tags")
    shape = statement._generate_cache_key()
    known = _plans.get(shape.key) if shape is not None else None
    if known is not None:
        return known
    compiled = statement.compile()
    name = shape.key if shape is not None else str(compiled)
    if (known := _plans.get(name)) is None:
        if len(_plans) >= _PLANS:
            _plans.clear()
        known = _plans[name] = _make_plan(statement, compiled)
    return known


def _make_plan(statement: Any, compiled: Any) -> _Plan:
    told = getattr(statement, "column_descriptions", None) or [
        {"name": column.name, "type": column.type, "expr": column} for column in statement.selected_columns
    ]
    mappers = [found for column in told if isinstance(found := _mapper_of(column["expr"]), Mapper)]
    if mappers and len(told) > 1:
        raise CacheConfigError("cached_query: select one model, or columns; a mix of them cannot be cached")
    # Of the statement as it was compiled: only then do joins along relations name their tables.
    tables = {element for element in visitors.iterate(compiled.compile_state.statement) if isinstance(element, Table)}
    names = checked_tables(tables.union(*map(tables_of, mappers)))
    tags = tuple(tag(name) for name in sorted(set(names)) for tag in (rows_tag, queries_tag))
    if mappers:
        return _Plan(tags, list[type_of(mappers[0])], None, mappers[0])  # type: ignore[misc]
    fields = [
        (_field(column["name"], at), python_type(column["type"], f"column {column['name']}")) for at, column in enumerate(told)
    ]
    row = NamedTuple("Row", fields)  # type: ignore[misc]
    return _Plan(tags, list[row], row, None)


def _mapper_of(expression: Any) -> Any:
    """Return the mapper when a select names a class, or an alias of one."""
    found = inspect(expression, raiseerr=False)
    return found.mapper if isinstance(found, AliasedInsp) else found


def _field(name: str | None, at: int) -> str:
    return name if name and re.fullmatch(r"[a-z]\w*", name, re.IGNORECASE) else f"column_{at}"
