"""The XML of a score, from its bytes: plain, in any encoding, or in a zip archive (.mxl)."""

import codecs
import contextlib
import io
import re
import zipfile
from itertools import chain
from pathlib import PurePosixPath
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat

from clamp3.errors import Note, warn

MAX_BYTES = 100 * 2**20  # of a score's XML; an orchestral movement has some 10 MB
MAX_TAGS = 4_000_000  # that movement has some 800,000; each element takes some 200 bytes of memory, more than once
MAX_DEPTH = 900  # of elements within elements: deeper trees cannot be copied or written
CONTAINER = "META-INF/container.xml"
SCORE_EXTENSIONS = (".xml", ".musicxml")
DECLARED = re.compile(r"""^(<\?xml[^>]*?)\s+encoding\s*=\s*(?:"[^"]*"|'[^']*')""")


def extracted(data: bytes, note: Note = warn) -> bytes:
    """The XML in `data`: that of the score if it is a zip archive (.mxl), else `data`. Raises ValueError."""
    if not data:
        raise ValueError("empty file")
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_score_name(archive, note)) as file:
            return file.read(MAX_BYTES + 1)  # whatever the archive says about its size
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise ValueError(f"not a whole .mxl archive: {error}") from error
    except Exception as error:  # of the decompressors: zlib.error, LZMAError, struct.error, …
        raise ValueError(f"not a whole .mxl archive: {type(error).__name__}: {error}") from error


def _score_name(archive: zipfile.ZipFile, note: Note) -> str:
    """The name of the score in `archive`: its container's first root file, or the only score that it holds."""
    names = archive.namelist()
    try:
        named = _root_file(archive)
        for name in (named, unquote(named)):
            if name in names:
                return name
        problem = f"There is no item named {named!r}, which its {CONTAINER} names"
    except (KeyError, ValueError) as error:
        problem = str(error).strip("'\"")
    scores = [name for name in names if _is_score(name)]
    if len(scores) != 1:
        raise zipfile.BadZipFile(problem)
    note(f"{problem}: its only score was read")
    return scores[0]


def _root_file(archive: zipfile.ZipFile) -> str:
    """The path that the container names. Raises KeyError or ValueError where it names none."""
    if CONTAINER not in archive.namelist():
        raise KeyError(f"it has no {CONTAINER}" if _count_scores(archive) != 1 else f"no {CONTAINER}")
    with archive.open(CONTAINER) as file:
        container = file.read(2**20)
    root_name(container)
    root_files = ElementTree.fromstring(container).iterfind(".//{*}rootfile")
    name = next((file.get("full-path") for file in root_files), None)
    if name is None:
        raise ValueError(f"its {CONTAINER} names no score")
    return name


def _count_scores(archive: zipfile.ZipFile) -> int:
    return sum(map(_is_score, archive.namelist()))


def _is_score(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = path.parts[0].upper() in ("META-INF", "__MACOSX") or path.name.startswith(".")
    return not hidden and path.suffix.lower() in SCORE_EXTENSIONS


def root_name(data: bytes) -> str:
    """The name of the root of `data`, if it is XML that is safe to parse; ValueError if not.

    An entity can stand for gigabytes, or for a file of this machine: a document that declares any is refused.
    """
    _check_size(data)
    parser = expat.ParserCreate()
    root = ""

    def refuse(*_: object) -> None:
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


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MB of XML")
    if data.count(b"<") > MAX_TAGS:
        raise ValueError(f"more than {MAX_TAGS} tags of XML")


def parsed(data: bytes, note: Note = warn) -> ElementTree.Element:
    """The root of the XML in `data`, read in its own encoding. Raises ValueError where it is not safe or whole.

    All encodings that expat knows but UTF-16, which has zero bytes, write what declares an entity as ASCII does: where
    nothing does, `data` is parsed once.
    """
    _check_size(data)
    root = None
    if b"<!ENTITY" not in data and b"\0" not in data:
        with contextlib.suppress(ElementTree.ParseError, LookupError, ValueError):
            root = ElementTree.fromstring(data)
    if root is None:
        try:
            root = ElementTree.fromstring(in_its_own_encoding(data, note))
        except ElementTree.ParseError as error:  # of an entity or a prefix that nothing declares
            raise ValueError(f"not whole XML: {error}") from None
    level, depth = [root], 0
    while level:
        level, depth = list(chain.from_iterable(level)), depth + 1
        if depth > MAX_DEPTH:
            raise ValueError("elements within elements, too many to be a score")
    return root


def in_its_own_encoding(data: bytes, note: Note = warn) -> bytes:
    """`data` as it is where it parses; else as UTF-8, if it is text in another encoding than it declares."""
    try:
        root_name(data)
        return data
    except ValueError as error:
        if not str(error).startswith("not whole XML") or "unknown encoding" in str(error):
            raise
        for text, encoding in _readings(data):
            recoded = DECLARED.sub(r"\1", text.lstrip()).encode()
            try:
                root_name(recoded)
            except ValueError:
                continue
            note(f"its XML is not in the encoding that it declares: read as {encoding}")
            return recoded
        raise


def _readings(data: bytes) -> list[tuple[str, str]]:
    """The texts that `data` may be, with their encodings, the likeliest first."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or data[:2] in (b"<\0", b"\0<"):
        little = data.startswith(codecs.BOM_UTF16_LE) or data[:2] == b"<\0"
        encodings = ["utf-16-le" if little else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    readings = []
    for encoding in encodings:
        try:
            readings.append((data.decode(encoding).lstrip("\ufeff"), encoding))
        except UnicodeDecodeError:
            continue
    return readings
