"""What abctoolkit's xml2abc cannot read, taken out of a MusicXML tree or put in the form that it reads.

Only elements that stop the converter, or mislead it, are touched: a score that has none stays as it is, byte for byte.
"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import lcm
from xml.etree.ElementTree import Element, SubElement

ACCIDENTALS = {
    "double-flat": -2,
    "flat-flat": -2,
    "flat": -1,
    "natural": 0,
    "sharp": 1,
    "sharp-sharp": 2,
    "double-sharp": 2,
}
MODES = ("maj", "ion", "m", "min", "aeo", "mix", "dor", "phr", "lyd", "loc", "non")
SPANS = {
    "pedal": ("start", "stop"),
    "wedge": ("crescendo", "diminuendo", "stop"),
    "octave-shift": ("up", "down", "stop"),
}
MAX_OCTAVE = 20  # ABC writes a sign for each octave
MAX_VOICES = 64  # of a part
MAX_CELLS = 200_000  # voices x measures of a score: xml2abc makes a list for each
MAX_QUARTERS = 10_000  # of a note, a rest or a measure
MAX_VERSES = 99
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
MENDED = frozenset(
    ("display-octave", "divisions or duration", "part-list", "quarter tones, which became semitones", "voice")
)
WHOLE = re.compile(r"\s*[+-]?\d{1,9}\s*$")


def clean(root: Element) -> set[str]:
    """Clean a score-partwise tree in place; the names of what was changed. Raises ValueError where it is endless."""
    changed: set[str] = set()
    _check_bounds(root)
    _complete_part_list(root, changed)
    for part in root.iterfind("part"):
        _name_voices(part, changed)
        _unify_divisions(part, changed)
        _clean_staves(part, changed)
        _match_spans(part, changed)
        _cut_ties(part, changed)
    _clean_values(root, changed)
    _fill_empty_measures(root)
    return changed


# ---------- numbers ----------


def number(text: str | None) -> Fraction | None:
    """The number that `text` is, if it is one of sensible length."""
    try:
        return Fraction((text or "").strip()) if len(text or "") < 40 and "e" not in (text or "").lower() else None
    except (ValueError, ZeroDivisionError):
        return None


def _is_whole(text: str | None) -> bool:
    return bool(WHOLE.match(text or ""))


def _check_bounds(root: Element) -> None:
    """Raise ValueError where values would have the converter run for hours or fill the memory."""
    cells = 0
    for part in root.iterfind("part"):
        voices = {voice.text for voice in part.iterfind("measure/note/voice")}
        if len(voices) > MAX_VOICES:
            raise ValueError(f"a part of {len(voices)} voices, where {MAX_VOICES} are the most that are read")
        cells += max(1, len(voices)) * len(part.findall("measure"))
    if cells > MAX_CELLS:
        raise ValueError(f"{cells} measures of its voices, where {MAX_CELLS} are the most that are read")
    for octave in root.iterfind("part/measure/note/pitch/octave"):
        value = number(octave.text)
        if value is not None and abs(value) > MAX_OCTAVE or len(octave.text or "") > 9:
            three = "three digits or more" if len((octave.text or "").strip(" +-")) > 2 else octave.text
            raise ValueError(f"it has an octave of {three}")


# ---------- parts, voices and staves ----------


def _complete_part_list(root: Element, changed: set[str]) -> None:
    """Have the list name each part once, in the order of the parts: xml2abc counts on it."""
    listed = root.find("part-list")
    if listed is None:
        listed = Element("part-list")
        root.insert(0, listed)
    ids = [part.get("id", "") for part in root.iterfind("part")]
    entries = listed.findall("score-part")
    names = [entry.get("id", "") for entry in entries]
    if len(set(names)) == len(names) and set(ids) <= set(names):
        return
    by_id = {entry.get("id", ""): entry for entry in reversed(entries)}
    for child in list(listed):
        listed.remove(child)
    for name in ids:
        listed.append(by_id.get(name, Element("score-part", id=name)))
    changed.add("part-list")


def _name_voices(part: Element, changed: set[str]) -> None:
    """Number the voices that have names."""
    voices = list(part.iterfind("measure/note/voice"))
    taken = {int(voice.text or "") for voice in voices if _is_whole(voice.text)}
    free = iter(set(range(1, len(voices) + len(taken) + 2)) - taken)
    numbers: dict[str, str] = {"": "1"}
    for voice in voices:
        if not _is_whole(voice.text):
            name = (voice.text or "").strip()
            if name not in numbers:
                numbers[name] = str(next(free))
            voice.text = numbers[name]
            changed.add("voice")


def _clean_staves(part: Element, changed: set[str]) -> None:
    """Take out what stands on a staff that has no notes, and give the staff of an unpitched note a clef."""
    for staff in list(part.iterfind("measure/*/staff")):
        if not _is_whole(staff.text):
            staff.text = "1"
            changed.add("staff")
    notes = part.findall("measure/note")
    staves = {int(note.findtext("staff", "1")) for note in notes}
    for measure in part.iterfind("measure"):
        for child in measure.findall("direction") + measure.findall("harmony"):
            staff_element = child.find("staff")
            if staff_element is not None and int(staff_element.text or "") not in staves:
                child.remove(staff_element)
        if 1 not in staves and staves:
            for child in measure.findall("direction") + measure.findall("harmony"):
                if child.find("staff") is None:
                    SubElement(child, "staff").text = str(min(staves))
        for attributes in measure.iterfind("attributes"):
            for child in attributes.findall("clef") + attributes.findall("measure-style"):
                if not _is_whole(child.get("number", "1")) or int(child.get("number", "1")) not in staves:
                    attributes.remove(child)
    if any(note.find("unpitched") is not None for note in notes):
        _add_clefs(part, staves)


def _add_clefs(part: Element, staves: set[int]) -> None:
    first = part.find("measure")
    assert first is not None
    named = {clef.get("number", "1") for clef in first.iterfind("attributes/clef")}
    for staff in sorted(staves - {int(name) for name in named if _is_whole(name)}):
        attributes = first.find("attributes")
        if attributes is None:
            attributes = Element("attributes")
            first.insert(0, attributes)
        clef = SubElement(attributes, "clef", number=str(staff))
        SubElement(clef, "sign").text, SubElement(clef, "line").text = "G", "2"


# ---------- time ----------


def _written_length(note: Element) -> Fraction | None:
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


def _unify_divisions(part: Element, changed: set[str]) -> None:
    """Give a part whose durations are not all whole numbers of known divisions one that they are."""
    said = [child.findtext("duration") for child in _timed(part)]
    if any(text and text.strip() and number(text) is None for text in said):
        return  # damaged: the converter refuses it
    divisions = part.findall("measure/attributes/divisions")
    stated = _states_divisions_first(part)
    sound = stated and all(_is_whole(element.text) and int(element.text or "") > 0 for element in divisions)
    sound = sound and all(_is_whole(child.findtext("duration")) for child in _timed(part))
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


def _rewrite_durations(part: Element) -> None:
    """Set all durations of `part` in one `divisions`, those that are missing by the notes' types."""
    lengths: list[tuple[Element, Fraction]] = []
    divisions = _implied_divisions(part)
    chord_length = Fraction(0)
    for child in part.iterfind("measure/*"):
        if child.tag == "attributes" and (stated := number(child.findtext("divisions"))) and stated > 0:
            divisions = stated
        elif child.tag in ("note", "forward", "backup") and child.find("grace") is None:
            duration, written = number(child.findtext("duration")), _written_length(child)
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
        duration, written = number(note.findtext("duration")), _written_length(note)
        if duration and written and duration > 0:
            return duration / written
    first = number(part.findtext("measure/attributes/divisions"))
    return first if first and first > 0 else Fraction(1)


def _measure_length(measure: Element) -> Fraction:
    """The divisions that the notes, rests and skips of a measure last."""
    time = longest = Fraction(0)
    for child in measure:
        if child.tag in ("note", "forward", "backup") and child.find("grace") is None and child.find("chord") is None:
            length = number(child.findtext("duration")) or Fraction(0)
            time = max(Fraction(0), time - length if child.tag == "backup" else time + length)
            longest = max(longest, time)
    return longest


def _fill_empty_measures(root: Element) -> None:
    """Have a measure of no length last as long as in the other parts, or as its metre: else later notes move up."""
    parts = [part.findall("measure") for part in root.iterfind("part")]
    longest: dict[int, Fraction] = {}  # quarters of the measures, by their indices
    empty: list[tuple[int, Element, Fraction, Fraction, bool]] = []  # index, measure, divisions, its metre, if alone
    for measures in parts:
        divisions, metre = Fraction(1), Fraction(4)
        for index, measure in enumerate(measures):
            for attributes in measure.iterfind("attributes"):
                divisions = number(attributes.findtext("divisions")) or divisions
                beats, unit = (number(attributes.findtext(f"time/{name}")) for name in ("beats", "beat-type"))
                metre = 4 * beats / unit if beats and unit else metre
            length = _measure_length(measure) / divisions
            longest[index] = max(longest.get(index, Fraction(0)), length)
            if not length:
                around = [measures[at] for at in (index - 1, index + 1) if 0 <= at < len(measures)]
                alone = len(around) == 2 and all(map(_measure_length, around))  # interleaving fills such a one
                empty.append((index, measure, divisions, metre, alone))
    for index, measure, divisions, metre, alone in empty:
        quarters = longest[index] or metre
        duration = quarters * divisions
        if not (alone and quarters == metre) and duration.denominator == 1 and 0 < duration < 10**9:
            SubElement(SubElement(measure, "forward"), "duration").text = str(duration)


# ---------- directions and ties ----------


def _match_spans(part: Element, changed: set[str]) -> None:
    """Take out pedals, hairpins and octave shifts of kinds that xml2abc does not know, and stops that end nothing."""
    is_open: set[tuple[str, str]] = set()
    for measure in part.iterfind("measure"):
        found = []
        for kind in measure.iterfind("direction/direction-type"):
            for element in list(kind):
                if element.tag in SPANS:
                    if element.get("type") in SPANS[element.tag]:
                        found.append((kind, element, (element.tag, element.get("number", "1"))))
                    else:
                        kind.remove(element)
                        changed.add(f"{element.tag} {element.get('type', '')}".strip())
        for index, (kind, element, key) in enumerate(found):
            if element.get("type") != "stop":
                is_open.add(key)
            elif key in is_open:
                is_open.discard(key)
            elif not any(key == later and other.get("type") != "stop" for _, other, later in found[index:]):
                kind.remove(element)
                changed.add(f"{element.tag} stop without its start")


def _cut_ties(part: Element, changed: set[str]) -> None:
    """Take out ties to a note of another pitch: in ABC they would bind it, for only its name counts there."""
    waiting: dict[tuple, list[tuple[Element, Fraction]]] = {}  # (voice, step, octave) -> notes with their ends
    start = Fraction(0)
    divisions = Fraction(1)
    for measure in part.iterfind("measure"):
        time = onset = Fraction(0)
        longest = Fraction(0)
        for child in measure:
            if child.tag == "attributes":
                divisions = number(child.findtext("divisions")) or divisions
            length = (number(child.findtext("duration")) or Fraction(0)) / divisions
            if child.tag in ("backup", "forward"):
                time = max(Fraction(0), time + (length if child.tag == "forward" else -length))
            elif child.tag == "note" and child.find("grace") is None:
                if child.find("chord") is None:
                    onset, time = time, time + length
                place = [child.findtext(path) for path in ("voice", "pitch/step", "pitch/octave")]
                _tie(child, tuple(place), start + onset, length, waiting, changed)
            longest = max(longest, time)
        start += longest


def _tie(note: Element, place: tuple, onset: Fraction, length: Fraction, waiting: dict, changed: set[str]) -> None:
    for earlier, end in waiting.pop(place, []):
        same = number(note.findtext("pitch/alter") or "0") == number(earlier.findtext("pitch/alter") or "0")
        if not same and abs(end - onset) < Fraction(1, 16):
            _untie(earlier, changed)
    if place[1] and any(tie.get("type") == "start" for tie in note.findall("tie") + note.findall("notations/tied")):
        waiting.setdefault(place, []).append((note, onset + length))


def _untie(note: Element, changed: set[str]) -> None:
    for parent in (note, *note.findall("notations")):
        for tie in parent.findall("tie") + parent.findall("tied"):
            if tie.get("type") == "start":
                parent.remove(tie)
    changed.add("ties to a note of another pitch")


# ---------- values ----------


def _metronome(element: Element) -> bool:
    tempo = element.find("per-minute")
    found = re.search(r"\d{1,6}(\.\d{1,6})?", (tempo.text or "") if tempo is not None else "")
    if tempo is None or not found:
        return False
    if re.search(r"[.\d]+", tempo.text or "")[0] != found[0]:  # type: ignore[index]
        tempo.text = found[0]
    return True


def _time(element: Element) -> bool:
    """Whether the first metre is two whole numbers; 3+2 is summed."""
    beats, unit = element.find("beats"), element.find("beat-type")
    if beats is None:
        return True
    if not _is_whole(beats.text):
        counts = [number(count) for count in (beats.text or "").split("+")]
        if any(count is None or count.denominator > 1 for count in counts):
            return False
        beats.text = str(sum(int(count) for count in counts if count))
    whole = unit is not None and _is_whole(unit.text)
    return whole and int(beats.text or "") > 0 and 0 < int(unit.text or "") <= 1024  # type: ignore[union-attr]


def _accidental_of(note: Element) -> bool:
    """Whether a note's accidental says what its alter says, if it has one: xml2abc believes the accidental."""
    accidental, alter = note.find("accidental"), note.findtext("pitch/alter")
    if accidental is None or note.find("pitch") is None:
        return True
    written = ACCIDENTALS.get(accidental.text or "")
    return written is not None and (alter is None or written == number(alter))


def _key(element: Element) -> bool:
    fifths = element.findtext("fifths")
    return not fifths or (_is_whole(fifths) and abs(int(fifths)) <= 7)


def _midi(element: Element) -> bool:
    texts = [element.findtext(name) for name in ("midi-channel", "midi-program", "midi-unpitched")]
    loud = [element.findtext(name) for name in ("volume", "pan")]
    return all(text is None or _is_whole(text) for text in texts) and all(
        text is None or number(text) is not None for text in loud
    )


def _ratio(element: Element) -> bool:
    texts = [element.findtext(f"{name}-notes") for name in ("actual", "normal")]
    return all(text is not None and _is_whole(text) and 0 < int(text) < 1000 for text in texts)


KNOWN: dict[str, Callable[[Element], bool]] = {
    "clef-octave-change": lambda element: _is_whole(element.text) and abs(int(element.text or "")) <= 4,
    "chromatic": lambda element: _is_whole(element.text),
    "octave-change": lambda element: _is_whole(element.text) and abs(int(element.text or "")) <= 4,
    "key": _key,
    "metronome": _metronome,
    "midi-instrument": _midi,
    "mode": lambda element: (element.text or "").lower()[:3] in MODES,
    "time": _time,
    "time-modification": _ratio,
    "tremolo": lambda element: _is_whole(element.text) and 0 <= int(element.text or "") <= 8,
    "kind": lambda element: (element.text or "").count("-") <= 1 or element.text == "half-diminished",
    "measure-style": lambda element: element.find("measure-repeat") is None,
    "staff-lines": lambda element: _is_whole(element.text) and 0 <= int(element.text or "") <= 20,
}


def _clean_values(root: Element, changed: set[str]) -> None:
    for parent in root.iter():
        if parent.tag == "note":
            _clean_note(parent, changed)
        for child in list(parent):
            if child.tag in KNOWN and not KNOWN[child.tag](child):
                parent.remove(child)
                changed.add(child.tag)
        if parent.tag in ("note", "harmony", "barline"):
            _join_lines(parent)
        for name in ("tempo", "default-y"):
            if parent.tag in ("sound", "words", "rehearsal") and name in parent.attrib:
                if number(parent.attrib[name]) is None:
                    parent.attrib.pop(name)
                    changed.add(f"{parent.tag} {name}")


def _clean_note(note: Element, changed: set[str]) -> None:
    alter = note.find("pitch/alter")
    if alter is not None and not _is_whole(alter.text):
        value = number(alter.text) or Fraction(0)
        if value.denominator > 1:
            changed.add("quarter tones, which became semitones")
        alter.text = str(max(-2, min(2, int(value))))
    if not _accidental_of(note):
        note.remove(note.find("accidental"))  # type: ignore[arg-type]
    for lyric in note.iterfind("lyric"):
        verse = re.sub(r"^.*verse", "", lyric.get("number", "1"))
        if not (_is_whole(verse) and 0 <= int(verse) <= MAX_VERSES):
            lyric.attrib.pop("number")
            changed.add("lyric number")
    octave = note.find("unpitched/display-octave")
    if octave is not None and not (_is_whole(octave.text) and abs(int(octave.text or "")) <= MAX_OCTAVE):
        octave.text = "5"
        changed.add("display-octave")


def _join_lines(parent: Element) -> None:
    """Make line breaks of text spaces: in ABC, what follows them would be music."""
    for element in parent.iter():
        if len(element) == 0 and element.text and re.search(r"[\r\n]", element.text.strip()):
            element.text = re.sub(r"\s*[\r\n]\s*", " ", element.text.strip())
        elif len(element) == 0 and element.text and re.search(r"[\r\n]", element.text):
            element.text = element.text.strip()
        for name, value in element.attrib.items():
            if re.search(r"[\r\n]", value):
                element.set(name, " ".join(value.split()))
