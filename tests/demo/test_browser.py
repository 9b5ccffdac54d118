"""The page in a real browser: Chromium, on a laptop's and a phone's screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import chromium
from ttsnap.results.record import read_record

from .conftest import PROMPT

pytestmark = pytest.mark.browser
WAIT = 60_000
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


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
    field = "#budget input, #budget textarea"
    page.fill(field, budget)
    page.press(field, "Enter")
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
    choose(page, "800nfe")  # long enough for several frames
    page.fill("#prompt textarea", PROMPT)
    page.click("#search")
    assert len(boards(page, "#download")) >= 2
    assert page.locator("#stage .tt-winner").count() == 1
    assert page.locator("#stage .tt-pruned").count() > 0
    assert page.inner_text("#stage .tt-prompt") == PROMPT
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "best.png")
    payload = read_record(tmp_path / "best.png").to_json()
    assert payload["prompt"] == PROMPT
    assert f"seed {payload['seed']}" in page.inner_text("#stage .tt-best")
    page.click("#after button")
    page.locator("#after", has_text="load()").wait_for()
    no_sideways_scroll(page)


def test_bad_words_are_explained(visit: Opener) -> None:
    page = visit()
    page.fill("#prompt textarea", "a <b>dog</b>")
    page.click("#search")
    told = page.wait_for_selector("#stage .tt-error")
    assert "The embedded model knows only" in told.inner_text()
    assert "<b>dog</b>" in told.inner_text()
    page.click("#surprise")
    page.wait_for_function("document.querySelector('#prompt textarea').value.indexOf('dog') < 0")


def test_the_header_names_the_model_that_is_chosen(visit: Opener) -> None:
    page = visit()
    assert page.inner_text(".tt-model") == "embedded"
    page.locator(".tt-chips button", has_text="says").first.click()
    page.wait_for_function("document.querySelector('.tt-model').innerText === 'signs'")


def test_an_error_clears_the_page_and_stop_is_active_only_while_something_runs(visit: Opener) -> None:
    page = visit()
    assert page.is_disabled("#stop")
    choose(page, "5images")
    page.wait_for_function("document.querySelector('#budget-hint').innerText.indexOf('50 evaluations') >= 0")
    page.click("#search")
    page.wait_for_selector("#stop:not([disabled])")
    page.wait_for_selector("#download", state="visible")
    page.wait_for_selector("#stop[disabled]")
    assert "/ 50" in page.inner_text("#stage .tt-meters")
    page.fill("#prompt textarea", "a dog")
    page.click("#search")
    page.wait_for_selector("#stage .tt-error")
    page.wait_for_selector("#download", state="hidden")
    assert page.locator("#stage .tt-board").count() == 0
    assert "done" not in page.inner_text("#status")
    assert page.is_disabled("#stop")


def test_pictures_are_large_and_open_larger(visit: Opener) -> None:
    page = visit(1366, 768)
    page.click("#compare")
    page.wait_for_function("document.querySelectorAll('#stage .tt-winner').length == 2")
    page.wait_for_selector("#download", state="visible")
    small = page.evaluate("[...document.querySelectorAll('#stage .tt-cell img')].map(image => image.clientWidth)")
    assert min(small) >= 70
    large = page.evaluate("[...document.querySelectorAll('#stage .tt-best img')].map(image => image.clientWidth)")
    assert min(large) >= 240
    marks = page.evaluate(
        """() => { const plot = document.querySelector('.tt-curve').getBoundingClientRect();
        return [...document.querySelectorAll('.tt-plot path, .tt-ytick, .tt-xtick')].map(e => e.getBoundingClientRect())
            .every(b => b.left >= plot.left - 1 && b.right <= plot.right + 1 && b.bottom <= plot.bottom + 1); }"""
    )
    assert marks
    page.click("#stage .tt-winner img")
    box = page.locator(".tt-zoom img").bounding_box()
    assert box["width"] >= 500
    assert "seed" in page.inner_text(".tt-zoom p")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tt-zoom", state="hidden")


def test_the_box_of_drafts_has_a_frame_of_its_own(visit: Opener) -> None:
    page = visit()
    assert page.locator("#draft").is_visible()
    assert page.locator(".form:has(#negative) #draft").count() == 0


def test_the_list_of_algorithms_is_grouped_and_leaves_the_header_free(visit: Opener) -> None:
    page = visit(1366, 768)
    page.click("#algorithm input")
    group = page.wait_for_selector("#algorithm li[data-index='0']")
    assert "Choose among seeds" in page.evaluate("e => getComputedStyle(e, '::before').content", group)
    assert page.locator("#algorithm ul").bounding_box()["y"] >= page.locator(".tt-header").bounding_box()["height"]
    page.click("#algorithm li[aria-label^='SVDD']")
    page.locator(".tt-hint", has_text="Adds noise at every step").wait_for()


def test_on_a_phone_the_winner_comes_first(visit: Opener) -> None:
    page = visit(390, 844)
    choose(page, "200nfe")
    page.evaluate("scrollTo(0, 0)")
    page.click("#search")
    page.wait_for_function("document.querySelector('#stage').getBoundingClientRect().top < 200")
    page.wait_for_selector("#download", state="visible")
    page.wait_for_selector("#stage .tt-winner")
    assert -1 <= page.locator("#stage .tt-best").bounding_box()["y"] < 400
    box = page.locator("#stage .tt-winner").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    no_sideways_scroll(page)


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
    assert page.locator("#stage .tt-plot .tt-end").count() == 2
    page.wait_for_function("document.querySelector('#status').innerText.indexOf('done') >= 0")
    choose(page, "20nfe")
    page.click("#others")
    page.wait_for_selector("#tally .tt-pair2")
    assert page.locator("#stage .tt-winner").count() == 2  # the comparison stays
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.indexOf('other seeds') >= 0")
    page.wait_for_selector("#stop[disabled]")
    page.click("#compare")
    page.wait_for_selector("#tally .tt-pair2", state="detached")


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


def test_a_candidate_is_finished_by_hand_and_the_search_ended_with_it(visit: Opener) -> None:
    page = visit()
    choose(page, "1600nfe", 20)
    page.click("#by-hand button")
    page.click("#search")
    page.wait_for_selector("#stage [data-verb]")
    hand = page.locator("#stage .tt-hand").nth(1)
    name = hand.evaluate("hand => hand.parentElement.title.match(/seed (\\d+)/)[1]")
    hand.locator("[data-verb=finish]").click()
    assert page.locator("#stage .tt-hand[data-asked=finish]").count() == 1  # at once
    page.wait_for_function(
        """name => [...document.querySelectorAll('#stage .tt-cell')].some(
            cell => cell.title.startsWith(`seed ${name}, step 3`))""",
        arg=name,
    )
    page.click("#best")
    page.wait_for_selector("#download", state="visible")
    assert "2 wishes by hand" in page.inner_text("#stage .tt-note")


def test_a_picture_is_changed_with_a_wipe_between_before_and_after(visit: Opener, tmp_path: Path) -> None:
    page = visit()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    choose(page, "24nfe", 8)
    page.click("#change button")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "red.png"))
    page.wait_for_selector("#picture img")  # a thumbnail: it is there, no longer on its way
    page.fill("#prompt textarea", "a blue circle")
    page.click("#search")
    page.wait_for_selector("#stage .tt-wipe .tt-after")
    page.locator("#stage .tt-wipe input").fill("20")
    clip = "e => getComputedStyle(e).clipPath"
    assert "20%" in page.locator("#stage .tt-wipe .tt-after").evaluate(clip)
    assert "reward scenes + place" in page.inner_text("#stage .tt-status")
    page.wait_for_selector("#download", state="visible")
    no_sideways_scroll(page)
