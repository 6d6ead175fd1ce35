"""Work on folders: what is found, refused, shared out, converted and named."""

import json
import os
import socket
import subprocess

import numpy as np
import pytest

from clamp3.batch import Job, Plan, Remark, Tally, plan, printable, report, share
from clamp3.errors import UserError

EXTENSIONS = (".abc", ".mtf")


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in" / "sub" / "deep").mkdir(parents=True)
    return tmp_path / "in", tmp_path / "out"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_a_folder_is_mirrored_in_any_letter_case(folders):
    source, target = folders
    touch(
        source / "a.abc", source / "sub" / "b.ABC", source / "sub" / "deep" / "c.d.Mtf", source / "e.mid", source / "f"
    )
    found = plan(source, target, EXTENSIONS, ".npy")
    assert {(str(job.source.relative_to(source)), str(job.target.relative_to(target))) for job in found.jobs} == {
        ("a.abc", "a.npy"),
        ("sub/b.ABC", "sub/b.npy"),
        ("sub/deep/c.d.Mtf", "sub/deep/c.d.npy"),
    }
    assert found.ignored == {".mid": 1, "without extension": 1} and found.already_done == 0


def test_outputs_that_are_there_are_left_out(folders):
    source, target = folders
    touch(source / "a.abc", source / "b.abc", target / "b.npy")
    found = plan(source, target, EXTENSIONS, ".npy")
    assert [job.source.name for job in found.jobs] == ["a.abc"] and found.already_done == 1


def test_two_inputs_of_one_output_are_refused_by_name_before_anything_is_written(folders):
    source, target = folders
    touch(source / "a.abc", source / "sub" / "b.abc", source / "sub" / "b.mtf")
    with pytest.raises(UserError, match=r"two inputs(.|\n)*b\.abc and .*b\.mtf -> .*b\.npy") as raised:
        plan(source, target, EXTENSIONS, ".npy")
    assert "a.abc" not in str(raised.value) and not target.exists()


def test_folders_that_make_no_sense_are_named(folders):
    source, target = folders
    with pytest.raises(UserError, match="there is no folder"):
        plan(source / "none", target, EXTENSIONS, ".npy")
    with pytest.raises(UserError, match="there is no .abc .mtf file under"):
        plan(source, target, EXTENSIONS, ".npy")
    touch(source / "a.abc")
    with pytest.raises(UserError, match="are the same"):
        plan(source, source / "sub" / "..", EXTENSIONS, ".npy")
    with pytest.raises(UserError, match="is a file; outputs need a folder"):
        plan(source, source / "a.abc", EXTENSIONS, ".npy")


def test_links_to_folders_are_counted_as_left_aside(folders):
    source, target = folders
    touch(source / "a.abc")
    (source / "link").symlink_to(source / "sub")
    assert plan(source, target, EXTENSIONS, ".npy").ignored == {"links to folders": 1}


def test_an_output_folder_inside_the_input_folder_is_no_input(folders):
    source, _ = folders
    touch(source / "a.npy", source / "features" / "a.npy")
    found = plan(source, source / "features", (".npy",), ".npy")
    assert [job.source for job in found.jobs] == [] and found.already_done == 1


def test_folders_that_cannot_be_listed_are_failures(folders, monkeypatch):
    source, target = folders
    touch(source / "a.abc")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = plan(source, target, EXTENSIONS, ".npy")
    assert [failure.reason for failure in found.failures] == ["the folder cannot be listed: Permission denied"]
    assert found.failures[0].file.endswith("deep") and len(found.jobs) == 1


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_work_is_shared_evenly_and_once(tmp_path, processes):
    sizes = np.random.default_rng(0).integers(1, 10_000, 100)
    jobs = [
        Job(tmp_path / f"{i}.{'abc' if i % 3 else 'mtf'}", (tmp_path / f"{i}.npy",), int(s))
        for i, s in enumerate(sizes)
    ]
    shares = [share(jobs, processes, rank) for rank in range(processes)]
    assert sorted(str(job.target) for part in shares for job in part) == sorted(str(job.target) for job in jobs)
    work = [sum(job.size for job in part) for part in shares]
    assert max(work) < 1.2 * min(work)


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(folders):
    source, target = folders
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname()
    gone = target / f".{host}.{dead.pid}.partial"
    kept = [target / f".{host}.{os.getppid()}.partial", target / f".elsewhere.{dead.pid}.partial"]
    touch(source / "a.abc", gone, *kept)
    assert len(plan(source, target, EXTENSIONS, ".npy").jobs) == 1
    assert not gone.exists() and all(path.exists() for path in kept)


def test_the_report_names_failures_and_forgets_them_when_they_are_mended(tmp_path, capsys):
    odd = "caf\udce9.abc"  # a file name that is not UTF-8
    failures = [Remark("b.abc", "no bars"), Remark(odd, "empty file"), *(Remark(f"z{i}", "bad") for i in range(30))]
    report(tmp_path, Plan(already_done=2), Tally(3, failures), 1.5)
    printed = capsys.readouterr().out
    assert "3 written in 1.5 s (2.0 files/s), 2 already there, 32 failed" in printed
    assert "b.abc" in printed and "no bars" in printed and "… and 12 more" in printed and "\\udce9" in printed
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert {"file": "b.abc", "reason": "no bars"} in lines and len(lines) == 32
    report(tmp_path, Plan(), Tally(3), 1.5)
    assert not (tmp_path / "failures.jsonl").exists()
    assert printable("愛.abc") == "愛.abc"
