"""MusicXML <-> ABC, by abctoolkit's converters, which are written as commands and are run here as functions."""

import io
import re
import threading
import warnings
from functools import reduce
from math import gcd
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

from clamp3.errors import Note, warn
from clamp3.formats.abc import check_one_tune, read_abc, split_tunes, with_unit_length
from clamp3.formats.musicxml_cleaning import MENDED, clean
from clamp3.formats.mxl import extracted, in_its_own_encoding, root_name

with warnings.catch_warnings():  # for each process that first compiles them: of strings and names of old Pythons
    warnings.simplefilter("ignore")
    from abctoolkit import abc2xml, xml2abc
# The command's options -d 8 -x: unit length 1/8, no line breaks; the others at their defaults.
OPTIONS = SimpleNamespace(
    u=None, m=0, c=0, d=8, n=0, b=0, o="", v=0, x=True, p=[], j=None, t=None, s=None, v1=None, ped=True, stm=False
)
# What they say when they change or leave out notes.
CHANGED = re.compile(r"overlap|smaller then|too small|misplaced|illegal|error in|not recognized|not allowed")
STRAY_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # a new line for some readers, not for others
LOCK = threading.Lock()  # both converters keep what they work on in global variables


# ---------- MusicXML -> ABC ----------


def musicxml_to_abc(source: bytes | str | Path, note: Note = warn) -> str:
    """The standard ABC of a MusicXML file, given as its bytes or its path: .xml, .musicxml or .mxl, by its content.

    It may hold measures in parts or parts in measures. Unit length 1/8, no line breaks. What the converter cannot
    read and the notes do not need is left out, with a remark. Raises ValueError for what is not MusicXML, is damaged,
    has no notes, or would fill the memory, and OSError where the path cannot be read.
    """
    data = extracted(source if isinstance(source, bytes) else Path(source).read_bytes(), note)
    score = _partwise(in_its_own_encoding(data, note))
    tree = ElementTree.fromstring(score)
    try:
        before = ElementTree.tostring(tree)
        changed = clean(tree)
        after = ElementTree.tostring(tree)
    except RecursionError:
        raise ValueError("elements within elements, too many to be a score") from None
    try:
        abc, said = _written(score if after == before else after)
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


def _written(score: bytes) -> tuple[str, list[str]]:
    """What xml2abc makes of `score`, and what it says about it."""
    with LOCK:
        said = _listen(xml2abc)
        xml2abc.abcOut = output = xml2abc.ABCoutput("", "", 0, OPTIONS)
        output.outfile = io.StringIO()
        _Parser(OPTIONS).parse(io.BytesIO(score))
        return output.outfile.getvalue(), said


class _Parser(xml2abc.Parser):
    """xml2abc's parser, with directions that stay in their part, closed grace notes and ties of the right pitch."""

    def locStaffMap(self, part: ElementTree.Element, measures: list[ElementTree.Element]) -> None:
        """Begin a part: what an earlier one left open is not of this one."""
        super().locStaffMap(part, measures)
        self.dirStk: dict[str, tuple] = {}
        self.tied: dict[tuple[int, str], str | None] = {}  # (voice, pitch in ABC) -> alter of the note that is tied
        if getattr(self, "pedVce", None) not in self.msc.vnums:
            self.pedVce: int | None = None
        self.ingrace = 0
        part_end = measures[-1] if measures else part
        last = [note for note in part.iterfind("measure/note")][-1:]
        if last and last[0].find("grace") is not None and last[0].find("chord") is None:
            rest = ElementTree.SubElement(part_end, "note")  # of no length: it closes the brace
            ElementTree.SubElement(rest, "rest")
            ElementTree.SubElement(rest, "voice").text = last[0].findtext("voice", "1")
            ElementTree.SubElement(rest, "duration").text = "0"

    def ntAbc(self, step: str, octave: int, note: ElementTree.Element, voice: int, record: Any, is_tab: bool) -> str:
        """A note's pitch; that at the end of a tie without accidental only where the same pitch began it."""
        place = voice, xml2abc.addoct(step, octave)
        kinds = [tie.get("type") for tie in note.findall("tie") + note.findall("notations/tied")]
        alter = note.findtext("pitch/alter")
        begun = place in self.tied and self.tied.pop(place) == alter
        if "start" in kinds:
            self.tied[place] = alter
        if "stop" not in kinds or begun:
            return super().ntAbc(step, octave, note, voice, record, is_tab)
        untied = ElementTree.Element("note")
        untied.extend(child for child in note if child.tag in ("pitch", "accidental", "unpitched"))
        return super().ntAbc(step, octave, untied, voice, record, is_tab)


def _partwise(score: bytes) -> bytes:
    """`score` with its measures in parts: as it is, or regrouped where it has parts in measures. Raises ValueError."""
    if (kind := root_name(score)) == "score-partwise":
        return score
    if kind != "score-timewise":
        raise ValueError(f"not MusicXML: its root is <{kind}>")
    root = ElementTree.fromstring(score)
    root.tag = "score-partwise"
    named = [*root.iterfind("part-list/score-part"), *root.iterfind("measure/part")]
    parts = {part.get("id"): ElementTree.Element("part", id=part.get("id", "")) for part in named}
    for measure in root.findall("measure"):
        root.remove(measure)
        for name, part in parts.items():  # all of them, so that one that is not in this measure stays in step
            regrouped = ElementTree.SubElement(part, "measure", measure.attrib)
            for there in measure.iterfind("part"):
                if there.get("id") == name:
                    regrouped.extend(there)
    root.extend(parts.values())
    return ElementTree.tostring(root)


# ---------- ABC -> MusicXML ----------


def abc_to_musicxml(abc: str, note: Note = warn) -> str:
    """The MusicXML of one tune, in standard or interleaved ABC. Raises ValueError where it holds no notes."""
    check_one_tune(abc)
    tune = with_unit_length(abc if re.search(r"^X:", abc, flags=re.MULTILINE) else f"X:1\n{abc}")
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
    return abc2xml.fixDoctype(score)


class _Builder(abc2xml.MusicXml):
    """abc2xml's builder of scores, with what it needs to be right on a second tune, on short notes and on bad ties."""

    DIVISIONS = 8 * 2520  # of a quarter; with abc2xml's own 2520 a dotted 64th, or one in a tuplet, is no whole number

    def reset(self, *options: Any) -> None:
        super().reset(*options)
        self.divisions = self.DIVISIONS
        self.usrSyms = dict(self.uSyms)  # else the symbols that a tune defines would hold for the next

    def mkPitch(self, accidental: str, note: str, octave: int, level: Any) -> Any:
        """The pitch of a note: where it has an accidental of its own, that and no other that a tie brings along."""
        tied = self.ties.get((note, octave))
        if accidental and tied and self.alterTab[accidental] != tied[0]:
            del self.ties[note, octave]
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
