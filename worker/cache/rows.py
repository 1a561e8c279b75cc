"""Mapped rows as the cache holds them: a model's columns as a typed struct, made of instances and into a session's instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, JSON, Column
from sqlalchemy.orm import Mapper, Session, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from sqlalchemy.types import TypeEngine

from worker.cache.region import Region
from worker.errors import CacheConfigError, CacheKeyError

#: What comes out of the cache exactly as it went in.
_PLAIN = (bool, int, float, str, bytes, Decimal, datetime, date, time, timedelta, UUID)
#: Types of a primary key's columns, as `python_type` gives them.
_KEYS = tuple(kind | None for kind in (bool, int, str, UUID, date, datetime))
#: The life of a row when its reader does not say another; every reader does.
_TTL_S = 60.0

#: All rows and queries, under keys that every process can tell from the row alone.
region = Region("orm", ttl=_TTL_S)


def row_key(mapper: Mapper[Any], identity: Sequence[Any]) -> str:
    """Return the full key of a row. Raises `CacheKeyError` for a primary key that nothing can be cached under."""
    return region.key(parts_of(mapper, identity))


def parts_of(mapper: Mapper[Any], identity: Sequence[Any]) -> tuple[Any, ...]:
    """Return the key of a row within the region: the same for whatever class of its hierarchy it is asked as."""
    # A moment is the same row in every zone.
    alike = (value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else value for value in identity)
    return ("row", str(mapper.base_mapper.local_table), *alike)


def checked_identity(mapper: Mapper[Any], pk: Any) -> tuple[Any, ...]:
    """Return a primary key as a tuple. Raises `CacheKeyError` for one that is not of the columns' types.

    Postgres may find a row by other values than the row has, such as the text of a UUID in capitals; the cache would then hold it
    under a key that no change of the row reaches.
    """
    identity = pk if isinstance(pk, tuple) else (pk,)
    kinds = [column.type.python_type for column in mapper.primary_key]
    if len(identity) != len(kinds) or not all(map(_is_of, identity, kinds)):
        form = ", ".join(f"{column.name}: {kind.__name__}" for column, kind in zip(mapper.primary_key, kinds, strict=True))
        raise CacheKeyError(f"primary key {pk!r} of {mapper.class_.__name__}: give ({form})", key=pk)
    return identity


def _is_of(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


# ---- types


def check_columns(mapper: Mapper[Any]) -> None:
    """Raise `CacheConfigError` that names a column whose values the cache cannot give back as they were, or use as a key."""
    for name, column in _columns(mapper).items():
        what = f"column {mapper.class_.__name__}.{name}"
        found = python_type(column.type, what)
        if column.primary_key and found not in _KEYS:
            raise CacheConfigError(f"{what}: values of {column.type!r} cannot be part of a key")


def _columns(mapper: Mapper[Any]) -> dict[str, Column[Any]]:
    """Return the columns that are loaded with a row, by the names of their attributes."""
    return {
        name: column for name, column in mapper.columns.items()
        if isinstance(column, Column) and not getattr(mapper.get_property_by_column(column), "deferred", False)
    }  # fmt: skip


def python_type(kind: TypeEngine[Any], what: str) -> Any:
    """Return the type of a column's values, None included, for the codec. Raises `CacheConfigError` that names it."""
    if isinstance(kind, JSON):
        return Any
    if isinstance(kind, ARRAY):
        return list[python_type(kind.item_type, what)] | None  # type: ignore[misc]
    try:
        found = kind.python_type
    except NotImplementedError:
        found = object
    if found not in _PLAIN and not issubclass(found, Enum | msgspec.Struct):
        raise CacheConfigError(f"{what}: values of {kind!r} cannot be cached; defer the column, or leave the model uncached")
    return found | None


@cache
def struct_of(mapper: Mapper[Any]) -> type[msgspec.Struct]:
    """Return the struct of one class's rows."""
    fields = [(name, python_type(column.type, name)) for name, column in _columns(mapper).items()]
    return msgspec.defstruct(mapper.class_.__name__, fields, tag=mapper.class_.__qualname__, tag_field=".", frozen=True)


@cache
def type_of(mapper: Mapper[Any]) -> Any:
    """Return the type of a row that is asked for as this class: its own struct, or that of any class of its hierarchy."""
    return reduce(or_, (struct_of(below) for below in mapper.base_mapper.self_and_descendants))


class _Way(NamedTuple):
    """How a struct becomes an instance: its class's manager, its fields, and the attributes of its primary key."""

    mapper: Mapper[Any]
    names: tuple[str, ...]
    identity: tuple[str, ...]


@cache
def _ways(base: Mapper[Any]) -> dict[type, _Way]:
    return {
        struct_of(one): _Way(
            one, struct_of(one).__struct_fields__, tuple(one.get_property_by_column(column).key for column in one.primary_key)
        )
        for one in base.self_and_descendants
    }


# ---- instances


def freeze(instance: Any, mapper: Mapper[Any]) -> msgspec.Struct:
    """Return an instance's columns as its struct."""
    actual = mapper if type(instance) is mapper.class_ else instance.__mapper__
    struct = struct_of(actual)
    return struct(**{name: getattr(instance, name) for name in struct.__struct_fields__})


def thaw(session: Session, mapper: Mapper[Any], row: msgspec.Struct) -> Any:
    """Return a row as an instance of the session, without SQL: the one that is there already, or one as if just loaded.

    An instance that the session has stays as it is; only what is not loaded, or has expired, is filled in.
    """
    actual, names, identity = _ways(mapper.base_mapper)[type(row)]
    key = actual.identity_key_from_primary_key(tuple(getattr(row, name) for name in identity))
    instance = session.identity_map.get(key)
    if instance is not None:
        _fill_in(instance, {name: getattr(row, name) for name in names if name not in instance.__dict__})
        return instance
    instance = actual.class_manager.new_instance()
    instance.__dict__.update((name, getattr(row, name)) for name in names)
    make_transient_to_detached(instance)
    session.add(instance)
    state = instance_state(instance)
    state.manager.dispatch.load(state, None)  # as a query would: mutable types and reconstructors listen
    return instance


def _fill_in(instance: Any, values: dict[str, Any]) -> None:
    if values:
        for name, value in values.items():
            set_committed_value(instance, name, value)
        state = instance_state(instance)
        state.manager.dispatch.refresh(state, None, values.keys())


def is_loaded(instance: Any, mapper: Mapper[Any]) -> bool:
    """Tell whether an instance has all that the cache could give it."""
    return all(name in instance.__dict__ for name in struct_of(mapper).__struct_fields__)


def tables_of(mapper: Mapper[Any]) -> set[Any]:
    """Return the tables over which a row of this hierarchy may be spread."""
    return {table for below in mapper.base_mapper.self_and_descendants for table in below.tables}
