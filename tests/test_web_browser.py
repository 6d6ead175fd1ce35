"""The page in a real browser, as `clamp3_web.py` serves it: what people see, hear and do.

They need Chromium and Playwright's Python package: apt-get install chromium; pip install playwright.
Two of them keep pictures of the page where CLAMP3_PICTURES names a folder, such as docs/images.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ("fastapi", "multipart"):
    pytest.importorskip(package)
sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")

from clamp3.web.collection import DEMO  # noqa: E402
from conftest import CODE  # noqa: E402
from web_files import HOSTILE, make_folder  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser tests without Chromium: apt-get install chromium")
NARROW = {"width": 360, "height": 740}  # a telephone's
SECONDS = 30_000  # milliseconds to wait for anything, on busy cores


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the command, which serves a folder of all kinds of files."""
    music = make_folder(tmp_path_factory.mktemp("browser"))
    options = [str(music), "--variant", "tiny", "--port", "0", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-u", str(CODE / "clamp3_web.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
        finally:
            process.terminate()
            assert process.wait(20) == 143


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """A page whose console must stay silent, and which may ask nobody but the server."""
    context = browser.new_context(base_url=server, viewport={"width": 900, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    sync_api.expect.set_options(timeout=SECONDS)
    said, elsewhere = [], []
    page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(server) or elsewhere.append(request.url))
    yield page
    context.close()
    # The browser itself tells of answers like 422; the page shows their reason.
    assert not [line for line in said if "the server responded with a status of" not in line]
    assert not elsewhere


def expect(found):
    return sync_api.expect(found)


def until(page, condition: str) -> None:
    """Wait for JavaScript to become true; Playwright's own function needs `eval`, which the page forbids."""
    end = time.monotonic() + SECONDS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def keep(page, name: str) -> None:
    if folder := os.environ.get("CLAMP3_PICTURES"):
        page.screenshot(path=Path(folder, name), type="jpeg", quality=70)


def search(page, text: str, kind: str = "") -> None:
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    page.locator("#kind").select_option(kind)
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text("closest to")


def test_progress_is_shown_and_then_what_could_not_be_read(page):
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#failures summary")).to_have_text("1 files could not be read")
    page.click("#failures summary")
    expect(page.locator("#failures li")).to_contain_text("broken.mid")


def test_a_text_is_searched_its_scores_are_engraved_and_sound(page):
    search(page, "an Irish jig", "symbolic")
    assert page.locator(".result").count() == 10
    expect(page.locator(".facts").first).to_contain_text(re.compile(r"similarity 0\.\d{3} · closer than [\d.]+ %"))
    score = page.locator(".result", has=page.locator(".score svg")).first
    expect(score).to_be_visible()
    assert score.locator(".abcjs-note").count() > 20 and score.locator(".abcjs-staff").count() >= 3
    keep(page, "web.jpg")
    score.get_by_role("button", name="Play").click()
    expect(score.get_by_role("button", name="Pause")).to_be_visible()
    assert page.evaluate("document.body.dataset.audio") == "running"
    expect(score.locator(".sounding").first).to_be_attached()
    before = float(score.locator(".position").input_value())
    until(page, f"[...document.querySelectorAll('.position')].some(one => one.value > {before + 0.5})")
    score.get_by_role("button", name="Pause").click()
    expect(score.get_by_role("button", name="Play")).to_be_visible()
    assert page.locator(".sounding").count() == 0


def test_midi_is_drawn_and_sounds_and_says_that_it_is_not_engraved(page):
    search(page, "a reel", "symbolic")
    midi = page.locator(".result", has_text=".mid")
    midi.first.scroll_into_view_if_needed()
    expect(midi.first.locator(".remarks")).to_contain_text("MIDI is not engraved")
    assert midi.first.locator(".roll rect").count() > 20
    midi.first.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.roll line').getAttribute('x1') > 1")


def test_recordings_sound_and_texts_are_read(page):
    search(page, "a hornpipe", "audio")
    for place in range(2):  # an MP3, and an AIFF that is converted
        sound = page.locator("audio").nth(place)
        sound.scroll_into_view_if_needed()
        sound.evaluate("one => one.play()")
        until(page, f"document.querySelectorAll('audio')[{place}].currentTime > 0.3")
    search(page, "a hornpipe", "text")
    expect(page.locator(".view pre").first).to_contain_text("Hornpipe")


@pytest.mark.parametrize("extension", [".abc", ".musicxml", ".mid", ".mp3", ".txt"])
def test_files_of_each_kind_are_searched_with(page, extension):
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    path = sorted(DEMO.glob(f"*{extension}"))[0]
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_contain_text(path.name)
    expect(page.locator(".result h2").first).to_contain_text(path.name)
    page.locator("#kind").select_option("audio")  # the same file, among recordings
    expect(page.locator(".result h2").first).to_contain_text(re.compile(r"mp3|aiff"))


def test_a_broken_upload_shows_the_reason(page, tmp_path):
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    for name, content in (("broken.mid", b"MThd nothing"), ("a.exe", b"MZ")):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#problem")).to_contain_text(f"{name}: ")
    search(page, "a jig")
    expect(page.locator("#problem")).to_be_hidden()


def test_more_like_this_and_addresses_that_can_be_shared(page, browser, server):
    search(page, "a slip jig", "symbolic")
    name = page.locator(".result h2").nth(1).text_content().removeprefix("2. ")
    page.locator(".like").nth(1).click()
    expect(page.locator("#status")).to_contain_text(f"closest to {name}")
    assert re.search(r"\?like=\w+&kind=symbolic$", page.url)
    first = page.locator(".result h2").first.text_content()
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator(".result h2").first).to_have_text(first)
    other.close()
    page.go_back()
    expect(page.locator("#status")).to_contain_text("“a slip jig”")
    assert page.input_value("#text") == "a slip jig" and page.input_value("#kind") == "symbolic"


def test_names_of_files_are_text_and_nothing_else(page):
    search(page, "a dance", "symbolic")
    page.locator("#count").select_option("20")
    expect(page.locator(".result h2", has_text=HOSTILE)).to_be_visible()
    assert page.locator("main img").count() == 0 and "owned" not in page.title()


def test_the_keyboard_alone_suffices(page):
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none", selector
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#text")
    page.keyboard.type("a slip jig")
    tab_to("#kind")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#status")).to_contain_text("a slip jig")
    assert page.url.endswith("?q=a+slip+jig&kind=symbolic")
    expect(page.locator(".play").first).to_be_visible()
    tab_to(".play")
    page.keyboard.press("Space")
    expect(page.locator(".play", has_text="Pause")).to_be_visible()
    tab_to(".position")
    page.keyboard.press("End")
    tab_to(".like")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).not_to_contain_text("a slip jig")
    assert "like=" in page.url


def test_a_narrow_screen_shows_all(page):
    page.set_viewport_size(NARROW)
    search(page, "a jig")
    expect(page.locator(".score svg").first).to_be_visible()
    for result in page.locator(".view").all():
        result.scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.evaluate("scrollTo(0, 0)")
    keep(page, "web_narrow.jpg")
    for control in ("#text", "#search button", "#file", "#kind", ".play"):
        box = page.locator(control).first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"], control


def test_the_page_for_programs_lists_the_operations(page):
    page.goto("/docs")
    expect(page.locator("h2", has_text="POST /v1/embeddings")).to_be_visible()
    expect(page.locator("li", has_text="input: string or array, needed")).to_be_visible()
