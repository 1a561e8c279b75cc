"""What arguments a task takes: as JSON Schema for those who ask, and as a check before a job is accepted."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, get_type_hints
from weakref import WeakKeyDictionary

import msgspec
from celery import Celery
from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from worker.errors import InvalidArguments, UnknownTask
from worker.wording import did_you_mean

_Kind = inspect.Parameter


@dataclass(frozen=True)
class _Form:
    """The parameters of one task by name, and the model that checks their values."""

    model: type[BaseModel]
    called_as: str
    positional: tuple[str, ...]
    by_name: frozenset[str]
    required: tuple[str, ...]
    #: The name that takes further positional arguments, and whether there are further ones by name.
    rest: str | None
    anything: bool
    #: Whether its hints say anything about values; else only their number and names are looked at.
    has_hints: bool


_forms: WeakKeyDictionary[Any, _Form] = WeakKeyDictionary()


def find_task(app: Celery, name: str) -> Any:
    """Return the task of this name. Raises `UnknownTask` with the names it is like."""
    # Celery's property takes a lock each time, which costs more than the look; it leaves the registry here the first time.
    tasks = vars(app).get("tasks") or app.tasks
    if name in tasks:
        return tasks[name]
    ours = [known for known in tasks if not known.startswith("celery.")]
    raise UnknownTask(f"no task {name!r} is registered{did_you_mean(name, ours)}")


def schema_of(task: Any) -> dict[str, Any]:
    """Return the JSON Schema of a task's arguments by name, as its type hints tell; one without a hint may be anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default that is no JSON is left out
        schema = _form(task).model.model_json_schema(by_alias=True)
    return {**schema, "title": task.name}


def positional_of(task: Any) -> tuple[list[str], bool]:
    """Return the names that positional arguments go to, in order, and whether there may be further ones."""
    form = _form(task)
    return list(form.positional), form.rest is not None


def names_of(task: Any) -> list[str]:
    """Return the names by which a task's arguments can be given."""
    return sorted(_form(task).by_name)


def check_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `InvalidArguments` with the `field` that is wrong, unless the task takes these arguments, which came as JSON.

    Values are not bent to fit: a text is no number.
    """
    form = _form(task)
    if not args and not kwargs and not form.required:
        return
    named, places = _by_name(task, form, args, kwargs)
    text = _json(task, form, named, places)
    if not form.has_hints:
        return
    try:
        form.model.__pydantic_validator__.validate_json(text)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        field = _place(form, places, [str(part) for part in error["loc"] or ("",)])
        raise InvalidArguments(f"{task.name}: {field}: {error['msg']}", field=field) from None


def _place(form: _Form, places: Mapping[str, str], loc: list[str]) -> str:
    """Return where a caller gave what the model found wrong, as `args.0` or `kwargs.url`, and further inside it."""
    name, *deeper = loc
    if name == form.rest and deeper:
        return ".".join(["args", str(len(form.positional) + int(deeper[0])), *deeper[1:]])
    return ".".join([places.get(name, f"kwargs.{name}"), *deeper])


def _json(task: Any, form: _Form, named: dict[str, Any], places: Mapping[str, str]) -> bytes:
    try:
        return msgspec.json.encode(named)
    except UnicodeEncodeError:  # half a surrogate pair: JSON can write it, and no UTF-8 can
        field = _place(form, places, [next((name for name, value in named.items() if not _is_text(value)), "")])
        raise InvalidArguments(f"{task.name}: {field}: it holds half a surrogate pair, no character", field=field) from None
    except (TypeError, ValueError, OverflowError):  # whole numbers beyond 64 bits, and what only Celery's JSON knows
        return json.dumps(named, default=str).encode(errors="replace")


def _is_text(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    except (TypeError, ValueError, OverflowError):
        pass
    return True


def _by_name(
    task: Any, form: _Form, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments by name, and the place at which each was given."""

    def refuse(field: str, why: str) -> NoReturn:
        raise InvalidArguments(f"{task.name}: {field}: {why}; it is called as {task.name}{form.called_as}", field=field)

    named = dict(zip(form.positional, args, strict=False))
    places = {name: f"args.{place}" for place, name in enumerate(named)}
    further = list(args[len(form.positional) :])
    if further and form.rest is None:
        refuse(f"args.{len(form.positional)}", f"there are {len(args)} arguments, and it takes {len(form.positional)}")
    if further and form.rest is not None:
        named[form.rest] = further
    for name, value in kwargs.items():
        if name in named and name in form.by_name:
            refuse(f"kwargs.{name}", f"{name!r} is given twice")
        if name not in form.by_name and not form.anything:
            refuse(f"kwargs.{name}", f"there is no such argument{did_you_mean(name, form.by_name)}")
        named[name] = value
    for name in form.required:
        if name not in named:
            refuse(f"kwargs.{name}" if name in form.by_name else f"args.{form.positional.index(name)}", f"{name!r} is missing")
    return named, places


def _form(task: Any) -> _Form:
    form = _forms.get(task)
    if form is None:
        task = task.app.tasks.get(task.name, task)  # itself, not the proxy that `@app.task` leaves
        form = _forms[task] = _made(task.run)
    return form


def _made(run: Any) -> _Form:
    signature = inspect.signature(run)
    hints = _hints(run)
    fields: dict[str, Any] = {}
    positional, by_name, required = [], [], []
    rest, anything = None, False
    for number, (name, parameter) in enumerate(signature.parameters.items()):
        hint = hints.get(name, Any)
        if parameter.kind is _Kind.VAR_KEYWORD:
            anything = True
            continue
        if parameter.kind is _Kind.VAR_POSITIONAL:
            rest = name
            fields[f"p{number}"] = (_list_of(hint), Field(default=[], alias=name))
            continue
        if parameter.kind is not _Kind.KEYWORD_ONLY:
            positional.append(name)
        if parameter.kind is not _Kind.POSITIONAL_ONLY:
            by_name.append(name)
        if parameter.default is _Kind.empty:
            required.append(name)
            fields[f"p{number}"] = (hint, Field(alias=name))
        else:
            fields[f"p{number}"] = (hint, Field(default=parameter.default, alias=name))
    config = ConfigDict(extra="allow" if anything else "forbid", strict=True)
    model = create_model("Arguments", __config__=config, **fields)
    plain = [parameter.replace(annotation=_Kind.empty) for parameter in signature.parameters.values()]
    called_as = str(inspect.Signature(plain))
    has_hints = any(hints.get(name, Any) is not Any for name in signature.parameters)
    return _Form(model, called_as, tuple(positional), frozenset(by_name), tuple(required), rest, anything, has_hints)


def _hints(run: Any) -> dict[str, Any]:
    """Return the hints that JSON can be checked against; one that cannot be read, or names a class of its own, says nothing."""
    try:
        found = get_type_hints(run, include_extras=True)
    except Exception:  # a name that is only imported for type checkers
        return {}
    return {name: hint for name, hint in found.items() if _is_checkable(hint)}


@lru_cache(maxsize=4096)
def _is_checkable(hint: Any) -> bool:
    try:
        TypeAdapter(_list_of(hint)).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError):
        return False
    return True


def _list_of(hint: Any) -> Any:
    return list.__class_getitem__(hint)
