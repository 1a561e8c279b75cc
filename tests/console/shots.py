"""Take the README's pictures of the console, of a shop that was made up: `python -m tests.console.shots`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests import browser as chromium
from tests import harness
from tests.console.visitors import Site
from tests.integration.door import Door
from worker.db import statement, upgrade
from worker.embedded import Stack, ensure
from worker.ledger import history, manage, schedules

FOLDER = harness.ROOT / "docs" / "images"
#: Each picture: its name, the page, the colours, and what must stand there before it is taken.
SHOTS = (
    ("console-overview", "/console/", "light", "shop.send_receipt"),
    ("console-queues", "/console/queues", "dark", "reports"),
)
SIZE = {"width": 1180, "height": 780}
#: The largest picture, in bytes.
MOST_BYTES = 200_000

#: A day of a shop: tasks with how many jobs each has in an hour of average traffic, how long they run and how many in a thousand
#: fail. Traffic swings over the day; every number follows from that of the job, so that a picture changes with the page alone.
_DAY = """
INSERT INTO job_history (id, task, queue, state, message, args, attempt, caller, created_at, available_at, started_at, claimed_at,
                         finished_at, result)
SELECT gen_random_uuid()::text, task, queue,
       CASE WHEN (n * 7919 + hour * 104729) %% 1000 < bad THEN 'failed' ELSE 'succeeded' END, '{}', '(' || n || ',)', 1, caller,
       at - took - interval '1 s', at - took - interval '1 s', at - took, at - took, at, '1'
  FROM (VALUES ('shop.send_receipt', 'default', 'web', 90, 0.08, 4), ('shop.charge_card', 'default', 'web', 60, 0.9, 18),
               ('shop.resize_image', 'images', 'uploads', 45, 2.4, 9), ('reports.build', 'reports', 'backoffice', 6, 41.0, 30),
               ('llm.chat', 'default', 'support', 14, 3.1, 12), ('http.call', 'default', 'partners', 25, 0.35, 25))
         AS t(task, queue, caller, many, s, bad),
       generate_series(0, 23) AS hour,
       LATERAL generate_series(1, (many * (1.1 + sin((hour + 3) * 0.45)))::int) AS n,
       LATERAL (SELECT clock_timestamp() - hour * interval '1 hour' - (n * 37 %% 3000) * interval '1 s',
                       s * (0.5 + (n * 13 %% 40) / 20.0) * interval '1 s') AS d(at, took)
"""
_NOW = """
INSERT INTO jobs (id, task, queue, state, message, available_at, dispatch_epoch, claimed_at, started_at, claim_token,
                  worker_id)
SELECT gen_random_uuid()::text, task, queue, state, '{}', clock_timestamp() - n * interval '0.7 s',
       CASE WHEN state = 'queued' AND n <= sent THEN 'e' END,
       r.at, r.at, r.token, r.token
  FROM (VALUES ('shop.send_receipt', 'default', 'queued', 24, 24), ('shop.charge_card', 'default', 'running', 7, 0),
               ('shop.resize_image', 'images', 'queued', 310, 200), ('shop.resize_image', 'images', 'running', 4, 0),
               ('reports.build', 'reports', 'queued', 18, 0)) AS t(task, queue, state, many, sent),
       generate_series(1, many) AS n,
       LATERAL (SELECT CASE WHEN state = 'running' THEN clock_timestamp() END,
                       CASE WHEN state = 'running' THEN gen_random_uuid() END) AS r(at, token)
"""
_WORKERS = """
INSERT INTO worker_nodes (id, name, host, pid, queues, beat_at)
SELECT gen_random_uuid(), 'worker' || n || '@shop-' || n, 'shop-' || n, 40 + n, ARRAY['default', 'images', 'reports'],
       clock_timestamp() + interval '1 minute'
  FROM generate_series(1, 3) AS n
"""
_SCHEDULES = (("nightly-report", "reports.build", "0 3 * * *"), ("stock-sync", "shop.sync_stock", "*/15 * * * *"),
              ("upkeep", "maintenance.upkeep", "20 * * * *"))  # fmt: skip


def main() -> int:
    """Take them; return the exit code."""
    program = chromium.find()
    if program is None:
        print("no Chromium is here to take pictures with", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        stack = ensure(Path(folder), fsync=False)
        try:
            _fill(stack)
            site = Site(Door().start())
            _take(site, program)
            site.stop()
        finally:
            stack.close(wait=True)
    return 0


def _fill(stack: Stack) -> None:
    """Let there be a day of jobs, some that wait, and a fleet."""
    os.environ.update({"DATABASE_URL": stack.postgres.url, "REDIS_URL": stack.redis.url, "CACHE_URL": stack.cache.url,
                       "HOLDFAST_QUEUES": "default,images,reports", "HOLDFAST_CACHE_TIMEOUT_MS": "2000"})  # fmt: skip
    harness.forget()
    upgrade()
    with statement() as conn:
        history.keep_up(conn)
        conn.execute(_DAY, {})
        conn.execute(_NOW, {})
        conn.execute(_WORKERS)
        for name, task, crontab in _SCHEDULES:
            schedules.add(conn, schedules.Spec(name=name, task=task, crontab=crontab))
        manage.set_paused(conn, "reports", True)


def _take(site: Site, program: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    visitor = site.visitor("operator", "ada")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, address, scheme, awaited in SHOTS:
            context = browser.new_context(base_url=site.url, viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
            context.add_cookies([{"name": visitor.cookie, "value": visitor.session_id, "url": site.url}])
            page = context.new_page()
            page.goto(address)
            page.get_by_text(awaited).first.wait_for()
            path = FOLDER / f"{name}.png"
            page.screenshot(path=path)
            context.close()
            size = path.stat().st_size
            assert size < MOST_BYTES, f"{path.name} has {size} bytes"
            print(f"{path.relative_to(harness.ROOT)}  {size:,} bytes")
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
