"""Reading what a door is given, and checking it against the task it names: the field that is wrong is told."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from worker.app import app
from worker.engine.calls import FIELDS, Call, new_job, read_call
from worker.engine.schemas import check_arguments, schema_of
from worker.errors import InvalidArguments, InvalidJob, UnknownQueue, UnknownTask

if TYPE_CHECKING:
    from nowhere import Nothing


class Item(BaseModel):
    sku: str
    count: int = 1


@app.task(name="calls.order")
def order(customer: str, items: list[Item], /, on: date | None = None, *, ref: UUID | None = None) -> None: ...


@app.task(name="calls.sum")
def add_up(first: float, *others: int, **notes: str) -> None: ...


@app.task(name="calls.plain")
def plain(x, y=2): ...  # type: ignore[no-untyped-def]


@app.task(name="calls.odd")
def odd(thing: Nothing, where: Any = app) -> None: ...


@app.task(name="calls.fleeting", durable=False)
def fleeting() -> None: ...


@app.task(name="calls.own", bind=True, queue="default", priority=2, expires=60, max_attempts=3, unique_for=30)
def own(self: Any, n: int) -> None: ...


GOOD: list[tuple[Any, list[Any], dict[str, Any]]] = [
    (order, ["ada", [{"sku": "a"}]], {}),
    (order, ["ada", [{"sku": "a", "count": 2}], "2030-01-31"], {"ref": "01a222d7-6c3a-716b-b3ab-2a5f1523e00d"}),
    (add_up, [1], {}),
    (add_up, [1.5, 2, 3], {"why": "because"}),
    (add_up, [2**70], {}),
    (plain, [{"any": ["thing"]}], {"y": None}),
    (odd, [1], {"where": [1]}),
    (own, [1], {}),
]


@pytest.mark.parametrize(("task", "args", "kwargs"), GOOD)
def test_arguments_that_fit_pass(task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    check_arguments(task, args, kwargs)


WRONG: list[tuple[Any, list[Any], dict[str, Any], str, str]] = [
    (order, [], {}, "args.0", "missing"),
    (order, ["ada"], {}, "args.1", "missing"),
    (order, [7, []], {}, "args.0", "valid string"),
    (order, ["ada", [{"sku": "a"}, {"sku": 7}]], {}, "args.1.1.sku", "valid string"),
    (order, ["ada", [{"sku": "a", "count": "two"}]], {}, "args.1.0.count", "valid integer"),
    (order, ["ada", [], "yesterday"], {}, "args.2", "date"),
    (order, ["ada", []], {"on": "2030-01-31", "reff": None}, "kwargs.reff", "did you mean ref"),
    (order, ["ada", [], None, None], {}, "args.3", "4 arguments"),
    (order, ["ada", [], None], {"on": None}, "kwargs.on", "given twice"),
    (order, ["ada", []], {"customer": "bob"}, "kwargs.customer", "no such argument"),
    (add_up, ["1"], {}, "args.0", "valid number"),
    (add_up, [1, 2, "3"], {}, "args.2", "valid integer"),
    (plain, [], {"y": 1}, "kwargs.x", "missing"),
    (own, [True], {}, "args.0", "valid integer"),
]


@pytest.mark.parametrize(("task", "args", "kwargs", "field", "why"), WRONG)
def test_wrong_argument_is_told_by_its_place(task: Any, args: list[Any], kwargs: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidArguments, match=why) as caught:
        check_arguments(task, args, kwargs)
    assert (caught.value.code, caught.value.field) == ("invalid_arguments", field)
    assert task.name in str(caught.value)


def test_schema_tells_names_types_and_what_is_required() -> None:
    schema = schema_of(order)
    assert schema["title"] == "calls.order"
    assert schema["required"] == ["customer", "items"]
    assert schema["properties"]["customer"]["type"] == "string"
    assert schema["additionalProperties"] is False
    assert schema_of(add_up)["additionalProperties"] is not False
    assert "default" not in schema_of(odd)["properties"]["where"]


def test_every_field_is_read() -> None:
    call = read_call({
        "task": "calls.own", "args": [1], "kwargs": {}, "queue": "default", "priority": 0, "delay": "1m30s", "at": None,
        "expires": 5, "max_attempts": 2, "unique": "u", "unique_for": 60, "idempotency_key": "k", "caller": "c",
        "callback_url": "https://example.org/told", "metadata": {"a": [1]},
    })  # fmt: skip
    assert call == Call("calls.own", [1], {}, "default", 0, 90.0, None, 5.0, None, 2, "u", 60.0, "k", "c",
                        "https://example.org/told", {"a": [1]})  # fmt: skip
    assert read_call({"task": "t", "expires": "2030-01-31T08:00:00+01:00"}).expires_at == datetime(2030, 1, 31, 7, tzinfo=UTC)
    assert len(FIELDS) == 15


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "task", "missing"),
    ({"task": 7}, "task", "not a text"),
    ({"task": ""}, "task", "not a text"),
    ({"task": "a\0b"}, "task", "not a text"),
    ({"task": "t", "arg": []}, "arg", "did you mean args"),
    ({"task": "t", "args": {}}, "args", "not a list"),
    ({"task": "t", "kwargs": []}, "kwargs", "not an object"),
    ({"task": "t", "priority": 10}, "priority", "from 0 to 9"),
    ({"task": "t", "priority": True}, "priority", "from 0 to 9"),
    ({"task": "t", "delay": -1}, "delay", "not a duration"),
    ({"task": "t", "delay": "soon"}, "delay", "soon"),
    ({"task": "t", "delay": float("nan")}, "delay", "not a duration"),
    ({"task": "t", "delay": 1e300}, "delay", "not a duration"),
    ({"task": "t", "at": "tomorrow"}, "at", "tomorrow"),
    ({"task": "t", "at": 5}, "at", "not a moment"),
    ({"task": "t", "expires": [5]}, "expires", "not a duration"),
    ({"task": "t", "max_attempts": 0}, "max_attempts", "from 1"),
    ({"task": "t", "unique": "x" * 256}, "unique", "1 to 255"),
    ({"task": "t", "idempotency_key": ""}, "idempotency_key", "1 to 255"),
    ({"task": "t", "callback_url": "ftp://example.org"}, "callback_url", "http or https"),
    ({"task": "t", "callback_url": "https://u:p@example.org/"}, "callback_url", "without credentials"),
    ({"task": "t", "callback_url": "https://exa mple.org/"}, "callback_url", "http or https"),
    ({"task": "t", "callback_url": "https://example.org/" + "x" * 2048}, "callback_url", "2048 characters"),
    ({"task": "t", "callback_url": "http://[::1"}, "callback_url", "http or https"),
    ({"task": "t", "metadata": []}, "metadata", "JSON object"),
    ({"task": "t", "metadata": {"a": "x" * 5000}}, "metadata", "4,096 bytes"),
    ({"task": "t", "metadata": {"a": "\0"}}, "metadata", "U\\+0000"),
]


@pytest.mark.parametrize(("values", "field", "why"), BAD)
def test_wrong_field_is_told(values: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{field}: .*{why}") as caught:
        read_call(values)
    assert (caught.value.code, caught.value.field) == ("invalid_job", field)


def test_what_is_no_object_is_told() -> None:
    with pytest.raises(InvalidJob, match="not an object"):
        read_call([1])  # type: ignore[arg-type]


REFUSED: list[tuple[Call, type[InvalidJob], str, str]] = [
    (Call("calls.ordr"), UnknownTask, "unknown_task", "task"),
    (Call("calls.fleeting"), UnknownTask, "unknown_task", "task"),
    (Call("celery.chord"), UnknownTask, "unknown_task", "task"),
    (Call("calls.own", [1], queue="nowhere"), UnknownQueue, "unknown_queue", "queue"),
    (Call("calls.own", ["1"]), InvalidArguments, "invalid_arguments", "args.0"),
    (Call("calls.own", [1], delay_s=1, at=datetime.now(UTC)), InvalidJob, "invalid_job", "at"),
    (Call("calls.own", [1], unique_for_s=1), InvalidJob, "invalid_job", "unique_for"),
]


@pytest.mark.parametrize(("call", "kind", "code", "field"), REFUSED)
def test_call_that_cannot_be_a_job_is_refused_by_code_and_field(
    call: Call, kind: type[InvalidJob], code: str, field: str
) -> None:
    with pytest.raises(kind) as caught:
        new_job(app, call)
    assert (caught.value.code, caught.value.field) == (code, field)
