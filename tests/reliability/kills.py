"""SIGKILL at random moments of every command that writes, and its restart until it is done.

All processes of a run die at once, as in a container that is ended: each is known by a variable in its environment,
for launchers start theirs in sessions of their own. Then nothing may be missing, different or left over.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from clamp3.io.files import PARTIAL_EXTENSION
from commands import Command
from conftest import CODE

MARK = "CLAMP3_SOAK_RUN"
TIME_LIMIT = 300  # seconds for a run, on a machine that does other things too
MOST_KILLS_A_RUN = 3
SHARED_MEMORY = Path("/dev/shm")
# What launchers and libraries keep in the temporary folder while they run, and nobody but the system removes.
NOT_OURS = ("torchelastic_", "torchinductor_", "pymp-")
UNFINISHED = (PARTIAL_EXTENSION, "-journal", "-wal", "-shm")  # files that runs have begun to write in a cache


@dataclass
class Tried:
    """What became of the kills of one command, or of rounds of commands at the same time."""

    name: str
    tried: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: set[str] = field(default_factory=set)
    seconds: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Of an undisturbed run: seconds to its first sign of work, and in all."""

    first: float
    total: float


class Run:
    """One start of a command, in `folder`, whose parts are output/, tmp/ and cache/."""

    def __init__(self, command: Command, folder: Path, processes: int, prefix: tuple[str, ...] = ()):
        self.folder, self.output = folder, folder / "output"
        for name in ("tmp", "cache"):
            (folder / name).mkdir(exist_ok=True)
        self.mark = f"{folder}:{time.monotonic_ns()}"
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", **command.environment(self.output)}
        env |= {"TMPDIR": str(folder / "tmp"), "CLAMP3_CACHE": str(folder / "cache"), MARK: self.mark}
        self.begin = time.monotonic()
        with open(folder / "said.txt", "ab") as said:
            line = [*prefix, *command.line(self.output, processes)]
            options = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True}
            self.process = subprocess.Popen(line, env=env, cwd=CODE, **options)

    @property
    def age(self) -> float:
        return time.monotonic() - self.begin

    def finished(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> int | None:
        """The exit code; None where it does not end."""
        try:
            return self.process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> set[int]:
        """Kill all processes of this run, again until there is none; returns their ids."""
        killed: set[int] = set()
        while alive := kill_marked(self.mark):
            killed |= set(alive)
            time.sleep(0.01)
        self.process.wait()
        return killed

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")[-1500:]


def marked(mark: str) -> list[int]:
    """The processes in whose environment a mark begins with `mark`: a run's, or a folder of runs."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            except OSError:  # gone, or another user's
                continue
            if any(variable.startswith(f"{MARK}={mark}".encode()) for variable in variables):
                found.append(int(entry))
    return found


def kill_marked(mark: str) -> list[int]:
    """Kill the processes that are `marked`; returns their ids."""
    found = marked(mark)
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return found


def state_of(folder: Path) -> tuple[int, int]:
    """Changes whenever something in `folder` is written."""
    files = [path.stat() for path in folder.rglob("*") if path.exists()] if folder.exists() else []
    return len(files), max((stat.st_mtime_ns for stat in files), default=0)


def undisturbed(command: Command, folder: Path, processes: int) -> tuple[Run, Timing]:
    """A run to its end."""
    run = started(command, folder, processes)
    before, first = state_of(run.output), None
    while not run.finished() and run.age < TIME_LIMIT:
        if first is None and state_of(run.output) != before:
            first = run.age
        time.sleep(0.02)
    total, code = run.age, run.wait()
    assert code == 0, f"{code}: {run.said()}"
    return run, Timing(min(first or total, total - 0.05), total)


def started(command: Command, folder: Path, processes: int) -> Run:
    """A first start, in a new folder."""
    (folder / "output").mkdir(parents=True)
    command.prepare(folder / "output")
    return Run(command, folder, processes)


def survive(name: str, command: Command, folder: Path, processes: int, kills: int, chance: Random) -> Tried:
    """Kill runs of `command` until there have been so many kills, and compare what comes out in the end."""
    found, begin = Tried(f"{name}, {processes} process{'es' * (processes > 1)}"), time.perf_counter()
    whole, timing = undisturbed(command, folder / "whole", processes)
    attempts = 0
    while found.tried < kills and attempts < 3 * kills + 5:
        attempts += 1
        place = folder / f"broken{attempts}"
        wanted = min(kills - found.tried, chance.randint(1, MOST_KILLS_A_RUN))
        done, problems, remarks = _killed_run(command, place, processes, wanted, timing, chance)
        if not problems:
            problems = command.compare(whole.output, place / "output") + _left(place, remarks)
        found.tried += done
        found.remarks |= remarks
        if problems:
            found.lost += max(1, done)
            found.problems += [f"run {attempts}: {problem}" for problem in problems[:5]]
        if not problems:
            shutil.rmtree(place)
    found.seconds = time.perf_counter() - begin
    return found


def _killed_run(
    command: Command, folder: Path, processes: int, wanted: int, timing: Timing, chance: Random
) -> tuple[int, list[str], set[str]]:
    """Start, kill and start again, to the end; returns the number of kills, problems and remarks."""
    done, remarks, killed = 0, set(), set()
    shared = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()
    run = started(command, folder, processes)
    while done < wanted and _wait_for_moment(run, timing, chance):
        killed |= run.kill()
        done += 1
        run = Run(command, folder, processes)
    code = run.wait()
    if code is None:
        return done, [f"does not end within {TIME_LIMIT} s: {run.said()}"], remarks
    if code != 0:
        return done, [f"exit code {code} after {done} kills: {run.said()}"], remarks
    deadline = time.monotonic() + 10
    while (alive := marked(run.mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    problems = [f"process {process} is left" for process in alive]
    run.kill()
    new = set(os.listdir(SHARED_MEMORY)) - shared if SHARED_MEMORY.is_dir() else set()
    ours = [name for name in new if any(str(process) in name for process in killed)]
    return done, problems + [f"shared memory {name} is left" for name in ours], remarks


def _wait_for_moment(run: Run, timing: Timing, chance: Random) -> bool:
    """Wait for a moment to kill `run`: by the clock, or some time after its first sign of work; False if it ends."""
    before = state_of(run.output)
    by_clock = chance.random() < 0.4
    moment = chance.uniform(timing.first * 0.5, timing.total) if by_clock else TIME_LIMIT
    while not run.finished() and run.age < moment:
        if not by_clock and moment == TIME_LIMIT and state_of(run.output) != before:
            moment = run.age + chance.uniform(0, timing.total - timing.first)
        time.sleep(0.002 if not by_clock else 0.01)
    return not run.finished()


def _left(broken: Path, remarks: set[str]) -> list[str]:
    """What a killed run has left beside its outputs."""
    problems = []
    for name in sorted(os.listdir(broken / "tmp")):
        if name.startswith(NOT_OURS):
            remarks.add(f"{next(start for start in NOT_OURS if name.startswith(start))}* stay in TMPDIR")
        else:
            problems.append(f"{name} is left in TMPDIR")
    kept = [path.name for path in (broken / "cache").rglob("*") if path.is_file()]
    return problems + [f"{name} is left in the cache" for name in kept if name.endswith(UNFINISHED)]


def temporary_folder() -> Path:
    """A short one: sockets of worker processes lie in it, and their paths must not be long."""
    return Path(tempfile.mkdtemp(prefix="soak", dir="/tmp" if os.path.isdir("/tmp") else None))
