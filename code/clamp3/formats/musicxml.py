"""MusicXML <-> ABC, by abctoolkit's converters, which are written as commands and are run here as functions."""

import io
import re
import threading
import warnings
import zipfile
from functools import reduce
from math import gcd
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat

from clamp3.errors import Note, warn
from clamp3.formats.abc import check_one_tune, read_abc, split_tunes, with_unit_length

with warnings.catch_warnings():  # for each process that first compiles them: of strings and names of old Pythons
    warnings.simplefilter("ignore")
    from abctoolkit import abc2xml, xml2abc
MAX_BYTES = 100 * 2**20  # of a score's XML; an orchestral movement has some 10 MB
CONTAINER = "META-INF/container.xml"
SCORE_EXTENSIONS = (".xml", ".musicxml")
# The command's options -d 8 -x: unit length 1/8, no line breaks; the others at their defaults.
OPTIONS = SimpleNamespace(
    u=None, m=0, c=0, d=8, n=0, b=0, o="", v=0, x=True, p=[], j=None, t=None, s=None, v1=None, ped=True, stm=False
)
# What they say when they change or leave out notes.
CHANGED = re.compile(r"overlap|smaller then|too small|misplaced|illegal|error in|not recognized|not allowed")
# Elements of whose values xml2abc does not expect all.
ACCIDENTALS = ("double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp")
MODES = ("maj", "ion", "m", "min", "aeo", "mix", "dor", "phr", "lyd", "loc", "non")
KNOWN = {
    "accidental": lambda element: element.text in ACCIDENTALS,
    "lyric": lambda element: element.get("number", "1").isdecimal(),
    "metronome": lambda element: re.search(r"\d", element.findtext("per-minute", "")),
    "mode": lambda element: (element.text or "").lower()[:3] in MODES,
}
ENDLESS_OCTAVE = re.compile(rb"octave(-change)?\s*>\s*[+-]?\d{3}")  # ABC writes a sign for each octave
STRAY_LINE_END = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # a new line for some readers, not for others
LOCK = threading.Lock()  # both converters keep what they work on in global variables


# ---------- MusicXML -> ABC ----------


def musicxml_to_abc(source: bytes | str | Path, note: Note = warn) -> str:
    """The standard ABC of a MusicXML file, given as its bytes or its path: .xml, .musicxml or .mxl, by its content.

    It may hold measures in parts or parts in measures. Unit length 1/8, no line breaks. Raises ValueError for what is
    not MusicXML, is damaged, has no notes, or would fill the memory, and OSError where the path cannot be read.
    """
    score = _partwise(extracted(source if isinstance(source, bytes) else Path(source).read_bytes(), note))
    if ENDLESS_OCTAVE.search(score):
        raise ValueError("it has an octave of three digits or more")
    try:
        abc, said = _written(score)
    except Exception as error:  # of any kind, wherever the converter meets what it does not expect
        lesser, removed = _without_oddities(score)
        try:
            abc, said = _written(lesser)
        except Exception:
            raise ValueError(f"cannot be converted to ABC: {type(error).__name__}: {error}") from error
        note(f"read without {removed}")
    if not abc:
        raise ValueError("no notes")
    _note_changes(said, note)
    return STRAY_LINE_END.sub(" ", abc)


def _written(score: bytes) -> tuple[str, list[str]]:
    """What xml2abc makes of `score`, and what it says about it."""
    with LOCK:
        said = _listen(xml2abc)
        xml2abc.abcOut = output = xml2abc.ABCoutput("", "", 0, OPTIONS)
        output.outfile = io.StringIO()
        xml2abc.Parser(OPTIONS).parse(io.BytesIO(score))
        return output.outfile.getvalue(), said


def _partwise(score: bytes) -> bytes:
    """`score` with its measures in parts: as it is, or regrouped where it has parts in measures. Raises ValueError."""
    if (kind := _root(score)) == "score-partwise":
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


def _without_oddities(score: bytes) -> tuple[bytes, str]:
    """`score` without what is allowed but stops xml2abc, and the names of what was taken out."""
    tree = ElementTree.fromstring(score)
    removed = set()
    for parent in tree.iter():
        for child in list(parent):
            odd = child.tag in KNOWN and not KNOWN[child.tag](child)
            if odd and child.tag == "lyric":
                child.attrib.pop("number")
            elif odd:
                parent.remove(child)
            if odd:
                removed.add(child.tag)
    return ElementTree.tostring(tree), ", ".join(sorted(removed))


def extracted(data: bytes, note: Note = warn) -> bytes:
    """The XML in `data`: that of the score if it is a zip archive (.mxl), else `data`. Raises ValueError."""
    if not data:
        raise ValueError("empty file")
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_score_name(archive, note)) as file:
            score = file.read(MAX_BYTES + 1)  # whatever the archive says about its size
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ValueError(f"not a whole .mxl archive: {error}") from error
    except Exception as error:  # of the decompressors: zlib.error, LZMAError, struct.error, …
        raise ValueError(f"not a whole .mxl archive: {type(error).__name__}: {error}") from error
    return score


def _score_name(archive: zipfile.ZipFile, note: Note) -> str:
    """The name of the score in `archive`: its container's first root file."""
    names = archive.namelist()
    if CONTAINER not in names:
        scores = [name for name in names if name.lower().endswith(SCORE_EXTENSIONS)]
        if len(scores) != 1:
            raise zipfile.BadZipFile(f"it has no {CONTAINER}")
        note(f"no {CONTAINER}: its only score was read")
        return scores[0]
    with archive.open(CONTAINER) as file:
        container = file.read(2**20)
    _root(container)
    root_files = ElementTree.fromstring(container).iterfind(".//{*}rootfile")
    name = next((file.get("full-path") for file in root_files), None)
    if name is None:
        raise zipfile.BadZipFile(f"its {CONTAINER} names no score")
    return name if name in names else unquote(name)


def _root(data: bytes) -> str:
    """The name of the root of `data`, if it is XML that is safe to parse; ValueError if not.

    An entity can stand for gigabytes, or for a file of this machine: a document that declares any is refused.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MB of XML")
    parser = expat.ParserCreate()
    root = ""

    def refuse(*_: Any) -> None:
        raise ValueError("declares XML entities, which are refused, for they could fill the memory")

    def note_root(name: str, _attributes: dict) -> None:
        nonlocal root
        root = name.rpartition(":")[2]
        parser.StartElementHandler = None

    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = note_root
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: of an encoding that there is not
        raise ValueError(f"not whole XML: {error}") from None
    return root


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
