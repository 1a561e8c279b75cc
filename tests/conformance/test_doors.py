"""One contract at every door: the same cases, with the same outcome in the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any
from uuid import uuid4

import pytest

from tests.conformance.doors import DOORS, Call, Command, Door, Foreign, Refused, World
from tests.harness import ROOT

ADD, ECHO = "tests.sample_tasks.add", "tests.sample_tasks.echo"
HOUR = 3600.0
KEYED = [name for name, kind in DOORS.items() if kind.has_keys]


def once(**more: Any) -> Call:
    """Return a call like no other, with a key and an id."""
    name = str(uuid4())
    return Call(ECHO, [name], key=name, id=name, **more)


def jobs_of(world: World, call: Call) -> int:
    """Return how many jobs there are or were of a call."""
    both = "SELECT args FROM jobs UNION ALL SELECT args FROM job_history"
    ((count,),) = world.house.sql(f"SELECT count(*) FROM ({both}) AS both_tables WHERE args LIKE %s", f"%{call.args[0]}%")
    return int(count)


# ---- the cases


def accept(door: Door) -> None:
    call = once()
    job_id = door.hand_in(call)
    assert door.world.house.wait_for(job_id, "queued", "running", "succeeded", timeout=30)
    assert jobs_of(door.world, call) == 1


def repeat(door: Door) -> None:
    call = once()
    first = door.hand_in(call)
    door.world.house.wait_for(first, "succeeded", timeout=30)
    assert door.hand_in(call) == first
    marker = door.hand_in(once())
    door.world.house.wait_for(marker, "succeeded", timeout=30)  # what came before it has been handled
    assert jobs_of(door.world, call) == 1


def conflict(door: Door) -> None:
    call = once()
    door.hand_in(call)
    with refusal(door, "idempotency_conflict", "idempotency_key"):
        door.hand_in(Call(ECHO, ["another"], key=call.key))


def delay(door: Door) -> None:
    job_id = door.hand_in(once(delay_s=HOUR))
    door.world.house.wait_for(job_id, "scheduled", timeout=30)
    sql = "SELECT extract(epoch FROM available_at - created_at)::float8 FROM jobs WHERE id = %s"
    ((waits,),) = door.world.house.sql(sql, job_id)
    assert HOUR - 60 < waits <= HOUR + 1


def expire(door: Door) -> None:
    job_id = door.hand_in(once(delay_s=2.0, expires_s=1.0))
    door.world.house.wait_for(job_id, "expired", timeout=30)


def cancel(door: Door) -> None:
    job_id = door.hand_in(once(delay_s=HOUR))
    door.world.house.wait_for(job_id, "scheduled", timeout=30)
    door.cancel(job_id)
    door.world.house.wait_for(job_id, "cancelled", timeout=30)


def bad_input(door: Door) -> None:
    for call, code, field in BAD:
        if call.callback_url is not None and isinstance(door, Command):
            continue  # it has no such option
        with refusal(door, code, field):
            door.hand_in(call)


BAD = [
    (Call(ADD, ["one", 2]), "invalid_arguments", "args.0"),
    (Call(ADD, [1], {"z": 2}), "invalid_arguments", "kwargs.z"),
    (Call(ADD, [1]), "invalid_arguments", "kwargs.y"),
    (Call(ADD, [1, 2], queue="nowhere"), "unknown_queue", "queue"),
    (Call(ADD, [1, 2], priority=11), "invalid_job", "priority"),
    (Call(ADD, [1, 2], callback_url="ftp://example.org"), "invalid_job", "callback_url"),
]


def unknown_task(door: Door) -> None:
    call = Call("no.such.task", id=str(uuid4()))
    with refusal(door, "unknown_task", "task"):
        door.hand_in(call)
        assert isinstance(door, Foreign), "the door has accepted it"
        assert call.id
        door.unknown(call.id)


def result(door: Door) -> None:
    job_id = door.hand_in(Call(ADD, [20, 22]))
    door.world.house.wait_for(job_id, "succeeded", timeout=30)
    assert door.result(job_id) == 42


class refusal:
    """Expects a refusal with this code and field; of the command line the field's name in its one line, and an exit code."""

    def __init__(self, door: Door, code: str, field: str) -> None:
        self.door, self.code, self.field = door, code, field

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, exc: BaseException | None, trace: Any) -> bool:
        if exc is not None and not isinstance(exc, Refused):
            return False
        assert isinstance(exc, Refused), f"{self.door.name} accepted what is {self.code} at {self.field}"
        if isinstance(self.door, Command):
            assert exc.code in ("1", "2"), exc
            assert exc.field.count("\n") == 1, exc.field
            assert _WORDS.get(self.field, self.field.rpartition(".")[2]) in exc.field, exc.field
        else:
            assert (exc.code, exc.field) == (self.code, self.field)
        return True


#: How the command line names what it has otherwise than the others.
_WORDS = {"idempotency_key": "idempotency key"}

CASES: dict[str, Callable[[Door], None]] = {
    "accept": accept, "repeat": repeat, "conflict": conflict, "delay": delay, "expire": expire, "cancel": cancel,
    "bad input": bad_input, "unknown task": unknown_task, "result": result,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, kind in DOORS.items() for case in CASES if case not in kind.cannot]
)
def test_door_does_what_every_door_does(world: World, name: str, case: str) -> None:
    CASES[case](DOORS[name](world))


@pytest.mark.parametrize(("first", "second"), combinations(KEYED, 2))
def test_key_through_any_two_doors_is_one_job(world: World, first: str, second: str) -> None:
    for one, other in ((first, second), (second, first)):
        call = once()
        job_id = DOORS[one](world).hand_in(call)
        assert DOORS[other](world).hand_in(call) == job_id
        assert jobs_of(world, call) == 1


# ---- what a door has no means to say


def table() -> dict[str, dict[str, str]]:
    """Return the table of the guide: by door and case, its cell."""
    text = (ROOT / "docs" / "guides" / "doors.md").read_text()
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()  # type: ignore[index]
    )
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_table_of_the_guide_says_what_each_door_can() -> None:
    assert {name: {case for case, cell in cells.items() if cell.startswith("no")} for name, cells in table().items()} == {
        name: set(kind.cannot) for name, kind in DOORS.items()
    }
    assert all(list(cells) == list(CASES) for cells in table().values())
    assert {cell.partition(",")[0] for cells in table().values() for cell in cells.values()} == {"yes", "no"}


@pytest.mark.parametrize("name", DOORS)
def test_what_a_door_cannot_it_has_no_means_for(name: str) -> None:
    kind = DOORS[name]
    means = {"cancel", "result"}
    assert {what for what in means if getattr(kind, what) is getattr(Door, what)} == kind.cannot & means
