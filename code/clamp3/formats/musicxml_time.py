"""How long the notes of a MusicXML part last: its numbers, and all of its durations in whole `divisions`."""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import lcm
from xml.etree.ElementTree import Element, SubElement

Number = Fraction | int  # whole ones are int, whose sums are quick
MAX_QUARTERS = 10_000  # of a note, a rest or a measure
MAX_DIVISIONS = 10**6
QUARTERS: dict[str, Number] = {
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


def number(text: str | None) -> Number | None:
    """The number that `text` is, if it is one of sensible length."""
    return _number(text) if text and len(text) < 40 else None


@lru_cache(maxsize=10_000)
def _number(text: str) -> Number | None:
    try:
        value = Fraction(text.strip()) if "e" not in text.lower() else None
    except (ValueError, ZeroDivisionError):
        return None
    return int(value) if value is not None and value.denominator == 1 else value


def is_whole(text: str | None) -> bool:
    return bool(WHOLE.match(text or ""))


def first_below(element: Element, parent: str, name: str) -> Element | None:
    """What `element.find(f"{parent}/{name}")` finds, in a fraction of its time."""
    for child in element.findall(parent):
        if (found := child.find(name)) is not None:
            return found
    return None


def text_below(element: Element, parent: str, name: str) -> str | None:
    """What `element.findtext(f"{parent}/{name}")` says, likewise."""
    found = first_below(element, parent, name)
    return None if found is None else found.text or ""


def written_length(note: Element) -> Fraction | None:
    """The quarters of a note's type, dots and tuplet."""
    base = QUARTERS.get((note.findtext("type") or "").strip())
    if base is None:
        return None
    if note.find("time-modification") is None:
        return _dotted(base, len(note.findall("dot")), None, None)
    actual, normal = (number(note.findtext(f"time-modification/{name}-notes")) for name in ("actual", "normal"))
    return _dotted(base, len(note.findall("dot")), actual, normal)


@lru_cache(maxsize=1000)
def _dotted(base: Number, dots: int, actual: Number | None, normal: Number | None) -> Fraction:
    length = base * (2 - Fraction(1, 2 ** min(dots, 6)))
    return length * normal / actual if actual and normal else length


@dataclass
class _Said:
    """What the measures of a part say about time."""

    durations: dict[str | None, None] = field(default_factory=dict)  # of all that lasts, in order, each once
    divisions: dict[str | None, None] = field(default_factory=dict)
    is_late: bool = False  # nothing says the divisions before the first that lasts
    changes: bool = False  # divisions change between the notes of a measure: xml2abc reads one of them for all


def _said(part: Element) -> _Said:
    said = _Said()
    current = ""
    for measure in part.findall("measure"):
        begun = False
        for child in measure:
            if child.tag in ("note", "forward", "backup"):
                begun = begun or child.tag != "backup"
                if child.find("grace") is None:
                    said.is_late |= not said.divisions
                    said.durations[child.findtext("duration")] = None
            elif child.tag == "attributes":
                said.divisions |= dict.fromkeys(element.text for element in child.findall("divisions"))
                stated = child.findtext("divisions")
                said.changes |= bool(stated and begun and stated != current)
                current = stated or current
    return said


def unify_divisions(part: Element, changed: set[str]) -> None:
    """Give a part whose durations are not all whole numbers of known divisions one that they are."""
    said = _said(part)
    if any(text and text.strip() and number(text) is None for text in said.durations):
        return  # damaged: the converter refuses it
    sound = all(is_whole(text) and int(text or "") > 0 for text in said.divisions)
    sound = sound and all(map(is_whole, said.durations)) and not said.is_late and not said.changes
    if not sound and said.durations:
        _rewrite_durations(part)
        changed.add("divisions or duration")
        said = _said(part)
    for text in said.durations:
        if len(text or "") > 9:
            raise ValueError(f"a duration of {(text or '')[:20]}")
    current = 1
    for measure in part.findall("measure"):
        for child in measure:
            if child.tag == "attributes":
                current = int(child.findtext("divisions") or current)
            elif child.tag in ("note", "forward") and int(child.findtext("duration") or 0) > MAX_QUARTERS * current:
                raise ValueError(f"a duration of more than {MAX_QUARTERS} quarters")


def _rewrite_durations(part: Element) -> None:
    """Set all durations of `part` in one `divisions`, those that are missing by the notes' types."""
    lengths: list[tuple[Element, Fraction]] = []
    divisions = _implied_divisions(part)
    chord_length = Fraction(0)
    for child in part.iterfind("measure/*"):
        if child.tag == "attributes" and (stated := number(child.findtext("divisions"))) and stated > 0:
            divisions = Fraction(stated)
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
    return Fraction(first) if first and first > 0 else Fraction(1)


def measure_length(measure: Element) -> Number:
    """The divisions that the notes, rests and skips of a measure last."""
    time: Number = 0
    longest: Number = 0
    for child in measure:
        if child.tag in ("note", "forward", "backup") and child.find("grace") is None and child.find("chord") is None:
            length = number(child.findtext("duration")) or 0
            time = max(0, time - length if child.tag == "backup" else time + length)
            longest = max(longest, time)
    return longest
