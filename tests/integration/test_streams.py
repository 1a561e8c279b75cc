"""Streams: shared out, acknowledged, reclaimed, set aside, trimmed and read again, on the oldest server promised and on ours."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from tests import harness
from worker.embedded import RedisServer, Stack
from worker.errors import ConsumerBusy, DeadLetterNotFound, InvalidEntry, InvalidStream, StoreRefused, StreamGone
from worker.store import Role
from worker.streams import DeadLetters, Group, Replay, Stream, first_id_at, groups_of, pack, unpack

Make = Callable[..., Group]


@pytest.fixture(scope="module", params=["stack", *harness.redis_programs()])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Iterator[str]:
    """A server of every kind there is here."""
    if request.param == "stack":
        yield stack.redis.url
        return
    folder = tmp_path_factory.mktemp("floor")
    (folder / "bin").mkdir()
    (folder / "bin" / "redis-server").symlink_to(harness.redis_programs()[request.param])
    (folder / "redis").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        server = RedisServer(folder / "redis", port, "secret")
        server.start()
        yield server.url
        server.stop()


@pytest.fixture
def server(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        client.flushall()
        yield client


@pytest.fixture
def stream(url: str, server: Redis) -> Iterator[Stream]:
    role = Role("coordination", url, 5.0)
    found = Stream.named("orders")
    yield Stream(found.key, lambda: role)
    role.close()


@pytest.fixture
def group(stream: Stream) -> Make:
    """Make groups: `group("billing", "one")`."""
    return lambda name="billing", consumer="one", **options: Group(stream, name, consumer=consumer, **options)


def fill(stream: Stream, count: int) -> list[str]:
    return stream.append_many([{"n": n} for n in range(count)])


def age(server: Redis, of: Group, ids: list[str], seconds: int) -> None:
    """Let entries have been pending for so long with the consumer that has them."""
    server.xclaim(of.stream.key, of.name, of.consumer, 0, ids, idle=seconds * 1000, justid=True)  # type: ignore[arg-type]


# ---- writing


def test_entry_comes_back_as_it_went_in(stream: Stream) -> None:
    found = stream.append({"text": "ü", "raw": b"\xff\0", "number": 7})
    (entry,) = stream.range()
    assert (entry.id, entry.fields) == (found, {"text": "ü".encode(), "raw": b"\xff\0", "number": b"7"})
    assert abs((datetime.now(UTC) - entry.at).total_seconds()) < 60
    with pytest.raises(InvalidEntry, match="'raw' is not UTF-8"):
        entry.text("raw")


def test_append_with_a_token_is_appended_once_however_often_it_is_repeated(stream: Stream, server: Redis) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(stream.append({"n": 1}, once="order 1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stream) == 1
    assert len(ids) == 8
    assert set(ids) == {stream.range()[0].id}
    assert 0 < server.ttl(f"{stream.key}:once:order 1") <= 86_400
    assert stream.append({"n": 1}, once="order 2") not in ids


@pytest.mark.parametrize("fields", [{}, {"n": None}, {"n": [1]}, {"n": True}])
def test_what_cannot_be_appended_is_named(stream: Stream, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidEntry, match="field"):
        stream.append(fields)
    assert len(stream) == 0


@dataclass
class Reading:
    sensor: str
    celsius: float


def test_structured_value_comes_back_checked(stream: Stream) -> None:
    stream.append(pack(Reading("a", 21.5)))
    (entry,) = stream.range()
    assert unpack(entry, Reading) == Reading("a", 21.5)
    stream.append({"data": '{"sensor": "a", "celsius": "warm"}'})
    with pytest.raises(InvalidEntry, match=r"is no Reading: .*celsius"):
        unpack(stream.range(newest=True)[0], Reading)


# ---- sharing out


def test_group_shares_entries_out_and_forgets_what_is_acknowledged(stream: Stream, group: Make) -> None:
    ids = fill(stream, 10)
    one, two = group(consumer="one"), group(consumer="two")
    first, second = one.read(limit=6), two.read(limit=6)
    assert [entry.id for entry in [*first, *second]] == ids
    assert one.ack([entry.id for entry in first]) == 6
    assert one.ack([entry.id for entry in first]) == 0
    assert [pending.id for pending in one.pending()] == [entry.id for entry in second]
    assert {pending.consumer for pending in one.pending()} == {"two"}


def test_read_waits_for_the_first_entry(stream: Stream, group: Make) -> None:
    reader = group()
    assert reader.read(wait_s=0.05) == []
    timer = threading.Timer(0.2, lambda: stream.append({"n": 1}))
    timer.start()
    assert len(reader.read(wait_s=4.0)) == 1
    timer.join()


def test_entries_of_a_dead_consumer_are_reclaimed_by_one_and_delivered_counted(
    stream: Stream, group: Make, server: Redis
) -> None:
    ids = fill(stream, 250)
    dead, heirs = group(consumer="dead"), [group(consumer="a"), group(consumer="b")]
    dead.read(limit=250)
    assert heirs[0].reclaim(idle_s=60, limit=1000) == []
    age(server, dead, ids, 61)
    taken: dict[str, list[str]] = {}
    # The second finds none that has been idle for so long: they are fresh in the first one's hands.
    threads = [
        threading.Thread(target=lambda h=heir: taken.update({h.consumer: h.reclaim(idle_s=60, limit=1000)})) for heir in heirs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken["a"] + taken["b"]) == sorted(ids)
    heir = next(h for h in heirs if taken[h.consumer])
    entry = heir.deliver(taken[heir.consumer][0])
    assert entry is not None
    assert entry.deliveries == 2, "once to the dead one, once now"
    assert heir.pending(limit=1, first=taken[heir.consumer][1])[0].deliveries == 1, "reclaimed, not delivered"


def test_entry_that_was_deleted_while_pending_is_let_go_of(stream: Stream, group: Make) -> None:
    ids = fill(stream, 3)
    group(consumer="dead").read()
    stream.delete(ids[:1])
    heir = group(consumer="heir")
    time.sleep(0.02)
    delivered = [heir.deliver(one) for one in heir.reclaim(idle_s=0.01)]
    assert [entry.id for entry in delivered if entry] == ids[1:]
    assert [pending.id for pending in heir.pending()] == ids[1:]


def test_entries_that_are_kept_are_not_reclaimed_nor_counted(stream: Stream, group: Make, server: Redis) -> None:
    slow, other = group(consumer="slow"), group(consumer="other")
    ids = fill(stream, 3)
    slow.read()
    age(server, slow, ids, 61)
    slow.keep(ids)
    assert other.reclaim(idle_s=60) == []
    assert {(one.consumer, one.deliveries) for one in slow.pending()} == {("slow", 1)}


def test_consumer_leaves_only_when_nothing_is_pending_with_it(stream: Stream, group: Make, server: Redis) -> None:
    ids = fill(stream, 2)
    one = group()
    one.read()
    with pytest.raises(ConsumerBusy, match="2 entries are pending with consumer 'one'"):
        one.leave()
    assert one.forget_idle(0) == 0
    assert len(one.pending()) == 2
    heir = group(consumer="heir")
    assert heir.reclaim(idle_s=0) == ids
    assert one.forget_idle(0) == 1
    heir.ack(ids)
    heir.leave()
    assert [state.consumers for state in groups_of(stream)] == [0]


def test_life_of_a_group_ends_with_the_stream(stream: Stream, group: Make, server: Redis) -> None:
    one, two = group(), group(consumer="two")
    life = one.ensure()
    assert two.ensure() == one.ensure() == life
    assert one.forget_idle(0) == 0, "the token is no consumer to be forgotten"
    assert one.life == life
    server.flushall()
    with pytest.raises(StreamGone):
        one.read()
    assert one.life != life
    fill(stream, 1)
    assert len(one.read()) == 1


def test_waiting_reader_survives_the_loss_of_its_stream(stream: Stream, group: Make, server: Redis) -> None:
    reader = group()
    reader.ensure()
    timer = threading.Timer(0.2, server.flushall)
    timer.start()
    try:
        reader.read(wait_s=1.0)
    except StreamGone:
        pass
    timer.join()
    for _ in range(2):
        try:
            fill(stream, 1)
            assert reader.read()
            break
        except StreamGone:
            continue


# ---- dead letters


def test_dead_letter_keeps_the_entry_and_can_be_put_back(stream: Stream, group: Make) -> None:
    reader, dead = group(), DeadLetters(stream)
    stream.append({"task": "x", "raw": b"\xff", "reason": "their own"})
    (entry,) = reader.read()
    assert dead.put(reader, entry, "no such task", code="unknown_task", field="task") is not None
    assert dead.put(reader, entry, "again") is None, "it is not pending any more"
    assert reader.pending() == []
    (letter,) = dead.list()
    assert (letter.origin, letter.reason, letter.code, letter.field) == (entry.id, "no such task", "unknown_task", "task")
    assert letter.deliveries == 1
    assert letter.fields == entry.fields
    put_back = dead.requeue(letter.id)
    assert len(dead) == 0
    (again,) = reader.read()
    assert (again.id, again.fields) == (put_back, entry.fields)
    for deed in (dead.requeue, dead.drop):
        with pytest.raises(DeadLetterNotFound, match=letter.id):
            deed(letter.id)


# ---- trimming


def test_trimming_loses_no_unacknowledged_entry_where_maxlen_loses_all(stream: Stream, group: Make, server: Redis) -> None:
    plain = lambda: server.xtrim(stream.key, maxlen=100, approximate=False)  # noqa: E731
    for trim, left in ((plain, 0), (lambda: stream.trim(keep=100), 500)):
        server.flushall()
        dead, heir = group(consumer="dead"), group(consumer="heir")
        dead.ensure()
        ids = fill(stream, 500)
        dead.read(limit=500)
        fill(stream, 100)
        assert trim() == 500 - left
        reclaimed = [heir.deliver(one) for one in heir.reclaim(idle_s=0, limit=1000)]
        assert len([entry for entry in reclaimed if entry]) == left
        assert left == 0 or [entry.id for entry in reclaimed if entry] == ids


def test_trimming_waits_for_the_slowest_group_read_or_unread(stream: Stream, group: Make) -> None:
    ids = fill(stream, 30)
    fast, slow, idle = group("fast"), group("slow"), group("idle")
    for each in (fast, slow, idle):
        each.ensure()
    fast.ack([entry.id for entry in fast.read(limit=30)])
    read = [entry.id for entry in slow.read(limit=20)]
    slow.ack([*read[:5], *read[6:]])
    assert stream.trim() == 0, "one group has read nothing"
    idle.destroy()
    assert stream.trim(keep=1) == 5
    assert stream.range(limit=1)[0].id == ids[5], "the lowest that is pending"
    slow.ack([ids[5]])
    assert stream.trim() == 15
    assert [entry.id for entry in slow.read()] == ids[20:], "what it had not read"


def test_trimming_keeps_a_length_and_an_age(stream: Stream, group: Make) -> None:
    reader = group()
    fill(stream, 2500)
    while entries := reader.read(limit=1000):
        reader.ack([entry.id for entry in entries])
    assert stream.trim(keep_s=3600) == 0
    assert stream.trim(keep=100) == 2400
    assert len(stream) == 100
    time.sleep(0.03)
    fill(stream, 3)
    assert stream.trim(keep_s=0.02) == 100, "older, and done with"
    assert len(reader.read()) == 3


def test_stream_without_a_group_is_trimmed_only_when_told(stream: Stream) -> None:
    fill(stream, 10)
    assert stream.trim(keep=1) == 0
    assert stream.trim(keep=1, unread_too=True) == 9
    assert Stream("holdfast:stream:none", stream.role).trim() == 0


def test_trimming_beside_consumers_that_die_loses_nothing(stream: Stream, group: Make) -> None:
    """Consumers acknowledge half of what they read and are gone; a trimmer runs all the while."""
    over = threading.Event()

    def trim() -> None:
        while not over.is_set():
            stream.trim(keep=0)

    group().ensure()
    trimmer = threading.Thread(target=trim)
    trimmer.start()
    done: list[str] = []
    ids: list[str] = []
    for turn in range(20):
        ids += fill(stream, 50)
        doomed = group(consumer=f"doomed-{turn}")
        read = [entry.id for entry in doomed.read(limit=40)]
        done += read[::2]
        doomed.ack(read[::2])
    last = group(consumer="last")
    done += [entry.id for entry in last.read(limit=1000)]
    done += [entry.id for one in last.reclaim(idle_s=0, limit=2000) if (entry := last.deliver(one)) and entry.id not in done]
    over.set()
    trimmer.join()
    assert sorted(done) == sorted(ids)


# ---- looking, and reading again


def test_lag_is_told_also_where_the_server_does_not_know_it(stream: Stream, group: Make, server: Redis) -> None:
    ids = fill(stream, 20)
    group().read(limit=5)
    late = group("late", start=ids[9])
    late.ensure()
    stream.delete([ids[15]])  # after which newer servers do not know the lag of groups behind it
    states = {state.group: state for state in groups_of(stream)}
    assert {name: state.lag for name, state in states.items()} == {"billing": 14, "late": 9}
    assert {name: state.pending for name, state in states.items()} == {"billing": 5, "late": 0}
    assert states["billing"].oldest_s is not None
    assert states["late"].oldest_s is None
    assert groups_of(Stream("holdfast:stream:none", stream.role)) == []


def test_time_range_is_replayed_beside_the_live_group(stream: Stream, group: Make) -> None:
    fill(stream, 5)
    time.sleep(0.02)
    since = stream.range(limit=1, newest=True)[0].at + timedelta(milliseconds=5)
    time.sleep(0.02)
    middle = fill(stream, 7)
    time.sleep(0.02)
    until = stream.range(limit=1, newest=True)[0].at + timedelta(milliseconds=5)
    time.sleep(0.02)
    fill(stream, 5)
    live = group()
    live.read(limit=10)
    before = live.pending(), [state.lag for state in groups_of(stream)]
    again = Replay(stream, "again", consumer="me", since=since, until=until)
    found = []
    while entries := again.read(limit=3):
        found += [entry.id for entry in entries]
        again.ack([entry.id for entry in entries])
    assert found == middle
    assert again.pending() == []
    after = live.pending(), [state.lag for state in groups_of(stream) if state.group == "billing"]
    assert [(one.id, one.deliveries) for one in after[0]] == [(one.id, one.deliveries) for one in before[0]]
    assert after[1] == before[1]
    assert again.destroy()


def test_replay_ends_where_the_stream_stood_and_goes_on_where_it_was(stream: Stream) -> None:
    ids = fill(stream, 6)
    since = stream.range(limit=1)[0].at
    again = Replay(stream, "again", consumer="me", since=since)
    assert [entry.id for entry in again.read(limit=4)] == ids[:4]
    fill(stream, 3)
    assert [entry.id for entry in again.read()] == ids[4:], "what came later is not of the range"
    assert Replay(stream, "again", consumer="me", since=since).read(limit=1)[0].id not in ids


# ---- bad input


def test_bad_names_ids_and_ranges_are_named(stream: Stream, group: Make) -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    for wrong in ("", "a\nb", "x" * 201):
        with pytest.raises(InvalidStream, match="printable text of 1 to 200"):
            Stream.named(wrong)
        with pytest.raises(InvalidStream, match="printable"):
            group(wrong)
    with pytest.raises(InvalidEntry, match="'soon' is not the id"):
        group().ack(["soon"])
    with pytest.raises(InvalidStream, match=r"until: .* is not after"):
        Replay(stream, "again", consumer="me", since=moment, until=moment)
    assert first_id_at(moment) == "1893456000000-0"


def test_key_of_another_type_is_an_error_not_a_group(stream: Stream, group: Make, server: Redis) -> None:
    server.set(stream.key, "text")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        group().read()
