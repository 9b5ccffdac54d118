"""The page in a real browser: Chromium, on a laptop's and a phone's screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ttsnap.outputs import read_payload

from .conftest import PROMPT

pytestmark = pytest.mark.browser
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WAIT = 60_000
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    must = os.environ.get("TTSNAP_BROWSER_TESTS") == "1"
    if path is None and not must:
        pytest.skip("no Chromium on this machine; install it, or set TTSNAP_BROWSER_TESTS=1 to fail without it")
    assert path is not None, "TTSNAP_BROWSER_TESTS=1, but there is no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, server: tuple[str, Path]) -> Iterator[Opener]:
    """Opens the page; when the test ends, the console must be clean and nothing fetched from elsewhere."""
    troubles: list[str] = []
    contexts = []

    def check(request: Any) -> None:
        if not request.url.startswith((server[0], "data:", "blob:")):
            troubles.append(f"fetched {request.url}")

    def listen(message: Any) -> None:
        if message.type == "error":
            troubles.append(message.text)

    def visit(width: int = 1440, height: int = 900, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", listen)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", check)
        page.goto(server[0])
        page.wait_for_selector("#search")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not troubles


def choose(page: Any, budget: str, steps: int = 10) -> None:
    page.fill("#budget input", budget)
    page.press("#budget input", "Enter")
    page.fill("#steps input[type=number]", str(steps))
    page.press("#steps input[type=number]", "Tab")


def boards(page: Any, until: str) -> list[str]:
    """The boards that the page shows, one after the other, until a selector is visible."""
    seen: list[str] = []
    while not page.is_visible(until):
        grid = page.query_selector("#stage .tt-board")
        html = grid.inner_html() if grid else ""
        if html and (not seen or html != seen[-1]):
            seen.append(html)
        page.wait_for_timeout(50)
    return seen


def no_sideways_scroll(page: Any) -> None:
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner


def test_search_streams_and_gives_an_image(visit: Opener, tmp_path: Path) -> None:
    page = visit()
    choose(page, "120nfe")
    page.click("#search")
    assert len(boards(page, "#download")) >= 2
    assert page.locator("#stage .tt-winner").count() == 1
    assert page.locator("#stage .tt-pruned").count() > 0
    assert page.inner_text("#stage .tt-prompt") == PROMPT
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "best.png")
    payload = read_payload(tmp_path / "best.png")
    assert payload["prompt"] == PROMPT
    assert f"seed {payload['seed']}" in page.inner_text("#stage .tt-best")
    page.click("#after button")
    page.locator("#after", has_text="load()").wait_for()
    no_sideways_scroll(page)


def test_bad_words_are_explained(visit: Opener) -> None:
    page = visit()
    page.fill("#prompt textarea", "a <b>dog</b>")
    page.click("#search")
    toast = page.wait_for_selector(".toast-body")
    assert "The embedded model knows only" in toast.inner_text()
    assert "<b>dog</b>" in toast.inner_text()
    page.click("#surprise")
    page.wait_for_function("document.querySelector('#prompt textarea').value.indexOf('dog') < 0")


def test_stopping_and_comparing(visit: Opener) -> None:
    page = visit(scheme="dark")
    choose(page, "1600nfe", 20)
    page.click("#search")
    page.wait_for_selector("#stage .tt-grid")
    page.click("#stop")
    page.wait_for_selector("#download", state="visible")
    page.wait_for_function("document.querySelector('#status').innerText.indexOf('stopped') >= 0")
    assert page.locator("#stage .tt-best img").count() == 1
    choose(page, "100nfe")
    page.click("#compare")
    page.wait_for_function("document.querySelectorAll('#stage .tt-winner').length == 2")
    assert page.locator("#stage .tt-best img").count() == 2
    assert page.locator("#stage .tt-plot .tt-dot0, #stage .tt-plot .tt-dot1").count() == 2
    page.wait_for_function("document.querySelector('#status').innerText.indexOf('done') >= 0")


def test_closing_the_page_stops_its_search(visit: Opener) -> None:
    page = visit()
    choose(page, "6400nfe", 20)
    page.click("#search")
    page.wait_for_selector("#stage .tt-grid")
    other = visit()
    choose(other, "20nfe")
    other.click("#search")
    other.wait_for_function("document.querySelector('#status').innerText.indexOf('queue') >= 0")
    page.context.close()
    other.wait_for_selector("#download", state="visible", timeout=40_000)


def test_replaying_a_trace_on_a_phone(visit: Opener, written: Path) -> None:
    page = visit(390, 844)
    no_sideways_scroll(page)
    page.get_by_role("tab", name="Replay a trace").click()
    page.set_input_files("#trace input[type=file]", str(written / "trace.json"))
    page.wait_for_selector("#replay .tt-winner")
    no_sideways_scroll(page)
    whole = page.inner_html("#replay .tt-board")
    page.click("#play")
    page.wait_for_function("document.querySelectorAll('#replay .tt-winner').length == 0")
    page.wait_for_selector("#replay .tt-winner")
    page.wait_for_function("html => document.querySelector('#replay .tt-board').innerHTML == html", arg=whole)
    page.set_input_files("#picture input[type=file]", str(next(written.glob("01-*.png"))))
    assert PROMPT in page.wait_for_selector("#settings .tt-settings").inner_text()
    no_sideways_scroll(page)
