"""The length that a sound file states for itself, which tells a truncated file from a whole one.

FFmpeg reads a file to its actual end and mostly takes that for the intended one, so the headers are read here.
"""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

UNKNOWN = 0xFFFFFFFF  # what streamed files have for sizes
WAVE64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
OGG_PAGE = re.compile(rb"OggS\0([\0-\7])", re.S)
FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9][^\0-\x0f]", re.S)
TAIL = 1 << 17  # bytes: more than an Ogg page with its header
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")  # that an MP4 or MOV may begin with
MAX_CHUNKS = 10_000
MAX_BLOCKS = 1_000_000  # of a .voc file, which may have one for every 2 kB
# Bit rates in kbit/s by their codes: of MPEG 1, layers 1, 2 and 3, and of MPEG 2 and 2.5, layer 1 and layers 2 and 3.
MPEG_RATES = (
    (0, *range(32, 449, 32)),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
AC3_RATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def declared_end(file: BinaryIO, size: int) -> int | None:
    """Where the sound of a file of `size` bytes ends by its own header: an offset, 0 for a length left blank.

    None where the format does not say, or where the file was streamed. The end may lie behind the file's.
    """
    file.seek(0)
    head = file.read(64)
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        return _wave_end(file, head, size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        return None if length in (0, UNKNOWN) else 8 + length
    if head[:16] == WAVE64:
        return _wave64_end(file, size)
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return _data_end(_chunks(file, 12, ">4sI", size), b"SSND", {UNKNOWN})
    if head[:4] == b"caff":
        return _data_end(_chunks(file, 8, ">4sQ", size, padding=1), b"data", {2**64 - 1})
    if head[:4] == b".snd" and len(head) >= 12:
        start, length = struct.unpack(">II", head[4:12])
        return None if length == UNKNOWN else start + length if length else 0
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_end(head)
    if head[:16] == ASF:
        file.seek(0)
        head = file.read(1 << 16)
        place = head.find(ASF_PROPERTIES)
        return int.from_bytes(head[place + 40 : place + 48], "little") or None if place >= 0 else None
    if head[4:8] in BOXES:
        return _last_box_end(file, size)
    return None


def lacks_last_page(file: BinaryIO, size: int) -> bool:
    """Whether an Ogg file ends otherwise than with a whole page that is marked as the last of its stream."""
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    start = tail.rfind(b"OggS")
    header = tail[start : start + 27]
    if start < 0 or len(header) < 27:
        return start >= 0
    lacing = tail[start + 27 : start + 27 + header[26]]
    whole = len(lacing) == header[26] and start + 27 + header[26] + sum(lacing) <= len(tail)
    return not (whole and header[5] & 4)


def lacks_last_block(file: BinaryIO, size: int) -> bool:
    """Whether a .voc file ends within a block, or without the one that ends it."""
    file.seek(0)
    start = int.from_bytes(file.read(22)[20:], "little")
    for _ in range(MAX_BLOCKS):
        file.seek(start)
        found = file.read(4)
        if len(found) < 4 or not found[0]:
            return found[:1] != b"\0"
        start += 4 + int.from_bytes(found[1:], "little")
    return False


def ogg_links(file: BinaryIO) -> list[int]:
    """Where the links of a chained Ogg file start: pages that begin a stream and follow pages that do not. [0] for all
    other files."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return [0]
    starts, before, begins, place = [0], b"OggS", True, 4
    while block := file.read(1 << 20):
        data = before + block
        for page in OGG_PAGE.finditer(data):
            was, begins = begins, bool(page[1][0] & 2)
            if begins and not was:
                starts.append(place - len(before) + page.start())
        before = data[-5:]  # shorter than what is looked for
        place += len(block)
    return starts


def mp3_seconds(file: BinaryIO) -> float | None:
    """The length by an MP3's tag (Xing, Info or VBRI) with the number of its frames, where it has one.

    Where the tag does not match the size of the file, FFmpeg itself guesses another length.
    """
    start = 0
    file.seek(0)
    while len(head := file.read(10)) == 10 and head[:3] == b"ID3":
        start += 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(start)
    file.seek(start)
    first = file.read(64)
    if len(first) < 64 or first[0] != 0xFF or first[2] >> 2 & 3 == 3:
        return None
    version, rate = _mpeg_version(first), _mpeg_rate(first)
    frames = 0
    for name in (b"Xing", b"Info"):
        if (place := first.find(name)) >= 0 and first[place + 7 : place + 8] and first[place + 7] & 1:
            frames = int.from_bytes(first[place + 8 : place + 12], "big")
    if (place := first.find(b"VBRI")) >= 0:
        frames = int.from_bytes(first[place + 14 : place + 18], "big")
    return frames * (1152 if version == 3 else 576) / rate or None


def _mpeg_version(header: bytes) -> int:
    """3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5."""
    return header[1] >> 3 & 3


def _mpeg_rate(header: bytes) -> int:
    """Hz."""
    return (44_100, 48_000, 32_000)[header[2] >> 2 & 3] >> {3: 0, 2: 1}.get(_mpeg_version(header), 2)


def frame_length(start: bytes) -> int | None:
    """The bytes of a frame of MPEG audio, AAC (ADTS), AC-3, E-AC-3 or DTS by its own header, with which it starts."""
    if len(start) < 8:
        return None
    if start[0] == 0xFF and start[1] & 0xF6 == 0xF0:  # ADTS
        return (start[3] & 3) << 11 | start[4] << 3 | start[5] >> 5
    if start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and start[2] >> 2 & 3 < 3 and start[2] >> 4 < 15:
        return _mpeg_frame_length(start) or None
    if start[:2] == b"\x0bw" and start[5] >> 3 > 10:
        return 2 * ((start[2] & 7) << 8 | start[3]) + 2
    if start[:2] == b"\x0bw" and start[4] >> 6 < 3 and start[4] >> 1 & 31 < len(AC3_RATES):
        rate, bits = start[4] >> 6, AC3_RATES[start[4] >> 1 & 31]
        return (bits * 4, 2 * (bits * 320 // 147 + (start[4] & 1)), bits * 6)[rate]
    if start[:4] == b"\x7f\xfe\x80\x01":
        return ((start[5] & 3) << 12 | start[6] << 4 | start[7] >> 4) + 1
    return None


def _mpeg_frame_length(start: bytes) -> int:
    layer = 4 - (start[1] >> 1 & 3)
    is_first = _mpeg_version(start) == 3
    rates = MPEG_RATES[layer - 1 if is_first else 3 + (layer > 1)]
    bits, padding = 1000 * rates[start[2] >> 4], start[2] >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits // _mpeg_rate(start) + padding)
    return (72 if layer == 3 and not is_first else 144) * bits // _mpeg_rate(start) + (padding if bits else 0)


def opus_samples(packet: bytes) -> int:
    """How many samples at 48 kHz a packet of Opus holds by its first bytes."""
    if len(packet) < 2:
        return 0
    mode, count = packet[0] >> 3, (1, 2, 2, packet[1] & 63)[packet[0] & 3]
    if mode < 12:
        return count * (480, 960, 1920, 2880)[mode & 3]
    return count * ((480, 960)[mode & 1] if mode < 16 else (120, 240, 480, 960)[mode & 3])


def flac_frames(data: bytes) -> Iterator[int]:
    """Where frames of FLAC may start in `data`, by their headers and the checksums of those."""
    for found in FLAC_FRAME.finditer(data):
        start = found.start()
        header = data[start : start + 16]
        # Its length: a number of UTF-8's kind, and block sizes and rates where they are no usual ones.
        width = 1 if len(header) > 4 and header[4] < 128 else 8 - (~header[4] & 255).bit_length() if header[4:] else 1
        length = 4 + width + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
        if length < len(header) and _crc8(header[:length]) == header[length]:
            yield start


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x107 if value & 128 else 0)) & 255
    return value


def _chunks(file: BinaryIO, start: int, layout: str, size: int, padding: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content starts, its length) of the chunks of a file."""
    header = struct.calcsize(layout)
    for _ in range(MAX_CHUNKS):
        file.seek(start)
        found = file.read(header)
        if len(found) < header:
            return
        name, length = struct.unpack(layout, found)
        yield name, start + header, length
        start += header + length + -length % padding
        if start >= size:
            return


def _data_end(chunks: Iterator[tuple[bytes, int, int]], wanted: bytes, unknown: set[int]) -> int | None:
    for name, start, length in chunks:
        if name == wanted:
            return None if length in unknown else start + length if length else 0
    return None


def _wave_end(file: BinaryIO, head: bytes, size: int) -> int | None:
    long = None
    for name, start, length in _chunks(file, 12, ">4sI" if head[:4] == b"RIFX" else "<4sI", size):
        if name == b"ds64":
            file.seek(start + 8)
            long = int.from_bytes(file.read(8), "little")
        if name == b"data":
            if length == UNKNOWN:
                return start + long if long and long < 2**62 else None
            return start + length if length else 0
    return None


def _wave64_end(file: BinaryIO, size: int) -> int | None:
    start = 40
    for _ in range(MAX_CHUNKS):
        file.seek(start)
        found = file.read(24)
        length = int.from_bytes(found[16:], "little")
        if len(found) < 24 or length < 24:
            return None
        if found[:4] == b"data":
            return start + length if length < 2**62 else None
        start += length + -length % 8
        if start >= size:
            return None
    return None


def _matroska_end(head: bytes) -> int | None:
    """The end of the segment that follows the EBML header."""
    length, width = _vint(head[4:])
    start = 4 + width + (length or 0)
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return None
    length, width = _vint(head[start + 4 :])
    return None if length is None else start + 4 + width + length


def _vint(found: bytes) -> tuple[int | None, int]:
    """A number of EBML, None if it is marked as unknown, and the bytes that it takes."""
    if not found or not found[0]:
        return None, 1
    width = 9 - found[0].bit_length()
    value = int.from_bytes(found[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


def _last_box_end(file: BinaryIO, size: int) -> int | None:
    start = 0
    for _ in range(MAX_CHUNKS):
        file.seek(start)
        found = file.read(16)
        if len(found) < 8 or not found[4:8].isalnum():
            break
        length = int.from_bytes(found[:4], "big")
        if length == 1:
            length = int.from_bytes(found[8:], "big")
        if length < 8:  # 0: up to the end of the file
            return None
        start += length
        if start >= size:
            break
    return start
