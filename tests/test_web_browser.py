"""The page in a real browser, as `clamp3_web.py` serves it: what people see, hear and do.

They need Chromium and Playwright's Python package: apt-get install chromium; pip install playwright.
Two of them keep pictures of the page where CLAMP3_PICTURES names a folder, such as docs/images.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

for package in ("fastapi", "multipart", "uvicorn"):
    pytest.importorskip(package)
sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")

import uvicorn  # noqa: E402

from clamp3.errors import ignore  # noqa: E402
from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.formats.audio import read_audio  # noqa: E402
from clamp3.search.index import Index  # noqa: E402
from clamp3.search.indexing import update_index  # noqa: E402
from clamp3.web.collection import DEMO, Collection  # noqa: E402
from clamp3.web.server import create_app  # noqa: E402
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


SOUND = sorted(DEMO.glob("*.mp3"))[0]
MARKUP = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def indexed(embedder, tmp_path_factory):
    """The address of a server of an index with passages and metadata, of tunes and a recording that holds SOUND."""
    music = tmp_path_factory.mktemp("indexed")
    tunes = sorted(DEMO.glob("*.abc"))[:6]
    for path in tunes:
        shutil.copy(path, music)
    sound, noise = read_audio(SOUND, 16_000, ignore), np.random.default_rng(0).normal(0, 0.1, 20 * 16_000)
    soundfile.write(music / "long.wav", np.concatenate([noise, sound[: 20 * 16_000], noise]), 16_000)
    columns = [{"year": 1850 + 10 * number, MARKUP: MARKUP} for number in range(len(tunes))]
    metadata = {music / path.name: row for path, row in zip(tunes, columns, strict=True)}
    index = Index.create(tmp_path_factory.mktemp("indices") / "index")
    update_index(index, music, lambda: embedder, metadata=metadata, passages=True)
    index.close()
    with served(Collection(index.folder, lambda: embedder)) as address:
        yield address


@contextlib.contextmanager
def served(collection):
    """The address of a server in this process, for the block."""
    server = uvicorn.Server(uvicorn.Config(create_app(collection), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    with silent_page(browser, server) as page:
        yield page


@pytest.fixture
def indexed_page(browser, indexed):
    with silent_page(browser, indexed) as page:
        yield page


@contextlib.contextmanager
def silent_page(browser, server):
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
    expect(page.locator("#failures summary")).to_have_text("1 file could not be read")
    page.click("#failures summary")
    expect(page.locator("#failures li")).to_contain_text("broken.mid")


def test_a_text_is_searched_its_scores_are_engraved_and_sound(page):
    search(page, "an Irish jig", "symbolic")
    assert page.locator(".result").count() == 10
    expect(page.locator(".facts").first).to_contain_text(re.compile(r"similarity 0\.\d{3} · closer than [\d.]+ %"))
    score = page.locator(".result", has=page.locator(".score svg")).first
    expect(score).to_be_visible()
    assert score.locator(".abcjs-note").count() > 20 and score.locator(".abcjs-staff").count() >= 3
    score.get_by_role("button", name="Play").click()
    expect(score.get_by_role("button", name="Pause")).to_be_visible()
    assert page.evaluate("document.body.dataset.audio") == "running"
    expect(score.locator(".sounding").first).to_be_attached()
    page.locator(".result").last.scroll_into_view_if_needed()  # what is drawn meanwhile lets it go on
    expect(page.locator(".view").last).not_to_be_empty()
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


def test_the_closest_passage_is_shaded_and_the_bars_that_explain_are_coloured(page):
    page.goto("/")
    expect(page.locator("#by-label")).to_be_visible()  # once the folder's passages are there
    page.goto("/?q=an+Irish+jig&kind=score&passages=1")
    result = page.locator(".result").first
    expect(result.locator(".score .found").first).to_be_attached()
    bars = re.search(r"bars (\d+)–(\d+)", result.locator(".passage").text_content())
    assert page.input_value("#by") == "1" and result.locator(".score .found").count() >= 1
    assert (float(result.locator(".position").input_value()) > 0) == (int(bars[1]) > 1)
    why = result.locator(".explain")
    why.click()
    expect(result.locator(".why")).to_contain_text(re.compile(r"searched for:.*(an|Irish|jig) \+0"))
    identity = result.locator(".save").get_attribute("href").split("/")[2]
    said = page.request.get(f"/explain?q=an+Irish+jig&id={identity}&top_k=5").json()
    numbers = {int(place["first"]) for place in said["item"]}
    assert result.locator(".abcjs-bar[data-why]").count() == len(numbers) == 5  # each bar ends in one line
    assert all(f"bar {number} +" in result.locator(".why").text_content() for number in numbers)
    page.set_viewport_size({"width": 900, "height": 1150})
    page.evaluate("scrollTo(0, 0)")
    keep(page, "web.jpg")
    why.click()
    expect(result.locator(".why")).to_be_hidden()
    assert result.locator("[data-why]").count() == 0


# The bar of each note, as abcjs itself counts them, and whether the shade of the passage is behind the note.
SHADED = """score => {
  const shades = [...score.querySelectorAll(".found")].map((one) => one.getBoundingClientRect());
  return [...score.querySelectorAll(".abcjs-note")].map((note) => {
    const box = note.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    const bar = Number([...note.classList].find((one) => /^abcjs-mm[0-9]+$/.test(one)).slice(8)) + 1;
    return [bar, shades.some((one) => one.left <= x && x <= one.right && one.top - 9 <= y && y <= one.bottom + 9)];
  });
}"""


def test_the_shaded_bars_are_those_that_the_engraver_counts(indexed_page):
    page = indexed_page
    search(page, "a lively reel", "score")
    seen = 0
    for result in page.locator(".result").all():
        result.scroll_into_view_if_needed()
        expect(result.locator(".score svg")).to_be_visible()
        first, last = map(int, re.search(r"bars (\d+)–(\d+)", result.locator(".passage").text_content()).groups())
        notes = result.locator(".score").evaluate(SHADED)
        assert {bar for bar, is_shaded in notes if is_shaded} == set(range(first, last + 1))
        assert {bar for bar, is_shaded in notes if not is_shaded}.isdisjoint(range(first, last + 1))
        seen += first > 1 and len({bar for bar, _ in notes}) > last
    assert seen  # a passage within a piece
    assert "/" not in page.locator("h2").first.text_content()  # the folder that all have in common is left out


def test_the_page_counts_the_files_while_a_folder_is_read(browser, embedder, tmp_path):
    """An embedder that stops after three files."""
    go_on, music = threading.Event(), make_folder(tmp_path)

    class Slow:
        def __getattr__(self, name):
            return getattr(embedder, name)

        def embed_items(self, items):
            for number, one in enumerate(embedder.embed_items(items)):
                assert number != 3 or go_on.wait(60)
                yield one

    with served(Collection(music, Slow)) as address, silent_page(browser, address) as page:
        page.goto("/")
        expect(page.locator("#far")).to_have_text(re.compile(r"^3 of 1\d files$"))
        expect(page.locator("#progress")).to_be_visible()
        assert page.locator("#bar").get_attribute("value") == "3"
        go_on.set()
        expect(page.locator("#progress")).to_be_hidden()
        expect(page.locator("#failures summary")).to_have_text("1 file could not be read")


def test_what_else_is_asked_is_shown_as_chips_and_in_the_address(page, browser):
    search(page, "a slip jig", "symbolic")
    added, left_out = (page.locator(".result h2").nth(place).text_content().split(". ", 1)[1] for place in (1, 3))
    page.locator(".also").nth(1).click()
    expect(page.locator(".chip")).to_have_text([f"Also {added}×"])
    page.locator(".result", has_text=left_out).first.locator(".without").click()
    expect(page.locator(".chip")).to_have_text([f"Also {added}×", f"Without {left_out}×"])
    expect(page.locator("#status")).to_contain_text("closest to")
    names = page.locator(".result h2").all_text_contents()
    assert not any(added in name or left_out in name for name in names)
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator(".result h2")).to_have_text(names)
    expect(other.locator(".chip")).to_have_text([f"Also {added}×", f"Without {left_out}×"])
    other.close()
    page.get_by_role("button", name=f"Remove Also {added}").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".chip")).to_have_text([f"Without {left_out}×"])
    assert re.search(r"\?q=a\+slip\+jig&without=\w+&kind=symbolic$", page.url)
    page.locator(".like").first.click()
    expect(page.locator(".chip")).to_have_count(1)
    expect(page.locator(".chip")).to_contain_text("Like ")


def test_metadata_are_filters_and_text_and_nothing_else(indexed_page):
    page = indexed_page
    search(page, "a reel")
    expect(page.locator(".facts", has_text=f"year: 1850 · {MARKUP}: {MARKUP}")).to_be_visible()
    for column, operator, value in ((MARKUP, "=", MARKUP), ("year", "<", "1870")):
        page.locator("#column").select_option(column)
        page.locator("#operator").select_option(operator)
        page.fill("#value", value)
        page.press("#value", "Enter")
        expect(page.locator(".chip", has_text=f"{column}{operator}{value}")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("2 closest to")
    page.reload()
    expect(page.locator("#status")).to_contain_text("2 closest to")
    expect(page.locator(".result h2")).to_have_count(2)
    page.goto("/?q=a&where=nothing%3D1")
    expect(page.locator("#problem")).to_contain_text("no file has metadata in a column nothing")
    assert page.locator("main img").count() == 0 and "owned" not in page.title()


def test_recordings_start_at_the_second_that_was_found(indexed_page):
    page = indexed_page
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    page.set_input_files("#file", SOUND)
    expect(page.locator(".chip")).to_have_text(f"Like {SOUND.name}×")
    result = page.locator(".result", has_text="long.wav")
    expect(result.locator(".passage")).to_have_text("Closest passage: 0:20–0:40")
    result.scroll_into_view_if_needed()
    result.locator("audio").evaluate("one => one.play()")
    until(page, "document.querySelector('audio').currentTime > 20.2")
    result.locator(".explain").click()
    seconds = result.locator(".why").get_by_role("button").first
    first = seconds.text_content().split("–")[0]
    seconds.click()
    start = int(first.split(":")[0]) * 60 + int(first.split(":")[1])
    until(page, f"Math.abs(document.querySelector('audio').currentTime - {start}) < 2")


def test_files_can_be_dropped_and_a_picture_is_told_why_not(page, tmp_path):
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    drop = """([name, content]) => {
        const moved = new DataTransfer();
        moved.items.add(new File([content], name));
        dispatchEvent(new DragEvent("drop", { dataTransfer: moved, cancelable: true }));
    }"""
    tune = sorted(DEMO.glob("*.abc"))[0]
    page.evaluate(drop, [tune.name, tune.read_text()])
    expect(page.locator(".result h2").first).to_contain_text(tune.name)
    page.evaluate(drop, ["photo.png", "PNG"])
    expect(page.locator("#problem")).to_contain_text(re.compile("photo.png: .*picture"))


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
    tab_to(".explain")
    page.keyboard.press("Enter")
    expect(page.locator(".why").first).to_contain_text("What adds most")
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
    page.locator(".explain").first.click()
    expect(page.locator(".why").first).to_contain_text("What adds most")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.locator(".also").first.click()
    expect(page.locator(".chip")).to_be_visible()
    expect(page.locator(".score svg").first).to_be_visible()
    for control in ("#text", "#search button", "#file", "#kind", ".play"):
        box = page.locator(control).first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"], control


def test_the_page_for_programs_lists_the_operations(page):
    page.goto("/docs")
    expect(page.locator("h2", has_text="POST /v1/embeddings")).to_be_visible()
    expect(page.locator("li", has_text="input: string or array, needed")).to_be_visible()
