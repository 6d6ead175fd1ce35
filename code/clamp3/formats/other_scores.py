"""Scores that are not MusicXML: Humdrum and MEI are converted to it by converter21, MuseScore's files by MuseScore.

converter21 (with music21) prints and warns about what it reads. So it works in a process of its own, or in a worker
process, whose output nobody sees.
"""

import contextlib
import io
import multiprocessing
import re
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from clamp3.errors import Note, warn
from clamp3.formats.musicxml import musicxml_to_abc
from clamp3.formats.mxl import in_its_own_encoding, root_name

HUMDRUM, MEI = "humdrum", "mei"
ABOUT = re.compile(
    rb"^!!!(?!RDF).*\n?", re.MULTILINE
)  # titles and so on, which converter21 4.0 and music21 10 dispute
TIME_LIMIT = 300  # seconds
START = "import sys; sys.path[:] = {path!r}; from clamp3.formats.other_scores import main; main({kind!r})"


def humdrum_to_abc(source: bytes | Path, note: Note = warn) -> str:
    """The standard ABC of a Humdrum file (.krn), given as its bytes or its path. Raises as `musicxml_to_abc` does."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not re.search(rb"^(?:.*\t)?\*\*(?:kern|mens)", data, flags=re.MULTILINE):
        raise ValueError("not Humdrum with notes: it has no spine **kern")
    return musicxml_to_abc(_to_musicxml(ABOUT.sub(b"", data), HUMDRUM), note)


def mei_to_abc(source: bytes | Path, note: Note = warn) -> str:
    """The standard ABC of an MEI file, given as its bytes or its path. Raises as `musicxml_to_abc` does."""
    data = in_its_own_encoding(source if isinstance(source, bytes) else source.read_bytes(), note)
    if (kind := root_name(data)) not in ("mei", "music"):
        raise ValueError(f"not MEI: its root is <{kind}>")
    tree = ElementTree.fromstring(data)
    for head in tree.iterfind("{*}meiHead"):
        head.clear()
    data = ElementTree.tostring(tree, encoding="utf-8")
    return musicxml_to_abc(_to_musicxml(data, MEI), note)


def refuse_musescore(source: Path, note: Note = warn) -> str:
    """Raise ValueError, which says how to convert a MuseScore file."""
    command = shlex.join(["mscore", "-o", f"{source.stem}.mxl", source.name])
    raise ValueError(f"a MuseScore file: convert it with MuseScore first ({command})")


def _to_musicxml(data: bytes, kind: str) -> bytes:
    """The MusicXML of a score of `kind`. Raises ValueError where converter21 is missing or cannot read it."""
    if find_spec("converter21") is None:
        raise ValueError('reading it takes converter21: pip install "clamp3[scores]"')
    if multiprocessing.parent_process() is not None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return _converted(data, kind)
    command = [sys.executable, "-c", START.format(path=sys.path, kind=kind)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise ValueError(f"takes longer than {TIME_LIMIT} s") from None
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "cannot be converted")
    return done.stdout


def _converted(data: bytes, kind: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from converter21 import HumdrumConverter, MEIConverter
        from music21.musicxml.m21ToXml import GeneralObjectExporter
        from music21.stream import Opus

        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        try:
            score = {HUMDRUM: HumdrumConverter, MEI: MEIConverter}[kind]().parseData(text)
            if isinstance(score, Opus):
                raise ValueError(f"holds {len(score.scores)} pieces: take them one by one")
            return GeneralObjectExporter(score).parse()
        except ValueError:
            raise
        except Exception as error:  # of any kind, wherever the converter meets what it does not expect
            raise ValueError(f"cannot be converted to MusicXML: {type(error).__name__}: {error}") from error


def main(kind: str) -> None:
    """Convert the score in standard input, in a process of its own; an error is the last line of standard error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            score = _converted(sys.stdin.buffer.read(), kind)
    except ValueError as error:
        sys.exit(" ".join(str(error).split()))
    sys.stdout.buffer.write(score)
