"""Training files from a folder and a table of texts: what is matched, what is listed, and what stays on one side."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from clamp3.errors import UserError
from clamp3.training.checks import check_pairs
from clamp3.training.making import groups_of, hold_out, read_items, straddling
from clamp3.training.texts import JsonLines
from conftest import CODE
from notes import read_melody, to_mtf

TUNE = "%%score 1\nL:1/8\nM:6/8\nK:D\nV:1 treble\n[V:1]|:dAFDFA|\n[V:1]dedcBA|\n[V:1]BcdefgfdfecA:|\n"


def table(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "texts.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def make(*words, check: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clamp3", "make-jsonl", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CODE)}, capture_output=True, text=True)
    assert done.returncode == check, done.stderr
    return done


@pytest.fixture
def music(tmp_path):
    """A folder of tunes in all the ways that people keep them."""
    folder = tmp_path / "müsic"
    for name in (
        "one.abc",
        "one.mtf",
        "sub/two.abc",
        "a/same.abc",
        "b/same.abc",
        "Ünï code.abc",
        "alone.abc",
        "x.mid",
    ):
        path = folder / unicodedata.normalize("NFD", name)  # as macOS has names, and tables have not
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_mtf(read_melody(TUNE)) if name.endswith("mtf") else f"{TUNE}% {name}\n", encoding="utf-8")
    return folder


def test_rows_find_their_files_and_what_does_not_fit_is_listed(music, tmp_path):
    rows = [
        "file,text,title,split,language",
        'one,"A jig, with a comma",One,,en',
        "sub/two,Second,,train,",
        "sub\\two.abc,Another text of it,,,",
        "a/same.abc,By its path,,eval,",
        "same,Which of them?,,,",
        "Ünï code,Ein Lied,,Valid,de",
        "missing,No file,,,",
        "one,,,,",
        "one,Text,,sideways,",
        "one,too,many,,values,here",
        ",,,,",
    ]
    texts = table(tmp_path, *rows, encoding="utf-8-sig")  # as spreadsheets write it
    done = make(music, "--texts", texts, "--output", tmp_path / "out" / "tunes.jsonl", check=1)
    assert "3 train, 2 eval items" in done.stdout and "not taken, as it stands: 1 .mid" in done.stdout
    items = [json.loads(line) for line in (tmp_path / "out" / "tunes.jsonl").read_text("utf-8").splitlines()]
    assert items[0] == {
        **{"id": "one", "filepaths": ["../müsic/one.abc", "../müsic/one.mtf"], "language": "en"},
        **{"analysis": "A jig, with a comma", "title": "One"},
    }
    assert [item["filepaths"] for item in items[1:]] == [["../müsic/sub/two.abc"]] * 2
    issues = [json.loads(line) for line in (tmp_path / "out" / "tunes_unmatched.jsonl").read_text().splitlines()]
    found = {issue["file"].removeprefix(str(tmp_path)): issue["reason"] for issue in issues}
    assert re.match("same may be .*a/same.abc or .*b/same.abc: give its path", found["/texts.csv:6"])
    assert found["/texts.csv:8"] == "there is no file missing" and found["/texts.csv:9"] == "no text"
    assert found["/texts.csv:10"] == "split must be train, eval or test, not sideways"
    assert found["/texts.csv:11"] == "another number of values than columns"
    assert found["/müsic/b/same.abc"] == found["/müsic/alone.abc"] == "no row has a text for it"
    assert found["/texts.csv:5"].startswith("in eval, and its like is in training")
    assert len(found) == 9 and all(f"{issue['file']}: " in done.stdout for issue in issues)
    for name in ("tunes", "tunes_eval"):
        lines = JsonLines(tmp_path / "out" / f"{name}.jsonl")
        assert not check_pairs(lines, "symbolic", 768)  # training takes all of them


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (("text,title", "a,b"), "the first line must name the columns"),
        (("file,file,text", "a,b,c"), "the first line must name the columns, once each"),
        (("file,split", "a,b"), "the first line must name the columns"),
        (("file,text,filepaths", "a,b,c"), "a column cannot be called filepaths"),
        (("file,text,", "a,b,c"), "a column cannot be called nothing"),
        ((), "the first line must name the columns"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(music, tmp_path, lines, complaint):
    with pytest.raises(UserError, match=complaint):
        read_items(music, table(tmp_path, *lines))


def test_nothing_to_train_on_writes_nothing(music, tmp_path):
    done = make(music, "--texts", table(tmp_path, "file,text", "missing,x"), check=2)
    assert done.stderr.startswith("error: no row of ") and done.stderr.count("\n") == 1
    assert not list(music.glob("*.jsonl"))
    np.save(music / "sound.npy", np.zeros((1, 2, 768), np.float32))
    with pytest.raises(UserError, match="both symbolic music and audio features: say --modality"):
        read_items(music, table(tmp_path, "file,text", "sound,x"))
    assert [i.files for i in read_items(music, table(tmp_path, "file,text", "sound,x"), "audio").items] == [
        [music / "sound.npy"]
    ]


def test_near_duplicates_stay_on_one_side(tmp_path):
    """Real tunes: copies by the judge of the small model's recipe (`contour`), and ten moved by a step."""
    from corpus import folk_tunes
    from notes import contour

    lines, contours = ["file,text,group"], []
    up = str.maketrans("CDEFGABcdefgab", "DEFGABcdefgabc'"[:14])
    for number, tune in enumerate(islice(folk_tunes(), 150)):
        tmp_path.joinpath(f"{number}.abc").write_text(tune.abc, encoding="utf-8")
        lines.append(f"{number},tune,{'set' if number in (5, 140) else ''}")
        contours.append(contour(read_melody(tune.abc)))
        if number % 15 == 0:
            head, music = tune.abc.split("[V:1]", 1)
            moved = re.sub(r"(?<=\])[^|]*", lambda bar: bar[0].translate(up), f"[V:1]{music}".replace("b", "a"))
            tmp_path.joinpath(f"moved{number}.abc").write_text(head + moved, encoding="utf-8")
            lines.append(f"moved{number},tune,")
            contours.append(("moved", number))
    items = read_items(tmp_path, table(tmp_path, *lines)).items
    groups = dict(zip((item.files[0].stem for item in items), groups_of(items), strict=True))
    assert all(groups[f"moved{number}"] == groups[str(number)] for number in range(0, 150, 15))
    assert groups["5"] == groups["140"]
    copies = defaultdict(set)
    for item, shape in zip(items, contours, strict=True):
        copies[shape].add(groups[item.files[0].stem])
    assert all(len(found) == 1 for found in copies.values())
    assert len(set(groups.values())) > 120  # few of these tunes are alike
    by_item = groups_of(items)
    hold_out(items, by_item, 0.2, 42)
    assert 25 <= sum(item.split == "eval" for item in items) <= 32 and not straddling(items, by_item)
    again = read_items(tmp_path, tmp_path / "texts.csv").items
    hold_out(again, by_item, 0.2, 42)
    assert [item.split for item in again] == [item.split for item in items]
