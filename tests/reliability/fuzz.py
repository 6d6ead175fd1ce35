"""Mutated files into parsers, each parser in a forked process that is watched: its errors, time, memory and handles.

python tests/reliability/fuzz.py "MusicXML" INDEX          # one input again, as the soak's table names it
"""

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("code", "tests", "examples")]

from parsers import PARSERS, Parser

DOCUMENTED = (ValueError, OSError)  # UserError is a ValueError
SECONDS = 5  # of computing, for one input
WALL_SECONDS = 60  # for one input, on a machine that does other things too
MEMORY = 1 << 30  # bytes that one input may add
HANDLES = 20  # more open files than at the start
MOST_STOPS = 20  # after which a parser is left alone
TICKS = os.sysconf("SC_CLK_TCK")
READ_OR_REFUSED = ("read", ""), ("refused", "")


@dataclass
class Tried:
    """What became of the mutated inputs of one parser."""

    name: str
    tried: int = 0
    read: int = 0
    refused: int = 0
    lost: list[dict] = field(default_factory=list)  # index, kind and what happened
    seconds: float = 0.0

    @property
    def kinds(self) -> Counter[str]:
        return Counter(loss["kind"] for loss in self.lost)


def fuzz(name: str, parser: Parser, inputs: int, seed: int = 0, keep: Path | None = None) -> Tried:
    """Feed `inputs` mutations to `parser`; those that are lost go into `keep`."""
    found, begin = Tried(name), time.perf_counter()
    parser.samples()
    position = stops = 0
    while position < inputs and stops < MOST_STOPS:
        position, stopped = _watch(parser, found, range(position, inputs), seed)
        stops += stopped
    found.tried = position
    found.seconds = time.perf_counter() - begin
    if keep is not None:
        for loss in found.lost:
            _keep(keep / re.sub(r"\W+", "_", name), parser.input(_chance(seed, name, loss["index"])), loss)
    return found


def _chance(seed: int, name: str, index: int) -> Random:
    return Random(f"{seed} {name} {index}")


def _keep(folder: Path, data: bytes, loss: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{loss['index']}.bin").write_bytes(data)
    (folder / f"{loss['index']}.txt").write_text(f"{loss['kind']}\n\n{loss['what']}\n")


# ---------- the watcher ----------


def _watch(parser: Parser, found: Tried, indices: range, seed: int) -> tuple[int, bool]:
    """Let a child go through `indices`; returns where to go on, and whether the child had to be stopped or died."""
    ours, theirs = Pipe(duplex=False)
    # The index, its start in seconds of CPU and of the clock, and how many have been read and refused.
    now = RawArray("d", [indices.start, time.process_time(), time.time(), 0, 0])
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder, "stderr")
        child = os.fork()
        if not child:
            _run(parser, found.name, indices, seed, theirs, now, Path(folder), errors)
        theirs.close()
        why = _until_it_ends(ours, child, now, found)
        _, status = os.waitpid(child, 0)
        said = errors.read_text(errors="replace")[-4000:] if errors.exists() else ""
    index, found.read, found.refused = int(now[0]), found.read + int(now[3]), found.refused + int(now[4])
    code = os.waitstatus_to_exitcode(status)
    if not why and code == 0:
        return index, False
    if not (found.lost and found.lost[-1]["index"] == index):  # else it has said itself why it ends
        why = why or f"ended its process, with exit code {code}"
        found.lost.append({"index": index, "kind": f"{why}: {_place(said)}", "what": said})
    return index + 1, True


def _place(said: str) -> str:
    """The innermost line of this project in what faulthandler has printed, such as "abc.py:253 in _read"."""
    frames = re.findall(r'File "([^"]+)", line (\d+),? in (\S+)', said)
    own = [frame for frame in frames if "/code/clamp3/" in frame[0]] or frames
    if not own:
        return said.strip().splitlines()[-1][:80] if said.strip() else "it said nothing"
    path, line, function = own[0]
    return f"{Path(path).name}:{line} in {function}"


def _until_it_ends(pipe: Connection, child: int, now: object, found: Tried) -> str:
    """Take the child's reports; returns why it was stopped, if it was."""
    while True:
        try:
            while pipe.poll(0.1):
                found.lost.append(pipe.recv())
        except EOFError:
            return ""
        seconds = _cpu_seconds(child) - now[1]
        if seconds > SECONDS or time.time() - now[2] > WALL_SECONDS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGUSR1)  # faulthandler tells where it is
                time.sleep(0.3)
                os.kill(child, signal.SIGKILL)
            return f"takes longer than {SECONDS} s" if seconds > SECONDS else f"stays for {WALL_SECONDS} s"


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


# ---------- the child ----------


def _run(
    parser: Parser,
    name: str,
    indices: range,
    seed: int,
    pipe: Connection,
    now: object,
    folder: Path,
    errors: Path,
) -> None:
    """Parse input after input, and exit."""
    os.environ["CLAMP3_CACHE"] = str(folder)
    stderr = os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600)
    for descriptor in (1, 2):
        os.dup2(stderr, descriptor)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY,) * 2)  # so that the machine lives
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    handles = len(os.listdir("/proc/self/fd"))
    for index in indices:
        data = parser.input(_chance(seed, name, index))
        now[0], now[1], now[2] = index, time.process_time(), time.time()
        outcome = parse_once(parser, data, folder)
        if outcome in READ_OR_REFUSED and len(os.listdir("/proc/self/fd")) > handles + HANDLES:
            outcome, handles = ("leaves files open", ""), len(os.listdir("/proc/self/fd"))
        if outcome in READ_OR_REFUSED:
            now[3 + READ_OR_REFUSED.index(outcome)] += 1
            continue
        pipe.send({"index": index, "kind": outcome[0], "what": outcome[1]})
        if "bytes" in outcome[0]:
            os._exit(1)  # so that the next ones are measured anew
    now[0] = indices.stop
    os._exit(0)


def parse_once(parser: Parser, data: bytes, folder: Path) -> tuple[str, str]:
    """Parse `data`; returns one of READ_OR_REFUSED, or the kind of what must not happen and its traceback."""
    before, peak = _resident(), _peak()
    outcome = READ_OR_REFUSED[0]
    try:
        parser.parse(data, folder)
    except DOCUMENTED as error:
        if isinstance(error, OSError) and error.errno in (12, 23, 24):  # memory, handles
            return f"OSError: {error.strerror}", traceback.format_exc()
        outcome = READ_OR_REFUSED[1]
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "/code/clamp3/" in f.filename] or [frame]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        detail = f" ({error})" if type(error).__name__ == "Wrong" else ""
        return f"{type(error).__name__} at {place}{re.sub(r'[0-9]+', 'N', detail)[:80]}", traceback.format_exc()
    if _peak() > peak and _peak() - before > MEMORY:
        return f"more than {MEMORY:,} bytes", f"{_peak() - before:,} bytes"
    return outcome


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Parse one input again, in this process, with its traceback."""
    name, index, *seed = sys.argv[1:]
    parser = PARSERS[name]
    data = Path(index).read_bytes() if Path(index).exists() else parser.input(_chance(int(seed[0]), name, int(index)))
    folder = Path(tempfile.mkdtemp())
    try:
        parser.parse(data, folder)
        print(json.dumps({"read": len(data), "peak": _peak()}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
