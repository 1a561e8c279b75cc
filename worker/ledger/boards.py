"""The leaderboards of the ledger, built from its tables: busiest callers, slowest and failing tasks, biggest spenders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from worker.errors import InvalidLive
from worker.ledger.statistics import aggregating
from worker.live import Board, Place, Score
from worker.live.leaderboards import Window

#: The windows there are, by how far back the record is read for them.
WINDOWS: tuple[Window, ...] = ("hour", "day", "week")
#: Members a board keeps.
_SIZE = 10_000
#: Bits beneath a run time in which the moment stands that first reached it: the milliseconds of a week.
_MOMENT = 2**30
#: The longest run time and the biggest spend that boards tell apart: 24 days in milliseconds, a million in millionths.
_LONGEST_MS, _MOST_MICROS = 2**31 - 1, 2**40 - 1

#: By task, and by caller: all that the boards need, in one pass. Counts were reached with the last job, a run time with the first
#: that took so long; that of a run is its last attempt's. Rows written by SQL may hold moments without an end.
_JOBS = f"""
SELECT grouping(task) = 0, coalesce(task, caller), count(*), max(finished_at),
       count(*) FILTER (WHERE state IN ('failed', 'discarded')),
       max(finished_at) FILTER (WHERE state IN ('failed', 'discarded')),
       max(run_ms * {_MOMENT} + {_MOMENT} - 1 - (extract(epoch FROM finished_at - %(start)s) * 1000)::int8)
  FROM (SELECT task, caller, state, finished_at,
               CASE WHEN isfinite(claimed_at) AND state IN ('succeeded', 'failed') AND claimed_at < finished_at
                    THEN least({_LONGEST_MS}, (extract(epoch FROM finished_at - claimed_at) * 1000)::int8) END AS run_ms
          FROM job_history WHERE finished_at >= %(start)s AND finished_at < %(until)s) AS ended
 GROUP BY GROUPING SETS ((task), (caller))
"""
#: A call counts for the moment it was reserved at, as it does in budgets.
_SPENDS = f"""
SELECT subject, least({_MOST_MICROS}, sum(micros))::int8, max(reserved_at) FROM usage
 WHERE reserved_at >= %(start)s AND reserved_at < %(until)s AND micros > 0 GROUP BY subject
"""

_Scores = Mapping[str, Sequence[Score]]

#: What each board tells, and what its values are.
BOARDS = {
    "callers": ("jobs that ended", 2**31 - 1), "slow": ("longest run, ms", _LONGEST_MS),
    "failing": ("jobs that failed", 2**31 - 1), "spenders": ("spent, millionths", _MOST_MICROS),
}  # fmt: skip


def board(name: str, window: Window = "day") -> Board:
    """Return a board by its name. Raises `InvalidLive` that names those there are."""
    if name not in BOARDS:
        raise InvalidLive(f"{name!r} is none of the boards {', '.join(BOARDS)}")
    if window not in WINDOWS:
        raise InvalidLive(f"window: {window!r} is none of {', '.join(WINDOWS)}")
    return Board(name, window, largest=BOARDS[name][1], size=_SIZE)


def refresh(conn: psycopg.Connection[Any], windows: Sequence[Window] = WINDOWS) -> dict[str, int]:
    """Build the boards of these windows anew, as they stand now; return how many members each has, by name and window.

    Raises `LedgerUnavailable`, `StoreUnavailable`.

    **Guarantee:** it is a function of the record alone: whatever Redis has lost or still holds, and however often or in how many
    places at once it runs, the boards it leaves are the same for the same record.
    """
    held: dict[str, int] = {}
    with aggregating(conn) as now:
        scores = {window: _scores(conn, board("callers", window).starts(now), now) for window in windows}
    for window, of in scores.items():
        for name in BOARDS:
            held[f"{name}:{window}"] = board(name, window).rebuild(of[name], at=now)
    return held


def _scores(conn: psycopg.Connection[Any], start: datetime, until: datetime) -> _Scores:
    span = {"start": start, "until": until}
    found: dict[str, list[Score]] = {name: [] for name in BOARDS}
    for is_task, member, ended, last, failed, last_failed, longest in conn.execute(_JOBS, span).fetchall():
        if not member:
            continue  # jobs that code of our own enqueued have no caller
        if not is_task:
            found["callers"].append(Score(member, ended, last))
            continue
        if failed:
            found["failing"].append(Score(member, failed, last_failed))
        if longest is not None:
            run_ms, rest = divmod(longest, _MOMENT)
            found["slow"].append(Score(member, run_ms, start + timedelta(milliseconds=_MOMENT - 1 - rest)))
    found["spenders"] = [Score(*row) for row in conn.execute(_SPENDS, span).fetchall()]
    return {name: list(_kept(scores)) for name, scores in found.items()}


def _kept(scores: Sequence[Score]) -> Iterator[Score]:
    """Leave out what no board takes: a row may come from anybody who writes SQL."""
    for score in scores:
        if 0 < len(score.member) <= 512 and score.value <= _MOST_MICROS:
            yield Score(score.member, score.value, score.at.astimezone(UTC))


def top(conn: psycopg.Connection[Any], name: str, window: Window = "day", count: int = 10) -> list[Place]:
    """Return the first of a board; one that Redis does not have is built first. Raises as `refresh`, `InvalidLive`."""
    wanted = board(name, window)
    found = wanted.top(count)
    if not found:
        refresh(conn, [window])
        found = wanted.top(count)
    return found
