"""Fixtures: the console on the test's servers, operators who are logged in over HTTP, and a browser with their pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import browser as chromium
from tests.console.visitors import Site
from tests.harness import ROOT
from tests.integration.conftest import bench, conf, db, relay  # noqa: F401 - fixtures
from tests.integration.door import Door

#: Where pictures of pages are kept.
ARTEFACTS = ROOT / ".artefacts" / "console"

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a browser where there is none; in CI it runs, and fails."""
    if chromium.find() is None and not os.environ.get("CI"):
        needy = [item for item in items if "chrome" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=needy)
        items[:] = [item for item in items if item not in needy]


@pytest.fixture
def site(conf: Callable[..., None]) -> Iterator[Site]:  # noqa: F811
    """A gateway with its console: `site.visitor(role)` is a client of an operator who is logged in."""
    conf(cache_timeout_ms=2000, limits_timeout_ms=2000)
    site = Site(Door().start())
    yield site
    site.stop()


@pytest.fixture(scope="package")
def chrome() -> Iterator[Browser]:
    """One Chromium for the tests here, not beyond: while it lives an event loop runs, beside which no test can run another."""
    program = chromium.find()
    assert program, chromium.MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(site: Site, chrome: Browser) -> Iterator[Callable[..., Page]]:
    """Open a browser with a page of its own: `page = tab("admin")` is an operator's who is logged in, `tab(None)` nobody's.

    A page that meets an error of its own, or of its policy against foreign scripts, fails the test.
    """
    made: list[Any] = []
    wrong: list[str] = []

    def open_(role: str | None = "viewer", **options: Any) -> Page:
        context = chrome.new_context(base_url=site.url, **{"viewport": WIDE, **options})
        context.set_default_timeout(15_000)
        made.append(context)
        if role is not None:
            visitor = site.visitor(role)
            context.add_cookies([{"name": visitor.cookie, "value": visitor.session_id, "url": site.url}])
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None)
        return page

    yield open_
    for context in made:
        context.close()
    assert wrong == []


@pytest.fixture
def shoot() -> Callable[[Page, str], None]:
    """Take pictures of a page as it stands, light, dark and narrow, and see that it fits: `shoot(page, "queues")`."""

    def take(page: Page, name: str) -> None:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        for kind, scheme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("narrow", "light", NARROW)):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.set_viewport_size(size)  # type: ignore[arg-type]
            page.screenshot(path=Path(ARTEFACTS) / f"{name}-{kind}.png", full_page=True)
            too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert too_wide <= 0, f"{name} {kind}: the page is {too_wide} px wider than its window"
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(WIDE)  # type: ignore[arg-type]

    return take
