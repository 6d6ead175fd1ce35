"""Damage to an index's files: it is told, and mended as far as can be, and answers stay right."""

import random
import shutil
import sqlite3
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines
from clamp3.cli.commands import index as clamp3_index
from clamp3.errors import UserError
from clamp3.search import store
from clamp3.search.index import Entry, Index
from clamp3.search.integrity import damages, facts_sum
from clamp3.search.repair import check, repair
from damaged_index import DAMAGES, HIDDEN, Judge, make_index
from index_processes import crowd, kills

FILES = ("index.sqlite", "features-1.f32", "nearest-1.faiss")
TRIES = 40  # of each damage


def test_damaged_files_give_right_answers_or_a_sentence_and_can_be_repaired(tmp_path):
    judge = make_index(tmp_path / "whole")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    assert check(tmp_path / "whole") == []
    chance, outcomes, slowest = random.Random(5), Counter(), 0.0
    folder = tmp_path / "damaged"
    for kind in [kind for kind in DAMAGES for _ in range(TRIES)]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        name = chance.choice(FILES)
        if (data := DAMAGES[kind](whole[name], chance)) is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)
        start = time.perf_counter()
        outcomes.update((name, outcome) for outcome in tried(folder, name, judge))
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 5
    kinds = Counter()
    for (name, outcome), count in outcomes.items():
        kinds[name] += count
        kinds[outcome] += count
    assert all(kinds[kind] > TRIES // 5 for kind in (*FILES, "right", "told", "all kept", "some kept"))


def tried(folder: Path, name: str, judge: Judge) -> list[str]:
    """Ask the index in `folder`, of which a file is damaged, repair it, and ask again; says what came of it."""
    try:
        index = Index(folder)
        for approximate in (False, True):
            judge.assert_right(index, approximate)
        outcome = "right"
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        outcome = "told"
    broken = check(folder)
    assert broken or outcome == "right"
    if not broken:
        return [outcome]
    assert name in {Path(issue.file).name for issue in broken}
    if name == "index.sqlite" and not (folder / name).exists():
        with pytest.raises(UserError, match="build the index again"):
            repair(folder)
        return [outcome]
    dropped = {Path(issue.file) for issue in repair(folder)}
    assert check(folder) == []
    index = Index(folder)
    kept = {entry.path for entry in index.entries()}
    lost = judge.entries.keys() - kept
    assert lost <= dropped or Path("?") in dropped or name == "index.sqlite"
    if kept:
        for approximate in (False, True):
            judge.without(lost).assert_right(index, approximate)
    return [outcome, "all kept" if not lost else "some kept" if kept else "none kept"]


def test_a_damaged_open_index_tells_it_or_answers_right(tmp_path):
    """Rows that change, or end, under a process that has read them."""
    judge = make_index(tmp_path / "index")
    features = tmp_path / "index" / "features-1.f32"
    whole = features.read_bytes()
    index = Index(tmp_path / "index")
    judge.assert_right(index)
    for damaged in (
        bytes(len(whole)),
        whole[:100],
        whole[: len(whole) // 2] + whole[:100] + whole[len(whole) // 2 + 100 :],
    ):
        features.write_bytes(damaged)
        with pytest.raises(UserError, match="features-1.f32 is damaged"):
            judge.assert_right(index)
    features.write_bytes(whole)
    judge.assert_right(index)


def test_files_that_are_known_to_be_whole_are_not_read_again_until_they_change(tmp_path, monkeypatch):
    """As in large indexes; what notes it may be lost or damaged, too."""
    for module in ("index", "repair"):
        monkeypatch.setattr(f"clamp3.search.{module}.NOTED", 10)
    judge = make_index(tmp_path / "index")
    read: list[Index] = []
    monkeypatch.setattr(store, "damages", lambda *arguments: read.append(arguments) or damages(*arguments))
    note = tmp_path / "index" / "verified.json"
    judge.assert_right(Index(tmp_path / "index"), approximate=True)
    assert not read
    for content in (b"", b"[]", b"{", b'{"index.sqlite": 3}', b"[" * 100_000):
        note.write_bytes(content)
        judge.assert_right(Index(tmp_path / "index"), approximate=True)
    assert len(read) == 5
    Index(shutil.copytree(tmp_path / "index", tmp_path / "copy"))
    assert len(read) == 6 and check(tmp_path / "index") == []
    Index(tmp_path / "index")
    assert len(read) == 6  # for `check` has noted it anew
    features = tmp_path / "index" / "features-1.f32"
    data = features.read_bytes()
    features.write_bytes(data[:500] + b"?" + data[501:])
    with pytest.raises(UserError, match="features-1.f32 is damaged"):
        Index(tmp_path / "index")


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_without_its_file_for_approximate_search_an_index_is_searched_exactly(tmp_path, caplog, how):
    """Which is said once; what writes to it next makes the file anew."""
    judge = make_index(tmp_path / "index")
    (nearest,) = (tmp_path / "index").glob("*.faiss")
    whole = nearest.read_bytes()
    nearest.unlink() if how == "gone" else nearest.write_bytes(whole[:300] + b"\xff" * 8 + whole[308:])
    caplog.set_level("INFO", "clamp3")
    index = Index(tmp_path / "index")
    judge.assert_right(index, approximate=False)
    assert not caplog.messages
    judge.assert_right(index, approximate=True)
    (message,) = caplog.messages
    assert str(nearest) in message and "looking at all features instead" in message and "repair" in message
    with index.writing():
        index.compact()
    caplog.clear()
    judge.assert_right(Index(tmp_path / "index"), approximate=True)
    assert not caplog.messages and check(tmp_path / "index") == []


def test_no_record_leads_out_of_the_folder(tmp_path):
    """Names of files with a right checksum, as of someone who writes them on purpose."""
    judge = make_index(tmp_path / "index")
    shutil.copy(tmp_path / "index" / "features-1.f32", tmp_path / "features-1.f32")
    shutil.copy(tmp_path / "index" / "nearest-1.faiss", tmp_path / "nearest-1.faiss")
    for fact, name in (("features", "../features-1.f32"), ("nearest", str(tmp_path / "nearest-1.faiss"))):
        folder = shutil.copytree(tmp_path / "index", tmp_path / fact)
        with sqlite3.connect(folder / "index.sqlite") as database:
            facts = dict(database.execute("SELECT name, value FROM facts")) | {fact: name}
            facts["sum"] = facts_sum(facts)
            for table in ("facts", "spare_facts"):
                database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", facts.items())
        database.close()
        with pytest.raises(UserError, match=f"index.sqlite is damaged: its file of {fact} has no name of such a file"):
            Index(folder)
        assert len(repair(folder)) == len(judge.entries)
        assert len(Index(folder)) == 0


def test_the_commands_name_what_is_broken_and_mend_it(tmp_path, monkeypatch, capsys):
    judge = make_index(tmp_path / "index")
    features = tmp_path / "index" / "features-1.f32"
    assert answer(monkeypatch, clamp3_index, "check", tmp_path / "index", "--json", tmp_path / "whole.jsonl") == 0
    assert lines(tmp_path / "whole.jsonl") == [] and "nothing is broken" in capsys.readouterr().out
    data = bytearray(features.read_bytes())
    data[4 * HIDDEN * 11] ^= 1
    features.write_bytes(data)
    with pytest.raises(UserError, match="11 .*not what was written; clamp3_index.py repair"):
        answer(monkeypatch, clamp3_index, "info", tmp_path / "index")
    assert answer(monkeypatch, clamp3_index, "check", tmp_path / "index", "--json", tmp_path / "broken.jsonl") == 1
    (record,) = lines(tmp_path / "broken.jsonl")
    assert record["file"] == str(features) and "/music/11 愛.abc (row 11)" in record["reason"]
    assert answer(monkeypatch, clamp3_index, "repair", tmp_path / "index", "--json", tmp_path / "lost.jsonl") == 0
    assert [record["file"] for record in lines(tmp_path / "lost.jsonl")] == ["/music/11 愛.abc"]
    assert "/music/11 愛.abc" in capsys.readouterr().out
    assert answer(monkeypatch, clamp3_index, "check", tmp_path / "index") == 0
    judge.without({Path("/music/11 愛.abc")}).assert_right(Index(tmp_path / "index"))
    with pytest.raises(UserError, match="there is no index in"):
        answer(monkeypatch, clamp3_index, "check", tmp_path)


# ---------- of an earlier version ----------


@pytest.fixture
def former(tmp_path) -> tuple[Path, Judge]:
    """An index that the version before checksums has made, and what is in it."""
    folder = tmp_path / "former"
    zipfile.ZipFile(Path(__file__).parent / "cases" / "index_of_format_1.zip").extractall(folder)
    rows = np.random.default_rng(14).standard_normal((60, HIDDEN)).astype(np.float32)
    names = [*(f"{number}.abc" for number in range(58)), "愛 & $x.txt", "caf\udce9.mid"]
    modalities = ["symbolic"] * 40 + ["audio"] * 18 + ["text", "symbolic"]
    entries = [
        Entry(
            *(Path("/music", name), modality, f"{number:064x}", 100 + number, 10**18 + number),
            {"title": f"Tune {number}"} if number % 3 else {},
        )
        for number, (name, modality) in enumerate(zip(names, modalities, strict=True))
    ]
    return folder, Judge(rows, entries).without({Path("/music/3.abc"), Path("/music/50.abc")})


def test_an_index_of_an_earlier_version_is_read_and_goes_over_to_this_one_when_it_is_changed(former, caplog):
    folder, judge = former
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = Index(folder)
    judge.assert_right(index)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    judge.assert_right(index, approximate=True)
    assert "made by an earlier version" in caplog.text
    reader = Index(folder)
    with index.writing():
        index.remove([Path("/music/7.abc")])
        index.compact()
    for one in (index, reader, Index(folder)):
        judge.without({Path("/music/7.abc")}).assert_right(one)
        judge.without({Path("/music/7.abc")}).assert_right(one, approximate=True)
        assert one.meta["identity"] == "an identity" and one.meta["mert_name"] == "a mert"
    assert check(folder) == []


def test_damage_to_an_index_of_an_earlier_version_is_told_where_it_shows(former):
    folder, judge = former
    features = folder / "features-1.f32"
    whole = np.fromfile(features, "<f4")
    for value in (np.nan, np.inf, 3.0):
        changed = whole.copy()
        changed[HIDDEN * 20 + 1] = value
        changed.tofile(features)
        with pytest.raises(UserError, match="the feature of /music/20.abc .row 20. is not what was written"):
            Index(folder)
    assert [issue.file for issue in repair(folder)] == ["/music/20.abc"]
    judge.without({Path("/music/20.abc")}).assert_right(Index(folder))


# ---------- killed, and at once ----------


def test_killed_runs_leave_an_index_as_it_was_or_as_it_is_after(tmp_path):
    assert kills(tmp_path, 3)


def test_writers_and_readers_at_once_see_whole_indexes(tmp_path):
    assert crowd(tmp_path / "index", seconds=3)["compactions"] > 1
