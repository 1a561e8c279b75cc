"""Attacks on the console over HTTP: each is refused, and leaves nothing done."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from redis import Redis

from tests.console.visitors import PASSWORD, Site, Visitor, filled, flashes, inline, role_of, routes
from worker.db import statement
from worker.gateway.console import login
from worker.gateway.console.access import local
from worker.ledger import operators
from worker.ledger.operators import ROLES
from worker.live.sessions import csrf_token, digest_of
from worker.store import keys

#: Routes that nobody need be logged in for.
OPEN = {"/console/login", "/console/login/once", "/console/logout"}
POSTS = sorted(routes("POST"))
#: What a POST answers that did not do what it was asked, beside a way to the login page.
REFUSED = 403


def done(db: psycopg.Connection[Any]) -> int:
    """Return how many things stand in the trail, but logins."""
    row = db.execute("SELECT count(*) FROM audit_log WHERE action NOT IN ('login', 'logout')").fetchone()
    assert row is not None
    return int(row[0])


def test_every_route_says_which_role_it_takes() -> None:
    for method in ("GET", "POST"):
        assert {path for path, route in routes(method).items() if role_of(route) is None} <= OPEN
    assert {role_of(route) for route in routes("POST").values()} <= {*ROLES, None}
    assert len(POSTS) > 10


def test_form_without_its_sessions_token_does_nothing(site: Site, db: psycopg.Connection[Any]) -> None:
    ann, eve = site.visitor("admin"), site.visitor("admin")
    before = done(db)
    for token in (None, "", "x" * 43, eve.token, csrf_token("A" * 22)):
        fields = {"confirmed": "yes", **({} if token is None else {"csrf_token": token})}
        answers = {path: ann.post(filled(path), data=fields).status_code for path in POSTS}
        assert answers == dict.fromkeys(POSTS, REFUSED), token
    nobody = httpx.Client(base_url=site.url, trust_env=False)
    assert {nobody.post(filled(path), data={"csrf_token": ann.token}).status_code for path in POSTS} == {REFUSED}
    assert done(db) == before
    assert ann.get("/console/account").status_code == 200, "still logged in"


def test_token_in_the_address_is_none(site: Site) -> None:
    ann = site.visitor("viewer")
    assert ann.post(f"/console/theme?csrf_token={ann.token}", data={"theme": "dark"}).status_code == REFUSED


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_action_above_a_role_is_refused(site: Site, db: psycopg.Connection[Any], role: str) -> None:
    visitor = site.visitor(role)
    before = done(db)
    above = {path for path, route in routes("POST").items()
             if (taken := role_of(route)) and ROLES.index(taken) > ROLES.index(role)}  # fmt: skip
    assert above
    answers = {path: visitor.send_form(filled(path), confirmed="yes").status_code for path in above}
    assert answers == dict.fromkeys(above, REFUSED)
    pages = {path for path, route in routes("GET").items()
             if (taken := role_of(route)) and ROLES.index(taken) > ROLES.index(role)}  # fmt: skip
    assert {visitor.get(filled(path)).status_code for path in pages} <= {REFUSED}
    assert done(db) == before


def test_who_is_not_logged_in_is_led_to_the_login_from_everywhere(site: Site, db: psycopg.Connection[Any]) -> None:
    nobody = site.visitor()
    before = done(db)
    for path, route in routes("GET").items():
        if role_of(route) is not None:
            answer = nobody.get(filled(path))
            assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/console/login"), path
    for path, route in routes("POST").items():
        if role_of(route) is not None:
            answer = nobody.send_form(filled(path), confirmed="yes")
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/login"), path
    assert done(db) == before
    assert nobody.get("/console/queues", headers={"hx-request": "true"}).headers["hx-redirect"] == "/console/login"
    assert nobody.get("/console/live/overview", headers={"accept": "text/event-stream"}).status_code == 401


# ---- sessions


def test_planted_session_is_worth_nothing_after_the_login(site: Site) -> None:
    eve, ann = site.visitor(), site.visitor()
    planted = (eve.token, eve.session_id)[1]
    ann.cookies.set(ann.cookie, planted, domain="127.0.0.1")
    assert ann.log_in(site.add("admin")).status_code == 303
    cookies = {cookie.value for cookie in ann.cookies.jar if cookie.name == ann.cookie}
    assert cookies != {planted}
    assert eve.get("/console/account").status_code == 303


def test_session_that_was_logged_out_is_over_for_whoever_has_its_cookie(site: Site) -> None:
    ann = site.visitor("viewer")
    stolen = ann.session_id
    assert ann.send_form("/console/logout").headers["location"] == "/console/login"
    thief = Visitor(site.url)
    thief.cookies.set(thief.cookie, stolen, domain="127.0.0.1")
    assert thief.get("/console/account").status_code == 303
    assert thief.post("/console/theme", data={"csrf_token": csrf_token(stolen), "theme": "dark"}).status_code == REFUSED
    thief.close()


def test_session_whose_time_is_over_is_led_to_the_login_and_back(site: Site, redis: Redis) -> None:
    ann = site.visitor("viewer")
    redis.delete(keys.session(digest_of(ann.session_id)))  # what its life does to it in the end
    answer = ann.get("/console/audit?actor=bob")
    assert answer.headers["location"] == "/console/login?next=%2Fconsole%2Faudit%3Factor%3Dbob"
    page = ann.get(answer.headers["location"])
    assert 'value="/console/audit?actor=bob"' in page.text
    assert ann.log_in(ann.name, next="/console/audit?actor=bob").headers["location"] == "/console/audit?actor=bob"


@pytest.mark.parametrize("how", ["disabled", "another password", "removed", "removed and added again"])
def test_operator_who_may_no_more_is_out_with_the_next_request(site: Site, how: str) -> None:
    ann = site.visitor("admin", "ann")
    assert ann.get("/console/operators").status_code == 200
    with statement() as conn:
        if how == "disabled":
            operators.set_disabled(conn, "ann", True)
        elif how == "another password":
            operators.set_password(conn, "ann")
        else:
            operators.remove(conn, "ann")
        if how == "removed and added again":
            operators.add(conn, "ann", "admin", PASSWORD)
    assert ann.get("/console/operators").headers["location"].startswith("/console/login")
    assert ann.send_form("/console/operators/add", name="eve", role="admin").headers["location"] == "/console/login"
    with statement() as conn:
        assert operators.find(conn, "eve") is None
        if how == "disabled":
            operators.set_disabled(conn, "ann", False)
            assert ann.get("/console/operators").status_code == 303, "enabled again: the session stays over"


def test_role_that_was_taken_away_counts_no_more_with_the_next_request(site: Site) -> None:
    ann = site.visitor("admin", "ann")
    with statement() as conn:
        operators.set_role(conn, "ann", "viewer")
    assert ann.get("/console/operators").status_code == REFUSED
    assert ann.get("/console/audit").status_code == 200


# ---- login


#: Where a login must not lead.
ELSEWHERE = (
    "https://evil.example/console/", "//evil.example/console/", "/\\evil.example/console/", "/console/../v1/jobs",
    "/console/\nLocation: https://evil.example", "javascript:alert(1)", "/v1/jobs", "///evil.example/console/", "\\/console/",
    "/console/\r\nSet-Cookie: a=b", "http:/console/", "/console.evil.example/", "/console/..", "/console",
)  # fmt: skip


def test_login_leads_nowhere_but_into_the_console(site: Site) -> None:
    assert {target: local(target) for target in ELSEWHERE} == dict.fromkeys(ELSEWHERE, "/console/")
    for target in ELSEWHERE[:3]:
        name, ann = site.add("viewer"), site.visitor()
        assert "evil.example" not in ann.get("/console/login", params={"next": target}).text
        assert ann.log_in(name, next=target).headers["location"] == "/console/", target
        assert ann.send_form("/console/theme", theme="dark", next=target).headers["location"] == "/console/", target
        assert ann.get("/console/login", params={"next": target}).headers["location"] == "/console/", target


def test_names_are_not_told_by_what_the_login_says(site: Site) -> None:
    known, gone = site.add("viewer"), site.add("viewer")
    with statement() as conn:
        operators.set_disabled(conn, gone, True)
    said = set()
    for name, password in ((known, "wrong password"), ("nobody", "wrong password"), (gone, PASSWORD), (known, PASSWORD + " ")):
        answer = site.visitor().log_in(name, password)
        assert answer.status_code == REFUSED
        said.add(tuple(flashes(answer.text)))
    assert said == {("The name or the password is wrong.",)}


def test_passwords_of_one_name_cannot_be_tried_for_ever(site: Site) -> None:
    ann, other = site.add("viewer"), site.add("viewer")
    eve = site.visitor()
    assert login._BY_NAME.try_acquire(ann, 8)  # as so many tries would
    statuses = [eve.log_in(ann, f"guess number {number}").status_code for number in range(4)]
    assert statuses == [REFUSED] * 2 + [429] * 2
    right = site.visitor().log_in(ann)
    assert right.status_code == 429, "nor does the right one get through: who guesses must not learn which it is"
    assert int(right.headers["retry-after"]) > 0
    assert site.visitor().log_in(other).status_code == 303


def test_one_address_cannot_try_names_for_ever(site: Site) -> None:
    eve, ann = site.visitor(), site.add("viewer")
    assert login._BY_ADDRESS.try_acquire("127.0.0.1", 28)  # as so many tries would
    statuses = [eve.log_in(f"name{number}", "guess").status_code for number in range(3)]
    assert statuses == [REFUSED] * 2 + [429]
    assert site.visitor().log_in(ann).status_code == 429


def test_link_logs_in_once_and_only_when_it_is_confirmed(site: Site) -> None:
    token = operators.make_link(site.add("admin"))
    ann, eve = site.visitor(), site.visitor()
    for _ in range(2):  # a program that looks at addresses
        assert ann.get(f"/console/login/once?token={token}").status_code == 200
    assert ann.send_form("/console/login/once", token=token).headers["location"] == "/console/"
    assert ann.get("/console/operators").status_code == 200
    again = eve.send_form("/console/login/once", token=token)
    assert (again.status_code, eve.get("/console/account").status_code) == (REFUSED, 303)
    assert eve.send_form("/console/login/once", token="").status_code == REFUSED


# ---- what pages say to browsers


def test_every_page_has_a_strict_policy_and_nothing_that_it_forbids(site: Site) -> None:
    ann, nobody = site.visitor("admin"), site.visitor()
    seen = [(path, ann.get(filled(path))) for path, route in routes("GET").items() if "/live/" not in path]
    seen += [("login", nobody.get("/console/login")), ("missing", ann.get("/console/nowhere")),
             ("question", ann.send_form("/console/queues/pause", queue="default")),
             ("refused", site.visitor("viewer").get("/console/operators")), ("forged", ann.post("/console/theme"))]  # fmt: skip
    for name, answer in seen:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, name
        assert "frame-ancestors 'none'" in policy, name
        assert "unsafe" not in policy, name
        assert answer.headers["x-content-type-options"] == "nosniff", name
        assert answer.headers["cache-control"] == "no-store", name
        assert inline(answer.text) == [], name
        assert answer.status_code < 500, name


def test_cookie_is_for_no_script_and_no_foreign_form(site: Site) -> None:
    line = site.visitor().get("/console/login").headers["set-cookie"]
    assert "HttpOnly" in line
    assert "SameSite=Lax" in line


def test_files_are_kept_by_browsers_and_lead_nowhere_else(site: Site) -> None:
    nobody = site.visitor()
    address = next(part for part in nobody.get("/console/login").text.split('"') if part.endswith("console.css"))
    answer = nobody.get(address)
    assert "immutable" in answer.headers["cache-control"]
    assert nobody.get(address, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert nobody.get("/console/static/0/console.css").headers["cache-control"] == "no-cache"
    for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "nothing.css", ""):
        assert nobody.get(f"/console/static/0/{name}").status_code in (303, 404), name
    assert "set-cookie" not in answer.headers


def test_what_stands_in_the_trail_is_text_in_its_page(site: Site) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    with statement() as conn:
        from worker.ledger import trail

        trail.write(conn, evil, evil, evil, **{evil: [evil], "note": evil})
    page = site.visitor("viewer").get("/console/audit", params={"actor": evil}).text
    assert inline(page) == []
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_larger_form_than_any_is_not_read(site: Site) -> None:
    ann = site.visitor("operator")
    headers = {"x-csrf-token": ann.token}
    assert ann.post("/console/queues/pause", data={"queue": "x" * 300_000}, headers=headers).status_code == 413
    many = {f"f{number}": "1" for number in range(3000)}
    assert ann.post("/console/queues/pause", data=many, headers=headers).status_code == 400
    assert ann.post("/console/queues/pause", content=b"a=%ff%fe", headers={
        **headers, "content-type": "application/x-www-form-urlencoded"}).status_code in (303, 400)  # fmt: skip
