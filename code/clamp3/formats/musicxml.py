"""MusicXML <-> ABC, by abctoolkit's converters, which are written as commands and are run here as functions."""

import gc
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache, reduce
from importlib.util import find_spec, module_from_spec
from math import gcd
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

from clamp3.errors import Note, warn
from clamp3.formats.abc import check_one_tune, check_size, read_abc, split_tunes, with_unit_length
from clamp3.formats.musicxml_cleaning import MAX_CELLS, MENDED, clean
from clamp3.formats.musicxml_time import QUARTERS, number
from clamp3.formats.mxl import extracted, parsed


def _own_copy(name: str) -> Any:
    """A converter's module that only this one uses, and so may change: the converters keep their state in globals."""
    spec = find_spec(f"abctoolkit.{name}")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with warnings.catch_warnings():  # in each process that first compiles it: of strings and names of old Pythons
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


xml2abc = _own_copy("xml2abc")
abc2xml = _own_copy("abc2xml")


def _beats(metre: str) -> int:
    """The beats of a metre's numerator, such as 7 of "2+2+3". Raises ValueError for anything else."""
    if not re.fullmatch(r"[\d+() ]{1,40}", metre):
        raise ValueError(f"no number of beats: {metre[:40]!r}")
    return sum(int(number) for number in re.findall(r"\d+", metre))


abc2xml.eval = _beats  # it evaluates metres as Python code, and so would run what a file says
# The command's options -d 8 -x: unit length 1/8, no line breaks; the others at their defaults.
OPTIONS = SimpleNamespace(
    u=None, m=0, c=0, d=8, n=0, b=0, o="", v=0, x=True, p=[], j=None, t=None, s=None, v1=None, ped=True, stm=False
)
# What they say when they change or leave out notes.
CHANGED = re.compile(r"overlap|smaller then|too small|misplaced|illegal|error in|not recognized|not allowed")
MANY_BRACKETS = re.compile(r"\[{8,}")
# An accidental of a part of a semitone or of more, in music; what is quoted or a decoration is none.
MICROTONE = re.compile(r""""[^"]*"|![^!\s]*!|((?:\^|_)\d*/\d*)(?=[A-Ga-g])""")
MICROTONES = {
    "0.5": "quarter-sharp",
    "-0.5": "quarter-flat",
    "1.5": "three-quarters-sharp",
    "-1.5": "three-quarters-flat",
}
PERCENT = "\ue000"  # stands for it in text, where abc2xml would begin a comment
STRAY_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # a new line for some readers, not for others
LOCK = threading.Lock()  # both converters keep what they work on in global variables


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock, and have Python not look for objects that lead back to themselves: xml2abc makes none.

    It would look through all that the process holds, PyTorch's modules too, for every few scores.
    """
    with LOCK:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


# ---------- MusicXML -> ABC ----------


def musicxml_to_abc(source: bytes | str | Path, note: Note = warn) -> str:
    """The standard ABC of a MusicXML file, given as its bytes or its path: .xml, .musicxml or .mxl, by its content.

    It may hold measures in parts or parts in measures. Unit length 1/8, no line breaks. What the converter cannot
    read and the notes do not need is left out, with a remark. Raises ValueError for what is not MusicXML, is damaged,
    has no notes, or would fill the memory, and OSError where the path cannot be read.
    """
    data, remarks = source if isinstance(source, bytes) else Path(source).read_bytes(), list[str]()
    try:
        with _alone():
            return _converted(data, remarks.append)
    finally:
        for remark in remarks:  # `note` may take its time
            note(remark)


def _converted(data: bytes, note: Note) -> str:
    """As `musicxml_to_abc`."""
    data = extracted(data, note)
    score = _partwise(parsed(data, note))
    changed = clean(score)
    try:
        abc, said = _written(score)
    except Exception as error:  # of any kind, wherever the converter meets what it does not expect
        raise ValueError(f"cannot be converted to ABC: {type(error).__name__}: {error}") from error
    if not abc:
        raise ValueError("no notes")
    if removed := changed - MENDED:
        note(f"read without {', '.join(sorted(removed))}")
    if mended := changed & MENDED:
        note(f"mended: {', '.join(sorted(mended))}")
    _note_changes(said, note)
    return STRAY_LINE_END.sub(" ", abc)


def _written(score: ElementTree.Element) -> tuple[str, list[str]]:
    """What xml2abc makes of `score`, and what it says about it."""
    said = _listen(xml2abc)
    xml2abc.abcOut = output = xml2abc.ABCoutput("", "", 0, OPTIONS)
    output.outfile = io.StringIO()
    _Parser(OPTIONS).parse(score)
    return output.outfile.getvalue(), said


class _Music(xml2abc.Music):  # type: ignore[name-defined]
    """xml2abc's music, with grace notes that are closed where a part ends with them."""

    def outVoices(self, divisions: list[int], part: int, is_sibelius: bool) -> dict[int, int]:
        if self.lastnote is not None and self.lastnote.grace and not self.lastnote.after.endswith("}"):
            self.lastnote.after += "}"
        return super().outVoices(divisions, part, is_sibelius)


class _ByPath:
    """An element as xml2abc asks for what it holds, some 20 times for a note: by paths of one or two names.

    Its answers are the element's own, which take most of the converter's time for paths such as pitch/step.
    """

    def __init__(self, element: ElementTree.Element):
        first: dict[str, ElementTree.Element] = {}
        for child in reversed(element):
            first[child.tag] = child
            for below in reversed(child):
                first[f"{child.tag}/{below.tag}"] = below
        self.element, self.first, self.get, self.find = element, first, element.get, first.get
        self.findtext = {path: found.text or "" for path, found in first.items()}.get

    def findall(self, path: str) -> list[ElementTree.Element]:
        return self.element.findall(path) if path in self.first else []


class _Parser(xml2abc.Parser):  # type: ignore[name-defined]
    """xml2abc's parser, with directions that stay in their part, closed grace notes and notes of the right pitch."""

    def __init__(self, options: SimpleNamespace):
        super().__init__(options)
        self.msc = _Music(options)

    def locStaffMap(self, part: ElementTree.Element, measures: list[ElementTree.Element]) -> None:
        """Begin a part: what an earlier one left open is not of this one."""
        super().locStaffMap(part, measures)
        self.dirStk: dict[str, tuple] = {}
        self.tied: dict[tuple[int, str], str | None] = {}  # (voice, pitch in ABC) -> alter of the note that is tied
        if getattr(self, "pedVce", None) not in self.msc.vnums:
            self.pedVce: int | None = None
        self.ingrace = 0
        self.msc.lastnote = None
        self.grace_voice = ""
        self.transposed = False

    def doAttr(self, attributes: ElementTree.Element) -> None:
        """Attributes; a clef at which a transposition ends says so."""
        super().doAttr(attributes)
        transpose = attributes.find("transpose")
        if transpose is None:
            return
        steps = int(transpose.findtext("chromatic") or 0) + 12 * int(transpose.findtext("octave-change") or 0)
        if self.transposed and not steps:
            for element in (voice[-1] for voice in self.msc.voices.values() if voice):
                if isinstance(element, xml2abc.Elem) and element.str.startswith("[K:"):
                    element.str = f"{element.str[:-1]} transpose=0]"
        self.transposed = bool(steps)

    def doNote(self, note: ElementTree.Element) -> None:
        """A note; one of another voice than the grace notes before it ends them."""
        voice = note.findtext("voice", "1")
        if self.ingrace and voice != self.grace_voice:
            self.msc.lastnote.after += "}"
            self.ingrace = 0
        self.grace_voice = voice
        super().doNote(_ByPath(note))

    def doNotations(self, record: Any, notations: ElementTree.Element, is_tab: bool) -> None:
        super().doNotations(record, _ByPath(notations), is_tab)

    def ntAbc(self, step: str, octave: int, note: _ByPath, voice: int, record: Any, is_tab: bool) -> str:
        """A note's pitch; that at the end of a tie without accidental only where the same pitch began it."""
        place = voice, xml2abc.addoct(step, octave)
        kinds = [tie.get("type") for tie in note.findall("tie") + note.findall("notations/tied")]
        alter = note.findtext("pitch/alter")
        begun = place in self.tied and self.tied.pop(place) == alter
        if "start" in kinds:
            self.tied[place] = alter
        if isinstance(value := number(alter), Fraction):  # whole ones are int
            shown = xml2abc.addoct(step, octave + self.clefOct.get(self.curStf[voice], 0))
            return self._microtone(value, shown, voice)
        if "stop" not in kinds or begun:
            return super().ntAbc(step, octave, note, voice, record, is_tab)
        untied = SimpleNamespace(findtext=note.findtext, findall=lambda path: [])
        return super().ntAbc(step, octave, untied, voice, record, is_tab)

    def _microtone(self, alter: Fraction, pitch: str, voice: int) -> str:
        """A note that is altered by a fraction of a semitone: `^/F`, `_3/2B`."""
        if self.curalts.get((pitch, voice)) == alter:
            return pitch
        self.curalts[pitch, voice] = alter
        size = abs(alter)
        amount = "/" if size == Fraction(1, 2) else f"{size.numerator}/{size.denominator}"
        return f"{'^' if alter > 0 else '_'}{amount}{pitch}"


def _length(note: Any, divisions: int, unit: int) -> str:
    return _length_of(note.dur, note.fact, divisions, unit)


@lru_cache(maxsize=10_000)
def _length_of(duration: int, ratio: tuple[int, int] | None, divisions: int, unit: int) -> str:
    """A duration in ABC: exactly, unless the original's, of 64ths of a unit at most, differs by a rounding alone."""
    original = _original_length(SimpleNamespace(dur=duration, fact=ratio), divisions, unit)
    if duration == 0:
        return original
    factor = Fraction(*ratio) if ratio else 1
    exact = Fraction(unit * duration, 4 * divisions) * factor
    upper, _, lower = original.partition("/")
    rounded = Fraction(int(upper or 1), int(lower or 2) if "/" in original else 1)
    if exact.denominator <= 64 or abs(rounded - exact) <= Fraction(unit, 4 * divisions) * factor:
        return original
    near = max(exact.limit_denominator(1024), Fraction(1, 1024))
    return f"{near.numerator}/{near.denominator}"


def _tuplet(index: int, notes: list, _outer: tuple[int, int]) -> tuple[int, int]:
    """Mark the notes from `index` on that last as long as one ratio says; the last one's index, and how many they are.

    ABC knows no tuplet in a tuplet: of one in another, each stretch of one ratio is a tuplet for itself.
    """
    first, last, count = notes[index], index, 0
    for at in range(index, len(notes)):
        note = notes[at]
        if isinstance(note, xml2abc.Elem) or note.grace:
            continue
        if not note.fact or Fraction(*note.fact) != Fraction(*first.fact) or (count and "start" in note.tup):
            break
        last, count = at, count + 1
        if "stop" in note.tup:
            break
    ratio = f"{first.fact[0]}:{first.fact[1]}:{count}"
    first.tupabc = "(3" if ratio == "3:2:3" else f"({ratio}"
    return last, count


_original_length, xml2abc.abcdur, xml2abc.insTup = xml2abc.abcdur, _length, _tuplet
xml2abc.E = SimpleNamespace(parse=lambda score: score, Element=ElementTree.Element)  # a tree, where it reads a file
xml2abc.chkbug = lambda duration, measure: duration > measure.divs / 16  # the original's, which says so each time


def _partwise(root: ElementTree.Element) -> ElementTree.Element:
    """A score with its measures in parts: as it is, or regrouped where it has parts in measures. Raises ValueError."""
    if (kind := root.tag.rpartition("}")[2]) == "score-partwise":
        return root
    if kind != "score-timewise":
        raise ValueError(f"not MusicXML: its root is <{kind}>")
    root.tag = "score-partwise"
    named = [*root.iterfind("part-list/score-part"), *root.iterfind("measure/part")]
    parts = {part.get("id"): ElementTree.Element("part", id=part.get("id", "")) for part in named}
    if len(parts) * len(root.findall("measure")) > MAX_CELLS:
        raise ValueError(f"{len(parts)} parts of so many measures, where {MAX_CELLS} are the most that are read")
    for measure in root.findall("measure"):
        root.remove(measure)
        for name, part in parts.items():  # all of them, so that one that is not in this measure stays in step
            regrouped = ElementTree.SubElement(part, "measure", measure.attrib)
            for there in measure.iterfind("part"):
                if there.get("id") == name:
                    regrouped.extend(there)
    root.extend(parts.values())
    return root


# ---------- ABC -> MusicXML ----------


def abc_to_musicxml(abc: str, note: Note = warn) -> str:
    """The MusicXML of one tune, in standard or interleaved ABC. Raises ValueError where it holds no notes."""
    check_one_tune(abc)
    check_size(abc)
    tune = with_unit_length(abc if re.search(r"^X:", abc, flags=re.MULTILINE) else f"X:1\n{abc}")
    tune = _in_its_grammar(tune)
    with LOCK:
        said = _listen(abc2xml)
        abc2xml.prevloc = 0
        abc2xml.mxm = builder = _Builder()
        try:
            score = builder.parse(tune)
        except abc2xml.ParseException as error:
            raise ValueError(f"not ABC that can be read: column {error.col} of {error.line[:60]!r}") from None
        except Exception as error:  # of any kind, wherever the converter meets what it does not expect
            raise ValueError(f"cannot be converted to MusicXML: {type(error).__name__}: {error}") from error
    durations = list(score.iter("duration"))
    common = reduce(gcd, (int(duration.text) for duration in durations), _Builder.DIVISIONS)
    for element in (*durations, *score.iter("divisions")):
        element.text = str(int(element.text) // common)
    _note_changes(said, note)
    return abc2xml.fixDoctype(score).replace(PERCENT, "%")


def _in_its_grammar(abc: str) -> str:
    """`abc` with what abc2xml's grammar lacks in other signs: accidentals like `^/`, quotes and `%` in quoted text.

    Of many brackets in a row it would try each as the first of a chord, for minutes.
    """
    abc = MANY_BRACKETS.sub("[", abc)
    if not re.search(r'\\"|"[^"\n]*%|[\^_]\d*/\d*[A-Ga-g]', abc):
        return abc

    def mend(found: re.Match) -> str:
        return f"!{found[1]}!" if found[1] else found[0].replace("%", PERCENT)

    lines = abc.split("\n")
    return "\n".join(
        line if re.match("%|[A-Za-z]:", line) else MICROTONE.sub(mend, line.replace('\\"', "'")) for line in lines
    )


class _Builder(abc2xml.MusicXml):  # type: ignore[name-defined]
    """abc2xml's builder of scores: right on a second tune, on short notes, microtones and bad ties too."""

    # Of a quarter; with abc2xml's own 2520, which is 2^3 * 3^2 * 5 * 7, short notes and those of tuplets are no whole
    # numbers.
    DIVISIONS = 2**9 * 3**2 * 5 * 7 * 11 * 13
    alterTab: dict[str, str]
    accTab: dict[str, str]
    nextdecos: list[str]
    TYPES = {str(4 / Fraction(quarters)): name for name, quarters in QUARTERS.items()}  # by the part of a whole note

    def reset(self, *options: Any) -> None:
        super().reset(*options)
        self.divisions = self.DIVISIONS
        self.usrSyms = dict(self.uSyms)  # else the symbols that a tune defines would hold for the next

    def mkNote(self, note: Any, level: int) -> ElementTree.Element:
        """A note, a rest or a note of a chord; those shorter than a 64th, which abc2xml rounds, at their length."""
        decorations = [*getattr(getattr(note, "deco", None), "t", ()), *self.nextdecos]
        for mark in decorations:
            if found := re.fullmatch(r"!?([\^_])(\d*)/(\d*)!?", mark):
                self._alter(note, found)
        numerator, denominator = note.dur.t
        exact = Fraction(numerator, denominator or 1) * Fraction(*self.unitLcur)
        if exact.denominator <= 64 or (note.name == "rest" and {"Z", "X"} & set(note.t)):
            return super().mkNote(note, level)
        note.dur.t = self.unitLcur[1], 64 * self.unitLcur[0]  # a 64th
        element = super().mkNote(note, level)
        duration = element.find("duration")
        if duration is not None:
            duration.text = str(round(int(duration.text) * 64 * exact))
        dots = 1 if exact.numerator == 3 else 2 if exact.numerator == 7 else 0
        written = element.find("type")
        if written is not None and (name := self.TYPES.get(str(Fraction(exact.denominator, 2**dots)))):
            written.text = name
            at = list(element).index(written) + 1
            for _ in range(dots):
                element.insert(at, ElementTree.Element("dot"))
        return element

    def _alter(self, note: Any, found: re.Match) -> None:
        """Give `note` the accidental of a microtone, which stands among its decorations."""
        alter = Fraction(int(found[2] or 1), int(found[3] or 2)) * (1 if found[1] == "^" else -1)
        sign, value = found[0].strip("!"), str(float(alter))
        self.alterTab = {**self.alterTab, sign: value}
        self.accTab = {**self.accTab, sign: MICROTONES.get(value, "other")}
        note.pitch.t = [sign, *note.pitch.t[-2:]]
        self.nextdecos = [mark for mark in self.nextdecos if mark != found[0]]
        if hasattr(note, "deco"):
            note.deco.t = [mark for mark in note.deco.t if mark != found[0]]

    def mkPitch(self, accidental: str, note: str, octave: int, level: Any) -> Any:
        """The pitch of a note: where it has an accidental of its own, that and no other that a tie brings along."""
        tied = self.ties.get((note, octave))
        if accidental and tied and self.alterTab[accidental] != tied[0]:
            del self.ties[note, octave]
        if accidental and tied and not self.percVoice:  # abc2xml forgets it where a tie says the same
            number_of_octave = (4 if note.isupper() else 5) + int(octave) + self.gtrans
            self.msreAlts[note.upper(), number_of_octave] = self.alterTab[accidental]
        return super().mkPitch(accidental, note, octave, level)


def abc_file_to_musicxml(path: Path, note: Note = warn) -> list[str]:
    """The MusicXML of an ABC file's tunes. Raises ValueError and OSError as `read_abc` and `abc_to_musicxml` do."""
    return [abc_to_musicxml(tune, note) for tune in split_tunes(read_abc(path))]


# ---------- the converters' remarks ----------


def _listen(converter: ModuleType) -> list[str]:
    """What `converter` is going to say, which would else go to the terminal."""
    said: list[str] = []
    converter.info = lambda text, warn=1: said.append(text)  # type: ignore[attr-defined]
    return said


def _note_changes(said: list[str], note: Note) -> None:
    """Note what a converter `said` that it changed or left out, in one line."""
    changes = [text.strip("* ") for text in said if CHANGED.search(text)]
    if changes:
        more = f" (and {len(changes) - 1} like it)" if len(changes) > 1 else ""
        note(f"{changes[0]}{more}")
