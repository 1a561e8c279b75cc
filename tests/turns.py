"""The order in which `make test` deals files of tests out to its processes."""

from __future__ import annotations

from collections.abc import Iterable

#: Files that take a process half a minute and more, with about how many seconds. One that is missing here costs time, no more.
LONG = {
    "chaos/test_workers.py": 100, "acceptance/test_demo.py": 85, "acceptance/test_guides.py": 65, "conformance/test_doors.py": 60,
    "acceptance/test_redis_in_production.py": 40, "acceptance/test_face.py": 40, "acceptance/test_locks.py": 30,
    "integration/test_beat.py": 70, "integration/test_cli.py": 80, "integration/test_cache_orm.py": 70,
    "integration/test_sql_door.py": 60, "integration/test_gateway_callers.py": 55, "integration/test_embedded.py": 45,
    "integration/test_sessions.py": 45, "integration/test_webhooks.py": 35, "integration/test_import.py": 35,
    "integration/test_locks_outages.py": 35, "integration/test_presence.py": 30, "integration/test_locks.py": 30,
    "integration/test_gateway_jobs.py": 30, "console/test_operators.py": 55, "console/test_attacks.py": 50,
    "console/test_job.py": 45, "console/test_rules.py": 35,
}  # fmt: skip


def turns(files: Iterable[str]) -> list[str]:
    """Return files, each by its path in `tests`, in the order in which they are begun.

    Long ones come first, so that at the end no process has one left while the others have nothing. Those that start programs
    take turns with those that mostly wait for servers, so that the cores are neither fought for nor idle. Then comes the
    console, whose browser each process starts once, and units last.
    """
    placed: list[tuple[float, str]] = []
    found = sorted(set(files))
    groups = [(0, ("acceptance", "chaos", "conformance")), (0, ("integration",)), (1, ("console",)), (2, ("unit",))]
    for begin, folders in groups:
        mine = sorted((file for file in found if file.partition("/")[0] in folders), key=lambda file: -LONG.get(file, 0))
        placed += [(begin + place / len(mine), file) for place, file in enumerate(mine)]
    return [file for _, file in sorted(placed)]
