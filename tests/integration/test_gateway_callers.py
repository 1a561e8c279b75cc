"""Who may do what at the gateway, and what those get who may not."""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

import httpx
import psycopg
import pytest

from tests.harness import eventually
from tests.integration.door import ADD, ECHO, Door, key_for, problem
from tests.integration.door import admin as admin
from tests.integration.door import door as door
from tests.integration.door import me as me
from tests.integration.test_cli import Said
from tests.integration.test_cli import holdfast as holdfast
from worker.db import statement
from worker.errors import CallerNotFound, InvalidCaller
from worker.ledger import callers

Conn = psycopg.Connection[Any]
CALL = {"task": ADD, "args": [1, 2]}
#: Every route that a key is needed for.
KEYED = [
    ("POST", "/v1/jobs"), ("POST", "/v1/jobs:batch"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/x"), ("POST", "/v1/jobs/x:cancel"),
    ("POST", "/v1/jobs/x:retry"), ("GET", "/v1/jobs/x/events"), ("GET", "/v1/tasks"), ("GET", "/v1/queues"),
    ("GET", "/v1/schedules"), ("GET", "/v1/usage"), ("GET", "/v1/stats"), ("GET", "/metrics"),
]  # fmt: skip


# ---- keys


def test_list_of_keyed_routes_is_whole(door: Door) -> None:
    document = door.client().get("/openapi.json").json()
    told = {(method.upper(), path.replace("{job_id}", "x")) for path, operations in document["paths"].items()
            for method, operation in operations.items() if operation.get("security") == [{"key": []}]}  # fmt: skip
    assert told == set(KEYED)
    assert set(document["paths"]) - {path.replace("x:", "{job_id}:").replace("/x", "/{job_id}") for _, path in KEYED} == {
        "/healthz", "/readyz",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_without_a_key_that_counts_nobody_gets_in(door: Door, method: str, path: str) -> None:
    anybody = door.client()
    answer = anybody.request(method, path)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    good = key_for(f"k{abs(hash((method, path))) % 10**9}")
    wrong = ["x", good[:-1], good + "x", good[:12] + "A" * 43, "hf_" + "a" * 8 + "_" + "A" * 43, good.upper()]
    for header in [f"Bearer {key}" for key in wrong] + [f"Basic {good}", good, "Bearer"]:
        answer = anybody.request(method, path, headers={"Authorization": header})
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert good not in answer.text


def test_key_is_kept_as_its_hash_alone_and_shown_once(holdfast: Callable[..., Said], db: Conn) -> None:
    said = holdfast("callers", "add", "shop", "--rate", "5/second", "--task", "tests.*")
    key = said.out.strip()
    assert said.code == 0
    assert key.startswith("hf_")
    assert len(key) > 50
    row = db.execute("SELECT callers::text FROM callers").fetchone()
    assert row is not None
    assert key not in row[0]
    assert key[12:] not in row[0]
    listed = holdfast("callers", "ls", "--json")
    assert key not in listed.out
    assert key[12:] not in listed.out
    (told,) = listed.document
    assert (told["name"], told["prefix"], told["scopes"], told["rate"]) == (
        "shop", key[:11], ["enqueue", "read"], "5/second sliding",
    )  # fmt: skip
    assert key[:11] in holdfast("callers", "ls").out


def test_callers_are_added_with_what_can_be(holdfast: Callable[..., Said]) -> None:
    assert holdfast("callers", "add", "a").code == 0
    for arguments, hint in (
        (("a",), "already"), (("a b",), "name"), (("b", "--scope", "all"), "scopes"), (("b", "--rate", "fast"), "rate"),
        (("b", "--rate", "5 concurrent"), "rate"), (("b", "--queue", ""), "queues"),
    ):  # fmt: skip
        said = holdfast("callers", "add", *arguments)
        assert (said.code, said.out) == (2, "")
        assert hint in said.err
    assert holdfast("callers", "revoke", "nobody").code == 5
    assert holdfast("callers", "rotate", "nobody").code == 5


def test_keys_are_compared_in_constant_time() -> None:
    """No place looks at a key but by its prefix and by `compare_digest`."""
    assert "compare_digest(" in inspect.getsource(callers.matches)
    assert "==" not in inspect.getsource(callers.matches)
    assert "key_hash =" not in callers._FIND
    assert callers._FIND.count("%(prefix)s") == callers._FIND.count("%(")
    nobody = callers.Caller("n", bytes(32), ["read"])
    assert not callers.matches("hf_x", nobody)
    assert not callers.matches("hf_x", None)


def test_revoked_key_is_refused_within_a_second_by_every_gateway(door: Door, me: httpx.Client, admin: httpx.Client) -> None:
    other = Door().start()
    there = other.client(me.headers["authorization"].split()[1])
    assert me.get("/v1/tasks").status_code == there.get("/v1/tasks").status_code == 200
    with statement() as conn:
        callers.revoke(conn, "me")
    time.sleep(1)
    for client in (me, there):
        problem(client.get("/v1/tasks"), 401, "unauthorized")
    assert admin.get("/v1/tasks").status_code == 200
    other.stop()
    with statement() as conn, pytest.raises(InvalidCaller):
        callers.rotate(conn, "me", overlap_s=0)


def test_revocation_is_seen_in_time_also_when_the_cache_was_not_told(door: Door, me: httpx.Client, db: Conn) -> None:
    assert me.get("/v1/tasks").status_code == 200
    db.execute("UPDATE callers SET revoked_at = clock_timestamp()")
    time.sleep(1)
    problem(me.get("/v1/tasks"), 401, "unauthorized")


def test_rotated_key_counts_for_its_overlap_beside_the_new_one(door: Door, me: httpx.Client) -> None:
    with statement() as conn:
        new = callers.rotate(conn, "me", overlap_s=2)
    fresh = door.client(new)
    assert fresh.get("/v1/tasks").status_code == me.get("/v1/tasks").status_code == 200
    eventually(lambda: me.get("/v1/tasks").status_code == 401)
    assert fresh.get("/v1/tasks").status_code == 200
    with statement() as conn:
        newest = callers.rotate(conn, "me", overlap_s=0)
    eventually(lambda: fresh.get("/v1/tasks").status_code == 401)
    assert door.client(newest).get("/v1/tasks").status_code == 200
    with statement() as conn, pytest.raises(CallerNotFound):
        callers.rotate(conn, "nobody", overlap_s=0)


# ---- scopes


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("read", {"/v1/jobs", "/v1/tasks", "/v1/queues", "/v1/stats", "/metrics"}), ("enqueue", set()),
     ("admin", {"/v1/jobs", "/v1/tasks", "/v1/queues", "/v1/stats", "/metrics", "/v1/schedules", "/v1/usage"})],
)  # fmt: skip
def test_scope_opens_what_it_is_for_and_nothing_else(door: Door, scope: str, allowed: set[str]) -> None:
    client = door.client(key_for(scope, scope))
    for method, path in KEYED:
        if method == "GET" and "x" not in path.split("/"):
            answer = client.get(path)
            if path in allowed:
                assert answer.status_code == 200, (path, answer.text)
            else:
                problem(answer, 403, "forbidden")
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    answer = client.post("/v1/jobs", json=CALL)
    assert answer.status_code == (403 if scope == "read" else 202)


def test_reader_cannot_cancel_or_retry(door: Door, me: httpx.Client) -> None:
    job_id = me.post("/v1/jobs", json={**CALL, "delay": 3600}).json()["id"]
    reader = door.client(key_for("reader", "read"))
    for action in ("cancel", "retry"):
        problem(reader.post(f"/v1/jobs/{job_id}:{action}"), 403, "forbidden")
    assert me.get(f"/v1/jobs/{job_id}").json()["state"] == "scheduled"


def test_other_callers_job_is_not_there_but_for_admins(door: Door, me: httpx.Client, admin: httpx.Client) -> None:
    job_id = me.post("/v1/jobs", json={**CALL, "delay": 3600}).json()["id"]
    other = door.client(key_for("other"))
    missing = other.get("/v1/jobs/0192d3f0-0000-7000-8000-000000000000")
    theirs = other.get(f"/v1/jobs/{job_id}")
    problem(theirs, 404, "job_not_found")
    assert theirs.json()["detail"].replace(job_id, "") == missing.json()["detail"].replace(
        "0192d3f0-0000-7000-8000-000000000000", ""
    )
    for method, path in (("GET", "/events"), ("POST", ":cancel"), ("POST", ":retry")):
        problem(other.request(method, f"/v1/jobs/{job_id}{path}"), 404, "job_not_found")
    assert other.get("/v1/jobs").json()["jobs"] == []
    problem(other.get("/v1/jobs?caller=me"), 403, "forbidden", "caller")
    assert admin.get(f"/v1/jobs/{job_id}").json()["caller"] == "me"
    assert len(admin.get("/v1/jobs?caller=me").json()["jobs"]) == 1
    assert me.get(f"/v1/jobs/{job_id}").json()["state"] == "scheduled"


def test_lists_of_tasks_and_queues_bound_a_caller(door: Door, conf: Callable[..., None], db: Conn) -> None:
    client = door.client(key_for("bound", tasks=[ADD, "reports.*"], queues=["slow"]))
    problem(client.post("/v1/jobs", json={"task": ECHO}), 403, "task_not_allowed", "task")
    problem(client.post("/v1/jobs", json=CALL), 403, "queue_not_allowed", "queue")
    problem(client.post("/v1/jobs", json={"task": "celery.backend_cleanup"}), 403, "task_not_allowed", "task")
    assert [task["name"] for task in client.get("/v1/tasks").json()["tasks"]] == [ADD]
    assert client.get("/v1/queues").json()["queues"] == []
    (item,) = client.post("/v1/jobs:batch", json={"jobs": [CALL]}).json()["items"]
    assert item["problem"]["code"] == "queue_not_allowed"
    assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


# ---- rates


def test_rate_is_told_and_held(door: Door) -> None:
    client = door.client(key_for("slow", rate="3/hour"))
    answers = [client.post("/v1/jobs", json=CALL) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        '"caller";r=2', '"caller";r=1', '"caller";r=0', '"caller";r=0',
    ]  # fmt: skip
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"caller";q=3;w=3600'}
    problem(answers[3], 429, "rate_limited")
    assert 0 < int(answers[3].headers["retry-after"]) <= 3700  # a sliding window is counted in parts


def test_batch_is_charged_by_its_jobs(door: Door) -> None:
    client = door.client(key_for("batches", rate="5/hour"))
    assert client.post("/v1/jobs:batch", json={"jobs": [CALL] * 4}).status_code == 200
    problem(client.post("/v1/jobs:batch", json={"jobs": [CALL] * 2}), 429, "rate_limited")
    problem(client.post("/v1/jobs:batch", json={"jobs": [CALL] * 6}), 422, "batch_too_large", "jobs")


# ---- tricks


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v1", 404), ("GET", "/v1/jobs/", 404), ("GET", "/v1//jobs", 404), ("GET", "/V1/jobs", 404),
        ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd", 404), ("GET", "/v1/jobs/%2e%2e", 404), ("GET", "/v1/jobs/%00", 422),
        ("GET", "/v1/jobs/" + "x" * 5000, 422), ("PUT", "/v1/jobs", 405), ("DELETE", "/v1/jobs/x", 405),
        ("TRACE", "/v1/jobs", 405), ("OPTIONS", "/v1/jobs", 405), ("POST", "/v1/jobs/x", 405),
        ("GET", "/v1/jobs/x:cancel", 405), ("GET", "/v1/jobs:batch", 405),
        ("POST", "/v1/jobs/x:delete", 404), ("GET", "/docs", 404), ("GET", "/v1/jobs/x%0d%0aSet-Cookie:a=b", 404),
    ],
)  # fmt: skip
def test_path_that_is_none_is_a_problem(admin: httpx.Client, method: str, path: str, status: int) -> None:
    answer = admin.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "set-cookie" not in answer.headers
    assert (status == 405) == ("allow" in answer.headers)


def test_a_refused_method_is_told_all_that_the_path_takes(door: Door) -> None:
    """Its routes are several, of a method each."""
    assert door.client().put("/v1/jobs").headers["allow"] == "GET, POST"


def raw(door: Door, data: bytes) -> bytes:
    """Send bytes as they are and return what comes back until the gateway closes."""
    with socket.create_connection(door.socket.getsockname(), timeout=20) as sock:
        try:
            sock.sendall(data)
        except OSError:
            pass  # closed while we still sent
        answer = b""
        while piece := _receive(sock):
            answer += piece
        return answer


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65_536)
    except ConnectionResetError:
        return b""


def test_headers_that_come_a_byte_at_a_time_are_not_waited_for(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.gateway.server.HEADERS_S", 1.0)
    whole = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
    with socket.create_connection(("127.0.0.1", door.socket.getsockname()[1]), timeout=30) as slow:
        for _ in range(2):
            slow.sendall(whole)
            with HTTPResponse(slow) as answer:
                answer.begin()
                assert (answer.status, answer.read() != b"") == (200, True)
            time.sleep(1.2)  # between two requests it may be silent for longer
        slow.sendall(whole[:-2])
        slow.settimeout(0.2)
        closed = False
        for _ in range(100):
            try:
                slow.sendall(b"x: 1\r\n")
                closed = slow.recv(65_536) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
            break
        assert closed


def test_list_that_takes_too_long_is_given_up(
    me: httpx.Client, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.gateway.looking._LONGEST_S", 1)
    with db.transaction():
        db.execute("LOCK TABLE job_history IN ACCESS EXCLUSIVE MODE")
        problem(me.get("/v1/jobs", params={"search": "x"}), 422, "too_slow", "search")
    assert me.get("/v1/jobs", params={"search": "x"}).json()["jobs"] == []


def test_headers_beyond_the_bounds_are_a_431(door: Door, me: httpx.Client) -> None:
    huge = raw(door, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Bomb: " + b"a" * 200_000)
    assert huge.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in huge
    many = me.get("/v1/tasks", headers={f"x-{n}": "1" for n in range(100)})
    problem(many, 431, "headers_too_large")
    assert raw(door, b"\x16\x03\x01 what\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert me.get("/v1/tasks").status_code == 200


def test_body_beyond_its_bound_is_refused_before_it_is_read(door: Door, me: httpx.Client, conf: Callable[..., None]) -> None:
    def endless() -> Any:
        for _ in range(10_000):
            yield b" " * 65_536

    key = me.headers["authorization"]
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n".encode()
    assert raw(door, head + b"Content-Length: 99999999999999999999\r\n\r\n").startswith(b"HTTP/1.1 4")
    said = raw(door, head + b"Content-Length: 3000000\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    assert raw(door, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=latin-1"}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json"}, b"", 400, "bad_json"),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400, "bad_json"),
        ({"Content-Type": "application/json"}, b'{"task": "a", "task": "b"}', 400, "bad_json"),
        ({"Content-Type": "application/json"}, b'{"task": NaN}', 400, "bad_json"),
    ],
)  # fmt: skip
def test_body_that_is_no_json_is_a_problem(
    me: httpx.Client, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    answer = me.post("/v1/jobs", headers=headers, content=content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_arguments_beyond_their_bound_are_a_413(me: httpx.Client) -> None:
    answer = me.post("/v1/jobs", json={"task": ECHO, "args": ["x" * 1_100_000]})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_id_of_a_request_is_the_clients_only_if_it_can_stand_in_a_log(door: Door) -> None:
    anybody = door.client()
    assert anybody.get("/healthz", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert anybody.get("/healthz", headers={"X-Request-ID": "forged id"}).headers["x-request-id"] != "forged id"


def test_what_fails_inside_is_a_problem_that_tells_nothing(door: Door, me: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("worker.gateway.views._tasks", broken)
    answer = me.get("/v1/tasks")
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


def test_a_parameter_given_twice_is_refused_where_it_is_no_list(admin: httpx.Client) -> None:
    problem(admin.get("/v1/usage?limit=5&limit=8"), 422, "invalid_request", "limit")
    assert admin.get("/v1/jobs?state=queued&state=running").status_code == 200
    assert admin.get("/v1/usage?by=model&by=day").status_code == 200
