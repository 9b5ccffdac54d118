"""The page in a real browser: Chromium, on a laptop's and a phone's screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.browser import chromium
from ttsnap.results.record import read_record

from .conftest import PROMPT

pytestmark = pytest.mark.browser
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser, server):
    """Opens the page; when the test ends, the console must be clean and nothing fetched from
    elsewhere."""
    troubles, contexts, own = list[str](), list[Any](), (server[0], "data:", "blob:")

    def visit(width=1440, height=900, scheme="light"):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda message: troubles.append(message.text if message.type == "error" else ""),
        )
        page.on("pageerror", lambda error: troubles.append(str(error) or "an error"))
        page.on(
            "request",
            lambda request: troubles.append("" if request.url.startswith(own) else request.url),
        )
        page.goto(server[0])
        page.wait_for_selector("#search")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not any(troubles), troubles


def choose(page, budget, steps=10):
    for field, value in (
        ("#budget input, #budget textarea", budget),
        ("#steps input[type=number]", str(steps)),
    ):
        page.fill(field, value)
        page.press(field, "Tab")


def wait_for(page, where, word):
    page.locator(where, has_text=word).wait_for()


def wait_for_winners(page):
    page.wait_for_function("document.querySelectorAll('#stage .tt-winner').length == 2")


def wait_for_image(page):
    page.wait_for_selector("#download", state="visible")


def no_sideways_scroll(page):
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner


def test_search_streams_and_gives_an_image(visit, tmp_path):
    page, boards = visit(), set[str]()
    choose(page, "300nfe")  # long enough for several frames
    page.fill("#prompt textarea", PROMPT)
    page.click("#search")
    while not page.is_visible("#download"):
        grid = page.query_selector("#stage .tt-board")
        boards |= {grid.inner_html()} if grid else set()
        page.wait_for_timeout(50)
    assert len(boards) >= 2
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
    wait_for(page, "#after", "load()")
    no_sideways_scroll(page)


def test_an_error_clears_the_page_and_stop_is_active_only_while_something_runs(
    visit,
):
    page = visit()
    assert page.is_disabled("#stop")
    choose(page, "5images")
    wait_for(page, "#budget-hint", "50 evaluations")
    page.click("#search")
    page.wait_for_selector("#stop:not([disabled])")
    wait_for_image(page)
    page.wait_for_selector("#stop[disabled]")
    assert "/ 50" in page.inner_text("#stage .tt-meters")
    page.fill("#prompt textarea", "a <b>dog</b>")
    page.click("#search")
    told = page.wait_for_selector("#stage .tt-error")
    assert "<b>dog</b>" in told.inner_text()
    page.wait_for_selector("#download", state="hidden")
    assert page.locator("#stage .tt-board").count() == 0
    assert "done" not in page.inner_text("#status")
    assert page.is_disabled("#stop")
    page.click("#surprise")
    page.wait_for_function("document.querySelector('#prompt textarea').value.indexOf('dog') < 0")


def test_a_field_that_is_refused_takes_the_place_of_an_old_result(visit, tmp_path):
    page = visit()
    choose(page, "20nfe")
    page.click("#search")
    wait_for(page, "#status", "done")
    page.fill("#guidance input", "-1")
    page.press("#guidance input", "Tab")
    page.click("#search")
    wait_for(page, "#stage .tt-error", "guidance")
    page.fill("#guidance input", "4")
    page.press("#guidance input", "Tab")
    page.click("#search")
    wait_for(page, "#status", "done")
    (tmp_path / "notes.png").write_text("no picture")
    page.click("#change button")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "notes.png"))
    page.wait_for_selector("#picture img")
    page.click("#search")
    wait_for(page, "#stage .tt-error", "picture")
    assert "done" not in page.inner_text("#status")
    assert page.locator(".toast-body").count() == 0
    page.wait_for_selector("#download", state="hidden")


def test_the_form(visit):
    page = visit(1366, 768)
    assert page.inner_text(".tt-model") == "embedded"
    page.locator(".tt-chips button", has_text="says").first.click()
    wait_for(page, ".tt-model", "signs")
    assert page.locator("#draft").is_visible()
    assert page.locator(".form:has(#negative) #draft").count() == 0  # it has a frame of its own
    page.click("#algorithm input")
    group = page.wait_for_selector("#algorithm li[data-index='0']")
    assert "Choose among seeds" in page.evaluate(
        "e => getComputedStyle(e, '::before').content", group
    )
    assert (
        page.locator("#algorithm ul").bounding_box()["y"]
        >= page.locator(".tt-header").bounding_box()["height"]
    )
    page.click("#algorithm li[aria-label^='SVDD']")
    wait_for(page, ".tt-hint", "Adds noise at every step")


def test_on_a_phone_the_winner_comes_first(visit):
    page = visit(390, 844)
    choose(page, "200nfe")
    page.evaluate("scrollTo(0, 0)")
    page.click("#search")
    page.wait_for_function("document.querySelector('#stage').getBoundingClientRect().top < 200")
    wait_for_image(page)
    page.wait_for_selector("#stage .tt-winner")
    assert -1 <= page.locator("#stage .tt-best").bounding_box()["y"] < 400
    box = page.locator("#stage .tt-winner").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    no_sideways_scroll(page)


def test_stopping_and_comparing_with_pictures_that_are_large_and_open_larger(visit):
    page = visit(1366, 768, "dark")
    choose(page, "1600nfe", 20)
    page.click("#search")
    page.wait_for_selector("#stage .tt-grid")
    page.click("#stop")
    wait_for_image(page)
    wait_for(page, "#status", "stopped")
    assert page.locator("#stage .tt-best img").count() == 1
    choose(page, "100nfe")
    page.click("#compare")
    wait_for_winners(page)
    assert page.locator("#stage .tt-best img").count() == 2
    assert page.locator("#stage .tt-plot .tt-end").count() == 2
    wait_for(page, "#status", "done")
    small = page.evaluate(
        "[...document.querySelectorAll('#stage .tt-cell img')].map(image => image.clientWidth)"
    )
    assert min(small) >= 70
    large = page.evaluate(
        "[...document.querySelectorAll('#stage .tt-best img')].map(image => image.clientWidth)"
    )
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


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_an_item_of_a_checklist_lights_the_images_that_have_it(visit, width, scheme):
    page = visit(width, 900, scheme)
    choose(page, "60nfe")
    page.fill("#prompt textarea", PROMPT)
    page.get_by_text("Rewards, image size").click()
    page.get_by_label("Reward", exact=True).click()
    page.keyboard.press("Backspace")
    page.click("li[aria-label='checklist']")
    page.keyboard.press("Escape")
    page.click("#search")
    page.wait_for_selector("#stage .tt-item")
    page.click("#stage .tt-item >> nth=0")
    wait_for_image(page)
    cells, item = "#stage .tt-cell", PROMPT.split(" and ")[0].replace(" ", "_")
    has = page.locator(f"{cells} [data-has~={item}]").count()  # few, by a shallow model
    assert page.locator(f"{cells}:not(.tt-dim)").count() == has  # in frames after the click, too
    assert page.locator(f"{cells}.tt-dim [data-has~={item}]").count() == 0
    assert page.locator(f"{cells}.tt-dim").count() > 0
    assert page.get_attribute("#stage .tt-item >> nth=0", "aria-pressed") == "true"
    page.click("#stage .tt-item >> nth=0")
    assert page.locator("#stage .tt-dim").count() == 0
    page.hover("#stage .tt-item >> nth=0")
    page.mouse.down()
    page.eval_on_selector("#stage .tt-items", "e => e.replaceWith(e.cloneNode(true))")  # a frame
    page.mouse.up()
    assert page.get_attribute("#stage .tt-item >> nth=0", "aria-pressed") == "true"
    assert "two red circles" in page.inner_text("#stage .tt-best")
    no_sideways_scroll(page)


def test_closing_the_page_stops_its_search(visit):
    page = visit()
    choose(page, "6400nfe", 20)
    page.click("#search")
    page.wait_for_selector("#stage .tt-grid")
    other = visit()
    choose(other, "20nfe")
    other.click("#search")
    wait_for(other, "#status", "queue")
    page.context.close()
    other.wait_for_selector("#download", state="visible", timeout=40_000)


def test_a_candidate_is_finished_by_hand(visit):
    page = visit()
    choose(page, "1600nfe", 20)
    page.click("#search")
    page.locator("#stage [data-uid] img").nth(1).click()
    name = page.inner_text(".tt-zoom p").split(",")[0].removeprefix("seed ")
    page.click(".tt-zoom [data-verb=finish]")
    page.wait_for_selector(".tt-zoom", state="hidden")
    page.wait_for_function(
        """name => [...document.querySelectorAll('#stage .tt-cell')].some(
            cell => cell.title.startsWith(`seed ${name}, step 3`))""",
        arg=name,
    )
    page.click("#stop")
    wait_for_image(page)
    assert "led by hand" in page.inner_text("#stage .tt-note")


def test_a_picture_is_changed_with_a_wipe_between_before_and_after(visit, tmp_path):
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
    wait_for_image(page)
    no_sideways_scroll(page)
