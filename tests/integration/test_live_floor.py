"""The scripts of live state on the oldest server promised, and on whatever this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import harness
from tests.integration.conftest import redis_of
from worker.embedded import RedisServer
from worker.errors import SessionConflict, SessionGone
from worker.live import Board, Feed, Place, Presence, Score, Sessions, Snapshot, flag
from worker.store import cache, keys


@pytest.fixture(params=[*harness.redis_programs()], autouse=True)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> Iterator[RedisServer]:
    """Both roles on one server, of every kind there is here beside the stack's."""
    monkeypatch.setenv("HOLDFAST_CACHE_TIMEOUT_MS", "2000")
    monkeypatch.setenv("HOLDFAST_REDIS_TIMEOUT_S", "10")
    with redis_of(request.param, tmp_path, monkeypatch, "REDIS_URL", "CACHE_URL") as found:
        yield found


def test_every_script_works() -> None:
    sessions, board, place = Sessions(), Board("b", "day"), Presence("p")
    session = sessions.rotate(sessions.open(data={"n": 1}), "ann")
    other = sessions.read(session.id)
    assert other is not None
    sessions.write(session)
    with pytest.raises(SessionConflict):
        sessions.write(other)
    assert len(sessions.of_user("ann")) == sessions.end_all("ann") == 1
    with pytest.raises(SessionGone):
        sessions.write(session)

    place.beat_all([("ann", "a"), ("ann", "b"), ("bob", "")])
    place.leave("bob")
    assert place.online() == {"ann": ["a", "b"]}

    board.add("ann", 2)
    board.best("bob", 5)
    assert board.around("ann", 1) == [Place(1, "bob", 5), Place(2, "ann", 2)]
    assert board.rebuild([Score("cid", 2**31 - 1, datetime.now(UTC))]) == 1
    assert board.top() == [Place(1, "cid", 2**31 - 1)]

    Feed(lambda known: Snapshot(3, {"f": flag("f")})).close()
    assert cache().ask([("HGET", keys.flags(), "version")]) == [b"3"]
