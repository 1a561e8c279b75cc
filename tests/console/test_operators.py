"""Operators: in the console, from the command line, and their own accounts."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.console.visitors import PASSWORD, Site, Visitor, read
from worker.cli.program import invoke
from worker.db import statement
from worker.ledger import operators


def shown_password(page: str) -> str:
    return page.partition("<pre>")[2].partition("</pre>")[0]


def trail_of(db: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute("SELECT actor, action, target FROM audit_log ORDER BY id").fetchall()


def test_operator_is_added_disabled_and_let_in_again(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("admin", "ann")
    added = ann.send_form("/console/operators/add", name="bob", role="viewer", next="/console/operators")
    password = shown_password(added.text)
    assert len(password) >= 16
    bob = site.visitor()
    assert bob.log_in("bob", password).status_code == 303
    assert ann.act("/console/operators/role", name="bob", role="operator") == "bob is operator from the next request on."
    assert bob.act("/console/queues/pause", queue="default") == "default is paused."
    assert ann.act("/console/operators/disable", name="bob") == "bob is disabled."
    assert bob.get("/console/").status_code == 303
    assert ann.act("/console/operators/enable", name="bob") == "bob may log in again."
    reset = ann.send_form("/console/operators/password", name="bob", confirmed="yes")
    assert bob.log_in("bob", password).status_code == 403
    assert bob.log_in("bob", shown_password(reset.text)).status_code == 303
    did = [(action, target) for actor, action, target in trail_of(db) if actor == "ann" and action.startswith("operator.")]
    assert did == [(f"operator.{what}", "bob") for what in ("add", "role", "disable", "enable", "password")]


@pytest.mark.parametrize("path", ["/console/operators/disable", "/console/operators/role"])
def test_last_admin_stays_one(site: Site, path: str) -> None:
    ann = site.visitor("admin", "ann")
    assert "would leave no admin" in ann.act(path, name="ann", role="viewer", next="/console/operators")
    assert ann.get("/console/operators").status_code == 200


def test_what_cannot_be_is_said_and_not_written(site: Site, db: psycopg.Connection[Any]) -> None:
    ann = site.visitor("admin", "ann")
    before = trail_of(db)
    assert "already" in ann.act("/console/operators/add", name="ann", role="viewer")
    assert "is not 1 to 64" in ann.act("/console/operators/add", name="<b>", role="viewer")
    assert "'root' is none of" in ann.act("/console/operators/role", name="ann", role="root")
    assert "no operator 'eve'" in ann.act("/console/operators/password", name="eve")
    assert trail_of(db) == before


# ---- one's own account


def test_operator_sees_and_ends_sessions_of_its_own_alone(site: Site) -> None:
    ann, bob = site.visitor("viewer", "ann"), site.visitor("viewer", "bob")
    phone = Visitor(site.url)
    phone.log_in("ann")
    tablet = Visitor(site.url)
    tablet.log_in("ann")

    def handles(visitor: Visitor) -> list[str]:
        return [str(tag[1]["value"]) for tag in read(visitor.get("/console/account").text).tags if tag[1].get("name") == "handle"]

    assert len(handles(ann)) == 2
    assert bob.act("/console/account/sessions/end", handle=handles(ann)[0]) == "There is no such session any more."
    assert ann.act("/console/account/sessions/end", handle=handles(ann)[0]) == "The session is over."
    assert sorted(visitor.get("/console/account").status_code for visitor in (phone, tablet)) == [200, 303]
    assert ann.act("/console/account/sessions/end-others") == "1 other session is over."
    assert {visitor.get("/console/account").status_code for visitor in (phone, tablet)} == {303}
    assert bob.get("/console/account").status_code == 200
    phone.close()
    tablet.close()


def test_operator_changes_its_password_and_keeps_this_session(site: Site) -> None:
    ann, phone = site.visitor("viewer", "ann"), Visitor(site.url)
    phone.log_in("ann")
    new = "another horse, another battery"
    assert "another one" in ann.act("/console/account/password", password="wrong", new=new)
    assert "give 10 to 256" in ann.act("/console/account/password", password=PASSWORD, new="short")
    assert ann.act("/console/account/password", password=PASSWORD, new=new) == "The password is changed."
    assert (ann.get("/console/account").status_code, phone.get("/console/account").status_code) == (200, 303)
    assert phone.log_in("ann", new).status_code == 303
    phone.close()


# ---- the command line


def test_operators_are_kept_from_the_command_line(
    env: dict[str, str], db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(["operators", "add", "ann", "--role", "admin"]) == 0
    password = capsys.readouterr().out.strip()
    with statement() as conn:
        assert operators.verify(conn, "ann", password) == operators.get(conn, "ann")
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery\n"))
    assert invoke(["operators", "password", "ann", "--password-stdin"]) == 0
    assert "correct" not in capsys.readouterr().out
    with statement() as conn:
        assert operators.verify(conn, "ann", password) is None
        assert operators.verify(conn, "ann", "correct horse battery") is not None
    assert invoke(["operators", "role", "ann", "viewer"]) == 0
    assert invoke(["operators", "ls", "--json"]) == 0
    assert '"role": "viewer"' in capsys.readouterr().out
    assert invoke(["operators", "add", "ann"]) == 2
    assert invoke(["operators", "role", "ann", "root"]) == 2
    assert invoke(["operators", "role", "bob", "viewer"]) == 5
    assert invoke(["operators", "rm", "ann"]) == 0
    assert invoke(["operators", "rm", "ann"]) == 5
    assert [action for _, action, _ in trail_of(db)] == [f"operator.{what}" for what in ("add", "password", "role", "remove")]


# ---- in a browser


def test_admin_works_on_operators_in_a_browser(site: Site, tab: Callable[..., Page], shoot: Callable[[Page, str], None]) -> None:
    page = tab(None)
    name = site.add("admin", "ann")
    page.goto("/console/operators")
    shoot(page, "login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Operators", exact=True)).to_be_visible()
    page.get_by_label("Name").fill("bob")
    page.get_by_label("Role", exact=True).select_option("operator")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("heading", name="The password of bob")).to_be_visible()
    shoot(page, "password")
    page.get_by_role("link", name="Done").click()
    shoot(page, "operators")
    page.get_by_role("button", name="Disable bob").click()
    page.get_by_role("button", name="Disable", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("bob is disabled.")
    page.get_by_role("link", name="Audit log").click()
    expect(page.get_by_role("row")).to_have_count(4)
    shoot(page, "audit")
    page.goto("/console/account")
    shoot(page, "account")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.go_back()
    page.reload()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
