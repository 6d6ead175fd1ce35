"""What training remembers of its data from one start to the next, and when it looks at them again."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clamp3.io import stats
from clamp3.io.stats import sizes_and_times
from clamp3.training import texts
from clamp3.training.checks import Record, check_pairs
from clamp3.training.texts import JsonLines
from conftest import ROOT

ROWS = b'{"id": 1}\n\n  \n {"id": 2}\r\n{"id": 3}'


@pytest.fixture
def remembering(tmp_path, monkeypatch) -> list[int]:
    """Small files are remembered too, however new they are; the list grows with each file that is read through."""
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(texts, "REMEMBERED_SIZE", 0)
    monkeypatch.setattr(texts, "SETTLED", -(10**18))
    reads, read = [], texts._read_lines
    monkeypatch.setattr(texts, "_read_lines", lambda file: (reads.append(1), read(file))[1])
    return reads


def assert_right(lines: JsonLines) -> None:
    """The lines are those that a plain loop finds in the file as it is."""
    content = lines.path.read_bytes()
    rows = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert lines.numbers.tolist() == [number for number, row in enumerate(rows, 1) if row.strip()]
    for start, number in zip(lines.starts, lines.numbers, strict=True):
        assert content[start : start + len(rows[number - 1]) + 1].removesuffix(b"\n") == rows[number - 1]
    assert lines.sha256 == hashlib.sha256(content).hexdigest()


def test_lines_are_found_wherever_blocks_end(tmp_path, monkeypatch):
    path, rng = tmp_path / "items.jsonl", random.Random(0)
    monkeypatch.setattr(texts, "READ_SIZE", 7)
    for number in range(300):
        parts = rng.choices(
            [b"\n", b"\n", b" ", b"\t\r", b"\x0b\x0c", b"\x1c", b"{}", b'{"id": "12345"}'], k=number % 12
        )
        path.write_bytes(rng.choice([b"", b"\xef\xbb\xbf"]) + b"".join(parts))
        assert_right(JsonLines(path))


def test_a_file_that_stays_as_it_is_is_read_through_once(tmp_path, remembering):
    path = tmp_path / "items.jsonl"
    path.write_bytes(ROWS)
    for _ in range(3):
        lines = JsonLines(path)
        assert_right(lines)
        assert [lines[index]["id"] for index in range(3)] == [1, 2, 3] and lines.place(1) == f"{path}:4"
    assert len(remembering) == 1
    other = tmp_path / "copy.jsonl"
    other.write_bytes(ROWS)
    assert_right(JsonLines(other))
    assert len(remembering) == 2


def replaced(path: Path) -> None:
    """By a file of the same size with the same time, as programs do that copy files with their times."""
    stat, new = path.stat(), path.with_name("new")
    new.write_bytes(ROWS.replace(b"\n\n", b" \n"))
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(path)


def rewritten(path: Path) -> None:
    """In place, with the same size and the same time."""
    stat = path.stat()
    path.write_bytes(ROWS.replace(b"\n\n", b" \n"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def appended(path: Path) -> None:
    """By somebody whose clock stands still."""
    stat = path.stat()
    path.write_bytes(ROWS + b'\n{"id": 4}')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def from_another_clock(path: Path) -> None:
    path.write_bytes(b"\n" + ROWS)
    os.utime(path, (0, 0))


@pytest.mark.parametrize("change", [replaced, rewritten, appended, from_another_clock])
def test_a_changed_file_is_read_again(tmp_path, remembering, change):
    path = tmp_path / "items.jsonl"
    path.write_bytes(ROWS)
    JsonLines(path)
    time.sleep(0.02)  # longer than a tick of the clock that marks changes
    change(path)
    for _ in range(2):
        assert_right(JsonLines(path))
    assert len(remembering) == 2


def test_a_damaged_memory_is_a_file_that_is_read_again(tmp_path, remembering):
    path = tmp_path / "items.jsonl"
    path.write_bytes(ROWS * 20)
    JsonLines(path)
    (saved,) = tmp_path.glob("cache/lines/*.npz")
    whole, rng = saved.read_bytes(), random.Random(0)
    for _ in range(60):
        place = rng.randrange(len(whole))
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        assert_right(JsonLines(path))
    assert len(remembering) > 20  # a bit of a time in the ZIP file means nothing
    saved.write_bytes(whole[: len(whole) // 2])
    assert_right(JsonLines(path))
    saved.unlink()
    saved.mkdir()
    assert_right(JsonLines(path))


def test_a_file_that_may_still_change_is_not_remembered(tmp_path, remembering, monkeypatch):
    path = tmp_path / "items.jsonl"
    path.write_bytes(ROWS)
    monkeypatch.setattr(texts, "SETTLED", 10**12)
    for _ in range(2):  # it has been changed a moment ago
        assert_right(JsonLines(path))
    monkeypatch.setattr(texts, "SETTLED", -(10**18))
    read = texts._read_lines

    def growing(file):
        found = read(file)
        with open(path, "ab") as other:
            other.write(b'\n{"id": 4}')
        return found

    monkeypatch.setattr(texts, "_read_lines", growing)
    assert len(JsonLines(path)) == 3
    monkeypatch.setattr(texts, "_read_lines", read)
    assert_right(JsonLines(path))
    assert len(remembering) == 4


def test_processes_that_start_together_find_the_same_lines(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"id": "0123456789"}\n' * 2000)
    code = """
import sys; from pathlib import Path; from clamp3.training import texts
texts.REMEMBERED_SIZE = texts.SETTLED = 0
for lines in [texts.JsonLines(Path(sys.argv[1])) for _ in range(9)]:
    print(len(lines), lines.starts.sum(), lines.sha256)
"""
    env = {**os.environ, "CLAMP3_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT / "code")}
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    told = [process.communicate()[0].splitlines() for process in processes]
    assert len({line for lines in told for line in lines}) == 1 and [len(lines) for lines in told] == [9] * 2
    assert not any(process.returncode for process in processes) and len(list(tmp_path.glob("cache/lines/*"))) == 1
    assert_right(JsonLines(path))


# ---------- music files ----------


@pytest.fixture
def names(tmp_path) -> list[str]:
    """Names of files, some of which are not there."""
    tmp_path.joinpath("in a folder").mkdir()
    odd = ["in a folder/a\nb.abc", "in a folder/é.abc", os.fsdecode(b"\xff.abc"), str(tmp_path / "whole path.abc")]
    plain = [f"{number}.abc" for number in range(50)]
    for number, name in enumerate(odd + plain):
        (tmp_path / name).write_bytes(b"X" * number)
        os.utime(tmp_path / name, ns=(0, 10**18 + number))
    return [*odd, *plain, "gone.abc", "gone/a.abc", "in a folder/é.abc/a.abc", "\ud800.abc", "x" * 300]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("python", [sys.executable, "/no/python", "/bin/false", "/bin/echo"])
def test_sizes_and_times_are_those_of_the_files(tmp_path, monkeypatch, names, processes, python):
    monkeypatch.setattr(stats, "SHARE", 10)
    monkeypatch.setattr(sys, "executable", python)
    found = np.array(sizes_and_times(str(tmp_path), names, processes)).reshape(-1, 2)
    wanted = [(number, 10**18 + number) for number in range(54)] + [(-1, -1)] * 5
    np.testing.assert_array_equal(found, wanted)
    assert not len(sizes_and_times(str(tmp_path), [], processes))


def test_what_has_passed_holds_for_the_content_of_the_jsonl_file_and_its_modality(tmp_path, remembering, monkeypatch):
    monkeypatch.setattr(stats, "SHARE", 2)
    for name in ("a", "b"):
        tmp_path.joinpath(f"{name}.abc").write_text("K:C\nC|\n")
    path, asked = tmp_path / "items.jsonl", []
    rows = [json.dumps({"title": "A", "filepaths": [f"{name}.abc"]}) for name in "aaabbb"]
    path.write_text("\n".join(rows))

    def check(modality: str = "symbolic") -> list[str]:
        asked.clear()
        lines = JsonLines(path)
        return [
            issue.file for issue in check_pairs(lines, modality, 128, lambda items, _: asked.extend(items) or items)
        ]

    assert check() == [] and asked == [0, 1, 2, 3, 4, 5]
    os.utime(path, (0, 0))
    assert check() == [] and asked == []
    assert len(check("audio")) == 6 and asked == [0, 1, 2, 3, 4, 5]
    stat = path.stat()
    path.write_text("\n".join([*rows[:3], rows[3].replace("b.abc", "c.abc"), *rows[4:]]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert check() == [f"{path}:4"] and asked == [0, 1, 2, 3, 4, 5]  # of the same size and time
    assert check() == [f"{path}:4"] and asked == [3]
    tmp_path.joinpath("b.abc").unlink()
    assert check() == [f"{path}:{number}" for number in (4, 5, 6)] and asked == [3, 4, 5]
    assert Record(path, "symbolic", 128).path != Record(path, "audio", 128).path
