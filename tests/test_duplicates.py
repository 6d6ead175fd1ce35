"""Copies and versions in an index, what an index is made of, and notes whatever the format and the spelling."""

import csv
import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import index as clamp3_index
from clamp3.errors import UserError, ignore
from clamp3.formats.abc import interleave
from clamp3.formats.midi import midi_to_mtf, mtf_to_midi
from clamp3.formats.notes import scores_of
from clamp3.formats.registry import MUSICXML
from clamp3.inputs.melodies import figures
from clamp3.search.duplicates import find_duplicates
from clamp3.search.hearing import hear, heard_of
from clamp3.search.index import Entry, Index
from clamp3.search.versions import FIGURE, same_music
from conftest import CODE, run_forked
from corpus import corpus_folder, folk_tunes, scores
from notes import read_melody, to_mtf

INDEX = CODE / "clamp3_index.py"
TINY = ("--variant", "tiny")


def keys(text: str) -> set[bytes]:
    return set(heard_of(scores_of(text)).exact)


@pytest.mark.parametrize("cosine", ["nan", "95", "-2"])
def test_what_no_cosine_can_reach_is_refused(monkeypatch, capsys, cosine):
    with pytest.raises(SystemExit):
        answer(monkeypatch, clamp3_index, "duplicates", "index", f"--cosine={cosine}")
    assert f"--cosine: invalid cosine value: '{cosine}'" in capsys.readouterr().err


# ---------- notes ----------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("L:1/8\nK:D\nF2 A>d (3fga f2|", "L:1/4\nK:C\n^F A3/4 d/4 ^f/3g/3a/3 ^f|"),
        ("L:1/8\nK:Bb\nB2 _e2 [DF]4|", "L:1/8\nK:C\n_B2 _e2 [FD]4|"),
        ("L:1/8\nM:4/4\nK:C\nC4-C4|D8|", "L:1/8\nM:2/4\nK:C\nC4-|C4|D4-|D4|"),
        ("L:1/8\nK:C\n|:C2D2:|E4|", "L:1/8\nK:C\nC2D2|C2D2|E4|"),
        ("L:1/8\nK:C\nG2|:C2D2|1E4:|2F4|]A4|", "L:1/8\nK:C\nG2|C2D2|E4|C2D2|F4|A4|"),
        ("L:1/8\nK:C\nC2D2::E4:|", "L:1/8\nK:C\nC2D2|C2D2|E4|E4|"),
        ("L:1/8\nK:C\n|:C2D2|1,3 E4:|2 F4:|]A4|", "L:1/8\nK:C\nC2D2|E4|C2D2|F4|C2D2|E4|A4|"),
        ("L:1/8\nK:C\nC2D2 & E4|F4|", "L:1/8\nK:C\n[CE]2D2|F4|"),
        ("L:1/8\nK:C\nV:1\nV:2 octave=-1\n[V:1]e4|\n[V:2]E4|", "L:1/8\nK:C\n[E,e]4|"),
    ],
)
def test_spellings_of_the_same_notes(one, other):
    """By hand; with the first note lower or everything in another key, they are not the same."""
    assert keys(interleave(f"X:1\n{one}\n")) & keys(interleave(f"X:1\n{other}\n"))
    head, music = re.fullmatch(r"(.*K:C\n(?:V:.*\n)*)(.*)", other, re.DOTALL).groups()
    for changed in (f"{head}B,{music}", f"{head.replace('K:C', 'K:C#')}{music}"):
        assert not keys(interleave(f"X:1\n{one}\n")) & keys(interleave(f"X:1\n{changed}\n"))


def test_scores_and_midi_have_the_same_notes():
    """Bach's chorales as MusicXML and as MIDI that music21 has made of it; with tenors that sound an octave lower."""
    pytest.importorskip("music21")
    paths = sorted(corpus_folder().joinpath("bach").glob("*.mxl"), key=lambda path: (path.stat().st_size, path))
    found = [
        (keys(MUSICXML.read(path, ignore)), keys(midi_to_mtf(data, m3_compatible=True)))
        for path, (_, data) in zip(paths, scores(3), strict=False)
    ]
    assert [bool(one & other) for one, other in found] == [True] * 3
    assert not found[0][0] & found[1][1]


# ---------- versions ----------


def test_versions_are_found_in_any_key_and_unrelated_tunes_are_not():
    pytest.importorskip("music21")
    melodies = [scores_of(tune.abc)[0].top_line() for tune in islice(folk_tunes(), 100)]
    rng = np.random.default_rng(0)
    copies = []
    for melody in melodies[:20]:
        kept = rng.random(len(melody)) > 0.03
        copies.append(melody[kept] + int(rng.integers(-11, 12)))
    found = same_music([figures(melody, FIGURE) for melody in melodies + copies]).tolist()
    planted = [(one, other, interval) for one, other, interval in found if other >= 100]
    assert len(planted) >= 18 and all(other == one + 100 for one, other, _ in planted)
    assert all(np.median(copies[one]) - np.median(melodies[one]) in range(i - 2, i + 3) for one, _, i in planted)
    assert len(found) - len(planted) <= 2
    assert same_music([]).shape == same_music([figures(np.zeros(0, np.int64), FIGURE)] * 3).shape == (0, 3)


def test_ten_thousand_entries_take_seconds(tmp_path):
    """Of ready-made features: by bytes and by cosine, against a plain computation of both."""
    rng, count = np.random.default_rng(0), 10_000
    features = rng.normal(size=(count, 16)).astype(np.float32)
    features[1::10] = features[::10] + 0.01 * rng.normal(size=(count // 10, 16))
    index = Index.create(tmp_path / "index")
    hashes = [f"{number // 2 if number % 20 < 2 else number + count}" for number in range(count)]
    with index.writing():
        entries = [Entry(Path(f"/{number:05}.npy"), "feature", hashes[number], 1, 1) for number in range(count)]
        index.add(entries, features)
    found = find_duplicates(index, cosine=0.999)
    levels = [group.level for group in found.groups]
    assert levels.count("same bytes") == 500 and levels.count("alike") == 500 == len(levels) - 500
    assert all(len(group.members) == 2 and group.members[1].cosine > 0.999 for group in found.groups)
    assert len(found.issues) == count and {issue.reason for issue in found.issues} == {"is no longer there"}
    index.close()


@pytest.mark.parametrize(
    ("header", "music"), [("L:1/8", "CDE3/0 F"), ("L:1/0", "CDEF"), ("L:1/8", "CE99999999999999999999F")]
)
def test_what_no_music_has_is_said(tmp_path, header, music):
    (path := tmp_path / "odd.abc").write_text(f"X:1\n{header}\nM:4/4\nK:C\n{music}|GABc|\n")
    with pytest.raises(ValueError, match="beyond all music"):
        hear(path, pytest.fail)


# ---------- the commands ----------


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """A folder of tunes, of which one is there again in many ways, and its index by the small model."""
    pytest.importorskip("music21")
    folder = tmp_path_factory.mktemp("duplicates")
    inside = folder / "in"
    (inside / "deep er").mkdir(parents=True)
    tunes = list(islice(folk_tunes(), 20))
    for number, tune in enumerate(tunes):
        (inside / f"{number}.abc").write_text(tune.abc, encoding="utf-8")
    melody = read_melody(tunes[4].abc)
    (inside / "played.mid").write_bytes(mtf_to_midi(to_mtf(melody)))
    for note in melody.notes:
        note.pitch += 3
    (inside / "deep er" / "higher.mtf").write_text(to_mtf(melody))
    shutil.copy(inside / "4.abc", inside / "=copy.abc")
    (inside / "words.txt").write_text("a slow air")
    (folder / "known.csv").write_text("file,title\n4.abc,The fourth\n")
    run_forked(INDEX, "build", folder / "index", inside, "--metadata", folder / "known.csv", *TINY)
    return folder


def test_the_command_finds_copies_and_versions(copies, tmp_path):
    files = ("--csv", tmp_path / "found.csv", "--json", tmp_path / "found.jsonl")
    done = run_forked(INDEX, "duplicates", copies / "index", "--up_to", "music", "--workers", "1", *files)
    found = [
        (record["level"], {Path(file["file"]).name: file["semitones"] for file in record["files"]})
        for record in lines(tmp_path / "found.jsonl")
    ]
    same = {"4.abc": 0, "=copy.abc": 0}
    assert found == [
        ("same bytes", same),
        ("same notes", {**same, "played.mid": 0}),
        ("same music", {**same, "higher.mtf": 3, "played.mid": 0}),
    ]
    assert "3 groups among 24 files: 1 of the same bytes, 1 of the same notes, 1 of the same music" in done.stdout
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["level"] for row in rows] == ["same bytes"] * 2 + ["same notes"] * 3 + ["same music"] * 4
    assert rows[0].keys() == {"group", "level", "file", "semitones", "cosine"}


def test_what_is_alike_and_files_that_are_gone_or_changed(copies, tmp_path):
    folder = shutil.copytree(copies / "in", tmp_path / "in")
    run_forked(INDEX, "build", tmp_path / "index", folder, *TINY)
    (folder / "4.abc").unlink()
    (folder / "7.abc").write_text((folder / "8.abc").read_text())
    (folder / "9.abc").touch()
    done = run_forked(
        *(INDEX, "duplicates", tmp_path / "index", "--cosine", "0.9", "--json", "-", "--workers", "1"), check=1
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["level"] for record in found][:3] == ["same bytes", "same notes", "same music"]
    assert {record["level"] for record in found[3:]} == {"alike"}
    assert {file["semitones"] for file in found[-1]["files"]} <= {0, None}
    assert re.search(r"4\.abc +is no longer there", done.stderr)
    assert re.search(r"7\.abc +has changed since it was indexed", done.stderr) and not re.search(
        r"/9\.abc +has", done.stderr
    )


def test_a_renamed_folder_takes_its_entries_along(copies, tmp_path, monkeypatch, capsys):
    """By content: nothing is embedded again, and what is known of the files stays."""
    folder = shutil.copytree(copies / "in", tmp_path / "old name")
    (tmp_path / "known.csv").write_text("file,title\n4.abc,The fourth\n")
    table = ("--metadata", tmp_path / "known.csv")
    assert answer(monkeypatch, clamp3_index, "build", tmp_path / "index", folder, *table, *TINY) == 0
    folder.rename(tmp_path / "new name")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr("clamp3.cli.embedders.build_embedder", lambda *_, **__: pytest.fail("nothing is embedded"))
        assert answer(patched, clamp3_index, "add", tmp_path / "index", tmp_path / "new name") == 0
    assert "24 files have moved: their entries have the new names" in capsys.readouterr().out
    index = Index(tmp_path / "index")
    known = {entry.path.relative_to(tmp_path / "new name").as_posix(): entry.metadata for entry in index.entries()}
    assert len(known) == 24 and "deep er/higher.mtf" in known
    assert sum(described == {"title": "The fourth"} for described in known.values()) == 1
    index.close()


@pytest.mark.parametrize("what", ["nothing", "other files", "no folder", "another index"])
def test_a_folder_without_music_makes_no_index(tmp_path, what):
    if what != "no folder":
        (tmp_path / "in" / "deep").mkdir(parents=True)
    if what == "other files":
        (tmp_path / "in" / "deep" / "a.doc").write_bytes(b"x")
    if what == "another index":
        save_features(tmp_path / "features", vectors("a"))
        run_forked(INDEX, "build", tmp_path / "in" / "index", tmp_path / "features")
    target = tmp_path / "in" / "index" if what == "another index" else tmp_path / "index"
    before = sorted(tmp_path.rglob("*"))
    done = run_forked(INDEX, "build", target, tmp_path / "in", check=2)
    assert re.match("error: (nothing in .* can be indexed|there is no file or folder)", done.stderr)
    assert done.stderr.count("\n") == 1
    if what != "another index":
        assert sorted(tmp_path.rglob("*")) == before


def test_hints_are_commands_that_can_be_pasted(tmp_path):
    """Each is run as it is printed, with a folder for FOLDER."""
    save_features(tmp_path / "in", vectors("a", "b", "c"))
    target = tmp_path / "an index"

    def pasted(text: str) -> None:
        command = re.search(
            r"python (\S+clamp3_index\.py) ((?:build|add|remove|repair) '[^']*'(?: FOLDER| --\w+)*)", text
        )
        assert command, text
        words = command[2].replace(f"'{target}'", "INDEX").split()
        given = {"INDEX": target, "FOLDER": tmp_path / "in"}
        run_forked(command[1], *(given.get(word, word) for word in words))

    pasted(run_forked(INDEX, "search", "x", target, check=2).stderr)
    (tmp_path / "in").rename(tmp_path / "gone")
    (tmp_path / "in").mkdir()
    pasted(run_forked(INDEX, "add", target, tmp_path / "in").stdout)
    pasted(run_forked(INDEX, "search", "x", target, check=2).stderr)
    with open(target / "index.sqlite", "r+b") as file:
        file.write(b"nothing of the kind")
    pasted(run_forked(INDEX, "info", target, check=2).stderr)
    with pytest.raises(UserError, match="no index in"):
        Index(tmp_path)
