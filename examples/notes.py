"""The notes of one-voice ABC tunes: as MTF, and as sound by a plain synthesizer.

It reads what folk tunes are made of, a hundred times as fast as readers of all ABC do: notes, rests, chords, tuplets,
broken rhythm and changes of key and metre. Grace notes are left out, and repeats are played once.
"""

import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np

TICKS_PER_BEAT = 480  # a beat is a quarter note
TEMPO = 500_000  # microseconds to a beat; the same for all tunes, so that it tells nothing
VELOCITY = 80

PITCHES = {letter: pitch for letter, pitch in zip("CDEFGAB", (60, 62, 64, 65, 67, 69, 71), strict=True)}
FIFTHS = {letter: position for position, letter in enumerate("FCGDAEB", start=-1)}
MODE_FIFTHS = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3, "mix": -1, "dor": -2, "phr": -4, "lyd": 1}
MAJOR_KEYS = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#".split()  # from seven flats to seven sharps
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


def altered(fifths: int) -> dict[str, int]:
    """The letters that a key signature alters, with semitones."""
    letters = "FCGDAEB" if fifths > 0 else "BEADGCF"
    return dict.fromkeys(letters[: abs(fifths)], 1 if fifths > 0 else -1)


@dataclass
class Melody:
    """The notes of a tune, and the signatures it begins with."""

    notes: list[Note] = field(default_factory=list)
    metre: tuple[int, int] | None = None
    fifths: int = 0
    length: float = 0.0  # beats


class Reader:
    """Reads one tune, token by token."""

    def __init__(self, abc: str):
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
        for line in abc.splitlines():
            if re.match(r"[A-Za-z]:", line):
                self.read_field(line[0], line[2:].strip())
            else:
                for token in TOKEN.finditer(line):
                    self.read(token)
        self.melody.length = self.now

    def read_field(self, name: str, value: str) -> None:
        if name == "L" and (match := re.match(r"(\d+)/(\d+)", value)):
            self.unit = 4 * int(match[1]) / int(match[2])
        elif name == "K":
            fifths = fifths_of(value)
            self.signature = altered(fifths)
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
    """The notes of an interleaved ABC tune in one voice."""
    return Reader(abc).melody


def contour(melody: Melody) -> tuple[int, ...]:
    """The steps from note to note, in semitones: what two copies of a tune share in any key, metre and rhythm."""
    pitches = [note.pitch for note in melody.notes]
    return tuple(after - before for before, after in zip(pitches, pitches[1:], strict=False))


def to_mtf(melody: Melody) -> str:
    """The tune as MTF: what `midi_to_mtf` makes of a MIDI file whose notes end by a `note_on` of velocity 0."""
    lines = [f"ticks_per_beat {TICKS_PER_BEAT}"]
    if melody.metre:
        lines.append(f"time_signature {melody.metre[0]} {melody.metre[1]} 24 8 0")
    lines += [f"key_signature {MAJOR_KEYS[melody.fifths + 7]} 0", f"set_tempo {TEMPO} 0"]
    events = []
    for note in melody.notes:
        start, end = (round(beats * TICKS_PER_BEAT) for beats in (note.start, note.start + note.length))
        events += [(start, 1, note.pitch, VELOCITY), (end, 0, note.pitch, 0)]
    before = 0
    for now, _, pitch, velocity in sorted(events):  # at one time, ends come before beginnings
        lines.append(f"note_on {now - before} 0 {pitch} {velocity}")
        before = now
    return "\n".join([*lines, "end_of_track 0"])


# ---------- sound ----------

# The strengths of the harmonics of each instrument, and the seconds in which its tones fade to 1/e.
INSTRUMENTS = {
    "plucked": ((1.0, 0.5, 0.25, 0.12), 0.5),
    "flute": ((1.0, 0.3, 0.05), 8.0),
    "fiddle": ((1.0, 0.8, 0.6, 0.5, 0.3, 0.2), 4.0),
}
LONGEST_TONE = 4.0  # seconds
ATTACK, RELEASE = 0.005, 0.02  # seconds


@cache
def tone(instrument: str, pitch: int, rate: int) -> np.ndarray:
    """`LONGEST_TONE` seconds of a tone, float32 (samples,)."""
    harmonics, decay = INSTRUMENTS[instrument]
    time = np.arange(int(LONGEST_TONE * rate)) / rate
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    wave = sum(
        level * np.sin(2 * np.pi * frequency * number * time)
        for number, level in enumerate(harmonics, 1)
        if frequency * number < rate / 2
    )
    return (wave * np.exp(-time / decay) * np.minimum(1, time / ATTACK)).astype(np.float32)


def to_sound(melody: Melody, seconds: float, rate: int, instrument: str) -> np.ndarray:
    """The first `seconds` of the tune, or all if it is shorter, float32 (samples,) at `rate` Hz."""
    beat = TEMPO / 1e6
    sound = np.zeros(int(min(seconds, melody.length * beat) * rate), np.float32)
    fade = np.linspace(1, 0, int(RELEASE * rate), dtype=np.float32)
    for note in melody.notes:
        first = int(note.start * beat * rate)
        samples = min(int(note.length * beat * rate), int(LONGEST_TONE * rate), len(sound) - first)
        if samples > len(fade):
            wave = tone(instrument, note.pitch, rate)[:samples].copy()
            wave[-len(fade) :] *= fade
            sound[first : first + samples] += wave
    return sound / max(1e-6, np.abs(sound).max()) * np.float32(0.8)
