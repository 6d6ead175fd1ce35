"""MIDI -> MTF, MIDI's text format: a line for each message, its type and its values."""

import io
from collections.abc import Iterator
from pathlib import Path

import mido
from mido.messages import SPEC_BY_TYPE

from clamp3.patchilizer import MTF_FIRST_WORD

# What people wrote into a file about it; M3 was trained without it.
DESCRIPTIVE_TYPES = frozenset(
    ("text", "copyright", "track_name", "instrument_name", "lyrics", "marker", "cue_marker", "device_name")
)
END_OF_TRACK = "end_of_track"
VALUE_NAMES = {kind: ("time", *spec["value_names"]) for kind, spec in SPEC_BY_TYPE.items()}


def midi_to_mtf(source: bytes | Path, m3_compatible: bool = False) -> str:
    """The MTF of a MIDI file, given as its bytes or its path: all tracks merged, in order of time.

    The first line is `ticks_per_beat N`; the others are `type time values…`, or `type values… time` for meta messages
    (tempo, key, …), where time is the distance in ticks from the message before. With `m3_compatible`, names, lyrics
    and other descriptive text are left out, and their times with them. Raises ValueError for what is not a MIDI file
    or is a damaged one, and OSError where the path cannot be read.
    """
    midi = parse(source if isinstance(source, bytes) else Path(source).read_bytes())
    lines = [f"{MTF_FIRST_WORD} {midi.ticks_per_beat}"]
    for time, message in merged(midi.tracks):
        if m3_compatible and message.type in DESCRIPTIVE_TYPES:
            continue
        values = message.dict()
        values["time"] = time
        if message.is_meta:
            line = " ".join(map(str, values.values())).encode("unicode_escape").decode("ascii")
        else:  # the order of its values depends on how mido came by it
            line = " ".join([message.type, *(str(values[name]) for name in VALUE_NAMES[message.type])])
        lines.append(line)
    return "\n".join(lines)


def parse(data: bytes) -> mido.MidiFile:
    """The MIDI file in `data`. Raises ValueError where there is none, or where its tracks have no common time."""
    if not data:
        raise ValueError("empty file")
    try:
        midi = mido.MidiFile(file=io.BytesIO(data))
    except Exception as error:  # mido lets whatever goes wrong inside it through: KeyError, struct.error, EOFError, …
        raise ValueError(f"not a whole MIDI file: {str(error) or 'it ends too soon'}") from error
    if midi.type == 2:
        raise ValueError("a MIDI file of type 2, whose tracks are pieces of their own: they cannot be merged")
    return midi


def merged(tracks: list[mido.MidiTrack]) -> Iterator[tuple[int, mido.Message | mido.MetaMessage]]:
    """The messages of all tracks in order of time, each after its distance in ticks from the one before.

    The tracks' ends give way to a single one.
    """
    messages = []
    for track in tracks:
        now = 0
        for message in track:
            now += message.time
            messages.append((now, message))
    messages.sort(key=lambda timed: timed[0])  # stable: messages of one time stay in the order of tracks

    before = 0
    for now, message in messages:
        if message.type != END_OF_TRACK:
            yield now - before, message
            before = now
    yield (messages[-1][0] if messages else 0) - before, mido.MetaMessage(END_OF_TRACK)
