"""The notes of ABC: units that are never split, their durations, accidentals in force, and macros."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

SILENT = re.compile(r'"[^"]*"|\[[A-Za-z]:[^\]]*\]|![^!\s]*!|\+[^+\s]*\+')  # text, inline fields, decorations
GRACE = re.compile(r"\{[^}]*\}")
ACCIDENTAL = r"(?:[_^=]+(?:\d*/\d*)?)?"  # quarter tones have numbers: ^/F, _3/2B
PITCH = re.compile(rf"({ACCIDENTAL})([A-Ga-g][,']*)")
# A note, chord or rest with its length and what stays behind it, or what belongs to the next.
UNIT = re.compile(
    rf"""{SILENT.pattern}|{GRACE.pattern}
    |(?P<core>\[[^\]]*\]|{ACCIDENTAL}[A-Ga-gxyzXZ][,']*)(?P<length>[\d/]*)(?P<behind>[-)<>\s]*)""",
    re.VERBOSE,
)
LENGTH = re.compile(r"(\d{0,6})(?:(/+)(\d{0,6}))?")
UNIT_LENGTH = re.compile(r"\[?L:\s*(\d{1,6})(?:\s*/\s*(\d{1,6}))?")
TUPLET_START = re.compile(r"\(([2-9])(?::(\d?):?(\d?))?")
USUAL_TUPLETS = {"2": 3, "3": 2, "4": 3, "6": 2, "8": 3}  # how many units they last; others 2, or 3 in compound metres
PHRASE_END = re.compile(r"!(?:breath|caesura|(?:inverted)?fermata|(?:short|medium|long)phrase)!")
SLUR_END, BREATH = 1, 2  # how plainly a phrase ends; line ends count as breaths do
MACRO = re.compile(r"m:\s*([^=]+?)\s*=\s*(.*)")
LONGEST_MACRO = 200  # characters: the limit that ABC's standard names
LETTERS = "CDEFGABcdefgab"
TONIC = re.compile(r"K:\s*([A-G])([#b]?)\s*([A-Za-z]{0,3})")
FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
MODES = {"m": -3, "min": -3, "aeo": -3, "dor": -2, "phr": -4, "lyd": 1, "mix": -1, "loc": -5}  # others are major
SHARPS = "FCGDAEB"
KEY_ACCIDENTAL = re.compile(r"(?<=\s)([_^=]+)([A-Ga-g])\b")
BARLINE_OR_NOTE = re.compile(rf"{SILENT.pattern}|\||{PITCH.pattern}")


# ---------- lengths ----------


@dataclass(frozen=True)
class Unit:
    """Music that stays together: a note or chord with all that belongs to it, a tuplet, or notes of broken rhythm."""

    text: str
    duration: Fraction  # of a whole note
    end: int = 0  # 0, SLUR_END or BREATH
    note: re.Match | None = None  # its UNIT, if it is a single one of plain length, which may be split by a tie

    def split(self, duration: Fraction) -> "tuple[Unit, Unit] | None":
        """Two tied notes, or two rests, the first lasting `duration`; None where ABC cannot write their lengths."""
        if self.note is None or self.note["core"][0] == "[" or not 0 < duration < self.duration:
            return None
        written = length(self.note["length"])
        parts = [written * duration / self.duration, written * (1 - duration / self.duration)]
        if any(part.denominator & (part.denominator - 1) or part.denominator > 64 for part in parts):
            return None
        start = self.text[: len(self.text) - len(self.note["behind"]) - len(self.note["length"])]
        tie = "" if self.note["core"] in "xyzXZ" else "-"
        first = Unit(f"{start}{_written(parts[0])}{tie}", duration)
        text = f"{self.note['core']}{_written(parts[1])}{self.note['behind']}"
        match = UNIT.fullmatch(text)
        return first, Unit(text, self.duration - duration, self.end, match)


@cache
def length(text: str) -> Fraction:
    """The factor that a written length stands for: "3/2", "/", "//" or "". Anything else counts as 1."""
    found = LENGTH.fullmatch(text)
    if not found:
        return Fraction(1)
    below = int(found[3]) if found[3] else 2 ** min(len(found[2] or ""), 10)
    return Fraction(int(found[1] or 1), below or 1)


def _written(factor: Fraction) -> str:
    above = "" if factor.numerator == 1 else str(factor.numerator)
    return above + (f"/{factor.denominator}" if factor.denominator > 1 else "")


def unit_length(text: str, default: Fraction) -> Fraction:
    """The last unit length that `text` names (L:), else `default`."""
    found = UNIT_LENGTH.findall(text)
    return Fraction(int(found[-1][0]), int(found[-1][1] or 1) or 1) if found else default


def units(music: str, unit: Fraction, compound: bool = False) -> Iterator[Unit]:
    """The units of `music`, which joined give it back; `unit` is the unit length, `compound` tells of the metre."""
    at, text, duration, depth = 0, "", Fraction(0), 0
    waiting, factor, broken = 0, Fraction(1), Fraction(1)
    for found in UNIT.finditer(music):
        if not found["core"]:
            continue
        piece, at = music[at : found.end()], found.end()
        bare = GRACE.sub("", SILENT.sub("", piece))
        if "L:" in piece:
            unit = unit_length(piece, unit)
        if tuplet := TUPLET_START.search(bare):
            waiting = int(tuplet[3] or tuplet[1])
            factor = Fraction(int(tuplet[2] or USUAL_TUPLETS.get(tuplet[1], 3 if compound else 2)), int(tuplet[1]))
        lasts = _own_length(found) * unit
        if waiting > 0:
            lasts *= factor
        if broken != 1:
            lasts, broken = lasts * broken, Fraction(1)
        arrows = re.sub(r"[^<>]", "", found["behind"]) if found["behind"] else ""
        if arrows:
            short = Fraction(1, 2 ** min(len(arrows), 10))
            lasts *= (2 - short) if arrows[0] == ">" else short
            broken = short if arrows[0] == ">" else 2 - short
        plain = waiting <= 0 and not text and not arrows
        text, duration = text + piece, duration + lasts if text else lasts
        depth = max(0, depth + len(re.findall(r"\((?!\d)", bare)) - found["behind"].count(")"))
        waiting -= 1
        if waiting <= 0 and not arrows:
            is_splittable = plain and not PHRASE_END.search(text)
            yield Unit(text, duration, _end(text, found["behind"], depth), found if is_splittable else None)
            text, duration = "", Fraction(0)
    if text or at < len(music):
        yield Unit(text + music[at:], duration)


def _own_length(found: re.Match) -> Fraction:
    """The factor of a note's or a chord's length; spacers have none."""
    core = found["core"]
    if core[0] == "y":
        return Fraction(0)
    inner = re.search(r"[A-Ga-gz][,']*([\d/]*)", core) if core[0] == "[" else None
    return length(found["length"]) * (length(inner[1]) if inner else 1)


def _end(text: str, behind: str, depth: int) -> int:
    if "\n" in behind or PHRASE_END.search(text) or "H" in SILENT.sub("", text):
        return BREATH
    return SLUR_END if ")" in behind and not depth else 0


# ---------- accidentals ----------


def carried(text: str, altered: dict[str, str]) -> str:
    """`text` with the accidentals that were in force before a cut written out: `altered` has them by letter."""
    silent = [found.span() for found in SILENT.finditer(text)]
    said: set[str] = set()

    def sign(found: re.Match) -> str:
        if any(start <= found.start() < end for start, end in silent):
            return found[0]
        letter = found[2][0].upper()
        before = "" if found[1] or letter in said else altered.get(letter, "")
        said.add(letter)
        return before + found[0]

    return PITCH.sub(sign, text) if altered else text


def accidentals(text: str) -> dict[str, str]:
    """The accidentals that `text` leaves in force, by letter; they hold in all octaves."""
    return {pitch[0].upper(): sign for sign, pitch in PITCH.findall(SILENT.sub("", text)) if sign}


def key_signs(field: str) -> dict[str, str]:
    """The accidentals of a key field ("K:D dor", "K:E exp _b"), by letter."""
    signs: dict[str, str] = {}
    tonic = TONIC.match(field)
    if tonic and not re.search(r"\bexp\b", field):
        fifths = FIFTHS[tonic[1]] + 7 * {"": 0, "#": 1, "b": -1}[tonic[2]] + MODES.get(tonic[3].lower(), 0)
        letters = SHARPS[: max(fifths, 0)] or SHARPS[::-1][: max(-fifths, 0)]
        signs = dict.fromkeys(letters, "^" if fifths > 0 else "_")
    elif re.match(r"K:\s*Hp", field):
        signs = {"F": "^", "C": "^"}
    return signs | {letter.upper(): sign for sign, letter in KEY_ACCIDENTAL.findall(field)}


def with_all_accidentals(abc: str) -> str:
    """`abc` with accidentals as usual, which hold for a bar, where `%%MIDI nobarlines` limits them to single notes."""
    if not re.search(r"^%%MIDI\s+nobarlines", abc, flags=re.MULTILINE):
        return abc
    limited, key, altered = False, {}, {}  # type: ignore[var-annotated]

    def sign(found: re.Match) -> str:
        nonlocal key
        pitch = found[2]
        if not pitch:
            if found[0].startswith("[K:"):
                key = key_signs(found[0][1:])
            if found[0] == "|" or found[0].startswith(("[K:", "[V:")):
                altered.clear()
            return found[0]
        letter = pitch[0].upper()
        usual = key.get(letter, "=")
        if found[1]:
            altered[letter] = found[1]
        elif altered.pop(letter, usual) != usual:
            return usual + pitch
        return found[0]

    lines = abc.split("\n")
    for index, line in enumerate(lines):
        if found := re.match(r"%%MIDI\s+(no)?barlines", line):
            limited = bool(found[1])
        elif line.startswith("K:"):
            key = key_signs(line)
            altered.clear()
        elif line.startswith("V:"):
            altered.clear()
        elif limited and not re.match(r"%|[A-Za-z]:(?![|:])", line):
            lines[index] = BARLINE_OR_NOTE.sub(sign, line)
    return "\n".join(lines)


# ---------- macros ----------


def with_macros(abc: str) -> str:
    """`abc` with its macros (m:) expanded. One that is longer than LONGEST_MACRO is left as it is."""
    if not re.search(r"^m:", abc, flags=re.MULTILINE):
        return abc
    macros: dict[str, str] = {}
    lines = []
    for line in abc.split("\n"):
        found = MACRO.match(line)
        if found and len(found[2]) <= LONGEST_MACRO:
            macros[found[1]] = found[2].partition("%")[0].rstrip()
            continue
        if not re.match(r"%|[A-Za-z]:(?![|:])", line):
            for name, meaning in macros.items():
                line = _expanded(line, name, meaning)
        lines.append(line)
    return "\n".join(lines)


def _expanded(line: str, name: str, meaning: str) -> str:
    """`line` with `meaning` for `name`. There n is any note; in `meaning`, h to z are it and those near it."""
    before, is_transposing, behind = name.partition("n")
    if not is_transposing:
        return re.sub(re.escape(name) + r"(?![\d/])", lambda _: meaning, line)

    def notes(found: re.Match) -> str:
        letter, octaves = found[1][0], found[1][1:]
        place = LETTERS.index(letter) + 7 * (octaves.count("'") - octaves.count(","))
        return re.sub("[h-z]", lambda near: _pitch(place + ord(near[0]) - ord("n")), meaning)

    return re.sub(rf"{re.escape(before)}([A-Ga-g][,']*){re.escape(behind)}(?![\d/])", notes, line)


def _pitch(place: int) -> str:
    """The note so many steps above C."""
    octave, step = divmod(place, 7)
    return LETTERS[step] + "," * -octave if octave < 1 else LETTERS[7 + step] + "'" * (octave - 1)
