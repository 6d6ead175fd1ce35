"""MIDI <-> MTF, MIDI's text format: a line for each message, its type and its values.

MTF is how mido prints its messages, and M3 was trained on it. Here bytes become lines with no message objects in
between, several times faster than with mido, and damaged files are read as far as players read them.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamp3.errors import Note, warn
from clamp3.io.files import read_text

if TYPE_CHECKING:
    import mido

MTF_FIRST_WORD = "ticks_per_beat"


def is_mtf(text: str) -> bool:
    """Whether `text` is MTF (the MIDI text format) rather than ABC."""
    return text.split("\n", 1)[0].split(" ", 1)[0] == MTF_FIRST_WORD


HEADER, TRACK = b"MThd", b"MTrk"
RIFF_DATA = re.compile(rb"data(.{4})(?=MThd)", re.DOTALL)  # the chunk of a RIFF file that holds the MIDI file
MAX_NUMBER = (1 << 28) - 1  # what four bytes hold; more of them may stand before it, as padding
REALTIME = 0xF8  # from here on: messages of one byte, which may stand anywhere
META, SYSEX, SYSEX_END = 0xFF, 0xF0, 0xF7
CHANNEL_MESSAGES = {  # status byte for channel 0: type, and how many data bytes follow
    0x80: ("note_off", 2),
    0x90: ("note_on", 2),
    0xA0: ("polytouch", 2),
    0xB0: ("control_change", 2),
    0xC0: ("program_change", 1),
    0xD0: ("aftertouch", 1),
    0xE0: ("pitchwheel", 2),
}
SYSTEM_MESSAGES = {
    0xF1: ("quarter_frame", 1),
    0xF2: ("songpos", 2),
    0xF3: ("song_select", 1),
    0xF6: ("tune_request", 0),
    0xF8: ("clock", 0),
    0xFA: ("start", 0),
    0xFB: ("continue", 0),
    0xFC: ("stop", 0),
    0xFE: ("active_sensing", 0),
}
MESSAGES = SYSTEM_MESSAGES | {
    status + channel: message for status, message in CHANNEL_MESSAGES.items() for channel in range(16)
}
STATUSES = {name: status for status, (name, _) in (SYSTEM_MESSAGES | CHANNEL_MESSAGES).items()}
# The lines of MTF whose first value is the time; of the others, meta messages, it is the last.
TIME_FIRST = {*STATUSES, "sysex"}
PITCHWHEEL, QUARTER_FRAME, SONGPOS = 0xE0, 0xF1, 0xF2
PITCH_CENTER = 8192
UNKNOWN_META = "unknown_meta"
SEQUENCE_NUMBER, CHANNEL_PREFIX, MIDI_PORT, END_OF_TRACK = 0x00, 0x20, 0x21, 0x2F
SET_TEMPO, SMPTE_OFFSET, TIME_SIGNATURE, KEY_SIGNATURE, SEQUENCER_SPECIFIC = 0x51, 0x54, 0x58, 0x59, 0x7F
# What people wrote into a file about it, in Latin-1 as far as MIDI knows. M3 was trained without it.
TEXTS = {
    0x01: "text",
    0x02: "copyright",
    0x03: "track_name",
    0x04: "instrument_name",
    0x05: "lyrics",
    0x06: "marker",
    0x07: "cue_marker",
    0x09: "device_name",
}
TEXT_KINDS = {name: kind for kind, name in TEXTS.items()}
LAST_MESSAGE = bytes((META, END_OF_TRACK, 0))
FRAME_RATES = ("24", "25", "29.97", "30")
MAJOR_KEYS = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#".split()  # from seven flats to seven sharps
MINOR_KEYS = "Abm Ebm Bbm Fm Cm Gm Dm Am Em Bm F#m C#m G#m D#m A#m".split()
KEYS = {
    bytes((sharps & 0xFF, mode)): key
    for mode, keys in enumerate((MAJOR_KEYS, MINOR_KEYS))
    for sharps, key in zip(range(-7, 8), keys, strict=True)
}
KEY_DATA = {key: data for data, key in KEYS.items()}
CHANNEL, SEVEN_BITS, BYTE, TWO_BYTES, TICKS = (range(1 << bits) for bits in (4, 7, 8, 16, 28))
ESCAPED_TEXT = re.compile(r"(?:[ -\[\]-~]|\\[\\tnr]|\\x[0-9a-f]{2})*")  # what Latin-1 becomes
NUMBER = re.compile("-?[0-9]{1,80}")
# ---------- MIDI -> MTF ----------


# A message: ticks from the start, and what stands before and behind the time in its line (before: None for no line).
Event = tuple[int, str | None, str]


def midi_to_mtf(source: "bytes | str | Path | mido.MidiFile", m3_compatible: bool = False, note: Note = warn) -> str:
    """The MTF of a MIDI file, given as its bytes, its path or an object of mido: all tracks merged, in order of time.

    The first line is `ticks_per_beat N`; the others are `type time values…`, or `type values… time` for meta messages
    (tempo, key, …), where time is the distance in ticks from the message before. With `m3_compatible`, names, lyrics
    and other descriptive text are left out, and their times with them. What is damaged is read as players read it,
    and `note` is called for each kind of damage. Raises ValueError for what is not a MIDI file or holds no readable
    message, and OSError where the path cannot be read.
    """
    damage: Counter[str] = Counter()
    ticks_per_beat, tracks = split(_data(source), damage)
    events: list[Event] = []
    end = 0
    for track in tracks:
        reader = TrackReader(track, damage, m3_compatible)
        events += reader.events()
        end = max(end, reader.now)
    if damage and not events:
        raise ValueError("a damaged MIDI file: no message in it can be read")
    for kind, count in damage.items():
        note(f"{kind} ({count} times)" if count > 1 else kind)

    events.sort(key=itemgetter(0))  # stable: messages of one time stay in the order of tracks
    lines = [f"{MTF_FIRST_WORD} {ticks_per_beat}"]
    before = 0
    for now, head, tail in events:
        if head is not None:
            lines.append(f"{head} {now - before}{tail}")
        before = now
    lines.append(f"end_of_track {end - before}")  # the tracks' ends give way to a single one
    return "\n".join(lines)


def _data(source: "bytes | str | Path | mido.MidiFile") -> bytes:
    """The bytes of a MIDI file, in whatever form it comes."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    buffer = io.BytesIO()
    source.save(file=buffer)
    return buffer.getvalue()


def split(data: bytes, damage: Counter[str]) -> tuple[int, list[bytes]]:
    """The ticks per beat and the bytes of each track in a MIDI file. ValueError where there is no track."""
    if not data:
        raise ValueError("empty file")
    in_riff = RIFF_DATA.search(data) if data[:4] == b"RIFF" else None
    start = in_riff.end() if in_riff else data.find(HEADER)
    if start < 0 or len(data) < start + 14:
        raise ValueError("not a MIDI file (no header MThd)")
    if in_riff:
        damage["taken out of a RIFF file"] += 1
        data = data[: start + (int.from_bytes(in_riff[1], "little") or len(data))]  # 0 where it was never filled in
    elif start:
        damage["bytes before the header are skipped"] += 1
    length, kind, count = (int.from_bytes(data[start + a : start + b], "big") for a, b in ((4, 8), (8, 10), (10, 12)))
    if kind == 2:
        raise ValueError("a MIDI file of type 2, whose tracks are pieces of their own: they cannot be merged")
    tracks = []
    at = start + 8 + length
    if data[at : at + 4] != TRACK and length != 6:
        damage["the header is not as long as it says"] += 1
        at = start + 14
    while at < len(data):
        found = data.find(TRACK, at)
        if found != at:
            damage["bytes that belong to no track are skipped"] += 1
        if found < 0:
            break
        at = _track_end(data, found, damage)
        tracks.append(data[found + 8 : at])
    if not tracks:
        raise ValueError("a MIDI file without a track")
    if len(tracks) != count:
        damage[f"the header says {count} tracks, there are {len(tracks)}"] += 1
    return int.from_bytes(data[start + 12 : start + 14], "big", signed=True), tracks


def _track_end(data: bytes, start: int, damage: Counter[str]) -> int:
    """Where the track whose head is at `start` ends: where it says, unless something else is plain to see."""
    end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "big")
    if end <= len(data) and (data[end : end + 4] in (b"", TRACK) or data[end - 3 : end] == LAST_MESSAGE):
        return end
    following = data.find(TRACK, start + 4)
    limit = len(data) if following < 0 else following
    if end > limit:
        last = data.rfind(LAST_MESSAGE, start, limit)
    else:
        last = data.find(LAST_MESSAGE, end - 2, limit)
    if last < 0:
        return min(end, limit)
    damage["a track is not as long as it says"] += 1
    return last + 3


class TrackReader:
    """Reads one track, message by message."""

    def __init__(self, data: bytes, damage: Counter[str], m3_compatible: bool):
        self.data = data
        self.damage = damage
        self.m3_compatible = m3_compatible
        self.at = 0  # in the data
        self.now = 0  # ticks from the start
        self.running = 0  # the status byte of messages that come without one
        self.interrupted = False  # by a system message, after which none should come without
        self.ended = False  # by the last message so far

    def events(self) -> Iterator[Event]:
        """All messages but the track's end, as far as they can be read."""
        try:
            while self.at < len(self.data):
                self.ended = False
                delta = self._number()
                self.now += delta
                status = self._status()
                name, size = MESSAGES.get(status, ("", 0))
                if size:
                    self.running, self.interrupted = status, False
                    yield self.now, name, message_values(status, self._message_data(size))
                elif status == META:
                    yield from self._meta(delta)
                    if self.ended:
                        break
                else:
                    self.interrupted = True
                    yield from self._system(status, name)
        except IndexError:  # of the data
            self.ended = False
        if not self.ended:
            self.damage["a track breaks off; it is read up to there"] += 1
        elif self.at < len(self.data):
            self.damage["bytes behind the end of a track are not read"] += 1

    def _number(self) -> int:
        """A number of variable length: seven bits a byte, the last of which is less than 128."""
        value = 0
        while value <= MAX_NUMBER:
            byte = self.data[self.at]
            self.at += 1
            value = value << 7 | byte & 0x7F
            if byte < 0x80 and value <= MAX_NUMBER:
                return value
        raise IndexError("a number that does not end")

    def _take(self, count: int) -> bytes:
        start = self.at
        self.at += count
        if self.at > len(self.data):
            raise IndexError("the track ends too soon")
        return self.data[start : self.at]

    def _status(self) -> int:
        """The next message's status byte; that of an earlier one where it has none."""
        status = self.data[self.at]
        while REALTIME <= status < META:
            self.at += 1
            if not self._is_bare():
                return status
            self.damage["real-time bytes before a message are taken out"] += 1
            status = self.data[self.at]
        if status < 0x80:
            if self.running:
                if self.interrupted:
                    self.damage["running status after a system message"] += 1
                return self.running
            self.damage["data bytes without a status are skipped"] += 1
            while status < 0x80:
                self.at += 1
                status = self.data[self.at]
        self.at += 1
        return status

    def _message_data(self, size: int) -> bytes:
        """The data of a message. Real-time bytes within are taken out, as synthesizers do, unless what follows
        makes sense only if they are data."""
        data = self._take(size)
        if data.isascii() or max(data) < REALTIME:
            return self._data_bytes(data)
        whole, at = bytearray(byte for byte in data if byte < REALTIME), self.at
        while len(whole) < size and at < len(self.data):
            if self.data[at] < REALTIME:
                whole.append(self.data[at])
            at += 1
        if len(whole) < size or (self._is_event(self.at) and not self._is_event(at)):
            return self._data_bytes(data)
        self.at = at
        self.damage["real-time bytes inside a message are taken out"] += 1
        return self._data_bytes(bytes(whole))

    def _is_event(self, at: int) -> bool:
        """Whether a time and a status byte, or the track's end, are at `at`."""
        rest = self.data[at : at + 5]
        length = next((index for index, byte in enumerate(rest, 1) if byte < 0x80), len(rest))
        return not rest or (at + length < len(self.data) and self.data[at + length] >= 0x80)

    def _is_bare(self) -> bool:
        """Whether a message follows that has no time of its own, since a real-time byte came between the two."""
        size = MESSAGES.get(self.data[self.at], ("", 0))[1] if self.at < len(self.data) else 0
        return bool(size) and not self._is_event(self.at) and self._is_event(self.at + 1 + size)

    def _data_bytes(self, data: bytes) -> bytes:
        """`data`, mended in the way of mido's option `clip`."""
        if data.isascii():
            return data
        self.damage["data bytes over 127 are read as 127"] += 1
        return bytes(min(byte, 127) for byte in data)

    def _system(self, status: int, name: str) -> Iterator[Event]:
        if status in (SYSEX, SYSEX_END):
            data = self._take(self._number()).removeprefix(bytes((SYSEX,))).removesuffix(bytes((SYSEX_END,)))
            whole = data if data.isascii() else bytes(byte for byte in data if byte < REALTIME)
            if len(whole) < len(data):
                self.damage["real-time bytes inside a message are taken out"] += 1
            yield self.now, "sysex", f" {list(self._data_bytes(whole))}"
        elif name:
            yield self.now, name, ""
        else:
            self.damage["status bytes that MIDI does not have are skipped"] += 1

    def _meta(self, delta: int) -> Iterator[Event]:
        kind = self._take(1)[0]
        data = self._take(self._number())
        if kind == END_OF_TRACK:
            self.ended = True
        elif kind in TEXTS and self.m3_compatible:
            yield self.now, None, ""
        else:
            try:
                head = meta_values(kind, data)
            except LookupError:
                self.damage["meta messages that are too short or hold what MIDI does not have are left out"] += 1
                return
            if head.startswith(UNKNOWN_META):
                self.now -= delta  # mido forgets these times, and M3 was trained on what it makes of files
            yield self.now, head, ""


def message_values(status: int, data: bytes) -> str:
    """What MTF has behind the time of a message other than meta and sysex: its values, each after a space."""
    if status < SYSEX:
        if status >= PITCHWHEEL:
            return f" {status & 15} {data[0] + (data[1] << 7) - PITCH_CENTER}"
        return f" {status & 15} {data[0]} {data[1]}" if len(data) == 2 else f" {status & 15} {data[0]}"
    if status == QUARTER_FRAME:
        return f" {data[0] >> 4} {data[0] & 15}"
    return f" {data[0] + (data[1] << 7)}" if status == SONGPOS else f" {data[0]}"


def meta_values(kind: int, data: bytes) -> str:
    """What MTF has before the time of a meta message: its type and values. LookupError where `data` is damaged."""
    if kind in TEXTS:
        return f"{TEXTS[kind]} {data.decode('latin-1')}".encode("unicode_escape").decode("ascii")
    if kind == SET_TEMPO:
        return f"set_tempo {data[0] << 16 | data[1] << 8 | data[2]}"
    if kind == TIME_SIGNATURE:
        return f"time_signature {data[0]} {2 ** data[1]} {data[2]} {data[3]}"
    if kind == KEY_SIGNATURE:
        return f"key_signature {KEYS[data[:2]]}"
    if kind == SMPTE_OFFSET:
        rate, hours = FRAME_RATES[data[0] >> 5], data[0] & 31
        return f"smpte_offset {rate} {hours} {data[1]} {data[2]} {data[3]} {data[4]}"
    if kind == SEQUENCE_NUMBER:
        return f"sequence_number {data[0] << 8 | data[1] if data else 0}"
    if kind == CHANNEL_PREFIX:
        return f"channel_prefix {data[0]}"
    if kind == MIDI_PORT:
        return f"midi_port {data[0] if data else 0}"
    if kind == SEQUENCER_SPECIFIC:
        return f"sequencer_specific {tuple(data)}"
    return f"{UNKNOWN_META} {kind} {tuple(data)}"


# ---------- MTF -> MIDI ----------


def mtf_file_to_midi(path: Path, note: Note = warn) -> bytes:
    """`mtf_to_midi` of a file, as `convert_folder` calls converters; there is nothing to note."""
    return mtf_to_midi(path)


def mtf_to_midi(source: str | Path) -> bytes:
    """The MIDI file, of a single track, that MTF describes, given as text or as the path of a file.

    `midi_to_mtf` makes the same text of it, but for the times of `unknown_meta` messages, which readers like mido do
    not heed: they are added to those of the next messages. Raises ValueError, with the line's number, for what is not
    MTF.
    """
    text = read_text(source) if isinstance(source, Path) else source
    first, *lines = text.removesuffix("\n").split("\n")
    ticks_per_beat = _parse(parse_first_line, first, 1)
    track = bytearray()
    late = 0
    for number, line in enumerate(lines, 2):
        time, message = _parse(parse_line, line, number)
        if message == LAST_MESSAGE and number <= len(lines):
            raise ValueError(f"line {number}: end_of_track before the last line")
        if line.startswith(UNKNOWN_META):
            time, late = 0, late + time
        else:
            time, late = time + late, 0
        track += variable_length(time) + message
    if not track.endswith(LAST_MESSAGE):
        track += variable_length(late) + LAST_MESSAGE
    header = b"".join(value.to_bytes(2, "big", signed=True) for value in (0, 1, ticks_per_beat))
    return chunk(HEADER, header) + chunk(TRACK, bytes(track))


def _parse(parse: Callable[[str], Any], line: str, number: int) -> Any:
    """What `parse` makes of a line; its errors tell the line's number."""
    try:
        return parse(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def parse_first_line(line: str) -> int:
    word, _, value = line.partition(" ")
    if word != MTF_FIRST_WORD:
        raise ValueError(f"MTF begins with {MTF_FIRST_WORD!r}, not with {word[:40]!r}")
    return numbers(value, range(-(1 << 15), 1 << 15))[0]


def parse_line(line: str) -> tuple[int, bytes]:
    """The time and the bytes of the message in a line of MTF."""
    name, _, values = line.partition(" ")
    if name in STATUSES:
        return message_bytes(STATUSES[name], values)
    if name == "sysex":
        time, _, listed = values.partition(" ")
        data = byte_list(listed, list, SEVEN_BITS) + bytes((SYSEX_END,))
        return numbers(time, TICKS)[0], bytes((SYSEX,)) + variable_length(len(data)) + data
    values, _, time = values.rpartition(" ")
    kind, data = meta_bytes(name, values)
    return numbers(time, TICKS)[0], bytes((META, kind)) + variable_length(len(data)) + data


def message_bytes(status: int, values: str) -> tuple[int, bytes]:
    """The time and the bytes of a message other than meta and sysex; `status` is that of channel 0."""
    if status == PITCHWHEEL:
        time, channel, pitch = numbers(values, TICKS, CHANNEL, range(-PITCH_CENTER, PITCH_CENTER))
        pitch += PITCH_CENTER
        return time, bytes((status + channel, pitch & 127, pitch >> 7))
    if status < SYSEX:
        time, channel, *data = numbers(values, TICKS, CHANNEL, *[SEVEN_BITS] * CHANNEL_MESSAGES[status][1])
        return time, bytes((status + channel, *data))
    if status == QUARTER_FRAME:
        time, kind, value = numbers(values, TICKS, range(8), range(16))
        return time, bytes((status, kind << 4 | value))
    if status == SONGPOS:
        time, position = numbers(values, TICKS, range(1 << 14))
        return time, bytes((status, position & 127, position >> 7))
    time, *data = numbers(values, TICKS, *[SEVEN_BITS] * SYSTEM_MESSAGES[status][1])
    return time, bytes((status, *data))


def meta_bytes(name: str, values: str) -> tuple[int, bytes]:
    """The kind and the data of a meta message."""
    if name in TEXT_KINDS:
        if not ESCAPED_TEXT.fullmatch(values):
            raise ValueError("its text is not Latin-1 in Python's escapes (unicode_escape)")
        return TEXT_KINDS[name], values.encode("ascii").decode("unicode_escape").encode("latin-1")
    if name == "set_tempo":
        return SET_TEMPO, numbers(values, range(1 << 24))[0].to_bytes(3, "big")
    if name == "time_signature":
        beats, unit, *clocks = numbers(values, BYTE, range(1, 2**255 + 1), BYTE, BYTE)
        if unit.bit_count() > 1:
            raise ValueError(f"{unit} is not a power of 2")
        return TIME_SIGNATURE, bytes((beats, unit.bit_length() - 1, *clocks))
    if name == "key_signature":
        if values not in KEY_DATA:
            raise ValueError(f"{values[:40]!r} is not a key")
        return KEY_SIGNATURE, KEY_DATA[values]
    if name == "smpte_offset":
        rate, _, values = values.partition(" ")
        if rate not in FRAME_RATES:
            raise ValueError(f"{rate[:40]!r} is not a frame rate ({', '.join(FRAME_RATES)})")
        hours, *rest = numbers(values, range(32), BYTE, BYTE, BYTE, BYTE)
        return SMPTE_OFFSET, bytes((FRAME_RATES.index(rate) << 5 | hours, *rest))
    if name == "sequence_number":
        return SEQUENCE_NUMBER, numbers(values, TWO_BYTES)[0].to_bytes(2, "big")
    if name == "channel_prefix":
        return CHANNEL_PREFIX, bytes(numbers(values, BYTE))
    if name == "midi_port":
        return MIDI_PORT, bytes(numbers(values, BYTE))
    if name == "sequencer_specific":
        return SEQUENCER_SPECIFIC, byte_list(values, tuple, BYTE)
    if name == UNKNOWN_META:
        kind, _, data = values.partition(" ")
        return numbers(kind, BYTE)[0], byte_list(data, tuple, BYTE)
    if name == "end_of_track":
        numbers(values)
        return END_OF_TRACK, b""
    raise ValueError(f"there is no message type {name[:40]!r}")


def numbers(text: str, *allowed: range) -> list[int]:
    """The numbers in `text`, one for each range that it has to lie in."""
    words = text.split(" ") if text else []
    if len(words) != len(allowed):
        raise ValueError(f"{text[:80]!r} should be {len(allowed)} numbers")
    for word, values in zip(words, allowed, strict=True):
        if not NUMBER.fullmatch(word) or int(word) not in values:
            raise ValueError(f"{word[:40]!r} is not a number from {values.start} to {values.stop - 1}")
    return [int(word) for word in words]


def byte_list(text: str, kind: type[list] | type[tuple], allowed: range) -> bytes:
    """The bytes whose list or tuple Python prints as `text`."""
    data = kind(int(word) for word in re.findall("[0-9]{1,3}", text))
    if str(data) != text or not all(byte in allowed for byte in data):
        raise ValueError(f"{text[:80]!r} is not a {kind.__name__} of numbers from 0 to {allowed[-1]}")
    return bytes(data)


def variable_length(value: int) -> bytes:
    """`value` in seven bits a byte, the last of which is less than 128."""
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(value & 0x7F | 0x80)
    return bytes(reversed(found))


def chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "big") + data
