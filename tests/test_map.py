"""Maps of collections: the points, the picture, and the page, which engraves and plays without a network."""

import html.parser
import importlib
import json
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import map as clamp3_map
from clamp3.errors import UserError
from clamp3.tasks.maps import COLOURS, OTHERS, UNKNOWN, groups_of, project
from clamp3.web.collection import DEMO
from clamp3.web.maps import json_in_html
from conftest import ROOT, run_forked
from web_files import HOSTILE

manifold = pytest.importorskip("sklearn.manifold")
pytest.importorskip("matplotlib")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ABC = "X:1\nT:{}\nM:6/8\nL:1/8\nK:D\n|: dAF DFA | ded cBA | dcd efg | fdf ecA :|\n"
HOSTILE_TITLE = "</script><img src=x onerror=\"document.title='owned'\"><!--<script>"


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """Scores, MIDI, texts and a recording, with names and contents that would be markup, and their features beside."""
    folder = tmp_path_factory.mktemp("map") / "music"
    for extension, count in {".abc": 6, ".mid": 3, ".musicxml": 1, ".txt": 2, ".mp3": 1}.items():
        (folder / extension[1:]).mkdir(parents=True)
        for path in sorted(DEMO.glob(f"*{extension}"))[:count]:
            shutil.copy(path, folder / extension[1:])
    (folder / HOSTILE).write_text(ABC.format(HOSTILE_TITLE))
    (folder / "broken.mid").write_bytes(b"MThd and nothing")
    rng = np.random.default_rng(0)
    names = sorted(path.relative_to(folder).with_suffix(".npy").as_posix() for path in folder.rglob("*.*"))
    save_features(folder.with_name("features"), {name: rng.normal(size=(1, 8)).astype(np.float32) for name in names})
    return folder


@pytest.fixture(scope="module")
def drawn(music) -> Path:
    """The page of the features, as the command writes it, with `map.json` beside it."""
    folder = music.parent
    words = (folder / "features", "--music", music, "--colour", "folder", "--output", folder / "map")
    words += ("--queries", sorted((folder / "features" / "abc").iterdir())[0], folder / "features" / "broken.npy")
    done = run_forked("clamp3_map.py", *words, "--json", folder / "map.json")
    assert "15 pieces by " in done.stdout and "13 pieces to see or hear" in done.stdout
    return folder / "map.html"


class Tags(html.parser.HTMLParser):
    """What an HTML parser sees: elements with their attributes, and the text of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_data(self, text):
        if self.texts:
            self.texts[-1] += text


# ---------- points and colours ----------


def test_neighbours_stay_neighbours_and_the_same_features_give_the_same_map():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 48)) * 3
    group = np.arange(150) % 6
    features = centres[group] + rng.normal(size=(150, 48))
    points, method = project(features)
    assert points.shape == (150, 2) and np.abs(points).max() == pytest.approx(1) and method in ("UMAP", "t-SNE")
    assert manifold.trustworthiness(features, points, metric="cosine") > 0.9
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(150)
    assert np.mean(group[distances.argmin(axis=1)] == group) > 0.97
    assert np.array_equal(project(features)[0], points)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 12])
def test_few_and_equal_pieces_have_points_too(count):
    rng = np.random.default_rng(0)
    for features in (rng.normal(size=(count, 5)), np.ones((count, 5)), np.zeros((count, 1))):
        points, method = project(features)
        assert points.shape == (count, 2) and np.isfinite(points).all() and np.abs(points).max() <= 1 + 1e-9
        assert (method == "principal components") == (count < 10)


def test_the_most_frequent_labels_have_colours_of_their_own():
    labels = [f"label {n}" for n in range(20) for _ in range(20 - n)] + [UNKNOWN] * 50
    groups, group = groups_of(labels)
    assert groups == [f"label {n}" for n in range(10)] + [OTHERS, UNKNOWN] and len(groups) == len(COLOURS)
    assert {labels[i]: groups[g] for i, g in enumerate(group) if groups[g] not in (OTHERS, UNKNOWN)} == {
        f"label {n}": f"label {n}" for n in range(10)
    }
    assert group.count(10) == sum(20 - n for n in range(10, 20)) and group.count(11) == 50
    assert groups_of(["b", "a", "b"]) == (["b", "a"], [0, 1, 0])


# ---------- the command ----------


def test_the_page_holds_all_and_asks_for_nothing(drawn, music):
    text = drawn.read_text(encoding="utf-8")
    assert drawn.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    tags = Tags(text)
    assert [tag for tag, _ in tags.found].count("script") == 4 and "img" not in [tag for tag, _ in tags.found]
    for tag, attributes in tags.found:
        addresses = [attributes[name] for name in ("src", "href", "action", "data") if name in attributes]
        assert addresses in ([], ["data:,"]) and not any(name.startswith("on") for name in attributes), tag
    policy = next(attributes["content"] for tag, attributes in tags.found if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and policy.count("sha256-") == 3
    data = json.loads(next(t for (tag, a), t in zip(tags.found, tags.texts, strict=True) if a.get("id") == "data"))
    place = {name: index for index, name in enumerate(data["names"])}
    assert len(place) == 15 and data["kinds"][place["mp3/" + next(music.glob("mp3/*")).stem + ".npy"]] == "audio"
    first = min(name for name in place if name.startswith("abc/"))
    for name, found in zip((first, "broken.npy"), data["answers"], strict=True):
        (closest, cosine), *others = found["found"]
        assert closest == place[name] and cosine > 0.9999 and len(others) == 4 and name in found["query"]
    hostile = data["music"][place[HOSTILE.replace(".abc", ".npy")]]
    assert hostile["kind"] == "score" and HOSTILE_TITLE in hostile["abc"]
    kinds = [view["kind"] for view in data["music"] if view]
    assert {kind: kinds.count(kind) for kind in kinds} == {"score": 8, "notes": 3, "text": 2}
    assert "recording" in data["reasons"][place["mp3/" + next(music.glob("mp3/*")).stem + ".npy"]]
    assert data["music"][place["broken.npy"]] is None and data["reasons"][place["broken.npy"]]
    assert dict(zip(data["groups"], [data["group"].count(n) for n in range(9)], strict=False))["abc"] == 6
    records = lines(drawn.with_name("map.json"))
    assert [record["file"] for record in records] == data["names"]
    assert {record["label"] for record in records} == {"abc", "mid", "musicxml", "txt", "mp3", "."}


def test_an_index_is_coloured_by_its_metadata_and_music_has_a_limit(music, tmp_path, monkeypatch, capsys):
    features, table = music.with_name("features"), tmp_path / "known.csv"
    table.write_text("file,metre\n" + "".join(f"{p.relative_to(features)},6/8\n" for p in features.glob("abc/*.npy")))
    assert answer(monkeypatch, clamp3_index, "build", tmp_path / "index", features, "--metadata", table) == 0
    words = ("--colour", "metre", "--output", tmp_path / "m", "--json", tmp_path / "m.json")
    assert answer(monkeypatch, clamp3_map, tmp_path / "index", *words) == 0
    assert [record["label"] for record in lines(tmp_path / "m.json")].count("6/8") == 6
    assert answer(monkeypatch, clamp3_map, features, "--metadata", table, *words) == 0
    assert [record["label"] for record in lines(tmp_path / "m.json")].count("6/8") == 6
    assert "its music is not known here; --music names the folder" in (tmp_path / "m.html").read_text()
    for options, message in (
        (
            (tmp_path / "index", "--colour", "composer"),
            "nothing is known of 'composer'; .* folder, metre",
        ),
        ((tmp_path / "index", "--metadata", table), "an index has metadata of its own"),
        ((features, "--music", tmp_path), "nothing in .* has the relative path of a feature"),
        ((features, "--output", tmp_path / "known.csv" / "map"), "cannot be drawn"),
        ((tmp_path / "nowhere",), "there is no file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            answer(monkeypatch, clamp3_map, *options)
    for folder in (".", "..", "/"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            answer(monkeypatch, clamp3_map, features, "--output", folder)
        assert f"and {folder} is a folder" in capsys.readouterr().err


def test_answers_are_those_of_files_whose_paths_others_have_as_names(tmp_path, monkeypatch):
    save_features(tmp_path, vectors("t/t/z/a", "t/z/a"))
    monkeypatch.chdir(tmp_path)
    assert answer(monkeypatch, clamp3_map, "t", "--queries", "t/t/z/a.npy") == 0
    assert re.search(r'"found":\[\[0,.*?\],\[1,', Path("map.html").read_text(encoding="utf-8"))


def test_an_index_that_changes_meanwhile_is_said():
    with pytest.raises(UserError, match="was changed meanwhile"):
        clamp3_map.answer("a reel", [{"file": "/new.abc", "cosine": 0.5}], [])


def test_what_is_known_of_a_score_is_not_known_of_a_text_beside_it(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.abc").write_text(ABC.format("x"))
    (tmp_path / "in" / "x.txt").write_text("a slow song")
    (tmp_path / "known.csv").write_text("file,metre\nx.abc,6/8\n")
    monkeypatch.chdir(tmp_path)
    words = ("in", "--metadata", "known.csv", "--colour", "metre", "--json", "m.jsonl", "--variant", "tiny")
    assert answer(monkeypatch, clamp3_map, *words) == 0
    assert [record["label"] for record in lines(tmp_path / "m.jsonl")] == ["6/8", UNKNOWN]


def test_a_feature_that_two_lines_could_be_about_is_refused_and_one_that_has_its_own_is_not(tmp_path, monkeypatch):
    save_features(tmp_path / "in", vectors("x", "y", "z"))
    known = tmp_path / "known.csv"
    words = (tmp_path / "in", "--metadata", known, "--colour", "metre", "--output", tmp_path / "m")
    known.write_text("file,metre\nx.abc,6/8\ny.abc,2/4\nx.mid,3/4\n")
    with pytest.raises(UserError, match="x.npy may be made of x.abc or x.mid: add a line for x.npy"):
        answer(monkeypatch, clamp3_map, *words)
    known.write_text(known.read_text() + "x.npy,9/8\n")
    assert answer(monkeypatch, clamp3_map, *words, "--json", tmp_path / "m.jsonl") == 0
    assert [record["label"] for record in lines(tmp_path / "m.jsonl")] == ["9/8", "2/4", UNKNOWN]


def test_music_that_has_no_room_is_named(music):
    from clamp3.io.workers import Processes
    from clamp3.tasks.maps import Piece
    from clamp3.web.maps import NO_ROOM, music_of

    paths = sorted(music.rglob("*.abc"))
    pieces = [Piece(path.name, path) for path in paths]
    views, _ = music_of(pieces, 10**6, Processes(1))
    sizes = [len(json.dumps(view)) for view in views]
    some, reasons = music_of(pieces, sum(sizes[:3]), Processes(1))
    assert some == views[:3] + [None] * (len(pieces) - 3) and reasons == [""] * 3 + [NO_ROOM] * (len(pieces) - 3)


def test_json_in_a_page_is_nothing_but_json():
    hostile = {"</script>": ["<!--", "&lt;", "\u2028", "]]>", HOSTILE_TITLE]}
    assert json.loads(json_in_html(hostile)) == hostile and not set("<>&\u2028") & set(json_in_html(hostile))


def test_what_docs_say_runs(music, tmp_path, monkeypatch):
    """docs/map.md, with features in place of a model."""
    (tmp_path / "composers.csv").write_text("file,composer\nabc/x.npy,Turlough\n")
    features = tmp_path / "FEATURES"
    shutil.copytree(music.with_name("features"), features)
    shutil.copytree(features, tmp_path / "FOLDER")
    (features / "abc" / "x.npy").write_bytes(next(features.glob("*.npy")).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert answer(monkeypatch, clamp3_index, "build", "INDEX", "FEATURES", "--metadata", "composers.csv") == 0
    shutil.copytree(music, tmp_path / "FOLDER", dirs_exist_ok=True)
    for path in [*tmp_path.glob("FOLDER/**/*.mp3"), tmp_path / "FOLDER" / "broken.mid"]:
        path.unlink()  # of which features are there
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "map.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 4
    for path in tmp_path.glob("FOLDER/**/*.npy"):
        path.unlink()
    for command in commands:
        _python, script, *words = shlex.split(command)
        module = importlib.import_module(f"clamp3.cli.commands.{script.removesuffix('.py').removeprefix('clamp3_')}")
        assert answer(monkeypatch, module, *words, "--variant", "tiny") == 0, command
    assert {path.name for path in tmp_path.glob("*.html")} == {
        *("map.html", "tunes.html", "by_features.html", "answers.html")
    }


# ---------- in a browser ----------


@pytest.mark.skipif(CHROMIUM is None, reason="no browser tests without Chromium: apt-get install chromium")
def test_pointing_engraves_and_clicking_plays_without_any_request(drawn, music):
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")
    points = {record["file"]: (record["x"], record["y"]) for record in lines(drawn.with_name("map.json"))}
    hostile = HOSTILE.replace(".abc", ".npy")
    jig, midi = (next(name for name in points if name.startswith(folder)) for folder in ("abc/", "mid/"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(30_000)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(drawn.as_uri())
        box = page.locator("body[data-ready='15'] #map").bounding_box()

        def at(name: str) -> tuple[float, float]:
            half = min(box["width"], box["height"]) / 2 - 16
            across, up = points[name]
            return box["x"] + box["width"] / 2 + across * half, box["y"] + box["height"] / 2 - up * half

        page.mouse.move(*at(jig))
        page.locator(".score svg").wait_for()
        assert page.text_content("#piece h2") == jig and page.locator(".abcjs-note").count() > 20
        page.mouse.click(*at(jig))
        page.locator(".sounding").first.wait_for(state="attached")
        assert page.evaluate("document.body.dataset.audio") == "running"
        before, end = float(page.input_value(".position")), time.monotonic() + 30
        while float(page.input_value(".position")) <= before:
            assert time.monotonic() < end
        page.focus("#map")
        page.keyboard.press("Escape")
        page.mouse.move(*at(hostile))
        page.locator("#piece h2", has_text="<img").wait_for()
        page.locator(".score svg").wait_for()
        assert page.title() == "features" and page.locator("img").count() == 0
        page.mouse.click(*at(midi))
        page.locator(".roll rect").first.wait_for(state="attached")
        assert "MIDI is not engraved" in page.text_content(".remarks")
        page.locator("#answers summary").first.click()
        page.locator("#answers details[open] button").first.click()
        page.locator("#piece h2", has_text=jig).wait_for()
        page.locator(".score svg").wait_for()
        page.fill("#find", "mp3/")
        assert page.text_content("#found") == "1 found" and "recording" in page.text_content(".remarks")
        browser.close()
    assert not said and asked == [drawn.as_uri()]
