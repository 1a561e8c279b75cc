"""`http.call` against a real server on loopback: what it sends, retries and refuses, and where it stops."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from worker.errors import AddressRefused, HttpRedirectError, HttpStatusError, HttpTimeout, HttpUnreachable, InvalidRequest
from worker.tasks import outbound
from worker.tasks.outbound import anyone, backoff, look_up, public_only
from worker.tasks.outbound.addresses import Address

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Seen:
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A server: `replies` are given in turn, the last one for ever."""

    port: int
    replies: list[Reply] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


def reply(status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return send


def redirect(target: str, status: int = 302) -> Reply:
    return reply(status, headers={"Location": target})


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _serve(make: Callable[[ThreadingHTTPServer], None] = lambda server: None) -> Iterator[Site]:
    site = Site(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            site.connections += 1
            super().setup()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            site.seen.append(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            step = site.replies.pop(0) if len(site.replies) > 1 else site.replies[0]
            step(self)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            pass  # callers that leave early are what is tested here

    server = Server(("127.0.0.1", 0), Handler)
    make(server)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    yield from _serve()


@pytest.fixture
def inside() -> Iterator[Site]:
    """A server that must not be reached."""
    for site in _serve():
        site.replies = [reply(body=b"secret")]
        yield site
        assert site.connections == 0


OPEN = outbound.Policy(max_bytes=1000, judge=anyone)


def here_is_public(address: Address) -> str | None:
    """Stand in for the public internet: of all special addresses, only 127.0.0.1 is taken for public."""
    return None if str(address) == "127.0.0.1" else public_only(address)


def ask(url: str, policy: outbound.Policy = OPEN, timeout_s: float = 20.0, **arguments: Any) -> outbound.Answer:
    return outbound.call(outbound.prepare(url, timeout_s=timeout_s, **arguments), policy)


# ---- a call that goes well


def test_call_sends_what_it_was_given_and_returns_what_came(site: Site) -> None:
    site.replies = [reply(201, '{"ok": "ä"}'.encode(), {"Content-Type": "application/json", "X-More": "1", "Set-Cookie": "s=1"})]
    answer = ask(site.url("/in?a=1#part"), method="post", headers={"X-Own": "ü"}, body={"n": 1})
    assert (answer.status, json.loads(answer.body), answer.truncated) == (201, {"ok": "ä"}, False)
    assert answer.headers["x-more"] == "1"
    assert "set-cookie" not in answer.headers
    assert 0 <= answer.elapsed_s < 20
    [seen] = site.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/in?a=1", b'{"n": 1}')
    assert seen.headers["host"] == f"127.0.0.1:{site.port}"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["x-own"].encode("latin-1").decode() == "ü"


def test_head_and_empty_answers_have_an_empty_body(site: Site) -> None:
    site.replies = [reply(200, b"unseen", {"Content-Encoding": "gzip"}), reply(204)]
    assert ask(site.url(), method="HEAD").body == ""
    assert ask(site.url(), method="DELETE").status == 204


def test_expected_statuses_are_good_and_others_are_not(site: Site) -> None:
    site.replies = [reply(404, b"not here"), reply(200), reply(404, b"not here"), redirect("/else")]
    assert ask(site.url(), expect=[404, 302]).status == 404
    with pytest.raises(HttpStatusError, match="answered 200") as caught:
        ask(site.url(), expect=[404])
    assert caught.value.status == 200
    with pytest.raises(HttpStatusError, match="not here"):
        ask(site.url("/secret-token"), method="GET")
    assert ask(site.url(), expect=[302]).headers["location"] == "/else"


def test_error_tells_the_origin_but_not_the_path(site: Site) -> None:
    site.replies = [reply(404)]
    with pytest.raises(HttpStatusError) as caught:
        ask(site.url("/hooks/s3cret?key=s3cret"))
    assert "s3cret" not in str(caught.value)


def test_environment_does_not_choose_a_proxy(site: Site, inside: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, inside.url())
    site.replies = [reply(body=b"direct")]
    assert ask(site.url()).body == "direct"


# ---- where a call may go


def test_private_address_is_refused_before_it_is_connected_to(inside: Site) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]"):
        with pytest.raises(AddressRefused):
            ask(inside.url(host=host), outbound.Policy(max_bytes=10))


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "0x7f000002", "[::1]", "[::ffff:127.0.0.2]", "169.254.169.254",
                                  "[fd00:ec2::254]", "10.0.0.1", "inside.test"])  # fmt: skip
def test_redirect_to_a_private_address_is_refused(site: Site, host: str) -> None:
    def resolve(name: str, port: int) -> list[str]:
        return ["127.0.0.3"] if name == "inside.test" else list(look_up(name, port))

    site.replies = [redirect(f"http://{host}:{site.port}/")]
    with pytest.raises(AddressRefused):
        ask(site.url(), outbound.Policy(1000, judge=here_is_public, resolve=resolve))
    assert len(site.seen) == 1


def test_name_that_changes_its_address_is_called_where_it_was_checked(site: Site) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
    asked = []

    def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return next(answers)

    site.replies = [reply(body=b"checked"), redirect("/again")]
    policy = outbound.Policy(1000, judge=here_is_public, resolve=resolve)
    answer = ask(site.url(host="rebinding.test"), policy)
    assert (answer.body, asked) == ("checked", ["rebinding.test"])
    assert site.seen[0].headers["host"] == f"rebinding.test:{site.port}"
    with pytest.raises(AddressRefused):
        ask(site.url(host="rebinding.test"), policy)


def test_checked_name_is_not_looked_up_by_the_system(inside: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # The rebinding itself: our look-up says public, any other one says loopback, where a server waits.
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", inside.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: loopback)
    connected: list[Any] = []

    def connect(sock: socket.socket, target: Any) -> None:
        connected.append(target)
        raise OSError("no route")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(HttpUnreachable, match="no route"):
        ask(inside.url(host="rebinding.test"), outbound.Policy(10, resolve=lambda *a: ["93.184.215.14"]))
    assert connected == [("93.184.215.14", inside.port)]


def test_redirected_name_is_checked_anew(site: Site) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    site.replies = [redirect("/again"), reply(body=b"reached")]
    with pytest.raises(AddressRefused):
        ask(site.url(host="rebinding.test"), outbound.Policy(1000, judge=here_is_public, resolve=lambda *a: next(answers)))
    assert len(site.seen) == 1


def test_second_address_is_tried_when_the_first_does_not_answer(site: Site) -> None:
    site.replies = [reply(body=b"second")]
    assert ask(site.url(host="two.test"), outbound.Policy(99, anyone, lambda *a: ["127.0.0.2", "127.0.0.1"])).body == "second"


# ---- redirects


def test_redirects_are_followed_and_secrets_stay_at_their_origin(site: Site) -> None:
    site.replies = [redirect("/2", 307), redirect(site.url("/3", host="localhost"), 308), reply(body=b"there")]
    secrets = {"Authorization": "Bearer s", "Cookie": "c=1", "X-Api-Key": "s", "Idempotency-Key": "job"}
    assert ask(site.url("/1"), method="PUT", body="text", headers=secrets).body == "there"
    first, second, third = site.seen
    assert [(s.method, s.path, s.body) for s in site.seen] == [("PUT", f"/{n}", b"text") for n in (1, 2, 3)]
    assert {name.lower() for name in secrets} <= first.headers.keys() & second.headers.keys()
    assert not {name.lower() for name in secrets} & third.headers.keys()
    assert third.headers["host"] == f"localhost:{site.port}"


def test_see_other_becomes_a_get_without_body(site: Site) -> None:
    site.replies = [redirect("/done", 303), reply(body=b"done")]
    assert ask(site.url(), method="POST", body={"n": 1}).body == "done"
    assert (site.seen[1].method, site.seen[1].body) == ("GET", b"")
    assert "content-type" not in site.seen[1].headers


def test_redirect_loop_ends(site: Site) -> None:
    site.replies = [redirect("/")]
    with pytest.raises(HttpRedirectError, match="more than 5"):
        ask(site.url())
    assert len(site.seen) == outbound.MAX_REDIRECTS + 1


def test_redirect_to_another_scheme_is_not_followed(site: Site) -> None:
    site.replies = [redirect("file:///etc/passwd")]
    with pytest.raises(HttpRedirectError):
        ask(site.url())


# ---- bounds


def test_oversize_body_is_cut_off_and_not_read_to_its_end(site: Site) -> None:
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        try:
            while True:
                sent.append(handler.wfile.write(b"x" * 65536))
        finally:
            sent.append(0)

    site.replies = [endless]
    answer = ask(site.url())
    assert (answer.body, answer.truncated) == ("x" * 1000, True)
    harness.eventually(lambda: sent and sent[-1] == 0, 5, what="the server noticing that nobody reads")
    assert sum(sent) < 50_000_000


def test_gzip_is_unpacked_and_a_bomb_costs_no_memory(site: Site) -> None:
    import tracemalloc

    bomb = gzip.compress(b"\0" * 200_000_000, 9)
    site.replies = [reply(body=gzip.compress(b"small"), headers={"Content-Encoding": "gzip"}),
                    reply(body=bomb, headers={"Content-Encoding": "gzip"})]  # fmt: skip
    assert ask(site.url()).body == "small"
    tracemalloc.start()
    try:
        answer = ask(site.url())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(answer.body), answer.truncated) == (1000, True)
    assert peak < 5_000_000


def _drip(what: bytes) -> Reply:
    def send(handler: BaseHTTPRequestHandler) -> None:
        if what == b"body":
            handler.send_response(200)
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)

    return send


@pytest.mark.parametrize("what", [b"body", b"headers"])
def test_dripping_server_cannot_hold_the_call_beyond_its_time(site: Site, what: bytes) -> None:
    site.replies = [_drip(what)]
    started = time.monotonic()
    with pytest.raises(HttpTimeout):
        ask(site.url(), timeout_s=0.5)
    assert 0.4 < time.monotonic() - started < 4


def test_slow_steps_of_a_call_share_one_time(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        redirect("/")(handler)

    site.replies = [slow]
    started = time.monotonic()
    with pytest.raises(HttpTimeout):
        ask(site.url(), timeout_s=0.7)
    assert time.monotonic() - started < 4


def test_look_up_that_hangs_cannot_hold_the_call(site: Site) -> None:
    started = time.monotonic()
    with pytest.raises(HttpTimeout):
        ask(site.url(host="slow.test"), outbound.Policy(10, anyone, lambda *a: time.sleep(8) or []), timeout_s=0.3)
    assert time.monotonic() - started < 4


def test_server_that_never_reads_cannot_hold_a_large_body(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        with pytest.raises(HttpTimeout):
            ask(f"http://127.0.0.1:{deaf.getsockname()[1]}/", method="POST", body="x" * 30_000_000, timeout_s=0.5)
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("answer", [hang_up, lambda h: h.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n"),
                                    reply(body=b"short", headers={"Content-Length": "999"})])  # fmt: skip
def test_broken_answer_is_told_as_such(site: Site, answer: Reply) -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        answer(handler)
        handler.close_connection = True

    site.replies = [send]
    with pytest.raises(HttpUnreachable, match="did not answer properly"):
        ask(site.url())


def test_closed_port_and_unknown_name_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(HttpUnreachable, match="cannot connect"):
        ask(f"http://127.0.0.1:{port}/")
    with pytest.raises(HttpUnreachable, match="looked up"):
        ask("http://no-such-name.invalid/")


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `shop.test`, signed by itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "shop.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shop.test",
         "-addext", "subjectAltName=DNS:shop.test", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def tls_site(certificate: Path) -> Iterator[Site]:
    def wrap(server: ThreadingHTTPServer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)

    yield from _serve(wrap)


def test_tls_verifies_the_name_at_the_checked_address(tls_site: Site, certificate: Path) -> None:
    tls_site.replies = [reply(body=b"shop")]
    own = ssl.create_default_context(cafile=certificate.with_suffix(".crt"))
    trusted = outbound.Policy(99, anyone, lambda *a: ["127.0.0.1"], own)
    assert ask(f"https://shop.test:{tls_site.port}/", trusted).body == "shop"
    assert tls_site.seen[0].headers["host"] == f"shop.test:{tls_site.port}"
    with pytest.raises(HttpUnreachable, match=r"TLS.*[Hh]ostname mismatch"):
        ask(f"https://other.test:{tls_site.port}/", trusted)
    with pytest.raises(HttpUnreachable, match="self-signed"):
        ask(f"https://shop.test:{tls_site.port}/", outbound.Policy(99, anyone, lambda *a: ["127.0.0.1"]))
    assert len(tls_site.seen) == 1


def test_tls_handshake_that_hangs_cannot_hold_the_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(HttpTimeout):
            ask(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.3)
        assert time.monotonic() - started < 4


# ---- the job


@pytest.fixture
def http_call(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task, allowed to call this machine; run eagerly, its retries do not wait."""
    monkeypatch.setenv("HOLDFAST_HTTP_ALLOW_PRIVATE", "1")
    monkeypatch.setenv("HOLDFAST_HTTP_MAX_BYTES", "100")
    harness.forget()
    from worker.tasks.http import http_call

    return http_call


def test_job_returns_a_plain_dict_within_the_limit_of_the_settings(http_call: Any, site: Site) -> None:
    site.replies = [reply(body=b"x" * 101)]
    result = http_call.apply((site.url(),)).get()
    assert json.loads(json.dumps(result)) == result
    assert (result["status"], len(result["body"]), result["truncated"]) == (200, 100, True)


@pytest.mark.parametrize("passing", [reply(500), reply(503), reply(408), reply(425), reply(429), hang_up], ids=range(6))
def test_job_tries_again_and_succeeds_under_one_idempotency_key(http_call: Any, site: Site, passing: Reply) -> None:
    site.replies = [passing, passing, reply(body=b"at last")]
    result = http_call.apply((site.url(),), {"method": "POST", "body": {}}, task_id="job-7")
    assert result.get()["body"] == "at last"
    assert [seen.headers["idempotency-key"] for seen in site.seen] == ["job-7"] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 410, 422, 501])
def test_job_fails_at_once_on_a_status_that_does_not_pass(http_call: Any, site: Site, status: int) -> None:
    site.replies = [reply(status)]
    result = http_call.apply((site.url(),))
    assert isinstance(result.result, HttpStatusError)
    assert len(site.seen) == 1


def test_job_fails_with_the_last_error_when_its_tries_are_used_up(http_call: Any, site: Site) -> None:
    site.replies = [reply(503)]
    result = http_call.apply((site.url(),), {"max_retries": 2})
    assert isinstance(result.result, HttpStatusError)
    assert len(site.seen) == 3


@pytest.mark.parametrize("bad", [{"url": "ftp://x.test/"}, {"timeout_s": 0}, {"max_retries": -1}, {"headers": {"A": "\n"}}])
def test_job_with_bad_arguments_fails_at_once(http_call: Any, bad: dict) -> None:
    assert isinstance(http_call.apply((), {"url": "http://x.test/", **bad}).result, InvalidRequest)


def test_job_refuses_private_addresses_by_default(http_call: Any, inside: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_HTTP_ALLOW_PRIVATE")
    harness.forget()
    assert isinstance(http_call.apply((inside.url(),)).result, AddressRefused)


def test_job_waits_as_long_as_the_server_asks(http_call: Any, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    retry = http_call.retry

    def noted(**options: Any) -> Any:
        waits.append(options["countdown"])
        return retry(**options)

    monkeypatch.setattr(http_call, "retry", noted)
    site.replies = [reply(429, headers={"Retry-After": "40"}), reply(503, headers={"Retry-After": "99999"})]
    site.replies += [reply(503), reply(200)]
    assert http_call.apply((site.url(),)).get()["status"] == 200
    asked, longest, own = waits
    assert 40 <= asked <= 41
    assert longest == backoff.LONGEST_S
    assert 0 <= own <= 4




def test_durable_job_waits_in_its_row_and_calls_again_under_its_id(
    http_call: Any, site: Site, bench: Any, relay: Any, db: Any
) -> None:
    site.replies = [reply(429, headers={"Retry-After": "40"}), reply(body=b"done")]
    job_id = http_call.delay(site.url()).id
    bench.work()
    state, wait_s = db.execute(
        "SELECT state, extract(epoch FROM available_at - clock_timestamp())::float8 FROM jobs WHERE id = %s", (job_id,)
    ).fetchone()
    assert state == "scheduled"
    assert 30 < wait_s <= 41
    db.execute("UPDATE jobs SET available_at = clock_timestamp()")
    relay.round()
    bench.work()
    assert db.execute("SELECT state, attempt FROM job_history WHERE id = %s", (job_id,)).fetchone() == ("succeeded", 2)
    assert [seen.headers["idempotency-key"] for seen in site.seen] == [job_id] * 2


def test_durable_job_that_is_refused_fails_at_once(http_call: Any, inside: Site, bench: Any, db: Any, conf: Any) -> None:
    conf(http_allow_private=0)
    job_id = http_call.delay(inside.url()).id
    bench.work()
    state, error, attempt = db.execute("SELECT state, error, attempt FROM job_history WHERE id = %s", (job_id,)).fetchone()
    assert (state, attempt) == ("failed", 1)
    assert error.startswith("AddressRefused: '127.0.0.1' may not be called")
