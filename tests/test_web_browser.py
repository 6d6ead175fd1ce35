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

import pytest

for package in ("fastapi", "multipart"):
    pytest.importorskip(package)
sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")

import soundfile  # noqa: E402

from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.search.index import Index  # noqa: E402
from clamp3.search.indexing import update_index  # noqa: E402
from clamp3.web.collection import DEMO, Collection  # noqa: E402
from conftest import CODE  # noqa: E402
from web_files import HOSTILE, make_described, make_folder, served  # noqa: E402

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


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def described(embedder, tmp_path_factory):
    """The address of a server of an index with passages and metadata, and the folder of its files."""
    music, metadata = make_described(tmp_path_factory.mktemp("described"))
    index = Index.create(tmp_path_factory.mktemp("index") / "index")
    update_index(index, music, lambda: embedder, metadata=metadata, passages=True)
    index.close()
    with served(Collection(index.folder, lambda: embedder)) as address:
        yield address, music


@pytest.fixture
def page(browser, server):
    with watched(browser, server) as page:
        yield page


@pytest.fixture
def described_page(browser, described):
    with watched(browser, described[0]) as page:
        yield page


@contextlib.contextmanager
def watched(browser, address):
    """A page whose console must stay silent, and which may ask nobody but the server."""
    context = browser.new_context(base_url=address, viewport={"width": 900, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    sync_api.expect.set_options(timeout=SECONDS)
    said, elsewhere = [], []
    page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(address) or elsewhere.append(request.url))
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
    page.goto("/")
    expect(page.locator("#passages")).to_be_visible()  # the folder's passages have been made
    search(page, "an Irish jig", "symbolic")
    assert page.locator(".result").count() == 10
    expect(page.locator(".facts").first).to_contain_text(re.compile(r"similarity 0\.\d{3} · closer than [\d.]+ %"))
    score = page.locator(".result", has=page.locator(".score svg")).first
    expect(score).to_be_visible()
    assert score.locator(".abcjs-note").count() > 20 and score.locator(".abcjs-staff").count() >= 3
    score.get_by_role("button", name="Why?").click()
    expect(score.locator(".score .why rect").first).to_be_attached()
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


# The bar of each note, as abcjs itself counts them, and whether a mark of that name is behind the note.
NOTES_MARKED = """([score, name]) => {
  const boxes = [...score.querySelectorAll(`.${name} rect`)].map((one) => one.getBoundingClientRect());
  return [...score.querySelectorAll(".abcjs-note")].map((note) => {
    const head = note.getBoundingClientRect();
    const [x, y] = [head.left + head.width / 2, head.top + head.height / 2];
    const bar = Number([...note.classList].find((one) => /^abcjs-mm[0-9]+$/.test(one)).slice(8)) + 1;
    return [bar, boxes.some((box) => box.left <= x && x <= box.right && box.top - 9 <= y && y <= box.bottom + 9)];
  });
}"""


def marked_bars(score, name: str) -> set[int]:
    """The bars that a mark lies behind, each of which must be marked as a whole."""
    notes = score.evaluate(f"score => ({NOTES_MARKED})([score, '{name}'])")
    marked = {bar for bar, is_marked in notes if is_marked}
    assert not marked & {bar for bar, is_marked in notes if not is_marked}
    return marked


def test_found_bars_are_marked_and_those_that_explain_are_coloured(described_page):
    page = described_page
    search(page, "a lively Irish reel", "score")
    seen = 0
    for result in page.locator(".result").all():
        score = result.locator(".score")
        score.scroll_into_view_if_needed()
        expect(score.locator("svg")).to_be_visible()
        first, last = map(
            int, re.search(r"closest: bars (\d+)–(\d+)", result.locator(".facts").text_content()).groups()
        )
        bars = marked_bars(score, "passage")
        if bars:  # a passage that is all of the piece is not marked
            assert bars == set(range(first, last + 1))
            assert (float(result.locator(".position").input_value()) > 0) == (first > 1)
            seen += 1
    assert seen >= 3
    result = page.locator(".result").first
    result.get_by_role("button", name="Why?").press("Enter")
    expect(result.locator(".reasons mark").first).to_be_visible()
    assert set(result.locator(".reasons mark").all_text_contents()) <= {"a", "lively", "Irish", "reel"}
    named = {int(one.split()[1]) for one in result.locator(".reasons button").all_text_contents()}
    coloured = marked_bars(result.locator(".score"), "why")
    assert named and named <= coloured
    result.locator(".reasons button").last.press("Enter")
    assert 0 <= float(result.locator(".position").input_value())
    result.get_by_role("button", name="Why?").click()
    expect(result.locator(".reasons")).to_be_hidden()
    assert not marked_bars(result.locator(".score"), "why")


def test_a_recording_begins_at_the_found_second(described_page, described, tmp_path):
    page = described_page
    samples, rate = soundfile.read(described[1] / "long.flac")
    soundfile.write(tmp_path / "excerpt.wav", samples[30 * rate : 50 * rate], rate)
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    page.set_input_files("#file", tmp_path / "excerpt.wav")
    sound = page.locator(".result", has_text="long.flac")
    expect(sound.locator(".facts")).to_contain_text("closest: 0:30–0:50")
    sound.scroll_into_view_if_needed()
    until(page, "document.querySelector('audio').currentTime === 30")
    assert float(sound.locator(".strip .passage rect").get_attribute("x")) == pytest.approx(
        30_000 / (len(samples) / rate), abs=5
    )
    sound.get_by_role("button", name="Why?").click()  # of an uploaded file
    expect(sound.locator(".reasons button").first).to_contain_text(re.compile(r"\d:\d\d–\d:\d\d"))
    expect(sound.locator(".strip .why rect").first).to_be_attached()
    sound.locator("audio").evaluate("one => one.play()")
    until(page, "document.querySelector('audio').currentTime > 30.3")


def test_terms_are_added_by_a_click_taken_back_and_in_the_address(described_page, browser):
    page = described_page
    search(page, "a jig")
    names = [text.split(". ", 1)[1] for text in page.locator(".result h2").all_text_contents()]
    page.locator(".result", has_text=names[0]).locator(".also").click()
    terms = page.locator(".term")
    expect(terms).to_have_text([re.compile(f"Also like {names[0]}")])
    expect(page.locator(".result h2", has_text=names[0])).to_have_count(0)
    page.locator(".result", has_text=names[1]).locator(".without").click()
    expect(terms.nth(1)).to_contain_text(f"Not like {names[1]}")
    page.locator("#column").select_option("year")
    page.locator("#operator").select_option("<")
    page.fill("#value", "1860")
    page.press("#value", "Enter")
    expect(terms.nth(2)).to_contain_text("Where year<1860")
    expect(page.locator("#status")).to_contain_text("closest to “a jig”")
    years = page.locator(".facts").evaluate_all(
        "all => all.map(one => Number(one.textContent.match(/year: (.*?) /)[1]))"
    )
    assert years and max(years) < 1860
    page.locator("#column").select_option("<i>seen by</i>")
    page.locator("#operator").select_option("=")
    page.fill("#value", HOSTILE)
    page.click("#add")
    expect(terms.nth(3)).to_contain_text(HOSTILE)
    expect(page.locator(".facts").first).to_contain_text(f"<i>seen by</i>: {HOSTILE}")
    assert page.locator("main img, main i").count() == 0 and "owned" not in page.title()
    first = page.locator(".result h2").first.text_content()
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator(".result h2").first).to_have_text(first)
    expect(other.locator(".term")).to_have_text([re.compile(re.escape(one)) for one in terms.all_text_contents()])
    other.close()
    page.set_viewport_size(NARROW)
    page.locator(".explain").first.click()
    expect(page.locator(".reasons mark").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    for left in (3, 2, 1, 0):
        terms.first.get_by_role("button").click()
        expect(terms).to_have_count(left)
    assert page.url.endswith("?q=a+jig")
    page.go_back()
    expect(terms).to_have_count(1)


def test_files_are_dropped_and_a_picture_is_refused_with_the_reason(described_page):
    page = described_page
    page.goto("/")
    expect(page.locator("#progress")).to_be_hidden()
    tune = sorted(DEMO.glob("*.abc"))[0]
    for name, content in (("photo.png", "PNG"), ("tune.abc", tune.read_text())):
        dropped = page.evaluate_handle(
            "all => { const some = new DataTransfer(); some.items.add(new File([all[1]], all[0])); return some; }",
            [name, content],
        )
        page.dispatch_event("main", "drop", {"dataTransfer": dropped})
        if name == "photo.png":
            expect(page.locator("#problem")).to_contain_text("photo.png: pictures are not read")
    expect(page.locator(".result h2").first).to_contain_text(tune.name)
    expect(page.locator(".term")).to_contain_text("Like tune.abc")


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

    with served(Collection(music, Slow)) as address, watched(browser, address) as page:
        page.goto("/")
        expect(page.locator("#progress label")).to_have_text("Reading the collection")
        expect(page.locator("#far")).to_have_text(re.compile(r"^3 of 1\d files$"))
        assert page.locator("#bar").get_attribute("value") == "3"
        go_on.set()
        expect(page.locator("#progress")).to_be_hidden()


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
