"""Flower behind the console's login: open to nobody else, and no longer than the console is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from tests.console.visitors import Site, Visitor
from tests.harness import Program, eventually
from tests.integration.conftest import free_port

#: What Flower serves that tells or does something.
PAGES = ("/", "/workers", "/tasks", "/broker", "/metrics", "/login", "/logout", "/task/1", "/worker/1")
CALLS = ("/api/workers", "/api/tasks", "/api/queues/length", "/api/task/info/1")


@pytest.fixture
def flower(site: Site, launch: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Flower that knows this console."""
    monkeypatch.setenv("HOLDFAST_CONSOLE_URL", f"{site.url}/console")
    port = free_port()
    program = launch(Program("-m", "worker.cli", "flower", "--port", str(port), name="flower"))
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: httpx.get(f"{url}/healthcheck", trust_env=False).is_success, 40, what="Flower answering")
    yield url
    program.kill_tree()


def asked(flower: str, visitor: Visitor | None, method: str, path: str) -> httpx.Response:
    """Ask Flower as a visitor's browser does, with a form of its own page."""
    with httpx.Client(base_url=flower, trust_env=False, timeout=30) as browser:
        if visitor is not None:
            browser.cookies.set(visitor.cookie, visitor.session_id, domain="127.0.0.1")
        if method == "GET":
            return browser.get(path)
        token = browser.get("/").cookies.get("_xsrf", "")
        return browser.post(path, data={"_xsrf": token}, headers={"sec-fetch-site": "same-origin"})


def test_flower_is_open_to_who_is_logged_in_to_the_console_and_no_longer(
    site: Site, flower: str, db: psycopg.Connection[Any]
) -> None:
    nobody, ann, root = site.visitor(), site.visitor("operator"), site.visitor("admin", "root")
    nobody.get("/console/login")
    for visitor in (None, nobody):
        assert {asked(flower, visitor, "GET", path).status_code for path in PAGES} == {302}
        assert {asked(flower, visitor, "GET", path).status_code for path in CALLS} == {403}
        assert asked(flower, visitor, "POST", "/api/task/send-task/some.task").status_code == 403
    assert asked(flower, None, "GET", "/login").headers["location"] == f"{site.url}/console/login?next=/console/flower"
    assert asked(flower, ann, "GET", "/tasks").status_code == 200
    assert asked(flower, ann, "GET", "/api/tasks").status_code == 200
    assert asked(flower, ann, "POST", "/api/task/revoke/1").status_code == 403, "an operator reads"
    assert asked(flower, root, "POST", "/api/task/revoke/1").status_code == 200
    assert db.execute("SELECT target FROM audit_log WHERE actor = 'root' AND action = 'flower'").fetchall() == [
        ("/api/task/revoke/1",)
    ]  # fmt: skip
    with httpx.Client(base_url=flower, trust_env=False, cookies={root.cookie: root.session_id}) as forger:
        headers = {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"}
        assert forger.post("/api/task/revoke/1", headers=headers).status_code == 403, "another port of this host"
    with httpx.Client(base_url=flower, trust_env=False, cookies={ann.cookie: ann.session_id}) as open_tab:
        ann.send_form("/console/logout")
        assert open_tab.get("/tasks").status_code == 302
