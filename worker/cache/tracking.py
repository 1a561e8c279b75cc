"""What SQLAlchemy sessions change of tracked models and tables, noted as it happens.

Seen are flushes, ORM and Core inserts, updates and deletes on a session's connection, rows of association tables, and what a
deletion takes along by its foreign keys. Not seen are SQL as text, DML inside a CTE, triggers, and connections without a session:
those say it themselves, with `invalidate_in`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, Table, event, inspect
from sqlalchemy.orm import Mapper, Session, SessionTransaction, object_session

from worker.cache.noting import is_flushing, listen, note
from worker.cache.rows import check_columns, row_key
from worker.errors import CacheConfigError, CacheKeyError

M = TypeVar("M")

#: What a foreign key does to rows on its other side when the row it points to is deleted.
_TAKEN_ALONG = ("CASCADE", "SET NULL", "SET DEFAULT")

_tables: dict[str, Table] = {}
_sessions: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()


# ---- what is tracked, and what it is called


def track(model: M) -> M:
    """Let every session of this process that changes this model, or table, make the cache forget what it held of it.

        @track
        class Book(Base): ...

        track(book_authors)  # the table of a many-to-many relation, if queries over it are cached

    Say it where the model is defined, so that no process can write it without knowing. Its table lives in Holdfast's database,
    beside the outbox. Raises `CacheConfigError` that names a column whose values cannot be cached.
    """
    if isinstance(model, Table):
        _tables[model.fullname] = model
    else:
        mapper = _mapper_of(model)
        check_columns(mapper)
        _tables.update((table.fullname, table) for table in mapper.tables if isinstance(table, Table))
        for name, heard in (("after_insert", _wrote), ("after_update", _wrote), ("after_delete", _deleted)):
            event.listen(model, name, heard, propagate=True)
    _taken_along.cache_clear()
    _listen()
    return model


def _mapper_of(model: Any) -> Mapper[Any]:
    mapper = inspect(model, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise CacheConfigError(f"{model!r} is neither a mapped class nor a table")
    return mapper


def rows_tag(table: str) -> str:
    """Return the tag of every cached row of a table and every cached query over it; a change of many rows moves it."""
    return f"rows:{table}"


def queries_tag(table: str) -> str:
    """Return the tag of every cached query over a table; each change of the table moves it."""
    return f"queries:{table}"


def tags_of(*models: Any) -> list[str]:
    """Return the tags that make the cache forget all it holds of these models or tables, for `invalidate_in`."""
    tables = (table for model in models for table in ([model] if isinstance(model, Table) else _mapper_of(model).tables))
    return [tag for table in tables for tag in _both_tags(_checked(table))]


def _both_tags(table: str) -> list[str]:
    return [rows_tag(table), queries_tag(table)]


def _checked(table: Any) -> str:
    name = str(getattr(table, "fullname", table))
    if name not in _tables:
        raise CacheConfigError(f"table {name!r} is not tracked, so its changes would not be seen: `track` it where it is defined")
    return name


def checked_tables(tables: Iterable[Any]) -> list[str]:
    """Return the names of tables. Raises `CacheConfigError` for one that is not tracked."""
    return [_checked(table) for table in tables]


# ---- what SQLAlchemy tells


@cache
def _listen() -> None:
    event.listen(Session, "after_begin", _begun)
    event.listen(Engine, "before_execute", _executing)
    listen()


def _begun(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    _sessions[connection] = ref(session)


def _executing(conn: Connection, statement: Any, *_: Any) -> None:
    """Note that a statement changes a tracked table; which rows is known of a flush alone, by `_wrote` and `_deleted`."""
    if not getattr(statement, "is_dml", False) or (table := _tables.get(getattr(statement.table, "fullname", ""))) is None:
        return
    if statement.table.metadata is not table.metadata:  # another database's, of the same name
        return
    session = found() if (found := _sessions.get(conn)) is not None else None
    if session is None:
        return
    tags = [queries_tag(table.fullname)] if is_flushing(session) else _both_tags(table.fullname)
    if statement.is_delete:
        tags += [tag for name in _taken_along(table.fullname) for tag in _both_tags(name)]
    note(session, (), tags, table)


@cache
def _taken_along(name: str) -> frozenset[str]:
    """Return the tables whose rows a deletion from this one takes along or changes, by their foreign keys."""
    found, left = set[str](), [name]
    while left:
        parent = left.pop()
        for child in _tables[name].metadata.tables.values():
            ways = (key.ondelete for key in child.foreign_keys if key.target_fullname.rpartition(".")[0] == parent)
            if child.fullname not in found and any((way or "").upper() in _TAKEN_ALONG for way in ways):
                found.add(child.fullname)
                left.append(child.fullname)
    return frozenset(found)


def _wrote(mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
    session, state = object_session(instance), inspect(instance)
    if session is None or (state.key is not None and not session.is_modified(instance)):
        return
    for identity in (mapper.primary_key_from_instance(instance), *([state.key[1]] if state.key is not None else [])):
        _note_row(session, mapper, identity)


def _deleted(mapper: Mapper[Any], connection: Connection, instance: Any) -> None:
    if (session := object_session(instance)) is not None:
        _note_row(session, mapper, mapper.primary_key_from_instance(instance))


def _note_row(session: Session, mapper: Mapper[Any], identity: Sequence[Any]) -> None:
    try:
        note(session, [row_key(mapper, identity)], ())
    except CacheKeyError:
        pass  # too long for a key, so it was never cached; the row is written all the same
