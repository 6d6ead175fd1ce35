"""Commands that work at the same time on one folder, one cache, one index: in one system, or in two PID namespaces."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("code", "tests", "examples")]

from commands import Bench, Command, same_files
from conftest import CODE
from kills import Run, undisturbed

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@dataclass
class Shared:
    """What became of rounds of commands at the same time."""

    name: str
    tried: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: set[str] = field(default_factory=set)
    seconds: float = 0.0


def namespace() -> tuple[str, ...]:
    """What runs a command in a PID namespace of its own; () where that is not allowed."""
    for more in ((), ("--user", "--map-root-user")):
        words = (NAMESPACE[0], *more, *NAMESPACE[1:])
        if shutil.which(NAMESPACE[0]) and not subprocess.run([*words, "true"], capture_output=True).returncode:
            return words
    return ()


def two_at_once(
    name: str, command: Command, folder: Path, rounds: int, chance: Random, prefix=(), delete_cache: bool = False
) -> Shared:
    """Two runs of `command` into one folder, with one cache, which is deleted meanwhile if so said."""
    found, begin = Shared(name), time.perf_counter()
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


def writers_and_readers(bench: Bench, folder: Path, seconds: float) -> Shared:
    """Two processes add, change and remove files of one index while eight search it: no answer may be wrong."""
    found, begin = Shared("index: 2 writers, 8 readers"), time.perf_counter()
    folder.mkdir(parents=True)
    script = [sys.executable, __file__, str(folder)]
    env = {**os.environ, "CLAMP3_CACHE": str(folder / "cache")}
    options = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": CODE}
    subprocess.run([*script, "create", "0", "0"], env=env, check=True, cwd=CODE)
    roles = [("write", number) for number in range(2)] + [("read", number) for number in range(8)]
    processes = [subprocess.Popen([*script, role, str(n), str(seconds)], **options) for role, n in roles]
    for (role, number), process in zip(roles, processes, strict=True):
        said, _ = process.communicate(timeout=seconds + 300)
        if process.returncode:
            found.lost += 1
            found.problems.append(f"{role} {number}: {said[-800:]}")
        else:
            found.tried += json.loads(said.splitlines()[-1])["actions"]
    final = subprocess.run([*script, "check", "0", "0"], **options)
    if final.returncode:
        found.lost += 1
        found.problems.append(f"at the end: {final.stdout[-800:]}")
    found.seconds = time.perf_counter() - begin
    return found


def feature_of(name: str) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).standard_normal(HIDDEN).astype(np.float32)


def act(folder: Path, role: str, number: int, seconds: float) -> None:
    """What one of the processes does until its time is over."""
    from clamp3.errors import UserError
    from clamp3.search.index import Index
    from clamp3.search.indexing import update_index

    def embed() -> None:
        raise AssertionError("nothing here is to be embedded")

    if role == "create":
        Index.create(folder / "index").close()
        return
    actions, end = 0, time.monotonic() + seconds
    chance = Random(f"{role} {number}")
    if role == "check":
        index = Index(folder / "index")
        entries = list(index.entries())
        assert len(entries) == len(index) == len({entry.path for entry in entries}), "double entries"
        for cosine, entry in index.search(feature_of("query"), 9999, False):
            assert abs(cosine - expected(entry.path.stem)) < 1e-5, entry.path
        return
    source = folder / f"music{number}"
    source.mkdir(exist_ok=True)
    while time.monotonic() < end:
        actions += 1
        index = Index(folder / "index")
        if role == "write":
            for _ in range(20):
                name = f"{number}-{chance.randrange(200)}"
                np.save(source / f"{name}.npy", feature_of(name)[None])
            update_index(index, source, embed)
            with index.writing():
                known = [entry.path for entry in index.entries() if entry.path.parent.name == source.name]
                index.remove(chance.sample(known, len(known) // 3))
                index.compact()
        else:
            with contextlib.suppress(UserError):  # it is empty at first
                for cosine, entry in index.search(feature_of("query"), 50):
                    assert abs(cosine - expected(entry.path.stem)) < 1e-5, entry.path
        index.close()
    print(json.dumps({"actions": actions}))


def expected(name: str) -> float:
    first, second = feature_of("query").astype(np.float64), feature_of(name).astype(np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


if __name__ == "__main__":
    act(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
