"""The notes of scores and of MIDI: when each begins and how high it is, whatever the format and the spelling.

The reader of ABC reads what tunes and scores are made of, a hundred times as fast as readers of all ABC do: notes,
rests, chords, tuplets, broken rhythm and changes of key and metre. Grace notes are left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clamp3.formats.abc_notes import key_signs
from clamp3.formats.midi import TIME_FIRST, is_mtf

PITCHES = {letter: pitch for letter, pitch in zip("CDEFGAB", (60, 62, 64, 65, 67, 69, 71), strict=True)}
FIFTHS = {letter: position for position, letter in enumerate("FCGDAEB", start=-1)}
MODE_FIFTHS = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3, "mix": -1, "dor": -2, "phr": -4, "lyd": 1}
ACCIDENTALS = {"^": 1, "_": -1, "=": 0, "^^": 2, "__": -2}
TUPLETS = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # so many notes in the time of so many; others in that of 2, or 3 in 6/8
KEY = re.compile(r"([A-G])([#b]?)\s*([A-Za-z]*)")
TOKEN = re.compile(
    r"""\[(?P<field>[A-Za-z]):(?P<value>[^\]]*)\]
    | (?P<skip>"[^"]*" | ![^!]*! | \{[^}]*\})
    | \((?P<tuplet>\d)(?::(?P<time>\d?))?(?::(?P<count>\d?))?
    | (?P<note>(?P<accidental>\^\^?|__?|=)?(?P<letter>[A-Ga-gzx])(?P<octave>[,']*))(?P<length>\d*(?:/+\d*)?)
    | (?P<chord>\[(?![|\d:])) | \](?P<chord_length>\d*(?:/+\d*)?)
    | (?P<broken>[<>]+) | (?P<tie>-) | (?P<bar>[|:]+)""",
    re.VERBOSE,
)


@dataclass
class Note:
    start: float  # beats
    length: float  # beats
    pitch: int  # MIDI's


def length_of(text: str) -> float:
    """What `3/2`, `/`, `//` and the like multiply the unit length by."""
    number, slash, divisor = text.partition("/")
    halves = 2 ** (1 + divisor.count("/"))
    return int(number or 1) / (int(divisor.strip("/") or halves) if slash else 1)


def fifths_of(key: str) -> int:
    """Sharps (flats: negative) of a `K:` field; 0 where it is none that we know."""
    match = KEY.match(key)
    if not match:
        return 0
    position = FIFTHS[match[1]] + 7 * {"#": 1, "b": -1, "": 0}[match[2]] + MODE_FIFTHS.get(match[3][:3].lower(), 0)
    return max(-7, min(7, position))


@dataclass
class Melody:
    """The notes of a tune, and the signatures it begins with."""

    notes: list[Note] = field(default_factory=list)
    metre: tuple[int, int] | None = None
    fifths: int = 0
    length: float = 0.0  # beats


class Reader:
    """Reads one voice, token by token."""

    def __init__(self) -> None:
        self.melody = Melody()
        self.unit = 0.5  # beats
        self.signature: dict[str, int] = {}
        self.accidentals: dict[str, int] = {}  # of this bar, by letter and octave
        self.now = 0.0
        self.last: list[Note] = []  # what a `>` makes longer: the notes before it
        self.last_length = 0.0
        self.next_factor = 1.0  # for the note behind a `>`
        self.tuplet, self.tuplet_left = 1.0, 0
        self.chord: list[tuple[int, float]] | None = None
        self.tied = False

    def read_line(self, line: str) -> None:
        if re.match(r"[A-Za-z]:", line):
            self.read_field(line[0], line[2:].strip())
            return
        for token in TOKEN.finditer(line):
            self.read(token)

    def read_field(self, name: str, value: str) -> None:
        if name == "L" and (match := re.match(r"(\d+)/(\d+)", value)):
            self.unit = 4 * int(match[1]) / int(match[2])
        elif name == "K":
            fifths = fifths_of(value)
            self.signature = {letter: ACCIDENTALS[sign] for letter, sign in key_signs(f"K:{value}").items()}
            if not self.melody.notes:
                self.melody.fifths = fifths
        elif name == "M" and not self.melody.notes:
            metre = re.match(r"(\d+)/(\d+)", {"C": "4/4", "C|": "2/2"}.get(value, value))
            self.melody.metre = (int(metre[1]), int(metre[2])) if metre else None

    def read(self, token: re.Match) -> None:
        if token["field"]:
            self.read_field(token["field"], token["value"])
        elif token["tuplet"]:
            self.start_tuplet(token)
        elif token["note"]:
            self.read_note(token)
        elif token["chord"]:
            self.chord = []
        elif token["chord_length"] is not None and self.chord is not None:
            chord, self.chord = self.chord, None
            factor = length_of(token["chord_length"])
            self.add([pitch for pitch, _ in chord], max((length for _, length in chord), default=0) * factor)
        elif token["broken"]:
            self.break_rhythm(token["broken"])
        elif token["tie"]:
            self.tied = True
        elif token["bar"]:
            self.accidentals.clear()

    def start_tuplet(self, token: re.Match) -> None:
        notes = int(token["tuplet"])
        compound = self.melody.metre is not None and self.melody.metre[0] % 3 == 0
        time = int(token["time"] or 0) or TUPLETS.get(notes, 3 if compound else 2)
        if notes:
            self.tuplet, self.tuplet_left = time / notes, int(token["count"] or 0) or notes

    def read_note(self, token: re.Match) -> None:
        letter, length = token["letter"], length_of(token["length"]) if token["length"] else 1.0
        if letter in "zx":
            return self.add([], length)
        place = letter + token["octave"]
        if token["accidental"]:
            self.accidentals[place] = ACCIDENTALS[token["accidental"]]
        octave = letter.islower() + token["octave"].count("'") - token["octave"].count(",")
        alteration = self.accidentals.get(place, self.signature.get(letter.upper(), 0))
        pitch = max(0, min(127, PITCHES[letter.upper()] + 12 * octave + alteration))
        if self.chord is None:
            self.add([pitch], length)
        else:
            self.chord.append((pitch, length))

    def add(self, pitches: list[int], units: float) -> None:
        """What sounds next, none for a rest, for so many unit lengths."""
        length = units * self.unit * self.next_factor * (self.tuplet if self.tuplet_left else 1)
        self.tuplet_left -= bool(self.tuplet_left)
        if self.tied and self.last and [note.pitch for note in self.last] == pitches:
            for note in self.last:
                note.length += length
        else:
            self.last = [Note(self.now, length, pitch) for pitch in pitches]
            self.melody.notes += self.last
        self.last_length, self.next_factor, self.tied = length, 1.0, False
        self.now += length

    def break_rhythm(self, marks: str) -> None:
        short = 0.5 ** len(marks)
        factor, self.next_factor = (2 - short, short) if marks[0] == ">" else (short, 2 - short)
        for note in self.last:
            note.length *= factor
        self.now += self.last_length * (factor - 1)


def read_melody(abc: str) -> Melody:
    """The notes of an interleaved ABC tune in one voice, repeats once."""
    reader = Reader()
    for line in abc.splitlines():
        reader.read_line(line)
    reader.melody.length = reader.now
    return reader.melody


# ---------- whole pieces ----------

GRID = 24  # places in a quarter note
DRUMS = 9  # the channel of MIDI
UNPITCHED = 1000  # is added to the pitches of drums
VOICE = re.compile(r"\[V:\s*([^\]\s]+)[^\]]*\]")
BAR_END = re.compile(r"(?P<marks>[:|\[\]]+)\s*(?P<numbers>\d[\d,-]*)?\s*$")
BAR_START = re.compile(r"\s*\[(\d[\d,-]*)")
QUOTED = re.compile(r'"[^"]*"')
SHIFT = re.compile(
    r"(?<![^\s\w])(?:(?P<eighth>[+-]8)(?:va)?\b|octave=(?P<octaves>-?\d+)|transpose=(?P<semitones>-?\d+))"
)
LONGEST = 20  # times the written bars, for which repeats are followed


@dataclass(frozen=True)
class Score:
    """When the notes of a piece begin, in GRID-ths of a quarter note from the first on, and their pitches, as MIDI's.

    In order of time, then of pitch; two notes of one pitch that begin together are one. Drums are above UNPITCHED.
    """

    starts: np.ndarray  # (n,) int64
    pitches: np.ndarray  # (n,) int64

    @classmethod
    def of(cls, notes: Sequence[tuple[float, int]]) -> "Score":
        """From (beats, pitch) in any order."""
        if not notes:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        first = min(start for start, _ in notes)
        # A little more than half, so that rounding errors of a third do not decide about a half.
        placed = sorted({(int((start - first) * GRID + 0.5 + 1e-4), pitch) for start, pitch in notes})
        starts, pitches = np.array(placed, np.int64).T
        return cls(starts, pitches)

    def top_line(self) -> np.ndarray:
        """The highest pitch (n,) at each time at which a note begins, drums aside."""
        pitched = self.pitches < UNPITCHED
        starts, pitches = self.starts[pitched], self.pitches[pitched]
        return pitches[np.append(starts[1:] != starts[:-1], True)] if len(starts) else pitches


def scores_of(text: str) -> list[Score]:
    """What a text that models take, interleaved ABC or MTF, sounds like; of ABC with repeats once, and as played.

    One where these are the same, and none where there are no notes.
    """
    found = [Score.of(_midi_notes(text))] if is_mtf(text) else _abc_scores(text)
    return [score for score in found if len(score.starts)]


def _midi_notes(mtf: str) -> list[tuple[float, int]]:
    lines = mtf.split("\n")
    ticks_per_beat, now, notes = max(1, int(lines[0].split()[1])), 0, []
    for words in (line.split() for line in lines[1:]):
        if len(words) < 2:
            continue
        now += int(words[1] if words[0] in TIME_FIRST else words[-1])
        if words[0] == "note_on" and words[4] != "0":
            notes.append((now / ticks_per_beat, int(words[3]) + UNPITCHED * (int(words[2]) == DRUMS)))
    return notes


@dataclass
class Bar:
    """A bar of all voices."""

    length: float = 0.0  # beats
    notes: list[tuple[float, int]] = field(default_factory=list)  # beats from its start, pitch
    opens: bool = False  # behind it, a repeated part begins
    closes: bool = False  # it is the last of one
    ends: bool = False  # it is the last of a part
    numbers: frozenset[int] = frozenset()  # of the times at which the ending that begins with it is played
    numbers_behind: frozenset[int] = frozenset()  # of the ending that begins behind it


def _abc_scores(abc: str) -> list[Score]:
    bars = read_bars(abc)
    written = list(range(len(bars)))
    orders = [written] if (played := played_order(bars)) == written else [written, played]
    scores = []
    for order in orders:
        now, notes = 0.0, []
        for bar in (bars[number] for number in order):
            notes += [(now + start, pitch) for start, pitch in bar.notes]
            now += bar.length
        scores.append(Score.of(notes))
    return scores


def read_bars(abc: str) -> list[Bar]:
    """The bars of interleaved ABC; voices that differ in length are brought together at each barline."""
    readers: dict[str, Reader] = {}
    shifts: dict[str, int] = {}
    header: list[str] = []
    bars: list[Bar] = []
    for line in abc.splitlines():
        _, *parts = VOICE.split(line) if line.startswith("[V:") else [""]
        if not parts:
            header.append(line)
            for reader in readers.values():
                reader.read_line(line)
            continue
        bar = Bar()
        for voice, music in zip(parts[::2], parts[1::2], strict=True):
            if voice not in readers:
                readers[voice] = Reader()
                for field_line in header:
                    readers[voice].read_line(field_line)
                shifts[voice] = shift_of(header, voice)
            _read_bar(bar, readers[voice], music, shifts[voice])
        _read_barline(bar, bars, parts[1])
        bars.append(bar)
    return bars


def shift_of(header: Sequence[str], voice: str) -> int:
    """The semitones by which a voice sounds higher than it is written, as its clef and properties say."""
    lines = [line for line in header if re.match(rf"V:\s*{re.escape(voice)}(?:\s|$)", line)]
    return sum(
        (12 if found["eighth"][0] == "+" else -12)
        if found["eighth"]
        else 12 * int(found["octaves"])
        if found["octaves"]
        else int(found["semitones"])
        for found in SHIFT.finditer(QUOTED.sub("", lines[-1] if lines else ""))
    )


def _read_bar(bar: Bar, reader: Reader, music: str, shift: int) -> None:
    known = len(reader.melody.notes)
    for overlaid in QUOTED.sub("", music).split("&"):
        reader.now = 0.0
        reader.read_line(overlaid)
        bar.length = max(bar.length, reader.now)
    bar.notes += [(note.start, note.pitch + shift) for note in reader.melody.notes[known:]]


def _read_barline(bar: Bar, before: list[Bar], music: str) -> None:
    """Note what the barlines around the music of a voice say of repeats."""
    if found := BAR_START.match(QUOTED.sub("", music)):
        bar.numbers = _numbers(found[1])
    if before and before[-1].numbers_behind:
        bar.numbers = before[-1].numbers_behind
    if found := BAR_END.search(music):
        marks = found["marks"]
        bar.closes, bar.opens = marks.startswith(":"), len(marks) > 1 and marks.endswith(":")
        bar.ends = bar.closes or bar.opens or "||" in marks or "]" in marks
        bar.numbers_behind = _numbers(found["numbers"] or "")


def _numbers(text: str) -> frozenset[int]:
    """The numbers in "1,2" or "1-3"."""
    found = set()
    for part in re.findall(r"(\d{1,2})(?:-(\d{1,2}))?", text):
        found |= set(range(int(part[0]), int(part[1] or part[0]) + 1))
    return frozenset(found)


def played_order(bars: Sequence[Bar]) -> list[int]:
    """The places of bars in the order in which they are played."""
    order: list[int] = []
    start, turn, most, place = 0, 1, 1, 0
    while place < len(bars) and len(order) <= LONGEST * len(bars):
        bar = bars[place]
        if bar.numbers:
            most = max(most, *bar.numbers)
            if turn > 1 and turn not in bar.numbers:
                place = _behind_ending(bars, place)
                continue
        order.append(place)
        place += 1
        if place < len(bars):  # the next ending may be for more turns
            most = max(most, *bars[place].numbers, 1)
        if bar.closes and turn < max(most, 2):
            turn, place = turn + 1, start
        elif bar.closes or bar.opens or (bar.ends and turn > 1):
            while turn > 1 and place < len(bars) and bars[place].numbers:  # an ending that was played before
                place = _behind_ending(bars, place)
            start, turn, most = place, 1, 1
    return order


def _behind_ending(bars: Sequence[Bar], place: int) -> int:
    """The place behind the ending that begins at `place`."""
    while place < len(bars) and not bars[place].ends:
        place += 1
    return place + 1
