"""Fingerprints of melodies: what they tell of notes, and that passages of an index are found by them."""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines
from clamp3 import Embedder
from clamp3.cli.commands import index as clamp3_index
from clamp3.features.passages import Passage, melody_of
from clamp3.formats.notes import Score, scores_of
from clamp3.inputs.melodies import BITS, NO_MELODY, BarMelodies, fingerprint
from clamp3.inputs.passages import Span, spelled, symbolic_passages
from clamp3.search import passages
from clamp3.search.index import Entry, Index
from clamp3.search.passages import closest, cosines, encoded, melodic_cosines, row_type
from clamp3.search.ranking import normalized
from clamp3.search.repair import check, repair
from corpus import folk_tunes
from notes import read_melody, to_mtf

HIDDEN = 8
HEADER = "X:1\nM:4/4\nL:1/8\nK:C\nV:1\n"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained("tiny", device="cpu")


def melodies_of(embedder: Embedder, text: str) -> BarMelodies:
    return BarMelodies(spelled(embedder.encode_symbolic(text)))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The share of bits in common, by Python's own sets."""
    sets = [{bit for bit, is_set in enumerate(np.unpackbits(some.view(np.uint8))) if is_set} for some in (one, other)]
    return len(sets[0] & sets[1]) / max(1, len(sets[0]) * len(sets[1])) ** 0.5


# ---------- of notes ----------


def test_a_fingerprint_is_the_same_in_every_key_and_rhythm_and_not_of_other_notes():
    rng = np.random.default_rng(0)
    melody = rng.integers(55, 80, 60)
    whole = fingerprint(melody)
    assert whole.shape == NO_MELODY.shape and whole.dtype == np.uint64 and len(whole) * 64 == BITS
    np.testing.assert_array_equal(fingerprint(melody + 5), whole)
    np.testing.assert_array_equal(fingerprint(np.repeat(melody, 3)), whole)
    wrong = melody.copy()
    wrong[30] += 1
    assert likeness(fingerprint(wrong), whole) > 0.85 > 0.3 > likeness(fingerprint(rng.integers(55, 80, 60)), whole)
    assert not fingerprint(melody[:4]).any() and not fingerprint(np.zeros(0, np.int64)).any()


def test_a_passage_has_the_melody_of_its_bars_alone(embedder):
    pytest.importorskip("music21")
    for tune in islice(folk_tunes(), 0, 200, 4):
        sequence = embedder.encode_symbolic(tune.abc)
        melodies = BarMelodies(spelled(sequence))
        np.testing.assert_array_equal(melodies.of(), fingerprint(scores_of(tune.abc)[0].top_line()))
        for span, window in symbolic_passages(sequence, embedder.patchilizer):
            np.testing.assert_array_equal(melodies.of(span), BarMelodies(spelled(window)).of())


def test_midi_has_the_melody_of_its_score(embedder):
    pytest.importorskip("music21")
    for tune in islice(folk_tunes(), 0, 400, 8):
        mtf = to_mtf(read_melody(tune.abc))
        assert likeness(melodies_of(embedder, tune.abc).of(), melodies_of(embedder, mtf).of()) > 0.99, tune.name


@pytest.mark.parametrize("name", ["bach/bwv66.6", "bach/bwv269", "mozart/k155/movement2"])
def test_a_score_has_the_highest_notes_that_music21_reads(tmp_path, embedder, name):
    music21 = pytest.importorskip("music21")
    score = music21.corpus.parse(name)
    path = Path(score.write("musicxml", tmp_path / "score.musicxml"))
    played = [
        (float(note.getOffsetInHierarchy(score)), pitch.midi)
        for note in score.recurse().notes
        if not note.duration.isGrace and (note.tie is None or note.tie.type == "start")
        for pitch in note.pitches
    ]
    found = melody_of(embedder, path)
    assert found is not None and likeness(found, fingerprint(Score.of(played).top_line())) > 0.95


def test_drums_have_no_melody_and_chords_their_highest_note(embedder):
    high = [60, 64, 67, 72, 71, 69, 65]
    drums, chords = ["ticks_per_beat 480"], ["ticks_per_beat 480"]
    for pitch in high:
        drums += [f"note_on 0 9 {pitch} 80", f"note_off 480 9 {pitch} 0"]
        chords += [f"note_on 0 9 90 80\nnote_on 0 0 {pitch - 12} 80\nnote_on 0 0 {pitch} 80"]
        chords += [f"note_off 480 0 {pitch} 0\nnote_off 0 0 {pitch - 12} 0"]
    assert not melodies_of(embedder, "\n".join(drums)).of().any()
    np.testing.assert_array_equal(melodies_of(embedder, "\n".join(chords)).of(), fingerprint(np.array(high)))


@pytest.mark.parametrize(
    "patches",
    [
        *([], ["K:C\n"], ["C|", "D|"], ["[V:1]C99999999999999999999999/0|\n"], ["[V:1]C" + "9" * 5000 + "|\n"]),
        ["ticks_per_beat 480\n", "note_on x 0 60 80\n"],
        ["ticks_per_beat 480\n", "note_on 0 0\n", "note_on\n"],
    ],
)
def test_what_cannot_be_read_has_no_melody(patches):
    assert not BarMelodies(patches).of().any() and not BarMelodies(patches).of(Span("bars", 1, 8)).any()


# ---------- in an index ----------


def made(count: int, seed: int) -> list[Passage]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, HIDDEN)).astype(np.float32)
    return [
        Passage(Span("bars", 4 * n + 1, 4 * n + 8), feature, fingerprint(rng.integers(55, 80, rng.integers(50))))
        for n, feature in enumerate(features)
    ]


def entry(name: str) -> Entry:
    return Entry(Path(f"/music/{name}.abc"), "symbolic", f"{name:>064}", 1, 1)


def add(index: Index, some: dict[str, list[Passage]]) -> None:
    entries = [entry(name) for name in some]
    with index.writing():
        index.add(entries, np.ones((len(some), HIDDEN), np.float32), {entry(name).path: some[name] for name in some})


@pytest.mark.parametrize("pool", [50, 5000])  # fewer and more than there are
@pytest.mark.parametrize("counted_by", ["numpy 1", "numpy 2"])
def test_passages_are_ranked_by_the_sum_of_both_cosines(monkeypatch, counted_by, pool):
    monkeypatch.setattr(passages, "POOL", pool)
    if counted_by == "numpy 1":
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    elif not hasattr(np, "bitwise_count"):
        pytest.skip("needs NumPy 2")
    some, rng = made(3000, 1), np.random.default_rng(2)
    rows = encoded(some, row_type(HIDDEN, len(NO_MELODY)))
    query, melody = normalized(rng.standard_normal((1, HIDDEN)))[0], fingerprint(rng.integers(55, 80, 40))
    expected = np.array([likeness(melody, passage.melody) for passage in some])
    np.testing.assert_allclose(melodic_cosines(melody, rows), expected, atol=1e-6)
    slices = [passages.Slice(n, 10 * n, 10, "bars", 0) for n in range(300)]
    sums = cosines(query, rows) + expected
    for k in (1, 20, 500):
        found = closest(query, rows, slices, k, melody=melody)
        np.testing.assert_allclose([hit.cosine + hit.melodic for hit in found], np.sort(sums)[::-1][:k], atol=1e-5)
        found = closest(query, rows, slices[::2], k, 1, melody=melody)
        best = np.sort(sums.reshape(300, 10)[::2].max(axis=1))[::-1]
        np.testing.assert_allclose([hit.cosine + hit.melodic for hit in found], best[:k], atol=1e-5)
    moved = closest(query, rows, slices, 20, None, lambda features, units: np.zeros(len(features)), melody)
    assert [hit.melodic for hit in moved] == sorted((hit.melodic for hit in moved), reverse=True)


def test_bars_are_found_by_their_notes_in_other_keys_and_formats(tmp_path, embedder, capsys, monkeypatch):
    """A theme among tunes in ABC and MIDI, looked for in another key by a command."""
    pytest.importorskip("music21")
    long = (tune for tune in folk_tunes() if 16 <= tune.abc.count("[V:1]") <= 40)
    tunes, folder = list(islice(long, 0, 300, 10)), tmp_path / "tunes"
    folder.mkdir()
    for number, tune in enumerate(tunes):
        kind, text = (".abc", tune.abc) if number % 2 else (".mtf", to_mtf(read_melody(tune.abc)))
        (folder / f"{number}{kind}").write_text(text, encoding="utf-8")
    assert (
        answer(monkeypatch, clamp3_index, "build", tmp_path / "index", folder, "--passages", "--variant", "tiny") == 0
    )
    first = 0
    for number, tune in enumerate(tunes[:10]):
        head = [line for line in tune.abc.splitlines() if not line.startswith("[V:1]")]
        rows = [line for line in tune.abc.splitlines() if line.startswith("[V:1]")]
        query = tmp_path / "query.mtf"
        melody = read_melody("\n".join([*head, *rows[8:16]]))
        for note in melody.notes:
            note.pitch += 3
        query.write_text(to_mtf(melody), encoding="utf-8")
        capsys.readouterr()
        words = [
            query,
            tmp_path / "index",
            "--passages",
            "--top_k",
            5,
            "--json",
            tmp_path / "found.jsonl",
            "--variant",
            "tiny",
        ]
        assert answer(monkeypatch, clamp3_index, "search", *words) == 0
        assert " melody " in capsys.readouterr().out
        found = lines(tmp_path / "found.jsonl")
        sums = [record["cosine"] + record["melody"] for record in found]
        assert sums == sorted(sums, reverse=True)
        bars = found[0]["passage"]["bars"]
        first += Path(found[0]["file"]).stem == f"{number}" and abs(bars[0] - 9) <= 2
    assert first >= 9
    assert answer(monkeypatch, clamp3_index, "search", *words, "--no_melody") == 0
    found = lines(tmp_path / "found.jsonl")
    assert not any("melody" in record for record in found)
    assert found == sorted(found, key=lambda record: -record["cosine"])
    text = [*("a reel", tmp_path / "index", "--passages", "--json", tmp_path / "found.jsonl", "--variant", "tiny")]
    assert answer(monkeypatch, clamp3_index, "search", *text) == 0
    assert not any("melody" in record for record in lines(tmp_path / "found.jsonl"))


def test_the_melody_of_a_file_is_that_of_its_passages_together(tmp_path):
    some = made(5, 3)
    index = Index.create(tmp_path / "index")
    add(index, {"a": some, "b": [], "c": made(2, 4)})
    (one,) = index.entries("path = ?", (b"/music/a.abc",))
    found = index.melody_of(one)
    np.testing.assert_array_equal(found, np.bitwise_or.reduce([passage.melody for passage in some]))
    (none,) = index.entries("path = ?", (b"/music/b.abc",))
    assert index.melody_of(none) is None
    best = max(some, key=lambda passage: likeness(passage.melody, some[2].melody))
    spans = index.closest_passages_of(np.zeros(HIDDEN, np.float32), [one], some[2].melody)
    assert spans == {one.path: best.span}


def test_passages_of_an_earlier_version_have_no_melodies_and_stay_as_they_are(tmp_path, monkeypatch, caplog):
    index, some = Index.create(tmp_path / "index"), {"a": made(4, 1)}
    with monkeypatch.context() as earlier:
        earlier.setattr("clamp3.search.index.NO_MELODY", ())
        earlier.setattr("clamp3.search.index.FORMAT", 3)
        add(index, some)
    index.record(melody=None)
    index.close()
    index = Index(tmp_path / "index")
    assert index.database.execute("PRAGMA user_version").fetchone() == (3,)
    assert index.contents.passages.dtype == row_type(HIDDEN)
    add(index, {"b": made(3, 2)})
    assert index.database.execute("PRAGMA user_version").fetchone() == (3,) and check(index.folder) == []
    query = some["a"][1]
    (found, *_) = index.search(query.feature, 3, passages=True, melody=query.melody)
    assert found[0] == pytest.approx(1, abs=0.01) and found[1:] == (found[1], query.span)
    assert "without their melodies" in caplog.text
    (one,) = index.entries("path = ?", (b"/music/a.abc",))
    assert index.melody_of(one) is None
    shutil.copytree(index.folder, tmp_path / "copy")
    (tmp_path / "copy" / "index.sqlite").unlink()
    assert repair(index.folder) == []


def test_new_passages_make_an_index_one_of_format_4(tmp_path):
    index = Index.create(tmp_path / "index")
    index_version = "PRAGMA user_version"
    assert index.database.execute(index_version).fetchone() == (3,)
    add(index, {"a": made(4, 1)})
    assert index.database.execute(index_version).fetchone() == (4,)
    assert index.contents.passages.dtype == row_type(HIDDEN, len(NO_MELODY))
    assert check(index.folder) == []
