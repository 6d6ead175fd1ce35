"""How long the notes of a MusicXML part last: its numbers, and all of its durations in whole `divisions`."""

import re
from collections.abc import Iterator
from fractions import Fraction
from math import lcm
from xml.etree.ElementTree import Element, SubElement

MAX_QUARTERS = 10_000  # of a note, a rest or a measure
MAX_DIVISIONS = 10**6
QUARTERS: dict[str, int | Fraction] = {
    "maxima": 32,
    "long": 16,
    "breve": 8,
    "whole": 4,
    "half": 2,
    "quarter": 1,
    "eighth": Fraction(1, 2),
}
QUARTERS |= {f"{2**power}{'nd' if power == 5 else 'th'}": Fraction(4, 2**power) for power in range(4, 11)}
WHOLE = re.compile(r"\s*[+-]?\d{1,9}\s*$")


def number(text: str | None) -> Fraction | None:
    """The number that `text` is, if it is one of sensible length."""
    try:
        return Fraction((text or "").strip()) if len(text or "") < 40 and "e" not in (text or "").lower() else None
    except (ValueError, ZeroDivisionError):
        return None


def is_whole(text: str | None) -> bool:
    return bool(WHOLE.match(text or ""))


def written_length(note: Element) -> Fraction | None:
    """The quarters of a note's type, dots and tuplet."""
    base = QUARTERS.get((note.findtext("type") or "").strip())
    if base is None:
        return None
    length = Fraction(base) * (2 - Fraction(1, 2 ** min(len(note.findall("dot")), 6)))
    actual, normal = (number(note.findtext(f"time-modification/{name}-notes")) for name in ("actual", "normal"))
    return length * normal / actual if actual and normal else length


def _timed(part: Element) -> Iterator[Element]:
    for child in part.iterfind("measure/*"):
        if child.tag in ("backup", "forward") or child.tag == "note" and child.find("grace") is None:
            yield child


def unify_divisions(part: Element, changed: set[str]) -> None:
    """Give a part whose durations are not all whole numbers of known divisions one that they are."""
    said = [child.findtext("duration") for child in _timed(part)]
    if any(text and text.strip() and number(text) is None for text in said):
        return  # damaged: the converter refuses it
    divisions = part.findall("measure/attributes/divisions")
    stated = _states_divisions_first(part)
    sound = stated and all(is_whole(element.text) and int(element.text or "") > 0 for element in divisions)
    sound = sound and all(is_whole(child.findtext("duration")) for child in _timed(part))
    sound = sound and not _changes_divisions(part)
    if not sound and next(_timed(part), None) is not None:
        _rewrite_durations(part)
        changed.add("divisions or duration")
    for child in _timed(part):
        if len(child.findtext("duration", "")) > 9:
            raise ValueError(f"a duration of {child.findtext('duration', '')[:20]}")
    current = 1
    for measure in part.iterfind("measure"):
        for child in measure:
            if child.tag == "attributes":
                current = int(child.findtext("divisions") or current)
            elif child.tag in ("note", "forward") and int(child.findtext("duration") or 0) > MAX_QUARTERS * current:
                raise ValueError(f"a duration of more than {MAX_QUARTERS} quarters")


def _states_divisions_first(part: Element) -> bool:
    """Whether `part` says its divisions before anything that takes time."""
    for child in part.iterfind("measure/*"):
        if child.tag == "attributes" and child.find("divisions") is not None:
            return True
        if child.tag in ("note", "forward", "backup") and child.find("grace") is None:
            return False
    return False


def _changes_divisions(part: Element) -> bool:
    """Whether divisions change between the notes of a measure: xml2abc reads one of them for all."""
    current = ""
    for measure in part.iterfind("measure"):
        begun = False
        for child in measure:
            stated = child.findtext("divisions") if child.tag == "attributes" else None
            if stated and begun and stated != current:
                return True
            current = stated or current
            begun |= child.tag in ("note", "forward")
    return False


def _rewrite_durations(part: Element) -> None:
    """Set all durations of `part` in one `divisions`, those that are missing by the notes' types."""
    lengths: list[tuple[Element, Fraction]] = []
    divisions = _implied_divisions(part)
    chord_length = Fraction(0)
    for child in part.iterfind("measure/*"):
        if child.tag == "attributes" and (stated := number(child.findtext("divisions"))) and stated > 0:
            divisions = stated
        elif child.tag in ("note", "forward", "backup") and child.find("grace") is None:
            duration, written = number(child.findtext("duration")), written_length(child)
            if duration is not None and duration >= 0:
                length = duration / divisions
            elif written is not None:
                length = written
            else:
                length = chord_length if child.find("chord") is not None else Fraction(int(child.tag == "note"))
            lengths.append((child, length))
            chord_length = length
    common = lcm(*(length.denominator for _, length in lengths))
    common = common if common <= MAX_DIVISIONS else 10080
    for attributes in part.iterfind("measure/attributes"):
        for element in attributes.findall("divisions"):
            attributes.remove(element)
    measure = part.find("measure")
    assert measure is not None
    start = Element("attributes")
    SubElement(start, "divisions").text = str(common)
    measure.insert(0, start)
    for child, length in lengths:
        found = child.find("duration")
        (SubElement(child, "duration") if found is None else found).text = str(round(length * common))


def _implied_divisions(part: Element) -> Fraction:
    """The divisions before any are stated: what the types of the first notes say, else the first that are stated."""
    for note in part.iterfind("measure/note"):
        duration, written = number(note.findtext("duration")), written_length(note)
        if duration and written and duration > 0:
            return duration / written
    first = number(part.findtext("measure/attributes/divisions"))
    return first if first and first > 0 else Fraction(1)


def measure_length(measure: Element) -> Fraction:
    """The divisions that the notes, rests and skips of a measure last."""
    time = longest = Fraction(0)
    for child in measure:
        if child.tag in ("note", "forward", "backup") and child.find("grace") is None and child.find("chord") is None:
            length = number(child.findtext("duration")) or Fraction(0)
            time = max(Fraction(0), time - length if child.tag == "backup" else time + length)
            longest = max(longest, time)
    return longest
