"""Where the positions of a sequence stand in its piece, and a piece -> passages, each a sequence of its own.

Bars are counted from 1 as they are written: repeats once, a pickup as a bar, and bars of rest that open a score in all
voices not at all, since interleaving leaves them out. Of MIDI they follow from the time signatures (4/4 without one).
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clamp3.formats.midi import TIME_FIRST
from clamp3.inputs.patchilizer import FIELD, MASK_ID, M3Patchilizer

BARS, SECONDS, LINES = "bars", "seconds", "lines"
WINDOW_BARS, STEP_BARS = 8, 2  # steps of 4 find a fifth fewer (docs/search.md)
WINDOW_SECONDS, STEP_SECONDS = 20.0, 10.0
VOICE = re.compile(r"\[V:\s*([^\s\]]+)")
INLINE_FIELD = re.compile(r"\[([KLM]):([^\]]*)\]")
SETTINGS = ("time_signature", "key_signature", "set_tempo", "program_change")  # what a passage of MIDI begins with
NOTE_ON, NOTE_OFF = "note_on", "note_off"
TICKS_PER_BEAT = 480  # where a first line is damaged
BEATS = 4  # quarter notes in a bar before any time signature
MOST_BARS = 2**24  # whole numbers that float32 holds


@dataclass(frozen=True)
class Span:
    """A stretch of a piece: bars or lines from `first` to `last`, both counted from 1 and included; or seconds."""

    unit: str  # BARS, SECONDS or LINES
    first: float
    last: float

    def as_json(self) -> dict[str, list]:
        """Such as {"bars": [17, 24]} and {"seconds": [40.0, 60.0]}."""
        kind = float if self.unit == SECONDS else int
        return {self.unit: [kind(self.first), kind(self.last)]}


def windows(count: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of windows that cover `count` places: full ones, but a shorter one at the end or alone."""
    start = 0
    while start == 0 or start + size - step < count:
        yield start, min(start + size, count)
        start += step


# ---------- sheet music ----------


def is_midi(patches: Sequence[str]) -> bool:
    """Whether `spelled` patches are those of MTF."""
    return bool(patches) and patches[0].startswith("ticks_per_beat")


def spelled(sequence: np.ndarray) -> list[str]:
    """The texts of patches (patches, patch_size) but of the special ones at both ends, as far as they were read."""
    return ["".join(map(chr, ids[ids > MASK_ID].tolist())) for ids in sequence[1:-1]]


def bars_of(patches: Sequence[str]) -> list[int]:
    """The bar of each patch of ABC, 0 of a field.

    A line that begins with a voice holds one bar of each voice. Other lines are those of standard ABC, taken as it
    stands: each patch is a bar, and each voice counts anew.
    """
    numbers: list[int] = []
    bar, seen = 0, set[str]()
    begins = True  # a line
    for patch in patches:
        if FIELD.match(patch):
            if patch.startswith("V:"):
                bar = 0
            numbers.append(0)
            begins = True
            continue
        voice = VOICE.match(patch)
        if begins or (voice[1] in seen if voice else not seen):
            bar, seen = bar + 1, set()
        if voice:
            seen.add(voice[1])
        begins = patch.endswith("\n")
        numbers.append(bar)
    return numbers


def abc_passages(patches: list[str], patchilizer: M3Patchilizer) -> Iterator[tuple[Span, np.ndarray]]:
    """Windows of bars, each with the header of most of its bars: their key, metre and unit length."""
    numbers = bars_of(patches)
    header = [patch for patch, number in zip(patches, numbers, strict=True) if not number]
    bars: list[list[str]] = [[] for _ in range(max(numbers, default=0))]
    for patch, number in zip(patches, numbers, strict=True):
        if number:
            bars[number - 1].append(patch)
    in_force: list[dict[str, str]] = []
    for bar in bars:
        in_force.append((in_force[-1] if in_force else {}) | dict(INLINE_FIELD.findall("".join(bar))))
    for start, stop in windows(len(bars), WINDOW_BARS, STEP_BARS):
        common = Counter(tuple(changes.items()) for changes in in_force[start:stop]).most_common(1)[0][0]
        here = dict(common)
        music = [_without(patch, here) for bar in bars[start:stop] for patch in bar]
        opening = _with_changes(header, {name: f"{name}:{value}\n" for name, value in common})
        yield Span(BARS, start + 1, stop), patchilizer.encode([*opening, *music], add_special_patches=True)


def _without(patch: str, settings: dict[str, str]) -> str:
    """A bar without the fields that only say what `settings` do."""
    return INLINE_FIELD.sub(lambda found: "" if settings.get(found[1]) == found[2] else found[0], patch)


def _with_changes(header: list[str], changes: dict[str, str]) -> list[str]:
    """`header` with the fields that have changed since: in the place of those that it has, or before the others.

    The unit length of an eighth is left out, as in whole pieces.
    """
    changed = [changes.get(patch[0], patch) if patch[1:2] == ":" else patch for patch in header]
    there = {patch[0] for patch in header if patch[1:2] == ":"}
    fields = [*(field for name, field in changes.items() if name not in there), *changed]
    return [field for field in fields if field != "L:1/8\n"]


# ---------- MIDI ----------


@dataclass(frozen=True)
class Message:
    """A line of MTF without its time, which is `before` and `after`'s place in the line, and when it comes."""

    now: int  # ticks from the start
    before: str
    after: str
    patch: int  # its place among the patches

    @property
    def name(self) -> str:
        return self.before.partition(" ")[0]

    def at(self, ticks: int) -> str:
        """The line, `ticks` after the message before."""
        return f"{self.before} {ticks}{self.after}\n"

    @property
    def key(self) -> str:
        """Of a note, its channel and pitch; of a setting, its kind and, if it has one, its channel."""
        values = self.after.split()
        return " ".join(values[:2] if self.is_note else [self.name, *values[:1]])

    @property
    def is_note(self) -> bool:
        return self.name in (NOTE_ON, NOTE_OFF)

    @property
    def begins(self) -> bool:
        """Whether a note begins: one of velocity 0 ends."""
        return self.name == NOTE_ON and self.after.split()[2:] != ["0"]


def messages_of(patches: Sequence[str]) -> tuple[int, list[Message]]:
    """Ticks per beat, and the messages of MTF's patches, as far as they were read."""
    found, now = [], 0
    ticks = _whole(patches[0].split()[-1], TICKS_PER_BEAT)
    for place, patch in enumerate(patches[1:], 1):
        name, _, rest = patch.removesuffix("\n").partition(" ")
        for values in rest.split("\t"):
            if name in TIME_FIRST:
                time, space, after = values.partition(" ")
                before, after = name, space + after
            else:
                start, _, time = values.rpartition(" ")
                before, after = f"{name} {start}".rstrip(), ""
            now += max(0, _whole(time, 0))
            found.append(Message(now, before, after, place))
    return (ticks if ticks > 0 else TICKS_PER_BEAT), found


def _whole(text: str, default: int) -> int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else default


class Metre:
    """When bars begin, by the time signatures among messages."""

    def __init__(self, ticks_per_beat: int, messages: Sequence[Message]):
        self.starts, self.bars, self.lengths = [0], [0], [BEATS * ticks_per_beat]
        for message in messages:
            values = message.before.split()[1:3]
            if message.name != "time_signature" or len(values) < 2:
                continue
            beats, unit = (_whole(value, 0) for value in values)
            if beats < 1 or unit < 1:
                continue
            passed = -(-(message.now - self.starts[-1]) // self.lengths[-1])  # a change ends the bar that it is in
            self.bars.append(self.bars[-1] + passed)
            self.starts.append(message.now)
            self.lengths.append(max(1, 4 * ticks_per_beat * beats // unit))

    def bar(self, now: int) -> int:
        """The bar, counted from 0, that tick `now` is in."""
        place = bisect_right(self.starts, now) - 1
        return min(MOST_BARS, self.bars[place] + (now - self.starts[place]) // self.lengths[place])

    def start(self, bar: int) -> int:
        """The tick at which a bar, counted from 0, begins."""
        place = bisect_right(self.bars, bar) - 1
        return self.starts[place] + (bar - self.bars[place]) * self.lengths[place]


def midi_passages(patches: list[str], patchilizer: M3Patchilizer) -> Iterator[tuple[Span, np.ndarray]]:
    """Windows of bars in which a note begins, each with tempo, key, metre and programs as they are in its middle."""
    ticks_per_beat, messages = messages_of(patches)
    metre = Metre(ticks_per_beat, messages)
    by_bar: dict[int, list[Message]] = {}
    for message in messages:
        if message.name != "end_of_track":
            by_bar.setdefault(metre.bar(message.now), []).append(message)
    noted = sorted(bar for bar, some in by_bar.items() if any(message.begins for message in some))
    if not noted:
        return
    settings: dict[str, Message] = {}
    upcoming = iter(message for message in messages if message.name in SETTINGS)
    waiting = next(upcoming, None)
    for start, stop in _noted_windows(noted):
        first, middle = metre.start(start), metre.start((start + stop) // 2)
        while waiting and waiting.now <= middle:
            settings[waiting.key] = waiting
            waiting = next(upcoming, None)
        lines = [patches[0].rstrip("\n") + "\n", *(setting.at(0) for setting in settings.values())]
        inside = [message for bar in range(start, stop) for message in by_bar.get(bar, ())]
        tail = [message for message in by_bar.get(stop, ()) if not message.begins]  # notes that end at its end
        lines += _window_lines(inside, tail, first, middle, metre.start(stop))
        yield Span(BARS, start + 1, stop), patchilizer.encode("".join(lines), add_special_patches=True)


def _noted_windows(noted: list[int]) -> Iterator[tuple[int, int]]:
    """Those of the `windows` of a piece, bars counted from 0, that hold any of these bars; others are never made."""
    count, made = noted[-1] + 1, -1
    for bar in noted:
        for number in range(max(0, (bar - WINDOW_BARS) // STEP_BARS + 1), bar // STEP_BARS + 1):
            start = number * STEP_BARS
            if number > made and (start == 0 or start + WINDOW_BARS - STEP_BARS < count):
                made = number
                yield start, min(start + WINDOW_BARS, count)


def _window_lines(inside: list[Message], tail: list[Message], first: int, middle: int, end: int) -> Iterator[str]:
    """The lines of a passage from tick `first` to `end`, but settings up to its `middle`, with which it begins.

    Ends of notes that began before it are left out.
    """
    now, sounding = first, set[str]()
    for message in [*inside, *tail]:
        if message.is_note and not message.begins and message.key not in sounding:
            continue
        if message.now > end or (message.now == end and not message.is_note):
            continue
        if message.name in SETTINGS and message.now <= middle:
            continue
        (sounding.add if message.begins else sounding.discard)(message.key)
        yield message.at(message.now - now)
        now = message.now
    yield f"end_of_track {max(0, end - now)}\n"


# ---------- everything ----------


def symbolic_passages(sequence: np.ndarray, patchilizer: M3Patchilizer) -> Iterator[tuple[Span, np.ndarray]]:
    """The passages of patches (patches, patch_size), of ABC or MTF, each with its own sequence."""
    patches = spelled(sequence)
    yield from (midi_passages if is_midi(patches) else abc_passages)(patches, patchilizer)


def audio_passages(sequence: np.ndarray, window: float) -> Iterator[tuple[Span, np.ndarray]]:
    """The passages of frames (frames + 2, hidden), each of `window` seconds; those of a last frame may be fewer."""
    frames, blank = sequence[1:-1], np.zeros_like(sequence[:1])
    size, step = (max(1, round(seconds / window)) for seconds in (WINDOW_SECONDS, STEP_SECONDS))
    for start, stop in windows(len(frames), size, step):
        yield Span(SECONDS, start * window, stop * window), np.concatenate([blank, frames[start:stop], blank])


def lines_of(text: str) -> Iterator[tuple[Span, str]]:
    """The lines of a text that hold anything."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Span(LINES, number, number), line
