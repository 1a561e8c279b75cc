"""`holdfast cache`: what it shows is what lies there, what it forgets is gone, and its audit finds what does not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
import pytest
from redis import Redis

from worker.cache import MISSING, Region, hot
from worker.cache.audit import STEP, look
from worker.cli.program import invoke
from worker.embedded import Stack
from worker.ledger import statistics
from worker.store import keys

Conn = psycopg.Connection[Any]

teas = Region("teas", ttl=60, type=dict[str, Any])


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _patient(conf: Callable[..., None]) -> None:
    """A machine that is too busy for the deadline of the cache is no outage here."""
    conf(cache_timeout_ms=2000)


@pytest.fixture
def holdfast(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line in this process."""

    def run(*args: str) -> Said:
        capsys.readouterr()
        return Said(invoke(["cache", *args]), *capsys.readouterr())

    return run


# ---- get


def test_entry_is_shown_with_its_age_and_tags(holdfast: Callable[..., Said], cache: Redis) -> None:
    teas.get_or_load("green", lambda: {"cents": 7, "names": ["sencha"] * 2000}, tags=["drinks"])
    said = holdfast("get", "teas:green", "--json")
    found = said.document
    assert said.code == 0
    assert (found["found"], found["value"]["cents"], found["tags"], found["hold"]) == ("value", 7, ["drinks"], True)
    assert 50 < found["fresh_s"] <= 66
    assert found["age_s"] < 5
    holdfast("invalidate", "--tag", "drinks")
    assert holdfast("get", "teas:green", "--json").document["hold"] is False
    assert "drinks" in holdfast("get", "teas:green").out


def test_known_absence_and_unreadable_bytes_are_told_apart(holdfast: Callable[..., Said], cache: Redis) -> None:
    teas.get_or_load("none", lambda: None)
    cache.set(keys.cache_entry("teas:odd"), b"\x00\xffrubbish", px=5000)
    assert holdfast("get", "teas:none", "--json").document["found"] == "absence"
    assert holdfast("get", "teas:odd", "--json").document["found"] == "unreadable"


def test_key_without_an_entry_is_told(holdfast: Callable[..., Said]) -> None:
    assert holdfast("get", "teas:black") == (1, "", "holdfast: nothing is cached under 'teas:black'\n")


# ---- invalidate


def test_keys_and_tags_are_forgotten(holdfast: Callable[..., Said]) -> None:
    for name in ("green", "black"):
        teas.get_or_load(name, dict, tags=["drinks"])
    said = holdfast("invalidate", "teas:green")
    assert said == (0, "forgotten: teas:green\n", "")
    assert teas.get("green", ["drinks"]) is MISSING
    assert teas.get("black", ["drinks"]) == {}
    assert holdfast("invalidate", "--tag", "drinks", "--tag", "x").out == "forgotten: all under drinks\nforgotten: all under x\n"
    assert teas.get("black", ["drinks"]) is MISSING


def test_nothing_to_forget_is_bad_input(holdfast: Callable[..., Said]) -> None:
    assert holdfast("invalidate") == (2, "", "holdfast: which? give keys, or --tag\n")


@pytest.mark.parametrize("command", [("get", "k"), ("invalidate", "k"), ("hot",), ("stats",), ("audit",)])
def test_redis_that_is_away_is_told_in_one_line(holdfast: Callable[..., Said], stack: Stack, command: tuple[str, ...]) -> None:
    stack.cache.kill()
    said = holdfast(*command)
    assert (said.code, said.out, said.err.count("\n")) == (4, "", 1)
    assert "Redis (cache)" in said.err


@pytest.mark.parametrize("command", ["get", "invalidate"])
@pytest.mark.parametrize("key", ["", "k" * 2000])
def test_key_that_nothing_can_be_cached_under_is_bad_input(holdfast: Callable[..., Said], command: str, key: str) -> None:
    said = holdfast(command, key)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_values_for_which_json_has_no_word_are_text(holdfast: Callable[..., Said], cache: Redis) -> None:
    teas.write_through("odd", {"ratios": [float("nan"), float("-inf"), 0.5]})
    Region("raw", ttl=60, type=bytes).write_through("text", b'{"status": "PENDING"}')
    Region("raw", ttl=60, type=bytes).write_through("bytes", b"a\xff")
    assert holdfast("get", "teas:odd", "--json").document["value"] == {"ratios": ["nan", "-inf", 0.5]}
    assert holdfast("get", "raw:text", "--json").document["value"] == '{"status": "PENDING"}'
    assert holdfast("get", "raw:bytes", "--json").document["value"] == "a\\xff"
    assert '{"status": "PENDING"}' in holdfast("get", "raw:text").out


# ---- hot, warm, stats


def test_most_read_are_listed(holdfast: Callable[..., Said]) -> None:
    for _ in range(800):
        hot.note("prices", ("tea", 1))
    hot.flush()
    (row,) = holdfast("hot", "--json").document
    assert (row["name"], row["args"]) == ("prices", ["tea", 1])
    assert 400 < row["reads"] < 1600
    assert '["tea", 1]' in holdfast("hot").out


def test_warming_tells_by_key_whether_it_did(holdfast: Callable[..., Said]) -> None:
    told = {row["key"]: row for row in holdfast("warm", "--json").document}
    assert told["statistics.activity:24"]["advanced"] is True
    assert statistics.activity.get() is not MISSING
    again = holdfast("warm")
    assert again.code == 0
    assert "statistics.activity:24" in again.out, "its ttl is shorter than what lies between two runs"


def test_warming_that_fails_is_told_by_the_exit_code(holdfast: Callable[..., Said], db: Conn) -> None:
    db.execute("ALTER TABLE job_history RENAME TO elsewhere")
    said = holdfast("warm", "--json")
    assert said.code == 1
    told = {row["key"]: row for row in said.document}
    assert told["statistics.activity:24"]["outcome"] == "failed"
    assert "not migrated" in told["statistics.activity:24"]["error"]
    assert "was not warmed" in said.err


def test_stats_tell_what_the_cache_is_owed(holdfast: Callable[..., Said], db: Conn) -> None:
    teas.get_or_load("green", dict)
    db.execute("INSERT INTO cache_outbox (keys, created_at) VALUES ('{teas:green}', now() - interval '1 minute')")
    document = holdfast("stats", "--json").document
    assert document["keys"] >= 1
    assert document["owed_invalidations"] == 1
    assert 59 < document["oldest_owed_s"] < 90
    assert "maxmemory policy" in holdfast("stats").out


# ---- audit


def test_audit_of_what_holdfast_writes_finds_nothing(holdfast: Callable[..., Said]) -> None:
    teas.get_or_load("green", dict, tags=["drinks"])
    teas.write_through("black", {}, version=3)
    hot.note("prices", ())
    for _ in range(100):
        hot.note("prices", ())
    hot.flush()
    said = holdfast("audit", "--json")
    found = said.document
    assert (said.code, found["whole"]) == (0, True)
    assert (found["without_ttl"]["count"], found["unknown"]["count"], found["big"]["count"]) == (0, 0, 0)
    assert found["kinds"]["holdfast:cache:{<key>}"] == 2
    assert found["kinds"]["holdfast:cache:tag:{<tag>}"] == 1
    assert found["kinds"]["holdfast:cache:{<key>}:version"] == 1
    assert found["kinds"]["holdfast:cache:hot"] == 1


def test_audit_finds_what_would_stay_what_is_big_and_what_nobody_declared(holdfast: Callable[..., Said], cache: Redis) -> None:
    cache.set("stray", "x", px=60_000)
    cache.set(keys.cache_entry("teas:forever"), "x")
    cache.set(keys.cache_entry("teas:big"), "x" * 300_000, px=60_000)
    said = holdfast("audit", "--json")
    found = said.document
    assert said.code == 1
    assert found["unknown"]["keys"] == ["stray"]
    assert found["without_ttl"]["keys"] == [keys.cache_entry("teas:forever")]
    assert found["big"]["keys"] == [keys.cache_entry("teas:big")]
    assert found["big"]["bytes"] > 300_000
    text = holdfast("audit").out
    assert "undeclared: 1" in text
    assert "  stray\n" in text


def test_audit_lets_no_key_steer_a_terminal(holdfast: Callable[..., Said], cache: Redis) -> None:
    cache.set(b"\x1b[2Jstray\nforged: 0", "x", px=60_000)
    out = holdfast("audit").out
    assert "  \\x1b[2Jstray\\nforged: 0\n" in out
    assert "\x1b" not in out


def test_audit_goes_in_small_steps_and_never_asks_for_all_keys(env: dict[str, str], cache: Redis) -> None:
    with cache.pipeline() as pipe:
        for number in range(5 * STEP):
            pipe.set(keys.cache_entry(f"teas:{number}"), "x", px=60_000)
        pipe.execute()
    cache.config_resetstat()
    assert look().looked_at == 5 * STEP
    calls = cache.info("commandstats")
    assert calls["cmdstat_scan"]["calls"] >= 4
    assert "cmdstat_keys" not in calls


def test_audit_is_bounded(env: dict[str, str], cache: Redis) -> None:
    for number in range(3 * STEP):
        cache.set(keys.cache_entry(f"teas:{number}"), "x", px=60_000)
    report = look(most=STEP)
    assert not report.whole
    assert report.looked_at < 3 * STEP
