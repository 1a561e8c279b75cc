"""The session middleware as a browser meets it: cookie, login, forged requests, outages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from worker.embedded import Stack
from worker.live import SessionMiddleware, Sessions
from worker.live.asgi import COOKIE, INSECURE_COOKIE
from worker.live.sessions import csrf_token

pytestmark = pytest.mark.anyio

HOME = "https://console.example"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def site() -> FastAPI:
    app = FastAPI()

    @app.get("/token")
    async def token(request: Request) -> JSONResponse:
        return JSONResponse({"token": await request.session.csrf_token(), "user": request.session.user})

    @app.get("/data")
    async def data(request: Request) -> JSONResponse:
        return JSONResponse({"data": dict(request.session), "user": request.session.user})

    @app.post("/login")
    async def login(request: Request) -> PlainTextResponse:
        if "meanwhile" in request.query_params:
            await browsers[request.query_params["meanwhile"]](request)
        await request.session.log_in("ann")
        return PlainTextResponse("in")

    @app.post("/logout")
    async def logout(request: Request) -> PlainTextResponse:
        await request.session.log_out()
        return PlainTextResponse("out")

    @app.post("/put/{key}/{value}")
    async def put(request: Request, key: str, value: str) -> PlainTextResponse:
        if "meanwhile" in request.query_params:  # another request comes and goes while this one is under way
            await browsers[request.query_params["meanwhile"]](request)
        request.session[key] = value
        return PlainTextResponse((await request.body()).decode() or "done")

    @app.post("/api/jobs")
    async def jobs() -> PlainTextResponse:
        return PlainTextResponse("accepted")

    return app


#: What happens in the middle of a request to `/put`.
browsers: dict[str, Callable[[Request], Any]] = {}


class Browser(httpx.AsyncClient):
    """A browser with one page open."""

    def __init__(self, *, insecure: bool = False, client: tuple[str, int] = ("192.0.2.1", 5000), home: str = HOME) -> None:
        app = SessionMiddleware(site(), Sessions(), insecure=insecure, exempt=["/api/"])
        super().__init__(transport=httpx.ASGITransport(app=app, client=client), base_url=home)  # type: ignore[arg-type]

    async def token(self) -> str:
        return str((await self.get("/token")).json()["token"])

    async def send_form(self, path: str) -> httpx.Response:
        return await self.post(path, headers={"x-csrf-token": await self.token()})


async def test_cookie_is_for_this_host_over_tls_and_no_script(env: dict[str, str]) -> None:
    async with Browser() as browser:
        line = (await browser.get("/token")).headers["set-cookie"]
        assert line.startswith(f"{COOKIE}=")
        assert set(line.split("; ")[1:]) == {"Path=/", "HttpOnly", "Secure", "SameSite=Lax", "Max-Age=43200"}
        assert "set-cookie" not in (await browser.get("/data")).headers


async def test_visitor_without_need_gets_no_session(env: dict[str, str]) -> None:
    async with Browser() as browser:
        assert "set-cookie" not in (await browser.get("/data")).headers


async def test_login_gives_a_new_id_and_the_planted_one_is_worth_nothing(env: dict[str, str]) -> None:
    async with Browser() as eve, Browser() as ann:
        await eve.token()
        planted = eve.cookies[COOKIE]
        ann.cookies.set(COOKIE, planted, domain="console.example")
        assert (await ann.post("/login", headers={"x-csrf-token": csrf_token(planted)})).text == "in"
        assert (await ann.get("/data")).json()["user"] == "ann"
        assert ann.cookies[COOKIE] != planted
        assert (await eve.get("/data")).json() == {"data": {}, "user": None}


async def test_id_that_was_made_up_is_not_taken(env: dict[str, str]) -> None:
    async with Browser() as browser:
        browser.cookies.set(COOKIE, "A" * 22, domain="console.example")
        await browser.token()
        assert browser.cookies[COOKIE] != "A" * 22


@pytest.mark.parametrize("how", ["none", "wrong", "others", "double", "header of a form twice"])
async def test_forged_request_is_refused(env: dict[str, str], how: str) -> None:
    async with Browser() as ann, Browser() as eve:
        await ann.send_form("/login")
        headers, data = {}, None
        if how == "wrong":
            headers = {"x-csrf-token": "x" * 43}
        elif how == "others":
            headers = {"x-csrf-token": await eve.token()}
        elif how == "double":  # as if a cookie that anybody can set were proof
            ann.cookies.set("csrf_token", "forged", domain="console.example")
            headers = {"x-csrf-token": "forged"}
        elif how == "header of a form twice":
            data = {"csrf_token": ["a", await ann.token()]}
        answer = await ann.post("/put/a/1", headers=headers, data=data)
        assert answer.status_code == 403
        assert (await ann.get("/data")).json()["data"] == {}


async def test_two_cookies_of_the_name_are_none(env: dict[str, str]) -> None:
    async with Browser() as ann, Browser() as eve:
        await ann.send_form("/login")
        await eve.token()
        both = f"{COOKIE}={eve.cookies[COOKIE]}; {COOKIE}={ann.cookies[COOKIE]}"
        async with Browser() as browser:
            assert (await browser.get("/data", headers={"cookie": both})).json()["user"] is None


async def test_form_carries_the_token_and_reaches_the_app_whole(env: dict[str, str]) -> None:
    async with Browser() as ann:
        await ann.send_form("/login")
        answer = await ann.post("/put/a/1", data={"csrf_token": await ann.token(), "text": "long " * 1000})
        assert answer.status_code == 200
        assert answer.text.endswith("long+" * 10)


async def test_call_without_a_cookie_is_refused_but_where_that_is_declared(env: dict[str, str]) -> None:
    async with Browser() as browser:
        assert (await browser.post("/put/a/1")).status_code == 403
        assert (await browser.post("/api/jobs")).text == "accepted"


async def test_logout_ends_the_session_for_requests_under_way(env: dict[str, str]) -> None:
    async with Browser() as ann:
        await ann.send_form("/login")
        cookie, token = ann.cookies[COOKIE], await ann.token()

        async def log_out(request: Request) -> None:
            async with Browser() as other:
                other.cookies.set(COOKIE, cookie, domain="console.example")
                await other.send_form("/logout")

        browsers["logout"] = log_out
        answer = await ann.post("/put/a/1?meanwhile=logout", headers={"x-csrf-token": token})
        assert answer.status_code == 200
        assert (await ann.get("/data")).json() == {"data": {}, "user": None}


async def test_logout_deletes_the_cookie_and_a_late_request_leaves_the_new_one_alone(env: dict[str, str]) -> None:
    async with Browser() as ann, Browser() as late:
        await ann.token()
        late.cookies.set(COOKIE, ann.cookies[COOKIE], domain="console.example")
        await ann.send_form("/login")
        assert "set-cookie" not in (await late.get("/data")).headers
        answer = await late.get("/token")
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        await ann.send_form("/logout")
        assert COOKIE not in ann.cookies


async def test_requests_under_way_at_once_are_merged_by_key(env: dict[str, str]) -> None:
    async with Browser() as ann:
        await ann.send_form("/login")
        cookie, token = ann.cookies[COOKIE], await ann.token()

        async def put(request: Request) -> None:
            async with Browser() as other:
                other.cookies.set(COOKIE, cookie, domain="console.example")
                await other.post("/put/b/2", headers={"x-csrf-token": token})

        browsers["put"] = put
        await ann.post("/put/a/1?meanwhile=put", headers={"x-csrf-token": token})
        assert (await ann.get("/data")).json()["data"] == {"a": "1", "b": "2"}


async def test_login_keeps_what_another_request_wrote_meanwhile(env: dict[str, str]) -> None:
    async with Browser() as ann:
        token = await ann.token()
        cookie = ann.cookies[COOKIE]
        await ann.post("/put/a/1", headers={"x-csrf-token": token})

        async def put(request: Request) -> None:
            async with Browser() as other:
                other.cookies.set(COOKIE, cookie, domain="console.example")
                await other.post("/put/b/2", headers={"x-csrf-token": token})

        browsers["put"] = put
        assert (await ann.post("/login?meanwhile=put", headers={"x-csrf-token": token})).text == "in"
        assert (await ann.get("/data")).json() == {"data": {"a": "1", "b": "2"}, "user": "ann"}


async def test_without_redis_a_session_is_neither_taken_for_somebody_nor_for_nobody(env: dict[str, str], stack: Stack) -> None:
    async with Browser() as ann:
        await ann.send_form("/login")
        token = await ann.token()
        stack.redis.kill()
        for answer in (await ann.get("/data"), await ann.post("/put/a/1", headers={"x-csrf-token": token})):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        async with Browser() as visitor:
            assert (await visitor.get("/data")).status_code == 200
            assert (await visitor.get("/token")).status_code == 503, "none can begin"


async def test_session_that_cannot_be_kept_is_told_before_the_response(env: dict[str, str], stack: Stack) -> None:
    async with Browser() as ann:
        await ann.send_form("/login")
        token = await ann.token()

        async def away(request: Request) -> None:
            stack.redis.kill()

        browsers["away"] = away
        answer = await ann.post("/put/a/1?meanwhile=away", headers={"x-csrf-token": token})
        assert (answer.status_code, "done" in answer.text) == (503, False)


async def test_without_tls_it_serves_loopback_alone(env: dict[str, str]) -> None:
    async with Browser(insecure=True, client=("127.0.0.1", 1), home="http://127.0.0.1") as near:
        line = (await near.get("/token")).headers["set-cookie"]
        assert line.startswith(f"{INSECURE_COOKIE}=")
        assert "Secure" not in line
        assert (await near.send_form("/login")).text == "in"
    async with Browser(insecure=True) as far:
        assert (await far.get("/data")).status_code == 403
