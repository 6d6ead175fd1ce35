"""Passages: where they lie in their pieces, what an index has of them, and that damage to it is found and mended."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from answers import answer, lines
from clamp3 import Embedder
from clamp3.cli.commands import index as clamp3_index
from clamp3.errors import UserError
from clamp3.features.passages import Passage
from clamp3.inputs import passages
from clamp3.inputs.passages import Metre, Span, bars_of, messages_of, spelled, symbolic_passages, windows
from clamp3.search.index import Entry, Index
from clamp3.search.indexing import update_index
from clamp3.search.integrity import TABLES_2, squeezed
from clamp3.search.repair import check, repair
from damaged_index import DAMAGES

HIDDEN = 8
TUNE = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:D\n" + "".join(f"{'DEFGABcd'[n % 8]}4 A4|" for n in range(20)) + "\n"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained("tiny", device="cpu")


# ---------- places ----------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [(0, 1)]), (8, [(0, 8)]), (9, [(0, 8), (4, 9)]), (12, [(0, 8), (4, 12)]), (13, [(0, 8), (4, 12), (8, 13)])],
)
def test_windows_cover_everything_once_more_than_needed_at_most(count, expected):
    assert list(windows(count, 8, 4)) == expected


def test_bars_are_counted_as_they_are_written(embedder):
    """Interleaved rows hold a bar of each voice, in which patches too long for their line end are one bar too."""
    rows = ["M:4/4\n", "K:C\n", "V:1\n", "V:2\n", "[V:1]C4|", "[V:2]E4|\n", "[V:1][M:C|]D4|", "[V:2]F4|\n"]
    assert bars_of(embedder.patchilizer.split("".join(rows))) == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert bars_of(["[V:1]" + "C" * 70, "[V:1]D|\n", "[V:2]x|", "[V:1]E|\n"]) == [1, 2, 3, 3]
    assert bars_of(["K:C\n", "C|", "D|\n", "E|\n"]) == [0, 1, 2, 3]  # standard ABC as it stands


def test_a_passage_of_abc_has_the_key_and_metre_of_most_of_its_bars(embedder):
    text = "L:1/8\nM:4/4\nK:C\nV:1\n" + "[V:1]C8|\n" * 6 + "[V:1][M:3/4][K:G]G6|\n" + "[V:1]A6|\n" * 7
    found = list(symbolic_passages(embedder.encode_symbolic(text), embedder.patchilizer))
    assert [span for span, _ in found] == [Span("bars", start, start + 7) for start in (1, 3, 5, 7)]
    assert [spelled(sequence)[:3] for _, sequence in found] == [
        ["M:4/4\n", "K:C\n", "V:1\n"],  # which equal shares keep
        ["M:4/4\n", "K:C\n", "V:1\n"],
        ["M:3/4\n", "K:G\n", "V:1\n"],
        ["M:3/4\n", "K:G\n", "V:1\n"],
    ]
    assert spelled(found[2][1])[3:6] == ["[V:1]C8|\n", "[V:1]C8|\n", "[V:1]G6|\n"]


def test_a_passage_encoded_alone_is_the_piece_of_these_bars(embedder):
    abc = embedder.encode_symbolic(TUNE)
    for span, sequence in symbolic_passages(abc, embedder.patchilizer):
        rows = spelled(abc)
        head, music = [row for row in rows if row[1] == ":"], [row for row in rows if row[0] == "["]
        alone = "".join([*head, *music[int(span.first) - 1 : int(span.last)]])
        np.testing.assert_array_equal(sequence, embedder.encode_symbolic(alone))


def midi(bars: int, tpb: int = 480) -> str:
    """MTF of a note in each bar: 4/4, from the fifth bar on 3/4."""
    out = [f"ticks_per_beat {tpb}", "set_tempo 500000 0", "program_change 0 0 5"]
    for bar in range(bars):
        ticks = tpb * (4 if bar < 4 else 3)
        out += ["time_signature 3 4 24 8 0"] * (bar == 4)
        out += [f"note_on 0 0 {60 + bar} 80", f"note_off {ticks} 0 {60 + bar} 0"]
    return "\n".join([*out, "end_of_track 0"])


def test_bars_of_midi_follow_its_time_signatures(embedder):
    sequence = embedder.encode_symbolic(midi(14))
    ticks, messages = messages_of(spelled(sequence))
    metre = Metre(ticks, messages)
    begins = [message.now for message in messages if message.begins]
    assert [metre.bar(now) for now in begins] == list(range(14))
    assert [metre.start(bar) for bar in range(14)] == begins
    found = list(symbolic_passages(sequence, embedder.patchilizer))
    assert [span for span, _ in found] == [Span("bars", start, start + 7) for start in (1, 3, 5, 7)]
    _, last = messages_of(spelled(found[3][1]))
    assert [(message.name, message.now) for message in last[:4]] == [
        *(("set_tempo", 0), ("program_change", 0), ("time_signature", 0), ("note_on", 0))
    ]
    assert [int(message.after.split()[1]) for message in last if message.begins] == list(range(66, 74))
    assert last[-1].name == "end_of_track" and last[-1].now == 8 * 3 * 480


@pytest.mark.parametrize(
    "mtf",
    [
        *("ticks_per_beat 480", "ticks_per_beat -5\nnote_on 0 0 60 80", "ticks_per_beat 1\nnote_on x 0 60 80"),
        "ticks_per_beat 480\ntime_signature 0 0 24 8 0\nnote_on 0 0 60 80",
        "ticks_per_beat 1\nnote_on 268435455 0 60 80\nnote_on 268435455 0 61 80\nnote_off 1 0 61 0",
        f"ticks_per_beat 480\nsysex 0 {list(range(100))}\nnote_on\nsysex",
    ],
)
def test_odd_midi_has_passages_or_none(embedder, mtf):
    found = list(passages.symbolic_passages(embedder.patchilizer.encode(mtf, True), embedder.patchilizer))
    assert len(found) <= 6 and all(0 < span.first <= span.last for span, _ in found)


# ---------- files ----------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embedder) -> Path:
    """A tune, a text and a recording."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tune.abc").write_text(TUNE, encoding="utf-8")
    (folder / "text.txt").write_text("a reel\n\nan air in D\n", encoding="utf-8")
    sound = np.sin(np.arange(33 * 24_000) / np.repeat([9, 11, 15], 11 * 24_000)).astype(np.float32)
    soundfile.write(folder / "sound.wav", sound, 24_000, subtype="FLOAT")
    return folder


def test_a_files_passages_are_bars_lines_and_seconds(embedder, folder):
    spans = {path.name: [passage.span.as_json() for passage in embedder.passages(path)] for path in folder.iterdir()}
    assert spans["tune.abc"] == [{"bars": [start, start + 7]} for start in (1, 3, 5, 7, 9, 11, 13)]
    assert spans["text.txt"] == [{"lines": [1, 1]}, {"lines": [3, 3]}]
    assert spans["sound.wav"] == [{"seconds": [0.0, 20.0]}, {"seconds": [10.0, 30.0]}, {"seconds": [20.0, 35.0]}]
    line = embedder.passages(folder / "text.txt")[1].feature
    np.testing.assert_allclose(line, embedder.embed_text(["an air in D"])[0], atol=1e-5)
    with pytest.raises(ValueError, match="empty.txt"):
        (folder.parent / "empty.txt").write_text("")
        embedder.passages(folder.parent / "empty.txt")


def test_the_index_finds_passages_by_command_and_keeps_them_up_to_date(tmp_path, folder, capsys, monkeypatch):
    files, index = shutil.copytree(folder, tmp_path / "files"), tmp_path / "index"
    (files / "sound.wav").unlink()
    assert answer(monkeypatch, clamp3_index, "build", index, files, "--variant", "tiny") == 0
    with pytest.raises(UserError, match="--passages"):
        answer(monkeypatch, clamp3_index, "search", index, "an air in D", "--passages", "--variant", "tiny")
    assert answer(monkeypatch, clamp3_index, "build", index, files, "--passages", "--variant", "tiny") == 0
    (files / "later.txt").write_text("one\nan air in E")
    assert answer(monkeypatch, clamp3_index, "add", index, files, "--variant", "tiny") == 0
    capsys.readouterr()
    options = ["--per_file", 1, "--json", tmp_path / "found.jsonl", "--variant", "tiny"]
    assert answer(monkeypatch, clamp3_index, "search", index, "an air in D", "--passages", *options) == 0
    assert "line 3" in capsys.readouterr().out
    found = lines(tmp_path / "found.jsonl")
    assert len({record["file"] for record in found}) == len(found) == 3
    assert found[0]["passage"] == {"lines": [3, 3]} and found[0]["cosine"] == pytest.approx(1, abs=0.002)
    (files / "text.txt").unlink()
    (files / "later.txt").write_text("another text")
    assert answer(monkeypatch, clamp3_index, "add", index, files, "--variant", "tiny") == 0
    opened = Index(index)
    assert sorted(one.count for one in opened.slices()) == [1, 7] and check(index) == []


# ---------- in the index ----------


def made(count: int, seed: int = 0) -> list[Passage]:
    features = np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)
    return [Passage(Span("bars", 4 * n + 1, 4 * n + 8), feature) for n, feature in enumerate(features)]


def entry(name: str) -> Entry:
    return Entry(Path(f"/music/{name}.abc"), "symbolic", f"{name:>064}", 1, 1)


def add(index: Index, some: dict[str, list[Passage]]) -> None:
    entries = [entry(name) for name in some]
    index.add(entries, np.ones((len(some), HIDDEN), np.float32), {entry(name).path: some[name] for name in some})


def plainly(some: dict[str, list[Passage]], query: np.ndarray, k: int, per_file: int | None) -> list[tuple]:
    """What NumPy finds in float64."""
    unit = query / np.linalg.norm(query)
    hits = sorted(
        (
            (float(passage.feature @ unit / np.linalg.norm(passage.feature)), name, passage.span)
            for name, found in some.items()
            for passage in found
        ),
        key=lambda hit: -hit[0],
    )
    kept: list[tuple] = []
    for hit in hits:
        if per_file is None or sum(other[1] == hit[1] for other in kept) < per_file:
            kept.append(hit)
    return kept[:k]


def assert_found(index: Index, some: dict[str, list[Passage]]) -> None:
    for seed, (k, per_file) in enumerate([(5, None), (4, 1), (50, 2), (1000, None)]):
        query = np.random.default_rng(seed).standard_normal(HIDDEN).astype(np.float32)
        expected = plainly(some, query, k, per_file)
        found = index.search(query, k, passages=True, per_file=per_file)
        assert len(found) == len(expected)
        np.testing.assert_allclose([hit[0] for hit in found], [hit[0] for hit in expected], atol=0.01)
        for cosine, of, span in found:  # each is where it says, with its own cosine
            (passage,) = [passage for passage in some[of.path.stem] if passage.span == span]
            own = passage.feature @ query / np.linalg.norm(passage.feature) / np.linalg.norm(query)
            assert cosine == pytest.approx(own, abs=0.01)


def test_after_any_changes_the_index_finds_what_numpy_finds(tmp_path):
    index, there, chance = Index.create(tmp_path / "index"), {}, random.Random(2)
    for turn in range(12):
        new = {f"{turn}-{n}": made(chance.randrange(6), 100 * turn + n) for n in range(5)}
        gone = chance.sample(sorted(there), len(there) // 3)
        with index.writing():
            add(index, new)
            index.remove(entry(name).path for name in gone)
            index.compact()
        there = {name: found for name, found in (there | new).items() if name not in gone}
        assert_found(index, there)
    assert index.meta["passages"] != "passages-1.i8" and check(index.folder) == []
    assert len(list(index.folder.glob("*.i8"))) == 1
    assert_found(Index(index.folder), there)


def test_what_a_killed_run_leaves_behind_the_passages_does_no_harm(tmp_path):
    some = {"a": made(3, 1)}
    index = Index.create(tmp_path / "index")
    with index.writing():
        add(index, some)
    with open(index.folder / index.meta["passages"], "ab") as file:
        file.write(b"half of what was to come")
    index = Index(tmp_path / "index")
    assert_found(index, some)
    with index.writing():
        add(index, {"b": made(2, 2)})
    assert_found(index, some | {"b": made(2, 2)})
    assert check(index.folder) == []


@pytest.mark.parametrize("kind", sorted(DAMAGES))
def test_damaged_passages_are_told_and_dropped_by_repair_and_the_others_are_right(tmp_path, kind):
    some = {f"{n}": made(4, n) for n in range(8)}
    index = Index.create(tmp_path / "index")
    with index.writing():
        add(index, some)
    index.close()
    path = tmp_path / "index" / "passages-1.i8"
    whole, chance = path.read_bytes(), random.Random(7)
    for _ in range(4):
        data = DAMAGES[kind](whole, chance)
        if data == whole:
            continue
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(UserError, match="passages-1.i8"):
            Index(tmp_path / "index")
        assert {Path(issue.file).name for issue in check(tmp_path / "index")} == {"passages-1.i8"}
        copy = shutil.copytree(tmp_path / "index", tmp_path / "copy")
        dropped = {Path(issue.file).stem for issue in repair(copy)}
        assert dropped and check(copy) == []
        mended = Index(copy)
        assert len(mended) == 8 and len(mended.without_passages()) == len(dropped)
        assert_found(mended, {name: found for name, found in some.items() if name not in dropped})
        with mended.writing():
            mended.add_passages({entry(name).path: some[name] for name in dropped})
        assert_found(mended, some)
        shutil.rmtree(copy)
        path.write_bytes(whole)


def test_passages_are_of_the_file_that_they_were_made_of(tmp_path):
    """A record that was changed to another row, as no writing does, is damage."""
    index = Index.create(tmp_path / "index")
    with index.writing():
        add(index, {"a": made(3, 1), "b": []})
    with index.database:
        index.database.execute("UPDATE passages SET row = 9 WHERE row = 0")
    assert any("no file" in issue.reason for issue in check(index.folder))
    with index.database:
        index.database.execute("DELETE FROM passages WHERE row = 1")
        index.database.execute("UPDATE passages SET row = 1 WHERE row = 9")
    assert any("not what was written" in issue.reason for issue in check(index.folder))


def test_an_index_of_format_2_is_searched_and_takes_passages_when_it_is_written_to(tmp_path):
    index = Index.create(tmp_path / "index")
    with index.writing():
        index.add([entry("a")], np.ones((1, HIDDEN), np.float32))
    with index.database:
        index.database.execute("DROP TABLE passages")
        index.database.execute("PRAGMA user_version = 2")
    there = {squeezed(sql) for (sql,) in index.database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")}
    assert there == set(map(squeezed, TABLES_2.values()))
    index.close()
    index = Index(tmp_path / "index")
    assert index.search(np.ones(HIDDEN, np.float32))[0][0] == pytest.approx(1) and check(index.folder) == []
    with index.writing():
        index.add_passages({entry("a").path: made(2)})
    assert_found(index, {"a": made(2)})


def test_a_file_without_passages_is_no_error_and_ready_made_features_have_none(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, HIDDEN), np.float32))
    index = Index.create(tmp_path / "index")

    def no_embedder():
        raise AssertionError("nothing here is to be embedded")

    assert update_index(index, tmp_path / "a.npy", no_embedder, passages=True).added == 1
    assert index.search(np.ones(HIDDEN, np.float32), passages=True) == []
    assert json.loads(json.dumps(Span("seconds", 5, 25).as_json())) == {"seconds": [5.0, 25.0]}
