"""Files that are made to harm their readers: bombs, endless structures, pickles, paths that lead elsewhere.

Each is one input of a parser of `parsers`, and is read or refused within the limits of `fuzz`.
"""

import io
import json
import pickle
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from parsers import Wrong, cache_samples, index_folder, musicxml_samples, record_samples

MARKER = Path(tempfile.gettempdir()) / "clamp3_attack_has_run"
GIB = 1 << 30
DEEP = 200_000
CONTAINER = '<container><rootfiles><rootfile full-path="{}"/></rootfiles></container>'


class Payload:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (MARKER,))


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=9) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_bomb(name: str, start: bytes = b"", size: int = 2 * GIB) -> bytes:
    """A zip archive of one member: `start`, and so many blanks, in a thousandth of the space."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(b" " * (1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # the same whatever stands before it
    data += block * (size >> 24) + squeeze.flush()
    about = (0, 8, 0, 0, 0xBAD, len(data), len(start) + size, len(name), 0)
    member = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *about) + name.encode() + data
    listed = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *about, 0, 0, 0, 0, 0) + name.encode()
    return member + listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed), len(member), 0)


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npy(header: bytes, version: bytes = b"\x02\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<I", len(header)) + header + bytes(64)


def entities(encoding: str = "utf-8") -> bytes:
    declared = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE score-partwise [<!ENTITY e0 "boom">{declared}]><score-partwise>&e11;</score-partwise>'
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding != "utf-8" else ""
    return (head + text).encode(encoding)


def nested_xml() -> bytes:
    """A score with elements within elements."""
    score = musicxml_samples()[-1]
    return score.replace(b"</note>", b"<a>" * DEEP + b"</a>" * DEEP + b"</note>", 1)


def external_file(kind: str) -> bytes:
    return (
        f'<!DOCTYPE a [<!ENTITY {kind} SYSTEM "file:///etc/hostname">]><score-partwise>&e;</score-partwise>'.encode()
    )


def with_attributes() -> bytes:
    listed = b" ".join(b'a%d="%d"' % (n, n) for n in range(100_000))
    return musicxml_samples()[-1].replace(b"<note>", b"<note " + listed + b">", 1)


def index_with(statement: str) -> bytes:
    """An index whose database has been changed by someone who knows SQL."""
    return b"index.sqlite\0" + changed_database(index_folder()["index.sqlite"], statement)


def changed_database(data: bytes, script: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.sqlite")
        path.write_bytes(data)
        with closing(sqlite3.connect(path)) as database:
            database.executescript(script)
        return path.read_bytes()


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
ENDLESS_FACTS = (
    f"ALTER TABLE facts RENAME TO f; CREATE VIEW facts AS {ENDLESS} SELECT 'a' || x AS name, x AS value FROM n;"
)
ENDLESS_FEATURES = (
    "ALTER TABLE features RENAME TO f; "
    f"CREATE VIEW features AS {ENDLESS} SELECT x AS key, x AS feature, x AS repairs, x AS used FROM n;"
)


def record_with(change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A record of checked items with other rows."""
    with np.load(io.BytesIO(record_samples()[0])) as saved:
        arrays = dict(saved)
    np.savez(made := io.BytesIO(), **{**arrays, "rows": change(arrays["rows"])})
    return made.getvalue()


ATTACKS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip bomb, score": (".mxl", lambda: zip_bomb("a.xml", musicxml_samples()[-1])),
    "zip bomb, container": (".mxl", lambda: zip_bomb("META-INF/container.xml")),
    "many members": (".mxl", lambda: zipped({f"{n}.txt": b"" for n in range(20_000)}, zipfile.ZIP_STORED)),
    "archive that names itself": (".mxl", lambda: zipped({"a.mxl": zipped({"a.mxl": b""})})),
    "path out of the archive": (
        ".mxl",
        lambda: zipped({"META-INF/container.xml": CONTAINER.format("../../../../../etc/hostname").encode()}),
    ),
    "absolute path in the archive": (
        ".mxl",
        lambda: zipped({"META-INF/container.xml": CONTAINER.format("/etc/hostname").encode()}),
    ),
    "entities in the container": (".mxl", lambda: zipped({"META-INF/container.xml": entities(), "a.xml": b""})),
    "entities": ("MusicXML", entities),
    "entities in UTF-16": ("MusicXML", lambda: entities("utf-16")),
    "external entity": ("MusicXML", lambda: external_file("e")),
    "external parameter entity": ("MusicXML", lambda: external_file("% e")),
    "elements within elements": ("MusicXML", nested_xml),
    "a hundred thousand attributes": ("MusicXML", with_attributes),
    "brackets within brackets": ("ABC", lambda: b"X:1\nK:C\n" + b"[" * DEEP + b"C" + b"]" * DEEP + b"|\n"),
    "brackets in a row, to MusicXML": ("ABC to MusicXML", lambda: b"X:1\nK:C\nCDEF|\n" + b"[" * 8000 + b"\n"),
    "rows of another width": ("record of checks", lambda: record_with(lambda rows: rows[:, :2])),
    "rows of another type": ("record of checks", lambda: record_with(lambda rows: rows.astype(np.int8))),
    "grace notes within grace notes": ("ABC", lambda: b"X:1\nK:C\n" + b"{" * DEEP + b"|C|\n"),
    "quotes that never end": ("ABC", lambda: b"X:1\nK:C\n" + b'"a' * 20_001 + b"C|\n"),
    "tuplets within tuplets, to MusicXML": ("ABC to MusicXML", lambda: b"X:1\nK:C\n" + b"(3" * 2000 + b"CDE|\n"),
    "arrays in JSON": ("JSONL", lambda: b'{"filepaths": ' + b"[" * DEEP + b"]" * DEEP + b"}\n"),
    "objects in JSON": ("manifest, reports", lambda: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "arrays in settings": ("settings", lambda: b'{"PATCH_LENGTH": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "a number of a million digits": ("settings", lambda: b'{"PATCH_LENGTH": ' + b"9" * 1_000_000 + b"}"),
    "an escape that is half a character": (
        "JSONL",
        lambda: json.dumps({"analysis": "\ud800", "filepaths": ["a.abc"]}).encode(),
    ),
    "array of objects": (".npy", object_array),
    "array of terabytes": (
        ".npy",
        lambda: npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 10000000000, 128), }\n"),
    ),
    "negative shape": (".npy", lambda: npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 128), }\n")),
    "code in a header": (".npy", lambda: npy(b"__import__('os').abort()\n")),
    "brackets in a header": (".npy", lambda: npy(b"(" * 9000 + b")" * 900)),
    "pickle": (".pth", lambda: pickle.dumps(Payload())),
    "pickle in a checkpoint": (".pth", lambda: saved({"model": {}, "code": Payload()})),
    "pickle in an old checkpoint": (
        ".pth",
        lambda: saved({"model": {}, "code": Payload()}, _use_new_zipfile_serialization=False),
    ),
    "pickle that is called safe": (".safetensors", lambda: saved({"model": {}, "code": Payload()})),
    "zip bomb, checkpoint": (".pth", lambda: zip_bomb("archive/data.pkl")),
    "header of exabytes": (".safetensors", lambda: struct.pack("<Q", 1 << 62) + b"{}"),
    "arrays in a header": (".safetensors", lambda: struct.pack("<Q", 2 * DEEP) + b"[" * DEEP + b"]" * DEEP),
    "pickle in a record": (
        "record of checks",
        lambda: zipped({"rows.npy": object_array(), "about.npy": object_array()}),
    ),
    "zip bomb, record": ("record of checks", lambda: zip_bomb("about.npy", object_array()[:10])),
    "facts that lead out of the index": (
        "index",
        lambda: index_with("UPDATE facts SET value = '../../../../../etc/hostname' WHERE name = 'features'"),
    ),
    "an index of more rows than it has": (
        "index",
        lambda: index_with("UPDATE facts SET value = 100000000000 WHERE name = 'rows'"),
    ),
    "an endless index": ("index", lambda: index_with(ENDLESS_FACTS)),
    "an endless cache": ("cache", lambda: changed_database(cache_samples()[0], ENDLESS_FEATURES)),
    "playlist that names a file of this machine": (
        "sound",
        lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    ),
    "list that names a file of this machine": ("sound", lambda: b"ffconcat version 1.0\nfile /etc/hostname\n"),
}


def check_untouched() -> None:
    """Raise Wrong where a payload has run."""
    if MARKER.exists():
        MARKER.unlink()
        raise Wrong("code in a file was run")
