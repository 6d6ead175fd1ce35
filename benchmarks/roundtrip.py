"""MusicXML -> standard ABC -> interleaved ABC -> MusicXML: which scores of music21's corpus come back note for note?

    python benchmarks/roundtrip.py
    python benchmarks/roundtrip.py --limit 50
Compared are, part by part and in order of time, the sounding pitches and their durations with ties merged, and the
pitches of the grace notes. A tie of which only one end is marked may or may not bind, if only it does so in all of the
part. A score that differs is listed with its first difference and where that comes from:
"converters" if it is there without interleaving too. All 654 scores take half an hour.
"""

import argparse
import signal
import sys
import warnings
from collections import Counter
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "examples")]
from clamp3.convert.abc import interleave  # noqa: E402
from clamp3.convert.musicxml import abc_to_musicxml, extracted, musicxml_to_abc  # noqa: E402
from corpus import corpus_folder  # noqa: E402

EXTENSIONS = (".mxl", ".xml", ".musicxml")
SAME = "same"
ROUNDING = 1 / 16  # of a quarter: what times may be off by, after durations that MusicXML's or ABC's numbers round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="take so many scores, spread over the corpus")
    parser.add_argument("--time_limit", type=int, default=300, help="seconds for one score")
    args = parser.parse_args()

    folder = corpus_folder()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if args.limit and args.limit < len(paths):
        paths = [paths[index * len(paths) // args.limit] for index in range(args.limit)]
    results = Counter()
    signal.signal(signal.SIGALRM, give_up)
    for path in tqdm(paths, unit="score"):
        signal.alarm(args.time_limit)
        try:
            result, detail = compare(path)
        except Exception as error:  # music21's too
            result, detail = "not compared", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        results[result] += 1
        if result != SAME:
            print(f"{path.relative_to(folder)} | {result} | {detail}", flush=True)
    for result, count in results.most_common():
        print(f"{count:4} {result}")
    print(f"{results[SAME]} of {len(paths)} ({results[SAME] / len(paths):.1%}) come back note for note")


def give_up(*_) -> None:
    raise TimeoutError("takes too long (--time_limit)")


def compare(path: Path) -> tuple[str, str]:
    """What became of the score at `path`, and its first difference."""
    warnings.simplefilter("ignore")
    before = parts_of(path.read_bytes())
    try:
        standard = musicxml_to_abc(path)
        after = parts_of(abc_to_musicxml(interleave(standard)).encode())
    except ValueError as error:
        return "not converted", str(error)
    difference = first_difference(before, after)
    if difference is None:
        return SAME, ""
    without = first_difference(before, parts_of(abc_to_musicxml(standard).encode()))
    return "converters" if without == difference else "interleaving", difference


def parts_of(data: bytes) -> list[tuple[list, list, list]]:
    """Of each part with notes, in order of time: the notes by either reading of half ties, pitches of grace notes."""
    from music21 import converter

    document = ElementTree.fromstring(extracted(data))  # music21 itself reads no encoding but UTF-8
    score = converter.parseData(ElementTree.tostring(document, encoding="utf-8"), format="musicxml")
    parts = []
    for part in score.toSoundingPitch().parts:
        notes, grace = [], []
        for element in part.recurse().notes:
            start = element.getOffsetInHierarchy(part)
            for note in element.notes if element.isChord else [element]:
                pitch = note.pitch.midi if hasattr(note, "pitch") else note.displayPitch().midi
                if element.duration.isGrace:
                    grace.append((start, pitch))
                else:
                    notes.append((start, pitch, Fraction(element.quarterLength), note.tie.type if note.tie else ""))
        if notes or grace:
            notes.sort(key=lambda note: note[:2])
            parts.append((merged(notes, True), merged(notes, False), [pitch for _, pitch in sorted(grace)]))
    return parts


def merged(notes: list[tuple], by_half_ties: bool) -> list[tuple[int, Fraction]]:
    """(pitch, duration) of `notes`, those that ties bind as one: `by_half_ties`, those that follow at once too, if
    only the first of two notes says that it is tied."""
    result, open_ties = [], {}  # pitch -> index in result, end
    for start, pitch, duration, tie in notes:
        index, end = open_ties.pop(pitch, (None, None))
        adjacent = index is not None and abs(start - end) < ROUNDING
        if adjacent and (by_half_ties or tie in ("stop", "continue")):
            result[index][1] += duration
        else:
            index = len(result)
            result.append([pitch, duration])
        if tie in ("start", "continue"):
            open_ties[pitch] = index, start + duration
    return [tuple(note) for note in result]


def first_difference(before: list, after: list) -> str | None:
    if len(before) != len(after):
        return f"{len(before)} parts have become {len(after)}"
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        notes = "" if one[0] == other[0] else differing("note", one[1], other[1])
        if difference := notes or differing("grace note", one[2], other[2]):
            return f"part {number}, {difference}"
    return None


def differing(kind: str, notes: list, others: list) -> str:
    for index, (note, other) in enumerate(zip(notes, others, strict=False), 1):
        if note != other:
            return f"{kind} {index} of {len(notes)}: {told(note)} has become {told(other)}"
    return "" if len(notes) == len(others) else f"{kind}s: {len(notes)} have become {len(others)}"


def told(note) -> str:
    return f"pitch {note[0]} of {note[1]} quarters" if isinstance(note, tuple) else f"pitch {note}"


if __name__ == "__main__":
    main()
