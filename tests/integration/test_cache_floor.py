"""The scripts of the cache on the oldest server promised, and on whatever this machine has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.integration.conftest import redis_of
from worker.cache import MISSING, Region, hot
from worker.embedded import RedisServer
from worker.errors import LoadFailed
from worker.telemetry import CACHE_EARLY


@pytest.fixture(params=[*harness.redis_programs()], autouse=True)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> Iterator[RedisServer]:
    """The cache server, of every kind there is here beside the stack's."""
    monkeypatch.setenv("HOLDFAST_CACHE_TIMEOUT_MS", "2000")
    with redis_of(request.param, tmp_path, monkeypatch, "CACHE_URL") as found:
        yield found


def test_every_script_works() -> None:
    region = Region("r", ttl=60)
    assert region.get_or_load("k", lambda: 1, tags=["t"]) == region.get("k") == 1
    assert region.invalidate_tags("t")
    assert region.get("k") is MISSING
    assert region.write_through("k", 7, version=7)
    assert not region.write_through("k", 6, version=6)
    assert region.invalidate("k")
    assert region.refresh("k", lambda: 8).advanced
    assert region.get_many_or_load(["k", "l"], lambda wanted: {"l": 9}) == {"k": 8, "l": 9}
    for error in (ZeroDivisionError, LoadFailed):
        with pytest.raises(error):
            region.get_or_load("bad", lambda: 1 // 0)
    hot._ranking.count("name", ("ü", 1))
    hot.flush()
    assert [(one.name, one.args) for one in hot.top(5) if one.name == "name"] == [("name", ["ü", 1])]
    assert hot.decay(0.5) >= 1


def test_value_is_refreshed_early() -> None:
    region = Region("floor", ttl=0.6, jitter=0)
    loads: list[int] = []

    def load() -> int:
        loads.append(1)
        time.sleep(0.2)
        return len(loads)

    region.get_or_load("k", load)
    early = CACHE_EARLY.labels("floor")._value.get()
    harness.eventually(lambda: region.get_or_load("k", load) > 1 and CACHE_EARLY.labels("floor")._value.get() > early)
