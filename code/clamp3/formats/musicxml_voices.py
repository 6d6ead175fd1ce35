"""The voices of a MusicXML part as ABC has them: in each, one note or chord after another.

MusicXML lets the notes of a voice overlap, and those of a chord differ in length. xml2abc drops or lengthens such
notes, and skips rests that are not longer than a 64th. Measures that hold any of that are written anew, with further
voices; all others stay as they are.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from operator import attrgetter
from xml.etree.ElementTree import Element, SubElement

from clamp3.formats.musicxml_time import Number, first_below, number, written_length

MAX_VOICES = 64  # of a part
Place = tuple[str, str, str]  # step, alter and octave of a note


@dataclass(slots=True)
class Event:
    """What begins at one time in one voice: a note, a chord of notes of one length, or a rest. Times in divisions."""

    voice: str
    staff: str
    onset: Number
    length: Number
    notes: list[Element]
    before: list[Element] = field(default_factory=list)  # grace notes, directions and others
    after: list[Element] = field(default_factory=list)

    @property
    def is_rest(self) -> bool:
        """Whether it is silent in ABC: hidden notes are rests there."""
        return self.notes[0].find("rest") is not None or self.is_hidden

    @property
    def is_hidden(self) -> bool:
        return self.notes[0].get("print-object") == "no"

    def places(self, tie: str) -> set[Place]:
        """Of the notes that have a `tie` of that type."""
        return {_place(note) for note in self.notes if any(found.get("type") == tie for found in ties(note))}


@dataclass
class Measure:
    """The music of a measure, and what stands around it."""

    head: list[Element] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    tail: list[Element] = field(default_factory=list)
    end: Number = 0  # the time at its last element
    length: Number = 0
    sequential: bool = True  # whether xml2abc reads all of it


class Voices:
    """The voices that a part has and those that it is given."""

    def __init__(self, part: Element):
        taken = {note.findtext("voice", "1") for note in part.iterfind("measure/note")}
        self.taken = len(taken)
        self.free = (name for name in map(str, count(1)) if name not in taken)
        self.added: dict[tuple[str, str], list[str]] = {}  # by the voice and staff whose notes they take
        self.tied: dict[str, set[Place]] = {}  # the notes of added voices that a tie binds to the next measure

    def that_may_take(self, event: Event) -> list[str]:
        """The voices that there are for an event, its own first."""
        return [event.voice, *self.added.get((event.voice, event.staff), [])]

    def add(self, event: Event) -> str:
        """One more voice for events like this. Raises ValueError where there are too many."""
        if self.taken + sum(map(len, self.added.values())) >= MAX_VOICES:
            raise ValueError(f"more notes at once than {MAX_VOICES} voices hold")
        self.added.setdefault((event.voice, event.staff), []).append(name := next(self.free))
        return name


def separate_voices(part: Element) -> bool:
    """Have each voice of `part` hold one note or chord at a time; whether anything was changed. Raises ValueError."""
    voices = None
    divisions: Number = 1
    for measure in part.findall("measure"):
        if (stated := first_below(measure, "attributes", "divisions")) is not None:
            divisions = number(stated.text) or divisions
        read = _read(measure, divisions)
        if read.sequential and not (voices and any(voices.tied.values())):
            continue
        voices = voices or Voices(part)
        slack = _slack(measure, divisions)
        lanes = _allot(read.events, voices, slack)
        added = {name for names in voices.added.values() for name in names}
        voices.tied = {name: lane[-1].places("start") for name, lane in lanes.items() if name in added}
        measure[:] = read.head
        for name, lane in lanes.items():
            time = _write(measure, name, lane, slack, read.length)
            _move(measure, "backup", time)
        _move(measure, "forward", read.end)
        measure.extend(read.tail)
    return voices is not None


def _slack(measure: Element, divisions: Number) -> Fraction:
    """How far times may be off: what rounding to whole numbers of divisions makes of all notes, a 384th to a 256th."""
    rounded = 0
    for note in measure.iterfind("note"):
        written, duration = written_length(note), number(note.findtext("duration"))
        rounded += bool(written and duration) and 0 < abs(written * divisions - duration) < 1  # type: ignore[operator]
    return min(max(Fraction(rounded), Fraction(divisions, 96)), Fraction(divisions, 64))


def _is_skipped(gap: Number, measure: Element, divisions: Number) -> bool:
    """Whether xml2abc skips `gap`, of a 64th or less, which is not for rounding alone."""
    return divisions >= 16 * gap > 0 and gap > _slack(measure, divisions)


def _read(measure: Element, divisions: Number) -> Measure:
    """The events of a measure in the order in which they stand."""
    read = Measure()
    waiting: list[Element] = []
    time: Number = 0
    first: Event | None = None  # of the chord that is being read
    for child in measure:
        length = number(child.findtext("duration")) or 0
        if child.tag in ("backup", "forward"):
            read.sequential &= not _is_skipped(length, measure, divisions)
            time = max(0, time - length if child.tag == "backup" else time + length)
            if read.events:
                read.events[-1].after += waiting
                waiting = []
        elif child.tag != "note" or child.find("grace") is not None:
            (waiting if read.events or child.tag == "note" else read.head).append(child)
        elif child.find("chord") is not None and first is not None:
            read.sequential &= _join(child, length, first, read.events)
        else:
            first = Event(child.findtext("voice", "1"), child.findtext("staff", "1"), time, length, [child], waiting)
            read.events.append(first)
            waiting = []
            time += length
        read.length = max(read.length, time)
    read.tail, read.end = waiting, time
    read.sequential = read.sequential and _is_sequence(read.events, measure, divisions)
    return read


def _join(note: Element, length: Number, first: Event, events: list[Event]) -> bool:
    """Add a chord's further note to the event that is as long; whether that is the chord's first.

    Some programs write nonsense for the durations of further notes: of two that look alike, the first one's counts.
    """
    for event in reversed(events):
        if -1 <= event.length - length <= 1 or (event is first and _look_alike(note, event.notes[0])):
            event.notes.append(note)
            return event is first
        if event is first:
            break
    events.append(Event(first.voice, first.staff, first.onset, length, [note]))
    return False


def _look_alike(note: Element, other: Element) -> bool:
    written = written_length(note)
    return written is not None and written == written_length(other)


def _is_sequence(events: list[Event], measure: Element, divisions: Number) -> bool:
    """Whether xml2abc reads all notes: none overlaps another of its voice, and there are no gaps that it skips."""
    before: dict[str, Event] = {}  # by voice: the event that ends last
    for event in sorted(events, key=attrgetter("onset")):
        other = before.get(event.voice)
        end = other.onset + other.length if other else 0
        if other and event.onset < end:
            shown_rest = next((one for one in (event, other) if one.is_rest and not one.is_hidden), None)
            if not shown_rest or other.after or event.before:
                return False
        elif _is_skipped(event.onset - end, measure, divisions):
            return False
        if event.onset + event.length >= end:
            before[event.voice] = event
    return True


def _allot(events: list[Event], voices: Voices, slack: Fraction) -> dict[str, list[Event]]:
    """The events of each voice, in order of time; rests where there is room for them."""
    lanes: dict[str, list[Event]] = {event.voice: [] for event in events}

    def is_free(name: str, event: Event) -> bool:
        lane = lanes.get(name)
        return not lane or lane[-1].onset + lane[-1].length <= event.onset + slack

    def goes_on(name: str, event: Event) -> bool:
        """Whether a tie binds the voice's last notes to `event`."""
        lane = lanes.get(name)
        tied = lane[-1].places("start") if lane else voices.tied.get(name, set())
        return bool(tied & event.places("stop"))

    def meets(rest: Event, other: Event) -> bool:
        start, end = max(rest.onset, other.onset), min(rest.onset + rest.length, other.onset + other.length)
        return end - start > slack

    for event in sorted((event for event in events if not event.is_rest), key=lambda event: event.onset):
        free = [name for name in voices.that_may_take(event) if is_free(name, event)] or [voices.add(event)]
        name = next((name for name in free if goes_on(name, event)), free[0])
        lanes.setdefault(name, []).append(event)
    for event in events:
        if event.is_rest:
            lane = lanes[event.voice]
            if any(meets(event, other) for other in lane):
                _keep_around(event, lane)
            else:
                lane.append(event)
                lane.sort(key=lambda other: other.onset)
    return {name: lane for name, lane in lanes.items() if lane}


def _keep_around(rest: Event, lane: list[Event]) -> None:
    """Give what stands around a rest that is left out to the next event."""
    following = next((event for event in lane if event.onset >= rest.onset), lane[-1])
    following.before[:0] = rest.before + rest.after


def _write(measure: Element, name: str, lane: list[Event], slack: Fraction, length: Number) -> Number:
    """Append the events of a voice to `measure`, with hidden rests between them and at its end; the time there."""
    time: Number = 0
    for event in lane:
        if event.onset - time > slack:
            _rest(measure, event.onset - time, name, event.staff)
            time = event.onset
        measure.extend(event.before)
        for index, note in enumerate(event.notes):
            chord = note.find("chord")
            if index and chord is None:
                note.insert(0, Element("chord"))
            elif not index and chord is not None:
                note.remove(chord)
            measure.append(note)
        measure.extend(event.after)
        for note in (*event.before, *event.notes, *event.after):
            if note.tag == "note":
                voice = note.find("voice")
                (SubElement(note, "voice") if voice is None else voice).text = name
        time += event.length
    if length - time > slack:
        _rest(measure, length - time, name, lane[-1].staff)
        time = length
    return time


def _rest(measure: Element, length: Number, voice: str, staff: str) -> None:
    note = SubElement(measure, "note", {"print-object": "no"})
    SubElement(note, "rest")
    for tag, text in (("duration", str(length)), ("voice", voice), ("staff", staff)):
        SubElement(note, tag).text = text


def _move(measure: Element, tag: str, length: Number) -> None:
    if length:
        SubElement(SubElement(measure, tag), "duration").text = str(length)


def ties(note: Element) -> list[Element]:
    """The ties that a note has, as it sounds and as it is written."""
    return note.findall("tie") + [
        tied for notations in note.findall("notations") for tied in notations.findall("tied")
    ]


def _place(note: Element) -> Place:
    return note.findtext("pitch/step", ""), note.findtext("pitch/alter", ""), note.findtext("pitch/octave", "")
