"""Two small readers of notes, independent of the converters: what a MusicXML score sounds like, and what ABC does.

Both give (onset, duration, pitch) in quarters and in semitones as MIDI counts them, sounding, the notes of all parts
together, tied notes as one. Left out are hidden notes, grace notes, those of no length and chord names; repeats are
played once.
"""

import re
from collections import defaultdict
from fractions import Fraction
from xml.etree import ElementTree

STEPS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
SHARPS = "FCGDAEB"
MODES = {
    "": 0,
    "maj": 0,
    "ion": 0,
    "m": -3,
    "min": -3,
    "aeo": -3,
    "mix": -1,
    "dor": -2,
    "phr": -4,
    "lyd": 1,
    "loc": -5,
}
TUPLETS = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}
ACCIDENTAL = r"((?:\^\^?|__?|=)(?:\d*/\d*)?)"
TOKEN = re.compile(
    r"""\[(?P<field>[A-Za-z]):(?P<value>[^\]]*)\]
    | (?P<skip>"(?:\\.|[^"])*" | ![^!\s]*!)
    | (?P<grace>\{[^}]*\}?)
    | \((?P<tuplet>\d+)(?::(?P<time>\d*))?(?::(?P<count>\d*))?
    | (?P<note>(?P<accidental>(?:\^\^?|__?|=)(?:\d*/\d*)?)?(?P<letter>[A-Ga-gzxZX])(?P<octave>[,']*))
      (?P<length>\d*(?:/+\d*)?)(?P<tie>-?)
    | (?P<chord>\[(?![|\d:])) | \](?P<chord_length>\d*(?:/+\d*)?)(?P<chord_tie>-?)
    | (?P<broken>[<>]+) | (?P<bar>\[?[|:]+\]?)""",
    re.VERBOSE,
)
Notes = list[tuple[Fraction, Fraction, float]]


# ---------- MusicXML ----------


def musicxml_notes(score: bytes) -> Notes:
    """The notes of a score-partwise document; bars that differ in length between parts last as long as the longest."""
    root = ElementTree.fromstring(score)
    parts = [_part(part) for part in root.iterfind("part")]
    bars = max((len(measures) for measures in parts), default=0)
    lengths = [max(part[bar][0] for part in parts if bar < len(part)) for bar in range(bars)]
    notes: Notes = []
    for part in parts:
        start, raw = Fraction(0), []
        for bar, (_, found) in enumerate(part):
            raw += [(start + onset, *rest) for onset, *rest in found]
            start += lengths[bar]
        notes += _bound(raw)
    return sorted(notes)


def _part(part: ElementTree.Element) -> list[tuple[Fraction, list[tuple]]]:
    """Each measure's length and its notes (onset, duration, pitch, voice, ties)."""
    measures, divisions, transposed = [], Fraction(1), 0
    for measure in part.iterfind("measure"):
        time = onset = longest = Fraction(0)
        head = Fraction(0), ("",)  # of a chord: its length and looks
        notes = []
        for child in measure:
            divisions = Fraction(child.findtext("divisions", str(divisions)))
            if (transpose := child.find("transpose")) is not None:
                transposed = int(transpose.findtext("chromatic", "0"))
                transposed += 12 * int(transpose.findtext("octave-change", "0"))
            length = Fraction(child.findtext("duration", "0")) / divisions
            if child.tag in ("backup", "forward"):
                time = max(Fraction(0), time + (length if child.tag == "forward" else -length))
            elif child.tag == "note" and child.find("grace") is None and length:
                if child.find("chord") is None:
                    onset, time, head = time, time + length, (length, _looks(child))
                elif head[1] == _looks(child):
                    length = head[0]
                if child.find("rest") is None and child.get("print-object") != "no":
                    ties = {tie.get("type") for tie in child.findall("tie") + child.findall("notations/tied")}
                    notes.append((onset, length, _pitch(child) + transposed, child.findtext("voice", "1"), ties))
            longest = max(longest, time)
        measures.append((longest, notes))
    return measures


def _looks(note: ElementTree.Element) -> tuple:
    """What a note's length shows in; what programs write as a duration of a chord's further notes is often wrong."""
    shown = note.findtext("type"), len(note.findall("dot")), note.findtext("time-modification/actual-notes")
    return shown if shown[0] else (id(note),)


def _pitch(note: ElementTree.Element) -> float:
    step = note.findtext("pitch/step") or note.findtext("unpitched/display-step") or "E"
    octave = note.findtext("pitch/octave") or note.findtext("unpitched/display-octave") or "5"
    alter = float(note.findtext("pitch/alter") or 0)
    return 12 * (int(octave) + 1) + STEPS[step.strip()] + alter


def _bound(raw: list[tuple]) -> Notes:
    """Notes with those as one that a tie binds: where both ends say so, or the first one and both are of one voice."""
    notes: list[list] = []
    waiting: dict[tuple[float, Fraction], list[tuple[list, str]]] = defaultdict(list)  # (pitch, end) -> notes
    for onset, length, pitch, voice, ties in sorted(raw, key=lambda note: note[:3]):
        candidates = waiting[pitch, onset]
        same = [found for found in candidates if found[1] == voice]
        found = (same or candidates if ties & {"stop", "continue"} else same)[-1:]
        if found:
            candidates.remove(found[0])
            note = found[0][0]
            note[1] += length
        else:
            note = [onset, length, pitch]
            notes.append(note)
        if ties & {"start", "continue"}:
            waiting[pitch, onset + length].append((note, voice))
    return [tuple(note) for note in notes]


# ---------- ABC ----------


def abc_notes(abc: str) -> Notes:
    """The notes of one tune, standard or interleaved."""
    voices: dict[str, _Voice] = {}
    common = {"L": Fraction(1, 2), "K": "", "M": ""}
    current, in_header = "1", True
    for line in abc.split("\n"):
        if line.startswith(("%", "w:", "I:", "U:")) or not line.strip():
            continue
        if line.startswith("V:"):
            current = line[2:].split()[0]
            voices.setdefault(current, _Voice(common)).set_clef(line)
        elif re.match(r"[A-Za-z]:", line):
            name, value = line[0], line[2:].strip()
            if name == "L":
                value = Fraction(value) * 4
            if in_header or current not in voices:
                common[name] = value
            elif name in common:
                voices[current].field(name, value)
            in_header &= name != "K"
        else:
            pieces = re.split(r"\[V:\s*([^\s\]]+)[^\]]*\]", re.sub(r'("(?:\\.|[^"])*")|%.*', r"\1", line))
            for name, music in zip([current, *pieces[1::2]], pieces[0::2], strict=True):
                voices.setdefault(name, _Voice(common)).read(music)
    return sorted(tuple(note) for voice in voices.values() for note in voice.notes)


def _length(text: str) -> Fraction:
    number, slash, divisor = text.partition("/")
    halves = 2 ** (1 + divisor.count("/"))
    return Fraction(int(number or 1), int(divisor.strip("/") or halves) if slash else 1)


def _alter(accidental: str) -> float:
    """The semitones of an accidental such as `^`, `__` or `^3/2`."""
    fraction = accidental.lstrip("^_=")
    return {"^": 1, "_": -1, "=": 0}[accidental[0]] * (_length(fraction) if fraction else len(accidental))


class _Voice:
    """A voice of a tune, read token by token."""

    def __init__(self, common: dict):
        self.notes: list[list] = []
        self.unit, self.metre, self.octaves, self.transposed = common["L"], common["M"], 0, 0
        self.set_key(common["K"])
        self.accidentals: dict[str, float] = {}
        self.now = Fraction(0)
        self.last: list[list] = []
        self.factor = Fraction(1)
        self.tuplet, self.left = Fraction(1), 0
        self.chord: list | None = None
        self.open: dict[str, list] = {}  # name of a note -> the note that a tie binds to the next of that name

    def set_clef(self, line: str) -> None:
        found = re.search(r"([+-])(8|15)\b", line)
        transposed = re.search(r"transpose=(-?\d+)", line)
        if re.search(r"treble|bass|alto|tenor|perc|tab", line):
            self.octaves = {"8": 12, "15": 24}[found[2]] * (1 if found[1] == "+" else -1) if found else 0
        self.transposed = int(transposed[1]) if transposed else self.transposed

    def set_key(self, key: str) -> None:
        found = re.match(r"([A-G])([#b]?)\s*([A-Za-z]*)", key)
        if found is None or key.startswith("none"):
            fifths = 0
        else:
            fifths = SHARPS.index(found[1]) - 1 + 7 * {"#": 1, "b": -1, "": 0}[found[2]] + MODES[found[3].lower()[:3]]
        letters = SHARPS[:fifths] if fifths > 0 else SHARPS[::-1][:-fifths]
        self.signature = dict.fromkeys(letters, 1 if fifths > 0 else -1)

    def field(self, name: str, value) -> None:
        if name == "K":
            if re.match("[A-G]|none", value):
                self.set_key(value)
            self.set_clef(value)
        elif name == "L":
            self.unit = value if isinstance(value, Fraction) else Fraction(value) * 4
        elif name == "M":
            self.metre = value

    def read(self, music: str) -> None:
        for token in TOKEN.finditer(music):
            if token["field"]:
                self.field(token["field"], token["value"].strip())
            elif token["grace"]:
                for accidental, letter, octave in re.findall(ACCIDENTAL + "([A-Ga-g])([,']*)", token["grace"]):
                    self.accidentals[letter + octave] = _alter(accidental)
            elif token["tuplet"]:
                count = int(token["tuplet"])
                compound = bool(re.match(r"(6|9|12)/", self.metre))
                time = int(token["time"] or 0) or TUPLETS.get(count, 3 if compound else 2)
                self.tuplet, self.left = Fraction(time, count), int(token["count"] or 0) or count
            elif token["note"]:
                self.note(token)
            elif token["chord"]:
                self.chord = []
            elif token["chord_length"] is not None and self.chord is not None:
                chord, self.chord = self.chord, None
                factor = _length(token["chord_length"])
                self.add([(n, p, length * factor, tie or token["chord_tie"]) for n, p, length, tie in chord])
            elif token["broken"]:
                short = Fraction(1, 2 ** len(token["broken"]))
                before, self.factor = (2 - short, short) if token["broken"][0] == ">" else (short, 2 - short)
                for note in self.last[1:]:
                    note[1] += self.last[0] * (before - 1)
                self.now += self.last[0] * (before - 1)
            elif token["bar"]:
                self.accidentals.clear()

    def note(self, token: re.Match) -> None:
        letter, length = token["letter"], _length(token["length"])
        if letter in "ZX":  # bars
            beats, _, unit = self.metre.partition("/")
            length *= Fraction(4 * int(beats), int(unit)) / self.unit
        if letter in "zxZX":
            return self.add([(None, None, length, "")])
        name = letter + token["octave"]
        accidental = token["accidental"]
        if accidental:
            self.accidentals[name] = _alter(accidental)
        octave = letter.islower() + token["octave"].count("'") - token["octave"].count(",")
        alter = self.accidentals.get(name, self.signature.get(letter.upper(), 0))
        if name in self.open and not accidental and self.open[name][0] + self.open[name][1] == self.now:
            pitch = self.open[name][2]  # a tie carries an accidental over a barline
        else:
            pitch = float(60 + STEPS[letter.upper()] + 12 * octave + alter + self.octaves + self.transposed)
        if self.chord is None:
            self.add([(name, pitch, length, token["tie"])])
        else:
            self.chord.append((name, pitch, length, token["tie"]))

    def add(self, notes: list[tuple]) -> None:
        """What sounds next; it lasts as long as its first note."""
        scale = self.unit * self.factor * (self.tuplet if self.left else 1)
        self.left -= bool(self.left)
        still, self.open = self.open, {}
        self.last = [notes[0][2] * scale if notes else Fraction(0)]
        for name, pitch, units, tie in notes:
            if name is None:
                continue
            before = still.get(name)
            if before and before[0] + before[1] == self.now and before[2] == pitch:
                before[1] += units * scale
                note = before
            else:
                note = [self.now, units * scale, pitch]
                self.notes.append(note)
            self.last.append(note)
            if tie:
                self.open[name] = note
        self.factor = Fraction(1)
        self.now += self.last[0]
