"""MusicXML -> standard ABC -> interleaved ABC -> MusicXML: which scores of music21's corpus come back note for note?

    python benchmarks/roundtrip.py
    python benchmarks/roundtrip.py --markdown benchmarks/roundtrip.md     and write those that do not come back
    python benchmarks/roundtrip.py --limit 50
    python benchmarks/roundtrip.py --results FILE       keep each score's result, and go on from there another time
Compared are, part by part, the sounding pitches, their onsets and their durations with ties merged, and the pitches
of the grace notes, as music21 reads both scores. Onsets count from the first note, for interleaving drops the bars
before it. Hidden notes are left out on both sides: in ABC they are rests. A tie of which only one end is marked may
or may not bind, if only it does so in all of a part.
A score that differs is listed with its first difference and the side that loses it, which readers of MusicXML and of
ABC that are no part of the converters tell (examples/score_readers.py):
    MusicXML to ABC   the ABC does not hold the notes that the score does
    half tie          the ABC holds them; the score marks only one end of a tie, which ABC binds and music21 does not
    ABC to MusicXML   the ABC holds them; it is read otherwise when it goes back to MusicXML, or music21 reads it so
    interleaving      the standard ABC holds them, the interleaved ABC does not
    not converted     the converters refuse it
    not compared      music21 cannot read it, or it takes longer than --time_limit
"""

import argparse
import gc
import json
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.errors import ignore  # noqa: E402
from clamp3.formats.abc import interleave  # noqa: E402
from clamp3.formats.musicxml import abc_to_musicxml, musicxml_to_abc  # noqa: E402
from clamp3.formats.mxl import extracted, in_its_own_encoding  # noqa: E402
from clamp3.io.folders import Job, Outcome  # noqa: E402
from clamp3.io.workers import Processes, cores, in_processes  # noqa: E402
from corpus import corpus_folder  # noqa: E402
from score_readers import abc_notes, musicxml_notes  # noqa: E402

EXTENSIONS = (".mxl", ".xml", ".musicxml")
SAME, HALF_TIE, INTERLEAVING, TO_ABC = "same", "half tie", "interleaving", "MusicXML to ABC"
FROM_ABC, NOT_COMPARED = "ABC to MusicXML", "not compared"
COMMAND = "python benchmarks/roundtrip.py --markdown benchmarks/roundtrip.md"
TOLERANCE = Fraction(1, 100)  # of a quarter: less than what tells any two durations of written notes apart
ROUNDING = 1 / 16  # of a quarter: what times may be off by after many durations that were rounded


@dataclass(frozen=True)
class Compared(Outcome):
    """What became of a score, and its first difference."""

    kind: str = ""
    difference: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="take so many scores, spread over the corpus")
    parser.add_argument("--workers", type=int, default=cores(), help="processes; default: one for each core")
    parser.add_argument("--time_limit", type=int, default=900, help="seconds for one score; default: %(default)s")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write there what does not come back")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON lines: one a score, not done again")
    args = parser.parse_args()

    folder = corpus_folder()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if args.limit and args.limit < len(paths):
        paths = [paths[index * len(paths) // args.limit] for index in range(args.limit)]
    jobs = sorted((Job(path, (), length(path)) for path in paths), key=lambda job: -job.size)
    results = read_results(args.results)
    jobs = [job for job in jobs if job.source.relative_to(folder).as_posix() not in results]
    processes = Processes(args.workers, args.time_limit, memory_limit=4000)
    for outcome in tqdm(in_processes(compare_job, jobs, processes), total=len(jobs), unit="score"):
        name = outcome.job.source.relative_to(folder).as_posix()
        found = (NOT_COMPARED, outcome.failure) if outcome.failure else (outcome.kind, outcome.difference)
        results[name] = found
        if args.results:
            with args.results.open("a", encoding="utf-8") as file:
                print(json.dumps([name, *found]), file=file)
        if found[0] != SAME:
            print(f"{name} | {' | '.join(found)}", flush=True)
    lines = summary(results)
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join([*lines, *table(results)]) + "\n", encoding="utf-8")


def read_results(path: Path | None) -> dict[str, tuple[str, str]]:
    """Kind and difference, by the scores' names."""
    if path is None or not path.exists():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {name: (kind, difference) for name, kind, difference in rows}


def length(path: Path) -> int:
    """Bytes of a score's XML: a measure of the work."""
    return len(extracted(path.read_bytes()))


def summary(results: dict[str, tuple[str, str]]) -> list[str]:
    """Markdown: how many scores come back, and what becomes of the others."""
    counts = Counter(kind for kind, _ in results.values())
    others = ", ".join(f"{kind}: {count}" for kind, count in counts.most_common() if kind != SAME)
    share = f"{counts[SAME]} of {len(results)} ({counts[SAME] / len(results):.1%})"
    return [
        "# Scores that do not come back note for note",
        "",
        f"MusicXML to interleaved ABC and back, by `{COMMAND}`.",
        f"Of the scores of music21's corpus, {share} keep every pitch and duration, at its onset.",
        f"The others, by the side that loses them, as the script explains: {others or 'none'}. {date.today()}, "
        f"music21 {version('music21')}.",
    ]


def table(results: dict[str, tuple[str, str]]) -> list[str]:
    """Markdown: the scores that do not come back, each with its first difference."""
    rows = sorted((kind, name, difference) for name, (kind, difference) in results.items() if kind != SAME)
    return ["", "| score | side that loses it | first difference |", "|---|---|---|"] + [
        f"| {name} | {kind} | {difference} |" for kind, name, difference in rows
    ]


def compare_job(job: Job) -> Compared:
    """`compare` in a process that does nothing else: collecting garbage at each step would take half of its time."""
    gc.disable()
    try:
        kind, difference = compare(job.source)
        return Compared(job, kind=kind, difference=difference)
    except Exception as error:  # music21's, of any kind
        return Compared(job, f"{type(error).__name__}: {error}")
    finally:
        gc.collect()


def compare(path: Path) -> tuple[str, str]:
    """What became of the score at `path`, and its first difference."""
    warnings.simplefilter("ignore")
    before = parts_of(path.read_bytes())
    try:
        standard = musicxml_to_abc(path, ignore)
        interleaved = interleave(standard, ignore)
        after = parts_of(abc_to_musicxml(interleaved, ignore).encode())
    except ValueError as error:
        return "not converted", str(error)
    half_tie, difference = first_difference(before, after)
    if not difference:
        return SAME, ""
    source = musicxml_notes(in_its_own_encoding(extracted(path.read_bytes()), ignore))
    if not alike_from_the_first(source, abc_notes(standard)):
        return TO_ABC, difference
    if not alike_from_the_first(source, abc_notes(interleaved)):
        return INTERLEAVING, difference
    return HALF_TIE if half_tie else FROM_ABC, difference


def alike_from_the_first(notes: list[tuple], others: list[tuple]) -> bool:
    """Whether (onset, duration, pitch) are alike, with onsets from the first note."""

    def grouped(found: list[tuple]) -> dict[float, list[tuple]]:
        by_pitch: dict[float, list[tuple]] = {}
        for onset, duration, pitch in found:
            by_pitch.setdefault(pitch, []).append((pitch, duration, onset - found[0][0]))
        return by_pitch

    mine, theirs = grouped(notes), grouped(others)
    return mine.keys() == theirs.keys() and all(alike(mine[pitch], theirs[pitch]) for pitch in mine)


@dataclass
class Part:
    """A part's notes, (pitch, duration, onset) in order of time, those that ties bind as one."""

    notes: list[tuple[int, Fraction, Fraction]]
    by_half_ties: list[tuple[int, Fraction, Fraction]]  # those too of which only the first says that it is tied
    unended: set[int]  # which of `notes` begin a tie that none ends
    grace: list[int]  # pitches


def parts_of(data: bytes) -> list[Part]:
    """The parts with notes of a MusicXML file, sounding."""
    from music21 import converter

    document = ElementTree.fromstring(extracted(data))  # music21 itself reads no encoding but UTF-8
    for measure in document.iter("measure"):  # which these lengthen, for music21 alone
        for element in list(measure):
            is_no_step = element.tag == "forward" and element.findtext("duration") == "0"
            if element.tag in ("direction", "sound") or is_no_step:
                measure.remove(element)
    score = converter.parseData(ElementTree.tostring(document, encoding="utf-8"), format="musicxml")
    score.toSoundingPitch(inPlace=True)  # a copy would take as long as all the rest
    parts = []
    for part in score.parts:
        notes, grace = [], []
        for element in (elements := part.recurse().notes):
            if "Harmony" in element.classes:  # a chord's name
                continue
            start = elements.currentHierarchyOffset()
            for note in getattr(element, "notes", [element]):
                if element.style.hideObjectOnPrint or note.style.hideObjectOnPrint:
                    continue
                pitch = note.pitch.midi if hasattr(note, "pitch") else note.displayPitch().midi
                if element.duration.isGrace:
                    grace.append((start, pitch))
                else:
                    notes.append((start, pitch, Fraction(element.quarterLength), note.tie.type if note.tie else ""))
        if notes or grace:
            notes.sort(key=lambda note: note[:2])
            bound, unended = merged(notes, by_half_ties=False)
            parts.append(Part(bound, merged(notes, True)[0], unended, [pitch for _, pitch in sorted(grace)]))
    first = min((note[2] for part in parts for note in part.notes), default=0)
    for part in parts:
        for notes in (part.notes, part.by_half_ties):
            notes[:] = [(pitch, duration, start - first) for pitch, duration, start in notes]
    return parts


def merged(notes: list[tuple], by_half_ties: bool) -> tuple[list[tuple[int, Fraction, Fraction]], set[int]]:
    """`notes` (start, pitch, duration, tie) as a Part has them, and which of them begin a tie that none ends."""
    result, unended, open_ties = [], set(), {}  # pitch -> index in result, end
    for start, pitch, duration, tie in notes:
        index, end = open_ties.pop(pitch, (None, None))
        adjacent = index is not None and abs(start - end) < ROUNDING
        if adjacent and (by_half_ties or tie in ("stop", "continue")):
            result[index][1] += duration
        else:
            unended |= {index} - {None}
            index = len(result)
            result.append([pitch, duration, start])
        if tie in ("start", "continue"):
            open_ties[pitch] = index, start + duration
    unended.update(index for index, _ in open_ties.values())
    return [tuple(note) for note in result], unended


def first_difference(before: list[Part], after: list[Part]) -> tuple[bool, str]:
    """Whether the first difference is at a tie that nothing ends, and which it is; "" where there is none."""
    if len(before) != len(after):
        return False, f"{len(before)} parts have become {len(after)}"
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        if not (alike(one.notes, other.notes) or alike(one.by_half_ties, other.by_half_ties)):
            index, difference = differing("note", one.notes, other.notes)
            return index in one.unended, f"part {number}, {difference}"
        if not alike(one.grace, other.grace):
            return False, f"part {number}, {differing('grace note', one.grace, other.grace)[1]}"
    return False, ""


def alike(notes: list, others: list) -> bool:
    """Whether notes are the same, but for durations that a file's whole numbers round: 683/1024 is meant for 2/3."""
    return len(notes) == len(others) and all(
        note == other
        or isinstance(note, tuple)
        and (note[0] == other[0] and abs(note[1] - other[1]) < TOLERANCE and abs(note[2] - other[2]) < ROUNDING)
        for note, other in zip(notes, others, strict=True)
    )


def differing(kind: str, notes: list, others: list) -> tuple[int, str]:
    """Where two lists first differ, and how."""
    for index, (note, other) in enumerate(zip(notes, others, strict=False)):
        if not alike([note], [other]):
            return index, f"{kind} {index + 1} of {len(notes)}: {told(note)} has become {told(other)}"
    return min(len(notes), len(others)), f"{kind}s: {len(notes)} have become {len(others)}"


def told(note) -> str:
    return f"pitch {note[0]} of {note[1]} quarters at {note[2]}" if isinstance(note, tuple) else f"pitch {note}"


if __name__ == "__main__":
    main()
