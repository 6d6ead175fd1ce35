"""Work on folders: what is found, refused, shared out, converted and named."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import converters
from clamp3.cli.output import print_report, print_table, print_weights, save_json
from clamp3.errors import UserError
from clamp3.io.conversion import _convert, convert_folder
from clamp3.io.files import atomic_write
from clamp3.io.folders import Job, Plan, Tally, plan, save_report, share
from clamp3.io.reports import FileIssue, printable
from clamp3.io.workers import Processes, _Worker, in_processes
from conftest import CODE, run

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


def test_links_to_folders_that_are_read_anyway_are_counted(folders):
    source, target = folders
    touch(source / "a.abc")
    (source / "link").symlink_to(source / "sub")
    assert plan(source, target, EXTENSIONS, ".npy").ignored == {"links to folders": 1}


def inputs(found: Plan, source: Path) -> list[str]:
    return [job.source.relative_to(source).as_posix() for job in found.jobs]


def test_links_are_followed_once_and_loops_end(folders, tmp_path):
    """Out of the folder too, and on from there; each under its name in the folder, the real one before a link's."""
    source, target = folders
    touch(source / "z" / "a.abc", tmp_path / "out_of_it" / "b.abc", tmp_path / "further" / "c.abc", tmp_path / "d.abc")
    links = {
        "aaa_link": "z",
        "loop": ".",
        "sub/up": "../..",
        "sub/far": tmp_path / "out_of_it",
        "sub/far_again": tmp_path / "out_of_it",
        "file.abc": tmp_path / "d.abc",
        "itself.abc": "itself.abc",
        "nowhere.abc": "nothing",
    }
    for name, leads_to in links.items():
        (source / name).symlink_to(leads_to)
    (tmp_path / "out_of_it" / "on").symlink_to(tmp_path / "further")
    (tmp_path / "further" / "back").symlink_to(tmp_path / "out_of_it")
    found = plan(source, target, EXTENSIONS, ".npy")
    assert inputs(found, source) == [
        *("file.abc", "itself.abc", "nowhere.abc", "z/a.abc", "sub/far/b.abc", "sub/far/on/c.abc")
    ]
    assert found.ignored == {"links to folders": 5}  # aaa_link, loop, up, far_again, back


def test_deep_folders_are_no_recursion(folders):
    source, target = folders
    deep = source
    for _ in range(500):
        deep = deep / "d"
        deep.mkdir()
    touch(deep / "a.abc")
    assert len(plan(source, target, EXTENSIONS, ".npy").jobs) == 1


JUNK = [
    *(".DS_Store", "._a.abc", "sub/._b.mtf", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini", "ehthumbs.db"),
    *(".git/x.abc", "__MACOSX/._a.abc", "__MACOSX/a.abc", ".ipynb_checkpoints/a.abc", "sub/.Trash-1000/files/b.mtf"),
    *("$RECYCLE.BIN/a.abc", "System Volume Information/a.abc", "@eaDir/a.abc", ".gitignore", ".directory", "Icon\r"),
    *(".a.abc.swp", ".~lock.notes#", ".nfs000001"),
]


def test_junk_that_every_folder_has_is_passed_over_in_silence(folders, capsys):
    source, target = folders
    touch(*(source / name for name in JUNK))
    with pytest.raises(UserError, match="there is no .abc .mtf file"):
        plan(source, target, EXTENSIONS, ".npy")
    touch(source / "a.abc", source / ".hidden.abc", source / "sub" / ".. 4.mtf", source / "notes.doc")
    found = plan(source, target, EXTENSIONS, ".npy")
    assert inputs(found, source) == [".hidden.abc", "a.abc", "sub/.. 4.mtf"]
    assert found.ignored == {".doc": 1} and not found.failures
    for hidden in (source / ".git", source / "__MACOSX"):  # what is named itself is read
        assert len(plan(hidden, target, EXTENSIONS, ".npy").jobs) == 1
    assert print_report(convert_folder(converters.obey, source, target, EXTENSIONS, ".txt", workers=1)) == 0
    assert (
        "3 written" in (printed := capsys.readouterr().out) and "left aside" in printed and "DS_Store" not in printed
    )


def special_files(folder: Path) -> dict[str, str]:
    """A FIFO, a socket and, where allowed, an endless device, each named like an input; and their kinds."""
    os.mkfifo(folder / "fifo.abc")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(folder / "socket.abc"))
    server.close()
    kinds = {"fifo.abc": "a FIFO", "socket.abc": "a socket"}
    with contextlib.suppress(OSError):
        os.mknod(folder / "zero.abc", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        kinds["zero.abc"] = "a device"
    (folder / "link.abc").symlink_to("fifo.abc")
    os.mkfifo(folder / "of_another_kind")
    return {**kinds, "link.abc": "a FIFO"}


def test_special_files_are_passed_over_with_a_remark(folders, capsys):
    source, target = folders
    kinds = special_files(source)
    reasons = {Path(name).stem: f"passed over: {kind}, not a file" for name, kind in kinds.items()}
    for _ in range(2):  # and once, however often
        assert convert(folders) == 0
        assert "0 written" in (printed := capsys.readouterr().out) and "passed over: a FIFO, not a file" in printed
        assert remarks(target / "warnings.jsonl") == reasons
        assert len((target / "warnings.jsonl").read_text().splitlines()) == len(reasons)
    write(source, a="a")
    assert convert(folders) == 0 and outputs(target) == {"a.txt": "A"}
    assert "of_another_kind" not in capsys.readouterr().out


def test_special_files_hang_no_search_and_no_index(folders):
    from clamp3.search.collection import load_collection
    from clamp3.search.index import Index
    from clamp3.search.indexing import update_index

    source, target = folders
    kinds = special_files(source)
    np.save(source / "a.npy", np.ones((1, 8), np.float32))
    found = load_collection(source, None)
    changes = update_index(Index.create(target), source, None)
    for issues in (found.skipped, changes.skipped):
        assert {Path(issue.file).name for issue in issues} == kinds.keys()
    assert found.files == ["a.npy"] and changes.added == 1
    for take in (lambda path: load_collection(path, None), lambda path: update_index(Index(target), path, None)):
        with pytest.raises(UserError, match="fifo.abc is a FIFO, not a file"):
            take(source / "fifo.abc")


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
    """Whatever the writer's host and process id; and what others have named so is not touched."""
    source, target = folders
    left, former, fresh = target / f".{'0' * 16}.partial", target / ".host.7.partial", target / ".host.8.partial"
    others = [target / "chapter.partial", target / ".notes.partial"]
    touch(source / "a.abc", left, former, fresh, *others)
    os.utime(former, (0, 0))  # an earlier version's, which held no lock
    with atomic_write(target / "sub" / "b.npy") as file:
        written = Path(file.name)
        assert len(plan(source, target, EXTENSIONS, ".npy").jobs) == 1
        assert written.exists() and fresh.exists() and all(path.exists() for path in others)
        assert not left.exists() and not former.exists()
    assert (target / "sub" / "b.npy").exists() and not written.exists()


def test_the_report_names_failures_and_forgets_them_when_they_are_mended(tmp_path, capsys):
    odd = "caf\udce9.abc"  # a file name that is not UTF-8
    failures = [
        FileIssue("b.abc", "no bars"),
        FileIssue(odd, "empty file"),
        *(FileIssue(f"z{i}", "bad") for i in range(30)),
    ]
    assert print_report(save_report(tmp_path, Plan(already_done=2), Tally(3, failures), 1.5)) == 1
    printed = capsys.readouterr().out
    assert "3 written in 1.5 s (2.0 files/s), 2 already there, 32 failed" in printed
    assert "b.abc" in printed and "no bars" in printed and "… and 12 more" in printed and "\\udce9" in printed
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert {"file": "b.abc", "reason": "no bars"} in lines and len(lines) == 32
    assert print_report(save_report(tmp_path, Plan(), Tally(3), 1.5)) == 0
    assert not (tmp_path / "failures.jsonl").exists()
    assert printable("愛.abc") == "愛.abc"


# ---------- names ----------

HOSTILE = {
    "line\nerror: forged": r"line\nerror: forged",
    "return\rforged": r"return\rforged",
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "c1\x9b31m": r"c1\x9b31m",
    "right\u202eto left": r"right\u202eto left",
    "isolate\u2067x\u2069": r"isolate\u2067x\u2069",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff",
    "para\u2028graph\u2029\x85\x0b\x0c": r"para\u2028graph\u2029\x85\x0b\x0c",
    "caf\udce9": r"caf\udce9",
    "tag\U000e0041": r"tag\U000e0041",
    "del\x7f\ttab": r"del\x7f\ttab",
}
HARMLESS = ("愛　の歌", "Für Elise", "שלום", "a b", "🎵", "été", "100%")


def test_names_are_shown_in_one_harmless_line(tmp_path, capsys):
    assert {name: printable(name) for name in HOSTILE} == HOSTILE
    assert [printable(name) for name in HARMLESS] == list(HARMLESS)
    issues = [FileIssue(name, f"because of {name}") for name in HOSTILE]
    folder = tmp_path / "line\nerror: forged"
    assert print_report(save_report(folder, Plan(special=issues), Tally(0, issues, issues), 1)) == 1
    print_table(("file", "metadata"), [(name, {"title": name}) for name in HOSTILE])
    print_weights({"weights": "weights\x1b[0m.pth", "fingerprint": None})
    save_json(Path("-"), [{"file": name} for name in HOSTILE])
    printed = capsys.readouterr().out
    assert not [line for line in printed.splitlines() if line.startswith("error")]
    assert all(character.isprintable() or character == "\n" for character in printed)
    for shown in HOSTILE.values():
        assert len([line for line in printed.splitlines() if shown in line]) >= 4
    for name in ("failures.jsonl", "warnings.jsonl"):
        text = (folder / name).read_text(encoding="ascii")
        assert text.isascii() and {json.loads(line)["file"] for line in text.split("\n")[:-1]} == HOSTILE.keys()


SHOWING = """
import logging, os, sys
sys.path.insert(0, {code!r})
from clamp3.cli.options import run
from clamp3.errors import UserError
def main():
    logging.getLogger("clamp3").info("waiting for %s", name)
    raise UserError("there is no " + name + "\\n  second line")
for number, name in enumerate({names!r}):
    if not os.fork():
        os.chdir({folder!r})
        for stream, file in enumerate(("out", "err"), 1):
            os.dup2(os.open(f"{{number}}.{{file}}", os.O_WRONLY | os.O_CREAT), stream)
        run(main)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 2
"""


def test_errors_and_logs_show_names_harmlessly(tmp_path):
    script = SHOWING.format(code=str(CODE), names=list(HOSTILE), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    for number in range(len(HOSTILE)):
        for name, start in (("out", "waiting for"), ("err", "error: there is no")):
            printed = (tmp_path / f"{number}.{name}").read_text()
            first, *further = printed.split("\n")[:-1]
            assert first.startswith(start) and all(line.startswith("  ") for line in further)
            assert all(character.isprintable() for line in (first, *further) for character in line)
        assert printed.endswith("\n  second line\n")


def test_files_of_any_name_are_converted_and_named(folders, capsys):
    source, target = folders
    for name in (*HOSTILE, *HARMLESS):
        (source / f"{name}.abc").write_text("refuse it")
    try:
        (source / "two\nlines.abc").write_text("fine")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert convert(folders) == 1
    printed = capsys.readouterr().out
    assert "1 written" in printed and f"{len(HOSTILE) + len(HARMLESS)} failed" in printed
    assert len(printed.splitlines()) == 2 + len(HOSTILE) + len(HARMLESS)
    assert (target / "two\nlines.txt").read_text() == "FINE"


# ---------- conversion in worker processes ----------


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.abc").write_text(text)


def convert(folders, **options):
    return print_report(convert_folder(converters.obey, *folders, (".abc",), ".txt", workers=2, **options))


def outputs(folder):
    return {path.name: path.read_text() for path in sorted(folder.rglob("*.txt"))}


def remarks(path):
    return {Path(line["file"]).stem: line["reason"] for line in map(json.loads, path.read_text().splitlines())}


def test_what_ends_or_holds_up_a_process_is_a_named_failure_and_the_others_are_done(folders, capsys):
    source, target = folders
    good = {f"good_{i}": f"a {i}" for i in range(20)}
    bad = {
        "exits": ("exit 3", "ended the converter's process, with exit code 3"),
        "exits_as_if_all_were_well": ("exit 0", "ended the converter's process, with exit code 0"),
        "is_killed": ("kill", "ended the converter's process, with exit code -9"),
        "is_killed_too": ("kill", "ended the converter's process, with exit code -9"),
        "sleeps": ("sleep 60", "takes longer than 2 s (--time_limit)"),
        "quits": ("quit", "SystemExit: quits"),
        "refuses": ("refuse to be\nread", "to be read"),
        "fails": ("fail key", "KeyError: 'key'"),
    }
    write(source, **good, **{name: text for name, (text, _) in bad.items()})
    assert convert(folders, time_limit=2) == 1
    assert outputs(target) == {f"{name}.txt": text.upper() for name, text in good.items()}
    assert remarks(target / "failures.jsonl") == {name: reason for name, (_, reason) in bad.items()}
    assert "20 written" in (printed := capsys.readouterr().out) and "8 failed" in printed and "KeyError" in printed
    assert list(target.rglob("*.partial")) == []

    write(source, **dict.fromkeys(bad, "mended"))
    assert convert(folders) == 0 and len(outputs(target)) == 28
    assert "8 written" in (printed := capsys.readouterr().out) and "20 already there, 0 failed" in printed
    assert not (target / "failures.jsonl").exists()


def test_pieces_are_numbered_and_taken_up_where_one_is_missing(folders, capsys):
    source, target = folders
    write(source, one="a", three="pieces a b c", twelve=f"pieces {' '.join('abcdefghijkl')}")
    assert convert(folders, count_pieces=converters.count) == 0
    names = ["one", "three_1", "three_2", "three_3", *(f"twelve_{i:02}" for i in range(1, 13))]
    assert list(outputs(target)) == [f"{name}.txt" for name in names]
    (target / "three_2.txt").unlink()
    assert convert(folders, count_pieces=converters.count) == 0 and outputs(target)["three_2.txt"] == "B"
    assert "1 written" in (printed := capsys.readouterr().out.splitlines()[-1]) and "2 already there" in printed
    (target / "three_2.txt").unlink()
    assert convert(folders) == 1  # where the caller says nothing of pieces
    assert remarks(target / "failures.jsonl")["three"] == "holds 3 pieces, not 1 as it seemed at first"


def test_repairs_are_listed_and_remembered_over_a_second_run(folders, capsys):
    source, target = folders
    write(source, a="mend this that this", b="fine")
    assert convert(folders) == 0
    listed = [json.loads(line)["reason"] for line in (target / "warnings.jsonl").read_text().splitlines()]
    assert listed == ["this", "that"] and len(outputs(target)) == 2
    assert "damaged, but read" in (printed := capsys.readouterr().out) and "this" in printed
    write(source, d="mend more")
    assert convert(folders) == 0
    listed = [json.loads(line)["reason"] for line in (target / "warnings.jsonl").read_text().splitlines()]
    assert listed == ["this", "that", "more"]
    (target / "a.txt").unlink()
    write(source, a="mended")
    assert convert(folders) == 0 and remarks(target / "warnings.jsonl") == {"d": "more"}


def test_strict_takes_repairs_for_failures(folders):
    source, target = folders
    write(source, a="mend this", b="fine")
    assert convert(folders, strict=True) == 1
    assert remarks(target / "failures.jsonl") == {"a": "this"} and list(outputs(target)) == ["b.txt"]
    assert not (target / "warnings.jsonl").exists()


def test_bytes_are_written_as_they_are(folders):
    source, target = folders
    write(source, a="bytes")
    assert convert(folders) == 0 and outputs(target) == {"a.txt": "bytes"}


def read(folder, processes, **texts) -> dict[str, str | None]:
    """The failures, by name, of files of these texts."""
    write(folder, **texts)
    jobs = [Job(folder / f"{name}.abc", (folder / f"{name}.txt",), 0) for name in texts]
    task = partial(_convert, converters.obey, False)
    return {outcome.job.source.stem: outcome.failure for outcome in slowly(in_processes(task, jobs, processes))}


def slowly(outcomes):
    """The outcomes; the first ones are followed by a time in which nobody asks for the next."""
    for number, outcome in enumerate(outcomes):
        yield outcome
        time.sleep(1.8 if number < 2 else 0)


def test_time_in_which_nobody_asks_for_outcomes_does_not_count(tmp_path):
    """Neither for a file that is done meanwhile, nor for one that is still at work."""
    texts = {"slow": "sleep 3", **{f"quick_{number}": "sleep 0.01" for number in range(6)}}
    expected = {name: None for name in texts} | {"hangs": "takes longer than 1.5 s (--time_limit)"}
    assert read(tmp_path, Processes(2, time_limit=1.5), **texts, hangs="sleep 60") == expected


def test_killed_workers_are_replaced_and_their_files_are_tried_once_more(tmp_path, monkeypatch):
    """Those that are killed while they start, too: the first two are."""
    started = []
    start = _Worker.__init__

    def start_and_kill(worker, *arguments):
        start(worker, *arguments)
        started.append(worker)
        if len(started) <= 2:
            worker.process.kill()

    monkeypatch.setattr(_Worker, "__init__", start_and_kill)
    texts = {f"good_{number}": "a" for number in range(5)} | {"stumbles": "stumble", "is_killed": "kill"}
    killed = "ended the converter's process, with exit code -9"
    assert read(tmp_path, Processes(2), **texts) == {name: None for name in texts} | {"is_killed": killed}
    assert len(started) > 4 and not multiprocessing.active_children()


def test_workers_that_cannot_start_are_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    start = _Worker.__init__
    monkeypatch.setattr(_Worker, "__init__", lambda self, *arguments: start(self, *arguments) or self.process.kill())
    with pytest.raises(UserError, match="worker processes cannot start: exit code -9, 3 times in a row"):
        read(tmp_path, Processes(2), a="a", b="b")


def test_a_file_gets_so_much_memory_and_the_next_one_too(tmp_path):
    too_much = "takes more than 300 MB of memory (--memory_limit)"
    texts = {"little": "take 1", "much": "take 200", "too_much": "take 1000", "again": "take 200", "more": "take 1e6"}
    found = read(tmp_path, Processes(1, memory_limit=300), **texts)
    assert found == {name: too_much if name in ("too_much", "more") else None for name in texts}


def test_pieces_are_counted_under_the_limits_too(folders):
    source, target = folders
    ways = {"hangs": "sleep 60", "dies": "kill", "grows": "take 1e6", "fails": "fail key", "fine": "a"}
    for name, how in ways.items():
        (source / f"{name}.how").write_text(how)
    write(source, **dict.fromkeys(ways, "mend count"))
    assert convert(folders, count_pieces=converters.count, time_limit=2) == 1
    assert remarks(target / "failures.jsonl") == {
        "hangs": "takes longer than 2 s (--time_limit)",
        "dies": "ended the converter's process, with exit code -9",
        "grows": "takes more than 1000 MB of memory (--memory_limit)",
        "fails": "KeyError: 'key'",
    }
    assert list(outputs(target)) == ["fine.txt"]


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path}
import converters
from clamp3.cli.options import run
from clamp3.cli.output import print_report
from clamp3.io.conversion import convert_folder
folders = Path({source!r}), Path({target!r})
run(lambda: print_report(convert_folder(converters.obey, *folders, (".abc",), ".txt", workers=2)))
"""


@pytest.mark.parametrize("how", ["sleep 99", "search"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_leaves_whole_files_and_no_process_and_is_taken_up(folders, number, code, how):
    source, target = folders
    write(source, **{f"good_{i}": "long enough to be taken first" for i in range(9)}, sleeper=how, other="z 1")
    path = [str(Path(converters.__file__).parent)]
    script = SCRIPT.format(path=path, source=str(source), target=str(target))
    command = [sys.executable, "-W", "error", "-c", script]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        assert process.stdout.readline() in ("asleep\n", "searching\n")
        if number == signal.SIGINT:  # which Ctrl-C sends to all processes
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)  # ends when no worker holds its end of the pipe any more
    assert process.returncode == code
    said = {130: "interrupted", 143: "terminated"}
    assert errors == (f"{said[code]}; the same command goes on where it stopped\n" if code in said else "")
    assert set(outputs(target).values()) <= {"LONG ENOUGH TO BE TAKEN FIRST", "Z 1"}
    assert "sleeper.txt" not in outputs(target)
    write(source, sleeper="awake")
    assert convert(folders) == 0 and len(outputs(target)) == 11
    assert [path for path in target.rglob("*") if path.suffix != ".txt"] == []


STARTED = """
import multiprocessing, signal
from clamp3.io.workers import interrupts_held_back

def tell(pipe):
    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        here, there = context.Pipe()
        with interrupts_held_back():
            context.Process(target=tell, args=(there,)).start()
        print(here.recv())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal masks")
def test_interrupts_reach_no_process_that_starts_the_first_neither(tmp_path):
    tmp_path.joinpath("started.py").write_text(STARTED)
    done = run(sys.executable, tmp_path / "started.py", env={**os.environ, "PYTHONPATH": str(CODE)})
    assert done.stdout == "True\nTrue\n"


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_while_its_processes_start_says_so_in_a_line(folders, number, code):
    """And the processes that were starting say nothing."""
    source, target = folders
    write(source, **{f"good_{i}": "z 1" for i in range(9)}, sleeper="sleep 99")
    script = SCRIPT.format(path=[str(Path(converters.__file__).parent)], source=str(source), target=str(target))
    script = script.replace("run(lambda: ", "run(lambda: print('begun', flush=True) or ")
    said = {130: "interrupted", 143: "terminated"}[code]
    for moment in np.linspace(0, 0.5, 9):
        command = [sys.executable, "-W", "error", "-c", script]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(moment)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (code, f"{said}; the same command goes on where it stopped\n"), moment


# ---------- what a run meets ----------

MTF2MIDI = f"{sys.executable} {CODE.parent / 'preprocessing' / 'midi' / 'batch_mtf2midi.py'}"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    command = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def messages(tmp_path):
    """A folder with a folder `in` of MTF."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        (tmp_path / "in" / f"{number}.mtf").write_text("ticks_per_beat 480\nnote_on 0 0 60 64\n")
    return tmp_path


@pytest.mark.parametrize(
    ("before", "behind", "code", "said"),
    [
        ("", "| head -c 0", 141, ""),
        ("", "2>&1 | head -c 0", 141, ""),
        ("", ">&-", 0, ""),
        ("", "<&- >&- 2>&-", 0, ""),
        ("", "> /dev/full", 2, "error: standard output cannot be written: No space left on device\n"),
        ("ulimit -n 64;", "--workers 30", 0, ""),
        ("ulimit -n 12;", "--workers 30", 2, "error: no worker process can be started: Too many open files\n"),
    ],
)
def test_what_becomes_of_its_output_and_few_files_end_no_run_badly(messages, before, behind, code, said):
    if "/dev/full" in behind and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    done = shell(f"{before} {MTF2MIDI} in out {behind}", messages)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if line and "/12 [" not in line]  # but those of the bar
    assert lines == said.splitlines()
    if not behind.startswith("2>&1"):  # where the progress bar may meet it first
        assert len(list((messages / "out").glob("*"))) == (0 if "no worker" in said else 12)


FULL_DISK = f"""
mkdir disk && mount -t tmpfs -o size=4k tmpfs disk && mkdir disk/out || exit 77
{MTF2MIDI} in disk/out --workers 1; echo code $?; ls -A disk/out
mount -o remount,ro disk
{MTF2MIDI} in disk/out; echo code $?
"""


def test_a_full_or_read_only_disk_ends_a_run_early_and_the_failures_are_shown(messages):
    """Once there is room, the same command does the rest."""
    (messages / "script").write_text(FULL_DISK)
    if not shutil.which("unshare") or (done := shell("unshare -rm bash script", messages)).returncode == 77:
        pytest.skip("mounts are not allowed here")
    full, read_only = done.stdout.split("code 1\n")
    assert "1 written" in full and full.count("cannot be written: No space left on device") == 5
    assert "stopped: disk/out takes no more files (No space left on device); 6 inputs were not tried" in full
    assert read_only.splitlines()[-1] == "code 2" and len(read_only.splitlines()) == 2
    assert "error: disk/out cannot be written: Read-only file system\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_named_before_anything_else(messages):
    (messages / "file").touch()
    done = shell(f"{MTF2MIDI} in file/out", messages)
    assert done.returncode == 2 and done.stderr == "error: file/out cannot be written: Not a directory\n"


def test_folders_that_vanish_in_mid_run_are_failures(folders, capsys):
    source, target = folders
    names = [f"good_{number}" for number in range(4)]
    texts = {"good_0": "a" * 1000, "remover": f"remove {target}", **dict.fromkeys(names[1:], "a")}  # by size
    write(source, **texts)
    assert print_report(convert_folder(converters.obey, source, target, (".abc",), ".txt", workers=1)) == 1
    printed = capsys.readouterr().out
    assert "4 written" in printed and "its output was written, and was removed in mid-run" in printed
    assert remarks(target / "failures.jsonl").keys() == {"good_0"}
    shutil.rmtree(target)
    write(source, good_0="a", remover=f"remove {source}")
    assert print_report(convert_folder(converters.obey, source, target, (".abc",), ".txt", workers=1)) == 1
    gone = "cannot be read or written: No such file or directory"
    assert remarks(target / "failures.jsonl") == dict.fromkeys([*names, "remover"], gone)


def test_damaged_lists_of_an_earlier_run_are_no_trouble(folders):
    source, target = folders
    write(source, a="mend this")
    target.mkdir()
    for content in ("[" * 100_000, "null", "{}", '{"file": 1, "reason": {"a": 2}}', "\x00", '{"file": "a"'):
        (target / "warnings.jsonl").write_text(content)
        (target / "a.txt").unlink(missing_ok=True)
        assert convert(folders) == 0
        assert json.loads((target / "warnings.jsonl").read_text().splitlines()[-1])["reason"] == "this"


# ---------- small inputs that would take gigabytes or never end ----------


def score(more: str = "", octave: str = "<octave>4</octave>", measures: int = 1) -> str:
    note = f"<note><pitch><step>C</step>{octave}</pitch><duration>4</duration>{more}</note>"
    bars = f"<measure><attributes><divisions>1</divisions></attributes>{note}</measure>" * measures
    return f'<?xml version="1.0"?><score-partwise><part-list/><part id="P">{bars}</part></score-partwise>'


BIG = "300000000"
UTF16 = score(octave=f"<octave>{BIG}</octave>").replace("?>", ' encoding="UTF-16"?>', 1).encode("utf-16")
VOICES = "".join(f"<voice>{number}</voice></note><note><rest/><duration>1</duration>" for number in range(5000))
TIMEWISE = (
    "<score-timewise><part-list>"
    + "".join(f'<score-part id="P{number}"/>' for number in range(1000))
    + "</part-list>"
    + '<measure><part id="P0"/></measure>' * 1500
    + "</score-timewise>"
)
TUNE = "X:1\nM:4/4\nL:1/8\nK:C\n"
MIDI_HEAD = b"MThd\0\0\0\6\0\1\xff\xff\1\xe0"
HOSTILE_FILES = {
    "abc/batch_xml2abc.py": {
        "attribute.xml": score(octave=f'<octave x="1">{BIG}</octave>'),
        "comment.xml": score(octave="<octave>3000<!-- - -->00000</octave>"),
        "character.xml": score(octave="<octave>&#51;00000000</octave>"),
        "cdata.xml": score(octave=f"<octave><![CDATA[{BIG}]]></octave>"),
        "entity.xml": score(octave="<octave>&o;</octave>").replace("?>", f'?><!DOCTYPE s [<!ENTITY o "{BIG}">]>', 1),
        "utf16.xml": UTF16,
        "verse.xml": score('<lyric number="20201128"><text>la</text></lyric>'),
        "verse_word.xml": score('<lyric number="verse20201128"><text>la</text></lyric>'),
        "voices.xml": score(VOICES),
        "timewise.xml": TIMEWISE,
        "tags.xml": "<score-partwise>" + "<a/>" * 20_000_000 + "</score-partwise>",
        "rest.xml": score("</note><note><rest/><duration>999999999</duration>"),
        "fine.xml": score(),
    },
    "abc/batch_abc2xml.py": {
        "rests.abc": TUNE + "CDEF|Z99999999|GABc|\n",
        "rests_unseen.abc": TUNE + "CDEF|X141436|GABc|\n",
        "rests_of_digits.abc": TUNE + f"CDEF|Z{'9' * 5000}|GABc|\n",
        "many_rests.abc": TUNE + "CDEF|" + "Z1000|" * 10_000 + "GABc|\n",
        "voices.abc": TUNE + "".join(f"V:{number}\nCDEF|\n" for number in range(5000)),
        "text.abc": TUNE + "%%begintext\n" * 5000 + "CDEF|\n",
        "fine.abc": TUNE + "CDEF|\n",
    },
    "midi/batch_midi2mtf.py": {
        "times.mid": MIDI_HEAD + b"MTrk\0\0\x0d\xac" + b"\xff\xff\xff\x7f\x90\x3c\x40" * 500 + b"\0\xff\x2f\0",
        "tracks.mid": MIDI_HEAD + b"MTrk\0\0\0\x08\0\x90\x3c\x40\0\xff\x2f\0" * 65535,
        "length.mid": MIDI_HEAD + b"MTrk\xff\xff\xff\xff\0\xf0\xff\xff\xff\x7f\1\0\xff\x2f\0",
        "fine.mid": MIDI_HEAD + b"MTrk\0\0\0\x08\0\x90\x3c\x40\0\xff\x2f\0",
    },
}
HOSTILE_FILES["abc/batch_interleaved_abc.py"] = HOSTILE_FILES["abc/batch_abc2xml.py"]
MOST_MEMORY = 1_000_000  # kB, of any process
# Between this process and the command, for what getrusage tells of one starts from the peak of that which started it.
LAUNCH = (
    "import os, subprocess, sys; process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)\n"
    "_, status, used = os.wait4(process.pid, 0); print(os.waitstatus_to_exitcode(status), used.ru_maxrss)"
)


def test_a_run_that_is_killed_loses_no_warning(tmp_path):
    """Killed once the output is written, and once before: then the warning comes again, and is told once."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.abc").write_text("mend a-spot")
    todo = plan(source, target, (".abc",), ".txt")
    for job in todo.jobs:
        _convert(converters.obey, False, job)
    (target / "b.txt").unlink()
    report = convert_folder(converters.obey, source, target, (".abc",), ".txt", workers=1)
    assert (report.written, report.already_done) == (1, 1)
    told = [json.loads(line)["file"] for line in (target / "warnings.jsonl").open()]
    assert sorted(told) == [str(source / "a.abc"), str(source / "b.abc")]


@pytest.mark.parametrize("command", HOSTILE_FILES)
def test_small_inputs_take_neither_gigabytes_nor_for_ever(tmp_path, command):
    """Each comes out or is a named failure, long before the limits of time and memory."""
    (tmp_path / "in").mkdir()
    for name, content in HOSTILE_FILES[command].items():
        (tmp_path / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [sys.executable, CODE.parent / "preprocessing" / command, tmp_path / "in", tmp_path / "out"]
    launch = [sys.executable, "-c", LAUNCH, *map(str, words), "--workers", "1"]
    done = subprocess.run(launch, capture_output=True, text=True, errors="replace")
    (code, memory), said = map(int, done.stdout.split()), done.stderr
    assert code == 1 and "Traceback" not in said
    assert "takes more than" not in said and "takes longer than" not in said and "exit code" not in said
    assert memory < MOST_MEMORY  # the largest of this process and its workers
    failed = {Path(json.loads(line)["file"]).stem for line in (tmp_path / "out" / "failures.jsonl").open()}
    made = {path.stem for path in (tmp_path / "out").iterdir()} - {"failures", "warnings"}
    assert failed | made == {Path(name).stem for name in HOSTILE_FILES[command]} and not failed & made
    assert "fine" in made
