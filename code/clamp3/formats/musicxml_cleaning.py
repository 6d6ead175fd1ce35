"""What abctoolkit's xml2abc cannot read, taken out of a MusicXML tree or put in the form that it reads.

Only elements that stop the converter, or mislead it, are touched: a score that has none stays as it is. Most scores
have none, and are only looked through here: that takes less time than converting them, and has to.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from fractions import Fraction
from itertools import chain, zip_longest
from xml.etree.ElementTree import Element, SubElement

from clamp3.formats.musicxml_time import (
    Number,
    first_below,
    is_whole,
    measure_length,
    number,
    text_below,
    unify_divisions,
)
from clamp3.formats.musicxml_voices import MAX_VOICES, separate_voices, ties

ACCIDENTALS = {
    "double-flat": -2,
    "flat-flat": -2,
    "flat": -1,
    "natural": 0,
    "sharp": 1,
    "sharp-sharp": 2,
    "double-sharp": 2,
}
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # of the steps above C
MODES = ("maj", "ion", "m", "min", "aeo", "mix", "dor", "phr", "lyd", "loc", "non")
SPANS = {
    "pedal": ("start", "stop"),
    "wedge": ("crescendo", "diminuendo", "stop"),
    "octave-shift": ("up", "down", "stop"),
}
LINE_END = re.compile(r"[\r\n]")
MAX_OCTAVE = 20  # ABC writes a sign for each octave
MAX_CELLS = 200_000  # voices x measures of a score: xml2abc makes a list for each
MAX_VERSES = 99
MENDED = frozenset(
    ("display-octave", "divisions or duration", "part-list", "microtones, rounded to quarter tones", "voice")
)


def clean(root: Element) -> set[str]:
    """Clean a score-partwise tree in place; the names of what was changed. Raises ValueError where it is endless."""
    changed: set[str] = set()
    tags = {element.tag for element in root.iter()}  # a pass for which there is nothing is left out
    _check_bounds(root)
    _complete_part_list(root, changed)
    for part in root.findall("part"):
        hides = any(note.get("print-object") == "no" and note.find("rest") is None for note in part.iter("note"))
        if hides:
            changed.add("hidden notes")
        _name_voices(part, changed)
        unify_divisions(part, changed)
        _clean_staves(part, changed)
        if "transpose" in tags:
            _give_transpositions_clefs(part)
        if "clef-octave-change" in tags:
            _move_octave_clefs(part)
        if not tags.isdisjoint(SPANS):
            _match_spans(part, changed)
        if hides or any(number(text) == 0 for text in {element.text for element in part.iter("duration")}):
            _show_heads(part)
        separate_voices(part)
    _fill_empty_measures(root)
    if not tags.isdisjoint(("tie", "tied")):
        for part in root.findall("part"):
            _cut_ties(part, changed)
    _clean_values(root, changed)
    return changed


# ---------- bounds ----------


def _check_bounds(root: Element) -> None:
    """Raise ValueError where values would have the converter run for hours or fill the memory."""
    cells = 0
    for part in root.findall("part"):
        voices = {note.findtext("voice") for note in part.iterfind("measure/note")} - {None}
        if len(voices) > MAX_VOICES:
            raise ValueError(f"a part of {len(voices)} voices, where {MAX_VOICES} are the most that are read")
        cells += max(1, len(voices)) * len(part.findall("measure"))
    if cells > MAX_CELLS:
        raise ValueError(f"{cells} measures of its voices, where {MAX_CELLS} are the most that are read")
    for octave in root.iter("octave"):
        value = number(octave.text)
        if value is not None and not -MAX_OCTAVE <= value <= MAX_OCTAVE or len(octave.text or "") > 9:
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
    if _all_whole(part, "voice"):
        return
    voices = list(part.iterfind("measure/note/voice"))
    taken = {int(voice.text or "") for voice in voices if is_whole(voice.text)}
    free = iter(set(range(1, len(voices) + len(taken) + 2)) - taken)
    numbers: dict[str, str] = {"": "1"}
    for voice in voices:
        if not is_whole(voice.text):
            name = (voice.text or "").strip()
            if name not in numbers:
                numbers[name] = str(next(free))
            voice.text = numbers[name]
            changed.add("voice")


def _all_whole(part: Element, tag: str) -> bool:
    """Whether all elements of that name say whole numbers; each text, of which there are few, is looked at once."""
    return all(map(is_whole, {element.text for element in part.iter(tag)}))


def _clean_staves(part: Element, changed: set[str]) -> None:
    """Take out what stands on a staff that has no notes, and give the staff of an unpitched note a clef."""
    if not _all_whole(part, "staff"):
        for staff in list(part.iterfind("measure/*/staff")):
            if not is_whole(staff.text):
                staff.text = "1"
                changed.add("staff")
    notes = part.findall("measure/note")
    staves = {int(name) for name in {note.findtext("staff", "1") for note in notes}}
    for measure in part.findall("measure"):
        placed = measure.findall("direction") + measure.findall("harmony")
        for child in placed:
            staff_element = child.find("staff")
            if staff_element is not None and int(staff_element.text or "") not in staves:
                child.remove(staff_element)
        if 1 not in staves and staves:
            for child in placed:
                if child.find("staff") is None:
                    SubElement(child, "staff").text = str(min(staves))
        for attributes in measure.findall("attributes"):
            for child in attributes.findall("clef") + attributes.findall("measure-style"):
                if not is_whole(child.get("number", "1")) or int(child.get("number", "1")) not in staves:
                    attributes.remove(child)
    if any(note.find("unpitched") is not None for note in notes):
        _add_clefs(part, staves)


def _add_clefs(part: Element, staves: set[int]) -> None:
    first = part.find("measure")
    assert first is not None
    named = {clef.get("number", "1") for clef in first.iterfind("attributes/clef")}
    for staff in sorted(staves - {int(name) for name in named if is_whole(name)}):
        attributes = first.find("attributes")
        if attributes is None:
            attributes = Element("attributes")
            first.insert(0, attributes)
        attributes.append(_clef("G", "2", str(staff)))


def _clef(sign: str, line: str, staff: str = "1") -> Element:
    clef = Element("clef", number=staff)
    SubElement(clef, "sign").text, SubElement(clef, "line").text = sign, line
    return clef


def _give_transpositions_clefs(part: Element) -> None:
    """Have each transposition stand beside a clef, where alone xml2abc reads it; at first, beside the last one."""
    clefs: dict[str, Element] = {}
    stated: Element | None = None
    for index, measure in enumerate(part.findall("measure")):
        for attributes in measure.findall("attributes"):
            here = attributes.find("transpose")
            if here is not None and attributes.find("clef") is None:
                attributes.extend(map(deepcopy, clefs.values()) if clefs else [_clef("G", "2")])
            clefs |= {clef.get("number", "1"): clef for clef in attributes.iterfind("clef")}
            if here is None and stated is not None and not index and attributes.find("clef") is not None:
                attributes.append(deepcopy(stated))
            stated = here if here is not None else stated


def _move_octave_clefs(part: Element) -> None:
    """Have clefs that shift by octaves begin with their measure: xml2abc shifts all notes that are written after them,
    those of other voices at earlier times too. One behind the last note is the next measure's."""
    shifted: dict[str, bool] = {}
    measures = part.findall("measure")
    for measure, following in zip_longest(measures, measures[1:]):
        children, begun = list(measure), False
        for place, child in enumerate(children):
            begun |= child.tag in ("note", "forward")
            for clef in child.findall("clef") if child.tag == "attributes" else []:
                staff, shifts = clef.get("number", "1"), (clef.findtext("clef-octave-change") or "0").strip() != "0"
                if begun and (shifts or shifted.get(staff)):
                    child.remove(clef)
                    attributes = Element("attributes")
                    attributes.append(clef)
                    if any(later.tag == "note" for later in children[place:]):
                        measure.insert(0, attributes)
                    elif following is not None:
                        following.insert(0, attributes)
                shifted[staff] = shifts


# ---------- time ----------


def _fill_empty_measures(root: Element) -> None:
    """Have a measure of no length last as long as in the other parts, or as its metre: else later notes move up."""
    parts = [part.findall("measure") for part in root.findall("part")]
    lengths = [list(map(measure_length, measures)) for measures in parts]
    if all(map(all, lengths)):
        return
    longest: dict[int, Number] = {}  # quarters of the measures, by their indices
    empty: list[tuple[int, Element, Number, Number, bool]] = []  # index, measure, divisions, its metre, if alone
    for measures, its_lengths in zip(parts, lengths, strict=True):
        divisions: Number = 1
        metre: Number = 4
        for index, (measure, length) in enumerate(zip(measures, its_lengths, strict=True)):
            for attributes in measure.findall("attributes"):
                divisions = number(attributes.findtext("divisions")) or divisions
                beats, unit = (number(attributes.findtext(f"time/{name}")) for name in ("beats", "beat-type"))
                metre = Fraction(4 * beats, unit) if beats and unit else metre
            longest[index] = max(longest.get(index, 0), Fraction(length, divisions))
            if not length:
                around = [its_lengths[at] for at in (index - 1, index + 1) if 0 <= at < len(measures)]
                alone = len(around) == 2 and all(around)  # interleaving fills such a one
                empty.append((index, measure, divisions, metre, alone))
    for index, measure, divisions, metre, alone in empty:
        quarters = longest[index] or metre
        duration = quarters * divisions
        if not (alone and quarters == metre) and duration.denominator == 1 and 0 < duration < 10**9:
            SubElement(SubElement(measure, "forward"), "duration").text = str(duration)


def _show_heads(part: Element) -> None:
    """Have a chord begin with a note that is shown, and a note of no length be a grace note."""
    for measure in part.findall("measure"):
        head = None  # of a chord: a hidden note
        for note in measure.findall("note"):
            if note.find("chord") is None:
                head = note if note.get("print-object") == "no" and note.find("rest") is None else None
            elif head is not None and note.get("print-object") != "no":
                note.remove(note.find("chord"))  # type: ignore[arg-type]
                measure.remove(head)
                head = None
            if note.find("grace") is None and note.find("rest") is None and number(note.findtext("duration")) == 0:
                note.insert(0, Element("grace"))


# ---------- directions and ties ----------


def _match_spans(part: Element, changed: set[str]) -> None:
    """Take out pedals, hairpins and octave shifts of kinds that xml2abc does not know, and stops that end nothing."""
    is_open: set[tuple[str, str]] = set()
    for measure in part.findall("measure"):
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
    waiting: dict[tuple, list[tuple[Element, Number]]] = {}  # (voice, step, octave) -> notes with their ends
    start: Number = 0  # of the measure, in quarters
    divisions: Number = 1
    for measure in part.findall("measure"):
        time: Number = 0
        onset: Number = 0
        longest: Number = 0
        for child in measure:
            if child.tag == "attributes":
                divisions = number(child.findtext("divisions")) or divisions
            elif child.tag in ("backup", "forward"):
                length = number(child.findtext("duration")) or 0
                time = max(0, time + (length if child.tag == "forward" else -length))
            elif child.tag == "note" and child.find("grace") is None:
                length = number(child.findtext("duration")) or 0
                if child.find("chord") is None:
                    onset, time = time, time + length
                if waiting or _begins_tie(child):
                    begin = start + Fraction(onset, divisions)
                    _tie(child, begin, begin + Fraction(length, divisions), waiting, changed)
            longest = max(longest, time)
        start += Fraction(longest, divisions)


def _begins_tie(note: Element) -> bool:
    return any(tie.get("type") == "start" for tie in ties(note))


def _tie(note: Element, onset: Fraction, end: Fraction, waiting: dict, changed: set[str]) -> None:
    place = note.findtext("voice"), text_below(note, "pitch", "step"), text_below(note, "pitch", "octave")
    for earlier, its_end in waiting.pop(place, []):
        same = number(note.findtext("pitch/alter") or "0") == number(earlier.findtext("pitch/alter") or "0")
        if abs(its_end - onset) >= Fraction(1, 16):  # what lies between ends the tie, and what it says about the pitch
            _remove_ties(note, "stop")
        elif not same:
            _remove_ties(earlier, "start")
            changed.add("ties to a note of another pitch")
    if place[1] and _begins_tie(note):
        waiting.setdefault(place, []).append((note, end))


def _remove_ties(note: Element, kind: str) -> None:
    for parent in (note, *note.findall("notations")):
        for tie in parent.findall("tie") + parent.findall("tied"):
            if tie.get("type") == kind:
                parent.remove(tie)


# ---------- values ----------


def _fingering(element: Element) -> bool:
    """Whether a fingering has any text; only what may stand in a decoration of ABC is kept."""
    if re.search(r"[^\w.,+-]", element.text or ""):
        element.text = re.sub(r"[^\w.,+-]", "", element.text or "")
    return bool(element.text)


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
    if not is_whole(beats.text):
        counts = [number(count) for count in (beats.text or "").split("+")]
        if any(count is None or count.denominator > 1 for count in counts):
            return False
        beats.text = str(sum(int(count) for count in counts if count))
    whole = unit is not None and is_whole(unit.text)
    return whole and int(beats.text or "") > 0 and 0 < int(unit.text or "") <= 1024  # type: ignore[union-attr]


def _accidental_of(note: Element) -> bool:
    """Whether a note's accidental says what its alter says, if it has one: xml2abc believes the accidental."""
    accidental = note.find("accidental")
    if accidental is None or note.find("pitch") is None:
        return True
    alter = note.findtext("pitch/alter")
    written = ACCIDENTALS.get(accidental.text or "")
    return written is not None and (alter is None or written == number(alter))


def _key(element: Element) -> bool:
    fifths = element.findtext("fifths")
    return not fifths or (is_whole(fifths) and abs(int(fifths)) <= 7)


def _midi(element: Element) -> bool:
    texts = [element.findtext(name) for name in ("midi-channel", "midi-program", "midi-unpitched")]
    loud = [element.findtext(name) for name in ("volume", "pan")]
    return all(text is None or is_whole(text) for text in texts) and all(
        text is None or number(text) is not None for text in loud
    )


def _ratio(element: Element) -> bool:
    texts = [element.findtext(f"{name}-notes") for name in ("actual", "normal")]
    return all(text is not None and is_whole(text) and 0 < int(text) < 1000 for text in texts)


KNOWN: dict[str, Callable[[Element], bool]] = {
    "clef-octave-change": lambda element: is_whole(element.text) and abs(int(element.text or "")) <= 4,
    "chromatic": lambda element: is_whole(element.text),
    "octave-change": lambda element: is_whole(element.text) and abs(int(element.text or "")) <= 4,
    "clef": lambda element: bool(element.findtext("sign")),
    "fingering": _fingering,
    "key": _key,
    "metronome": _metronome,
    "midi-instrument": _midi,
    "mode": lambda element: (element.text or "").lower()[:3] in MODES,
    "time": _time,
    "time-modification": _ratio,
    "tremolo": lambda element: is_whole(element.text) and 0 <= int(element.text or "") <= 8,
    "kind": lambda element: (element.text or "").count("-") <= 1 or element.text == "half-diminished",
    "measure-style": lambda element: element.find("measure-repeat") is None,
    "staff-tuning": lambda element: bool(element.findtext("tuning-step") and element.findtext("tuning-octave")),
    "staff-lines": lambda element: is_whole(element.text) and 0 <= int(element.text or "") <= 20,
}
LOOKED_AT = {*KNOWN, "note", "harmony", "barline", "sound", "words", "rehearsal"}


def _clean_values(root: Element, changed: set[str]) -> None:
    found = [element for element in root.iter() if element.tag in LOOKED_AT]
    if unknown := {element for element in found if element.tag in KNOWN and not KNOWN[element.tag](element)}:
        for parent in root.iter():
            for child in unknown.intersection(parent):
                parent.remove(child)
                changed.add(child.tag)
        found = [element for element in root.iter() if element.tag in LOOKED_AT]
    for element in found:
        if element.tag == "note":
            _clean_note(element, changed)
        if element.tag in ("harmony", "barline"):
            _unquote(element)
        for name in ("tempo", "default-y") if element.tag in ("sound", "words", "rehearsal") else ():
            if name in element.attrib and number(element.attrib[name]) is None:
                element.attrib.pop(name)
                changed.add(f"{element.tag} {name}")
    _join_lines([element for element in found if element.tag in ("note", "harmony", "barline")])


def _clean_note(note: Element, changed: set[str]) -> None:
    alter = first_below(note, "pitch", "alter")
    if alter is not None and not (is_whole(alter.text) and abs(int(alter.text or "")) <= 2):
        _clean_alter(note, alter, changed)
    if not _accidental_of(note):
        note.remove(note.find("accidental"))  # type: ignore[arg-type]
    for lyric in note.findall("lyric"):
        verse = re.sub(r"^.*verse", "", lyric.get("number", "1"))
        if not (is_whole(verse) and 0 <= int(verse) <= MAX_VERSES):
            lyric.attrib.pop("number")
            changed.add("lyric number")
    octave = first_below(note, "unpitched", "display-octave")
    if octave is not None and not (is_whole(octave.text) and abs(int(octave.text or "")) <= MAX_OCTAVE):
        octave.text = "5"
        changed.add("display-octave")


def _clean_alter(note: Element, alter: Element, changed: set[str]) -> None:
    """Round an alteration to quarter tones, and write one of more than two semitones as one of another note."""
    value = number(alter.text) or Fraction(0)
    rounded = round(2 * value) / Fraction(2)
    if rounded != value:
        changed.add("microtones, rounded to quarter tones")
    step, octave = note.find("pitch/step"), note.find("pitch/octave")
    while abs(rounded) > 2 and step is not None and octave is not None and step.text in SEMITONES:
        if abs(rounded) > 12:
            raise ValueError(f"a note altered by {rounded} semitones")
        up = 1 if rounded > 0 else -1
        names = list(SEMITONES)
        at = names.index(step.text) + up
        step.text, octave.text = names[at % 7], str(int(octave.text or "") + at // 7)
        rounded -= up * (2 if SEMITONES[names[at % 7]] - SEMITONES[names[(at - up) % 7]] in (2, -2) else 1)
    alter.text = str(int(rounded) if rounded.denominator == 1 else float(rounded))


def _unquote(parent: Element) -> None:
    """Make double quotes single: in ABC, they would end the text."""
    for element in parent.iter():
        if '"' in (element.text or ""):
            element.text = (element.text or "").replace('"', "'")
        for name, value in element.attrib.items():
            element.set(name, value.replace('"', "'"))


def _join_lines(parents: list[Element]) -> None:
    """Make line breaks of text in `parents` spaces: in ABC, what follows them would be music."""
    elements = list(chain.from_iterable(map(Element.iter, parents)))
    texts = {element.text or "" for element in elements if len(element) == 0}
    values = {value for _, value in chain.from_iterable(map(Element.items, elements))}
    if not any(map(LINE_END.search, texts | values)):  # each text once: a score has few
        return
    for element in elements:
        if len(element) == 0 and element.text and LINE_END.search(element.text):
            element.text = re.sub(r"\s*[\r\n]\s*", " ", element.text.strip())
        for name, value in element.attrib.items():
            if LINE_END.search(value):
                element.set(name, " ".join(value.split()))
