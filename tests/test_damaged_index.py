"""Damage to an index's files: it is told, and mended as far as can be, and answers stay right."""

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from clamp3.errors import UserError
from clamp3.search.index import Index
from clamp3.search.repair import check, repair
from damaged_index import DAMAGES, make_index

FILES = ("index.sqlite", "features-1.f32", "nearest-1.faiss")
TRIES = 120  # of each damage


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
        outcomes[tried(folder, name, judge)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    print(dict(outcomes), slowest)
    assert slowest < 5


def tried(folder, name, judge) -> str:
    try:
        index = Index(folder)
        for approximate in (False, True):
            judge.assert_right(index, approximate)
        index.close()
        outcome = "right"
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        outcome = "told"
    broken = check(folder)
    if outcome == "told":
        assert broken
    if not broken:
        return "harmless"
    assert name in {Path(issue.file).name for issue in broken}
    if not (folder / "index.sqlite").exists():
        with pytest.raises(UserError, match="build the index again"):
            repair(folder)
        return "lost"
    dropped = {Path(issue.file) for issue in repair(folder)}
    assert check(folder) == []
    index = Index(folder)
    kept = judge.without(judge.entries.keys() - {entry.path for entry in index.entries()}) if len(index) else None
    if kept:
        for approximate in (False, True):
            kept.assert_right(index, approximate)
    lost = judge.entries.keys() - ({entry.path for entry in index.entries()} if len(index) else set())
    assert lost <= dropped or Path("?") in dropped or not len(index)
    index.close()
    return f"{outcome}, {'all kept' if not lost else 'some kept' if kept else 'none kept'}: {name}"
