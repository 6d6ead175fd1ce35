"""Seeded mutations of good files: what disks, transfers, editors and attackers do to them."""

import copy
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from xml.etree import ElementTree

MAX_BYTES = 1 << 16  # to which a mutation may blow a file up: what takes long then takes more than its size explains
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
TOKEN = re.compile(rb"[^\s<>\"'=|,:;(){}\[\]]+")
NUMBERS = (
    *(b"0", b"-1", b"1", b"127", b"128", b"255", b"256", b"999", b"1000", b"-104", b"32768", b"65536", b"99999999"),
    *(b"2147483647", b"2147483648", b"4294967295", b"-9223372036854775808", b"18446744073709551616", b"1" + b"0" * 40),
    *(b"1e308", b"-1e400", b"nan", b"inf", b"0.0000001", b"1/0", b"0x10", "٣".encode(), b"1_000", b""),
)
BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff" * 8)
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "latin-1", "cp1252", "utf-32", "utf-7", "cp037")
STRAY = (b"\r", b"\r\n", b"\n", b"\t", b"\x0b", b"\x0c", b"\x1b[2J", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xed\xa0\x80")

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


def _place(data: bytes, chance: Random) -> int:
    return chance.randrange(len(data) + 1)


def _span(data: bytes, chance: Random) -> tuple[int, int]:
    """A stretch of `data`, mostly a short one."""
    start = _place(data, chance)
    return start, min(len(data), start + int(2 ** chance.uniform(0, 12)))


def flip_bits(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    flipped = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64)) if data else 0):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def truncate(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    return data[: _place(data, chance)]


def cut_out(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, chance)
    return data[:start] + data[stop:]


def copy_block(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, chance)
    place = _place(data, chance)
    return data[:place] + data[start:stop] + data[place:]


def repeat_block(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _span(data, chance)
    times = min(int(2 ** chance.uniform(1, 14)), (MAX_BYTES - len(data)) // max(1, stop - start))
    return data[:stop] + data[start:stop] * max(times, 0) + data[stop:]


def overwrite(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    place, what = _place(data, chance), chance.choice(BYTES)
    return data[:place] + what + data[place + len(what) :]


def insert_stray(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    place = _place(data, chance)
    return data[:place] + chance.choice(STRAY + BYTES) + data[place:]


def inflate_number(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    found = list(NUMBER.finditer(data))
    if not found:
        return overwrite(data, chance, _others)
    where = chance.choice(found)
    number = chance.choice((*NUMBERS, where[0] * chance.randrange(2, 9), where[0] + b"0" * chance.randrange(1, 9)))
    if chance.random() < 0.2:  # all that are the same
        return re.sub(rb"(?<!\d)" + re.escape(where[0]) + rb"(?!\d)", number, data)
    return data[: where.start()] + number + data[where.end() :]


def swap_tokens(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """A word in place of another one of this file, or of another file."""
    found = list(TOKEN.finditer(data))
    donors = found if chance.random() < 0.6 else list(TOKEN.finditer(chance.choice(others)))
    if not found or not donors:
        return flip_bits(data, chance, others)
    where = chance.choice(found)
    return data[: where.start()] + chance.choice(donors)[0] + data[where.end() :]


def swap_lines(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    donors = lines if chance.random() < 0.6 else chance.choice(others).split(b"\n")
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(donors))
    if chance.random() < 0.5:
        del lines[chance.randrange(len(lines))]
    return b"\n".join(lines)


def join_with_another(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others)
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def encode_anew(data: bytes, chance: Random, _others: Sequence[bytes]) -> bytes:
    return data.decode("utf-8", "replace").encode(chance.choice(ENCODINGS), "replace")


def change_tree(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """XML that stays whole: an element removed, doubled, moved, or with another text or attribute."""
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        return flip_bits(data, chance, others)
    parents = [parent for parent in root.iter() if len(parent)]
    leaves = [child for child in root.iter() if not len(child)]
    for _ in range(chance.choice((1, 1, 2, 4, 8)) if parents else 0):
        parent = chance.choice(parents)
        if not len(parent):
            continue
        place = chance.randrange(len(parent))
        change = chance.randrange(6)
        if change == 0:
            del parent[place]
        elif change == 1:
            parent.insert(chance.randrange(len(parent) + 1), copy.deepcopy(parent[place]))
        elif change == 2:
            parent.append(copy.deepcopy(chance.choice(leaves)))
        elif change == 3:
            parent[place].tag = chance.choice(leaves).tag
        elif change == 4:
            parent[place].text = chance.choice((*map(_text, NUMBERS), "", " ", "A", "夜", "1\n", "-", None))
        elif parent[place].attrib:
            name = chance.choice(list(parent[place].attrib))
            parent[place].set(name, chance.choice((*map(_text, NUMBERS), "start", "stop", "continue")))
    return ElementTree.tostring(root, chance.choice(("utf-8", "us-ascii", "utf-16")))


def _text(number: bytes) -> str:
    return number.decode()


ON_BYTES = (flip_bits, truncate, cut_out, copy_block, repeat_block, overwrite, insert_stray, join_with_another)
ON_TEXT = (inflate_number, inflate_number, swap_tokens, swap_tokens, swap_lines, encode_anew)
ON_XML = (*ON_BYTES, *ON_TEXT, *[change_tree] * 12, *[inflate_number] * 4)


def mutated(
    data: bytes, chance: Random, others: Sequence[bytes], mutations: Sequence[Mutation], longest: int = MAX_BYTES
) -> bytes:
    """`data` after one to four of `mutations`; `others` are good files of the same kind.

    Longer than `longest` bytes it becomes by a few thousand only, if it was that long. Without `mutations`, it stays.
    """
    longest = max(longest, len(data) + 4096)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4)) if mutations else 0):
        data = chance.choice(mutations)(data, chance, others)[:longest]
    return data


def rezipped(data: bytes, chance: Random, change: Callable[[bytes], bytes]) -> bytes:
    """The zip archive `data` with one of its members changed, and with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(entry, archive.read(entry)) for entry in archive.infolist()]
    chosen = chance.randrange(len(parts))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (entry, content) in enumerate(parts):
            archive.writestr(entry, change(content) if number == chosen else content)
    return buffer.getvalue()
