"""What the commands print: tables, issues and reports, and their answers as JSON lines and CSV."""

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from clamp3.cli.names import as_called
from clamp3.errors import IN_WORDS, WAS_STANDARD, UserError

if TYPE_CHECKING:
    from accelerate import PartialState

    from clamp3.io.reports import FileIssue, Report
    from clamp3.search.collection import Collection
    from clamp3.search.indexing import Changes

NUMBER = re.compile(r"-?[\d.]*%?")
SHOWN_ISSUES = 20
STANDARD_OUTPUT = Path("-")  # in place of a file's name
FORMULA = re.compile(r"\s*[=+@＝＋－＠-]")  # how a cell begins that spreadsheets compute
# What standard output was, within `answers_alone`.
_answers_to: ContextVar[TextIO | None] = ContextVar("answers_to", default=None)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns under their names: numbers to the right, texts to the left."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    numeric = [all(NUMBER.fullmatch(row[column]) for row in cells[1:]) for column in range(len(header))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        columns = zip(row, widths, numeric, strict=True)
        print("  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in columns).rstrip())


def print_found(records: Sequence[dict], explanations: Sequence[dict] | None = None) -> None:
    """Print what a search has found, with explanations if there are any, and by which weights."""
    columns = ["rank", "cosine"] + ["melody"] * any("melody" in record for record in records)
    columns += ["file"] + ["passage"] * any("passage" in record for record in records)
    columns += ["metadata"] * any(record.get("metadata") for record in records)
    shown = [{**record, "passage": shown_passage(record.get("passage"))} for record in records]
    print_table(columns, [[record.get(column) for column in columns] for record in shown])
    for record, explanation in zip(records, explanations or (), strict=False):
        print_line(f"{record['rank']}: {shown_explanation(explanation)}")
    print_weights(records[0]) if records else print("nothing found")


def shown_explanation(explanation: dict) -> str:
    """ "of the file bar 3 (+0.0412) …; of the query word 2, reel (+0.1)": the strongest places with their shares."""
    if problem := explanation.get("problem"):
        return f"no explanation: {problem}"
    sides = []
    for side, of in (("item", "file"), ("query", "query")):
        places = []
        for one in explanation[side]:
            place = shown_passage({one["unit"]: [one["first"], one["last"]]})
            text = f", {one['text'].strip()}" if one["text"] else ""
            places.append(f"{place}{text} ({one['share']:+.4f})")
        sides.append(f"of the {of} {'; '.join(places) or 'nothing'}")
    return " | ".join(sides)


def shown_passage(passage: dict | None) -> str | None:
    """ "bars 17-24" of {"bars": [17, 24]}, "line 3" of {"lines": [3, 3]}."""
    for unit, (first, last) in (passage or {}).items():
        return f"{unit} {first:g}-{last:g}" if first != last else f"{unit.removesuffix('s')} {first:g}"
    return None


def print_weights(origin: Mapping[str, Any]) -> None:
    """Say what made the features of an answer."""
    known = f" ({origin['fingerprint']})" if origin["fingerprint"] else ""
    print_line(f"features made by {origin['weights']}{known}")


def print_line(text: str, to: TextIO | None = None) -> None:
    """Print `text` in one line, whatever the file names in it hold, to standard output or `to`."""
    from clamp3.io.reports import printable

    print(printable(text), file=to)


# ---------- reports ----------


def print_issues(title: str, issues: "Sequence[FileIssue]", most: int | None = SHOWN_ISSUES) -> None:
    """Print `issues` as a table, the first ones or, where `most` is None, all."""
    from clamp3.io.reports import printable

    if not issues:
        return
    print_line(f"{title}:")
    shown = [(printable(issue.file), printable(issue.reason)) for issue in issues[:most]]
    width = max(len(file) for file, _ in shown)
    for file, reason in shown:
        print(f"  {file:{width}}  {reason}")
    if len(issues) > len(shown):
        print(f"  … and {len(issues) - len(shown)} more")


def print_remarks(issues: "Sequence[FileIssue]", where: str = "") -> None:
    """Print what there is to say of files that were read; `where` else it stands."""
    print_issues(f"put into words{where}", [issue for issue in issues if issue.reason.startswith(IN_WORDS)])
    print_issues(f"damaged, but read{where}", [issue for issue in issues if not issue.reason.startswith(IN_WORDS)])


def print_report(report: "Report") -> int:
    """Print what a run over a folder has done; returns the exit code."""
    failed = len(report.failures)
    rate = f" in {report.seconds:.1f} s ({report.written / report.seconds:.1f} files/s)" if report.written else ""
    print_line(
        f"{report.written} written{rate}, {report.already_done} already there, {failed} failed -> {report.output_dir}"
    )
    if report.ignored:
        kinds = ", ".join(f"{count} {extension}" for extension, count in report.ignored.most_common())
        print_line(f"left aside, for this command does not take them: {kinds}")
    print_issues("neither files nor folders", report.skipped)
    damaged = [issue for issue in report.warnings if issue.reason != WAS_STANDARD]
    if standard := len(report.warnings) - len(damaged):
        print_line(f"{standard} file{'s were' if standard > 1 else ' was'} standard ABC and interleaved first")
    print_remarks(damaged, f" (all of them in {report.output_dir / report.warnings_file})")
    print_issues(f"failed (all of them in {report.output_dir / report.failures_file})", report.failures)
    if report.stopped:
        print_line(f"stopped: {report.stopped}")
    return report.exit_code


def end_of_run(report: "Report", state: "PartialState") -> int:
    """Print the report of all processes, in the first, and let them part; returns the exit code.

    Launchers end all processes when one ends with an error, and say at length which did: it is the first alone, and
    what the launcher says ends with the report.
    """
    from clamp3.distributed import finish, tell_launcher

    if not state.is_main_process:
        finish(state)
        return 0
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        print_report(report)
    tell_launcher(shown.getvalue().rstrip())
    try:
        print(shown.getvalue(), end="", flush=True)
    finally:  # also where nobody reads it
        finish(state)
    return report.exit_code


def print_collection(collection: "Collection") -> None:
    """Print what the features are, and which files have none."""
    made = len(collection.files) - collection.ready
    others = f", {collection.ignored} of other kinds" if collection.ignored else ""
    print_line(
        f"{collection.folder}: {collection.ready} features read, {made} made, "
        f"{len(collection.failures)} files failed{others}"
    )
    print_issues("neither files nor folders", collection.skipped)
    print_remarks(collection.repairs)
    print_issues("failed", collection.failures)


def print_changes(changes: "Changes", index: Path) -> None:
    """Print what an update of `index` has done."""
    from clamp3.io.reports import quoted

    others = f", {changes.ignored} of other kinds" if changes.ignored else ""
    known = f" ({changes.copied} of them known by content)" if changes.copied else ""
    print(f"{changes.added} files added{known}, {changes.unchanged} unchanged, {len(changes.failures)} failed{others}")
    if changes.missing:
        remedy = as_called(f"clamp3_index.py remove {quoted(index)} --missing")
        print_line(f"{changes.missing} files of the index are no longer there; {remedy} forgets them")
    print_issues("neither files nor folders", changes.skipped)
    print_remarks(changes.repairs)
    print_issues("failed", changes.failures)


# ---------- JSON and CSV ----------


def _cell(value: object) -> str:
    from clamp3.io.reports import printable

    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(printable(f"{name}: {text}") for name, text in value.items())
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))


@contextlib.contextmanager
def answers_alone(*paths: Path | None) -> Iterator[None]:
    """A block in which, if one of `paths` is "-", saved answers alone go to standard output: the rest to the error.

    Raises UserError where several are, or where several are one file.
    """
    wanted = paths.count(STANDARD_OUTPUT)
    if wanted > 1:
        raise UserError("standard output takes answers of one kind: give the others a file")
    files = [path.resolve() for path in paths if path is not None]
    if len(set(files)) < len(files):
        raise UserError(f"{files[0]} cannot hold answers of two kinds: give the others a file of their own")
    if not wanted:
        yield
        return
    token = _answers_to.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _answers_to.reset(token)


def save_json(path: Path | None, records: Iterable[dict]) -> None:
    """Write `records` as JSON lines, if there is a path to write to; "-" is standard output.

    Raises UserError where that is not possible.
    """
    if path is not None:
        _save(path, "".join(json.dumps(record) + "\n" for record in records))


def save_csv(path: Path | None, records: Sequence[Mapping], columns: Sequence[str]) -> None:
    """Write `records` as CSV, if there is a path to write to; "-" is standard output.

    `columns` come first and are there without any record; then come the others, in the order in which they are met. Of
    a value that is a dictionary, each entry is a column, "metadata.title" say. Texts that a spreadsheet would compute
    begin with an apostrophe. Raises UserError where that is not possible.
    """
    if path is None:
        return
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(map(_csv_cell, names))
    writer.writerows([_csv_cell(row.get(name)) for name in names] for row in rows)
    _save(path, text.getvalue())


def _flat(record: Mapping, before: str = "") -> dict[str, object]:
    cells: dict[str, object] = {}
    for name, value in record.items():
        cells |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return cells


def _csv_cell(value: object) -> str:
    """A value as it stands in a CSV file; numbers, also those in texts, are no formulas."""
    if value is None:
        return ""
    text = str(value)
    if not FORMULA.match(text) or isinstance(value, int | float):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _save(path: Path, text: str) -> None:
    """Write answers to `path`, whole or not at all; what is no text in a file's name is escaped."""
    from clamp3.io.files import atomic_write, remove_orphans

    if path == STANDARD_OUTPUT:
        out = _answers_to.get() or sys.stdout
        out.write(text.encode("utf-8", "backslashreplace").decode())
        return
    try:
        remove_orphans(path.parent)
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
