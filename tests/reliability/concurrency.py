"""Commands that work at the same time on one folder, one cache, one index: in one system, or in two PID namespaces."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np

from clamp3.search.index import Entry, Index
from commands import Command, same_files
from kills import Run, Tried, undisturbed

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def namespace() -> tuple[str, ...]:
    """What runs a command in a PID namespace of its own; () where that is not allowed."""
    for more in ((), ("--user", "--map-root-user")):
        words = (NAMESPACE[0], *more, *NAMESPACE[1:])
        if shutil.which(NAMESPACE[0]) and not subprocess.run([*words, "true"], capture_output=True).returncode:
            return words
    return ()


def two_at_once(
    name: str, command: Command, folder: Path, rounds: int, chance: Random, prefix=(), delete_cache: bool = False
) -> Tried:
    """Two runs of `command` into one folder, with one cache, which is deleted meanwhile if so said."""
    found, begin = Tried(name), time.perf_counter()
    whole, _ = undisturbed(command, folder / "whole", 1)
    for number in range(rounds):
        place = folder / f"shared{number}"
        (place / "output").mkdir(parents=True)
        first = Run(command, place, 1, prefix)
        while not delete_cache and chance.random() < 0.5:  # not always at the same moment
            time.sleep(chance.uniform(0, 0.2))
        runs = [first, Run(command, place, 1, prefix)]
        deleted = 0
        while delete_cache and not all(run.finished() for run in runs):
            time.sleep(chance.uniform(0.02, 0.5))
            deleted += _delete(place / "cache", chance)
        codes = [run.wait() for run in runs]
        problems = [f"exit codes {codes}: {runs[0].said()}"] if codes != [0, 0] else []
        problems = problems or same_files(whole.output, place / "output")
        found.tried += 1
        found.lost += bool(problems)
        found.problems += [f"round {number}: {problem}" for problem in problems[:5]]
        if delete_cache:
            found.remarks.add(f"cache deleted {deleted} times in a round")
        if not problems:
            shutil.rmtree(place)
    found.seconds = time.perf_counter() - begin
    return found


def _delete(cache: Path, chance: Random) -> int:
    """Delete the cache's files, or all of its folder, if there is anything."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    if not files:
        return 0
    if chance.random() < 0.5:
        shutil.rmtree(cache, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            chance.choice(files).unlink()
    return 1


# ---------- an index: two writers, eight readers ----------

HIDDEN = 16


def writers_and_readers(folder: Path, seconds: float) -> Tried:
    """Two processes add, change and remove files of one index while eight search it: no answer may be wrong."""
    found, begin = Tried("index: 2 writers, 8 readers"), time.perf_counter()
    folder.mkdir(parents=True)
    Index.create(folder / "index").close()
    roles = [(write, number) for number in range(2)] + [(read, number) for number in range(8)]
    children = []
    for role, number in roles:
        child = os.fork()
        if not child:
            _act(role, folder, number, seconds)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for (role, number), code in zip(roles, codes, strict=True):
        said = (folder / f"{role.__name__}{number}.txt").read_text()
        if code == 0:
            found.tried += int(said)
        else:
            found.lost += 1
            found.problems.append(f"{role.__name__} {number}: {said[-800:]}")
    with closing(Index(folder / "index")) as index:
        entries = list(index.entries())
        if not len(entries) == len(index) == len({entry.path for entry in entries}):
            found.problems.append("at the end a file is there twice")
        found.problems += wrong_answers(index, 9999)
    found.lost = max(found.lost, len(found.problems))
    found.seconds = time.perf_counter() - begin
    return found


def _act(role: Callable[[Path, int, Random], object], folder: Path, number: int, seconds: float) -> None:
    """Do it again until the time is over, write how often or what went wrong, and exit."""
    chance, end, actions, code = Random(f"{role.__name__} {number}"), time.monotonic() + seconds, 0, 0
    signal.alarm(int(seconds) + 300)
    try:
        while time.monotonic() < end:
            role(folder, number, chance)
            actions += 1
        said = str(actions)
    except BaseException:
        said, code = traceback.format_exc(), 1
    (folder / f"{role.__name__}{number}.txt").write_text(said)
    os._exit(code)


def write(folder: Path, number: int, chance: Random) -> None:
    """Add or replace 20 files, and remove a third of this writer's."""
    names = [f"{number}-{chance.randrange(200)}" for _ in range(20)]
    entries = [Entry(Path(f"/music{number}/{name}.npy"), "feature", name * 3, 9, 9) for name in dict.fromkeys(names)]
    with closing(Index(folder / "index")) as index, index.writing():
        index.add(entries, np.stack([feature_of(entry.path.stem) for entry in entries]))
        known = [entry.path for entry in index.entries() if entry.path.parent.name == f"music{number}"]
        index.remove(chance.sample(known, len(known) // 3))
        index.compact()


def read(folder: Path, _number: int, _chance: Random) -> None:
    with closing(Index(folder / "index")) as index:
        if len(index) and (wrong := wrong_answers(index, 50)):
            raise AssertionError(wrong)


def wrong_answers(index: Index, k: int) -> list[str]:
    """Those whose cosine is not that of the file's feature."""
    found = index.search(feature_of("query"), k, False)
    return [f"{e.path}: {cosine}" for cosine, e in found if not abs(cosine - expected(e.path.stem)) < 1e-5]


def feature_of(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).standard_normal(HIDDEN).astype(np.float32)


def expected(name: str) -> float:
    first, second = feature_of("query").astype(np.float64), feature_of(name).astype(np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
