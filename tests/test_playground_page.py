"""The playground in a browser: Voilà serves the notebook, headless Chromium clicks, drags and slides."""

import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from mesa_lib.store import paths

pytestmark = pytest.mark.long

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: longest time from a click until the page shows what it changed, in seconds
RESPONSE = 1.0
#: for what a busy machine does before the page stands: training without a store, a kernel, the page
PATIENCE = 900


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page, served by the command of `make play`; what the store lacks is trained first."""
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip(f"needs Chromium: none of {', '.join(BROWSERS)} is on the path")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    command = [sys.executable, "-m", "mesa_lib", "play", "--no-browser", f"--port={port}"]
    with log.open("w") as stream:
        server = subprocess.Popen(command, cwd=paths.root(), stdout=stream, stderr=stream)
    try:
        start = time.monotonic()
        while "is running at" not in log.read_text():
            assert server.poll() is None and time.monotonic() - start < PATIENCE, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def page(address):
    """The page, once every part of it is drawn, in a window of desktop size."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        executable = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(address, wait_until="domcontentloaded", timeout=1000 * PATIENCE)
        page.wait_for_selector(".mesa-predictions tr[data-model]", timeout=120_000)
        page.wait_for_selector(".mesa-repaired tr", timeout=120_000)
        page.wait_for_timeout(1000)
        yield page
        browser.close()


def html(page, name):
    return page.inner_html(f".{name}")


def until_changed(page, name, before):
    """Wait until the page shows something else there; return what."""
    page.wait_for_function(
        "([name, before]) => document.querySelector('.' + name).innerHTML != before", arg=[name, before],
        polling=10, timeout=20_000,
    )  # fmt: skip
    return html(page, name)


def drag(page, start, end, steps=8):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=steps)
    page.mouse.up()


def point(page, selector, x, y):
    """A point of an element, by its coordinates in the element, in those of the window."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    return box["x"] + x, box["y"] + y


def predicted(page):
    rows = page.locator(".mesa-predictions tr[data-model]").all()
    return {row.get_attribute("data-model"): row.get_attribute("data-predicted") for row in rows}


def colors(page):
    return [button.evaluate("b => getComputedStyle(b).backgroundColor") for button in page.locator(".mesa-pixel").all()]


def test_the_page_shows_the_backdoor_before_anybody_clicks(page):
    shown = predicted(page)
    assert list(shown)[:2] == ["clean model", "attacked"] and {"fine-tuning", "MESA", "ideal"} <= set(shown)
    assert shown["attacked"] == "0" != shown["clean model"], "the attacker's trigger, on an image of another class"
    assert len(colors(page)) == 9 and set(colors(page)) == {"rgb(0, 0, 0)", "rgb(255, 255, 255)"}
    assert "Traceback" not in page.content() and "load or train" not in page.inner_text("body")


def test_a_click_on_a_pixel_is_answered_within_a_second(page, record_property):
    """The first click of all: nothing has been warmed up."""
    before, table = colors(page), html(page, "mesa-predictions")
    start = time.perf_counter()
    page.locator(".mesa-pixel").nth(1).click()
    until_changed(page, "mesa-predictions", table)
    seconds = time.perf_counter() - start
    record_property("seconds from the first click to its result", seconds)
    print(f"first response: {seconds:.2f} s")
    assert [a != b for a, b in zip(before, colors(page), strict=True)] == [i == 1 for i in range(9)]
    assert seconds < RESPONSE


def test_dragging_moves_the_pattern(page):
    table, picture = html(page, "mesa-predictions"), page.locator(".mesa-stage").screenshot()
    assert "row 15, column 15" in table
    drag(page, point(page, ".mesa-stage", 160, 160), point(page, ".mesa-stage", 5 * 10 + 5, 25 * 10 + 5))
    table = until_changed(page, "mesa-predictions", table)
    page.wait_for_function(
        "document.querySelector('.mesa-predictions').innerText.includes('row 24, column 4')", timeout=20_000
    )
    assert page.locator(".mesa-stage").screenshot() != picture
    page.mouse.move(*point(page, ".mesa-stage", 300, 20))
    page.wait_for_timeout(500)
    assert "row 24, column 4" in html(page, "mesa-predictions"), "the button is up"


def test_a_click_on_a_sample_stamps_it(page):
    before, table, picture = colors(page), html(page, "mesa-predictions"), page.locator(".mesa-samples").screenshot()
    page.mouse.click(*point(page, ".mesa-samples", 6 + 3 * 42 + 18, 6 + 42 + 18))
    until_changed(page, "mesa-predictions", table)
    assert colors(page) != before and page.locator(".mesa-samples").screenshot() != picture, "it is framed"


def test_a_click_on_an_image_and_on_an_attack_change_what_is_predicted(page):
    table = html(page, "mesa-predictions")
    page.mouse.click(*point(page, ".mesa-images", 6 + 7 * 70 + 32, 40))
    table = until_changed(page, "mesa-predictions", table)
    assert re.search(r"Image of class\s*<b>7</b>", table)
    samples = page.locator(".mesa-samples").screenshot()
    page.get_by_role("button", name="covered attack").click()
    until_changed(page, "mesa-predictions", table)
    page.wait_for_timeout(500)
    assert page.locator(".mesa-samples").screenshot() != samples, "another distribution"
    table = html(page, "mesa-predictions")
    page.get_by_role("button", name="attacker's trigger").click()
    until_changed(page, "mesa-predictions", table)
    assert predicted(page)["attacked"] == "0"


@pytest.mark.parametrize(
    ("slider", "shown"), [(0, "mesa-sampled"), (1, "mesa-sampled"), (2, "mesa-repaired")], ids=["alpha", "beta", "rate"]
)
def test_a_slider_shows_another_result(page, slider, shown):
    before, label = html(page, shown), page.locator(".widget-readout").nth(slider)
    value = label.inner_text()
    handle = page.locator(".noUi-handle").nth(slider)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    start = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, start, (start[0] - 500, start[1]))
    assert until_changed(page, shown, before) != before and label.inner_text() != value


def test_a_click_on_a_stored_sample_stamps_it_too(page):
    before, table = colors(page), html(page, "mesa-predictions")
    page.mouse.click(*point(page, ".mesa-stored-samples", 6 + 5 * 42 + 18, 6 + 18))
    until_changed(page, "mesa-predictions", table)
    assert colors(page) != before
