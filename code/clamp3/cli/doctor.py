"""How clamp3_doctor.py runs its checks, in a process of their own, and shows their findings."""

import contextlib
import json
import multiprocessing
import shutil
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from clamp3.cli.names import as_called
from clamp3.cli.output import save_json
from clamp3.errors import UserError
from clamp3.tasks.diagnosis.findings import Check, Finding, Subject, fault, run_check

TIME_LIMIT = 900.0  # seconds for one check; weights may be on a slow disk
ENDED = {
    "SIGKILL": "the system kills processes when memory runs out: see the check `memory`",
    "SIGILL": "a library uses instructions that this processor lacks: install a build for it",
}
BROKEN_LIBRARY = "a library is broken: see the check `libraries`, and reinstall or update it"
WIDEST = 100  # columns of text beside the names of checks and states
PLURALS = {"fault": "faults", "warning": "warnings", "unchecked": "unchecked", "ok": "ok"}


def diagnose(checks: Mapping[str, Check], subject: Subject, time_limit: float = TIME_LIMIT) -> Iterator[Finding]:
    """The findings of `checks`, run in another process: a check that crashes it or hangs is a finding too."""
    waiting = dict(checks)
    while waiting:
        with _process(waiting, subject) as (pipe, process):
            for name in list(waiting):
                del waiting[name]
                try:
                    if not pipe.poll(time_limit):
                        yield _named(
                            name,
                            fault(
                                f"takes longer than {time_limit:g} s", "a disk, a network or a device does not respond"
                            ),
                        )
                        break
                    findings: list[Finding] = pipe.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    yield _named(name, _ended(process.exitcode or 0))
                    break
                yield from findings


@contextlib.contextmanager
def _process(
    checks: Mapping[str, Check], subject: Subject
) -> Iterator[tuple[Connection, multiprocessing.process.BaseProcess]]:
    """A process that sends the findings of one check after the other. It ends with this block."""
    # A fork starts at once; on other systems it is unsafe or missing.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pipe, others_end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(dict(checks), subject, others_end), daemon=True)
    process.start()
    others_end.close()
    try:
        yield pipe, process
    finally:
        process.kill()
        process.join()
        pipe.close()


def _work(checks: dict[str, Check], subject: Subject, pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with contextlib.suppress(ConnectionError):
        for name, check in checks.items():
            pipe.send(run_check(name, check, subject))


def _named(name: str, finding: Finding) -> Finding:
    return Finding(finding.state, finding.found, finding.advice, name)


def _ended(code: int) -> Finding:
    if code >= 0:
        return fault(f"ended its process with exit code {code}", BROKEN_LIBRARY)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return fault(f"its process was killed by {name}", ENDED.get(name, BROKEN_LIBRARY))


# ---------- output ----------


def show(findings: Iterator[Finding], names: list[str], file: TextIO) -> list[Finding]:
    """Print `findings` of the checks `names` as a table, each when it is there, and a summary; returns them all."""
    shown = []
    first = max(map(len, ("check", *names)))
    columns = shutil.get_terminal_size().columns - first - 13 if file.isatty() else 0
    print(f"{'check':{first}}  {'state':9}  what was found", file=file)
    for finding in findings:
        shown.append(finding)
        texts = _wrapped(finding.found, columns) + [
            f"{'   ' if line else '-> '}{text}" for line, text in enumerate(_wrapped(finding.advice, columns - 3))
        ]
        for line, text in enumerate(texts):
            name, state = ("", "") if line else (finding.check, finding.state)
            print(f"{name:{first}}  {state:9}  {text}", file=file, flush=True)
    counts: Counter[str] = Counter(finding.state for finding in shown)
    named = (f"{counts[one]} {one if counts[one] == 1 else many}" for one, many in PLURALS.items() if counts[one])
    print(", ".join(named), file=file)
    return shown


def _wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns on a terminal; where there is none (0 or less), one that can be searched."""
    text = _printable(as_called(text))
    return textwrap.wrap(text, min(columns, WIDEST), break_on_hyphens=False) if columns > 20 else [text] * bool(text)


def _printable(text: str) -> str:
    """`text` in one line that is safe on any terminal, even if NumPy is missing, which `clamp3.io` needs."""
    try:
        from clamp3.io.reports import printable
    except Exception:
        return text.encode("unicode_escape").decode("ascii")
    return printable(text)


def save_findings(path: Path | None, findings: list[Finding]) -> None:
    """Write `findings` as JSON lines; "-" is standard output. Raises UserError where that is not possible."""
    records = [finding.record() for finding in findings]
    if str(path) == "-":  # whatever is broken
        sys.stdout.writelines(f"{json.dumps(record)}\n" for record in records)
        return
    try:
        save_json(path, records)
    except ImportError as error:
        raise UserError(
            f"{path} cannot be written, for a package cannot be imported: {error}; take --json -"
        ) from None
