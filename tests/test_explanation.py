"""Shares of a cosine: they add up to it, belong to places, and the places can be shown."""

import numpy as np
import pytest
import soundfile

from answers import answer, lines
from clamp3 import Embedder
from clamp3.cli.commands import search as clamp3_search
from test_passages import TUNE, midi

LONG = TUNE.replace("X:1\n", "X:2\n") + "".join(f"{'GABc'[n % 4]}4 d4|" for n in range(300)) + "\n"
TEXTS = ("a lively reel in D major", "an air\nan air\n\nfrom Ireland,  slow", "爱尔兰里尔舞曲 in D", " reel ")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    soundfile.write(path, np.sin(np.arange(12 * 24_000) / 11), 24_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("query", "item"),
    [
        *((text, TUNE) for text in TEXTS),
        (TUNE, LONG),  # longer than the tower takes: positions in two segments
        (midi(30), TUNE),
        (TUNE, midi(90)),
        ("a reel", "sound"),
    ],
)
def test_the_shares_of_both_add_up_to_the_cosine(embedder, recording, query, item):
    item = recording if item == "sound" else item
    found = embedder.explain(query, item)
    assert found.cosine == pytest.approx(embedder.similarity([query], [item])[0, 0], abs=1e-5)
    for shares in (found.query, found.item):
        assert sum(one.share for one in shares) == pytest.approx(found.cosine, abs=1e-5)
    assert all(one.unit for side in found.strongest().values() for one in side)


def test_places_are_the_bars_words_runs_and_frames(embedder, recording):
    words = [[one.text for one in embedder.explain(text, TUNE).query if one.unit] for text in TEXTS]
    assert words[0] == ["a", "lively", "reel", "in", "D", "major"]
    assert words[1] == ["an", "air", "from", "Ireland,", "slow"]
    assert "".join(words[2]).startswith("爱尔兰里尔舞曲") and words[2][-2:] == ["in", "D"] and words[3] == ["reel"]
    bars = [one for one in embedder.explain("a reel", TUNE).item if one.unit]
    assert [one.first for one in bars] == list(range(1, 21)) and bars[1].text == "[V:1]E4 A4|"
    runs = [one for one in embedder.explain("a reel", midi(6)).item if one.unit]
    assert [(one.first, one.text) for one in runs] == [
        (n // 2 + 1, f"note_{('on', 'off')[n % 2]}") for n in range(12)
    ] or ({one.text for one in runs} == {"note_on", "note_off"} and runs[0].first == 1)
    frames = [one for one in embedder.explain("a reel", recording).item if one.unit]
    assert [(one.unit, one.first, one.last) for one in frames] == [("seconds", n, n + 5.0) for n in (0.0, 5.0, 10.0)]


def test_an_item_without_a_feature_is_an_error(embedder):
    with pytest.raises(ValueError, match="item 0"):
        embedder.explain(" ", TUNE)


def test_a_search_marks_the_three_strongest_bars_and_words(tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tune.abc").write_text(TUNE)
    np.save(tmp_path / "in" / "ready.npy", np.ones((1, 128), np.float32))
    options = ["--explain", "--variant", "tiny", "--json", tmp_path / "found.jsonl"]
    assert answer(monkeypatch, clamp3_search, "a lively reel", tmp_path / "in", *options) == 0
    assert "no positions" in (shown := capsys.readouterr().out) and "of the file bar " in shown
    explanations = {record["file"]: record["explanation"] for record in lines(tmp_path / "found.jsonl")}
    assert [len(explanations["tune.abc"][side]) for side in ("item", "query")] == [3, 3]
    assert {one["text"] for one in explanations["tune.abc"]["query"]} == {"a", "lively", "reel"}
