"""Retrieval end to end: texts, scores, MIDI and recordings of tunes find each other, with the small model."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from answers import lines
from clamp3.formats.midi import mtf_to_midi
from clamp3.models.releases import TINY
from conftest import run_forked
from descriptions import country_of, kinds_of
from notes import read_melody, to_mtf, to_sound

pytest.importorskip("music21")  # which the oldest set of libraries lacks
from corpus import Tune  # noqa: E402

TUNES, RECORDED, SECONDS = 128, 48, 15
TINY_MODEL = ("--variant", "tiny", "--device", "cpu")


@dataclass
class Library:
    """Folders of held-out tunes, all as scores and MIDI, some as recordings; and the tunes by file name."""

    scores: Path
    midi: Path
    sound: Path
    tunes: dict[str, Tune]


@pytest.fixture(scope="module")
def library(tmp_path_factory, corpus_tunes) -> Library:
    folder = tmp_path_factory.mktemp("library")
    held_out = set(TINY.joinpath("held_out.txt").read_text(encoding="utf-8").split())
    tunes = [tune for tune in corpus_tunes if tune.name in held_out][:: 1024 // TUNES]
    found = Library(*(folder / name for name in ("scores", "midi", "sound")), {f"{t.name}.abc": t for t in tunes})
    for path in (found.scores, found.midi, found.sound):
        path.mkdir()
    for number, tune in enumerate(tunes):
        melody = read_melody(tune.abc)
        (found.scores / f"{tune.name}.abc").write_text(tune.abc, encoding="utf-8")
        (found.midi / f"{tune.name}.mid").write_bytes(mtf_to_midi(to_mtf(melody)))
        if number % (TUNES // RECORDED) == 0 and number // (TUNES // RECORDED) < RECORDED:
            soundfile.write(found.sound / f"{tune.name}.flac", to_sound(melody, SECONDS, 24_000, "fiddle"), 24_000)
    return found


def evaluated(tmp_path: Path, queries: Path, references: Path) -> dict:
    """The figures of clamp3_eval.py from queries to references."""
    target = tmp_path / f"{queries.name}.jsonl"
    printed = run_forked("clamp3_eval.py", queries, references, *TINY_MODEL, "--json", target).stdout
    assert "features made by" in printed and "tiny" in printed
    forth, _ = lines(target)
    assert forth["weights"].endswith("clamp3.safetensors")
    return forth


def test_midi_finds_its_score_and_a_recording_does_above_chance(library, tmp_path):
    """Chance: the mean reciprocal rank among 128 is 0.042."""
    chance = np.mean(1 / np.arange(1, len(library.tunes) + 1))
    midi = evaluated(tmp_path, library.midi, library.scores)
    assert midi["queries"] == midi["references"] == TUNES
    assert midi["MRR"][0] > 0.5 and midi["Hit@10"][0] > 0.85
    sound = evaluated(tmp_path, library.sound, library.scores)
    assert sound["queries"] >= RECORDED // 2 and sound["MRR"][0] > 3 * chance and sound["MRR"][1] > chance


@pytest.mark.parametrize(
    ("query", "is_relevant", "precision"),
    [
        ("Irish reel", lambda tune: "reel" in kinds_of(tune), 0.4),  # 7 of the 128 are
        ("jig", lambda tune: "jig" in kinds_of(tune), 0.4),
        ("chinesisches Volkslied", lambda tune: country_of(tune) == "China", 0.7),
    ],
)
def test_a_text_finds_its_kind(library, tmp_path, query, is_relevant, precision):
    command = ("clamp3_search.py", query, library.scores, *TINY_MODEL)
    run_forked(*command, "--json", tmp_path / "found.jsonl")
    found = [library.tunes[record["file"]] for record in lines(tmp_path / "found.jsonl")]
    share = np.mean([is_relevant(tune) for tune in library.tunes.values()])
    hits = np.mean([is_relevant(tune) for tune in found])
    assert len(found) == 10 and hits >= precision and hits > 2 * share, (hits, share, json.dumps(query))
