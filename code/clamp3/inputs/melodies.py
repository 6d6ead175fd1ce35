"""The melodies of scores and MIDI, and what is compared of them: figures, which are the same in every key and rhythm.

A melody is the highest note at each time at which any begins. A figure is a run of steps from note to note, in
semitones, where a note that is repeated counts once: an n-gram of intervals (Downie, 1999). A fingerprint is the set
of a melody's figures, each hashed to one of BITS bits: two have as many bits in common as their melodies have figures,
but for the few that meet by chance.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from clamp3.formats.notes import DRUMS, UNPITCHED, Score, read_bars
from clamp3.inputs.passages import MOST_BARS, Metre, Span, bars_of, is_midi, messages_of

STEPS = 4  # of a figure in a fingerprint
FEWEST = 4  # steps of a melody, under which nothing is known of it
WIDEST = 24  # semitones of a step; wider ones count as this
BITS = 512
NO_MELODY = np.zeros(BITS // 64, np.uint64)
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Fibonacci hashing (Knuth, TAOCP 3, 6.4)


def figures(pitches: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The figures of a melody of `pitches` (n,), each once: numbers (m,) uint64, and their first pitches (m,).

    Each is of `steps` steps, or of all where a melody has fewer; of fewer than FEWEST there is none.
    """
    heights = pitches[np.append(True, pitches[1:] != pitches[:-1])].astype(np.int64) if len(pitches) else pitches
    moves = np.diff(heights).clip(-WIDEST, WIDEST) + WIDEST + 1
    if len(moves) < FEWEST:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    size = min(steps, len(moves))
    runs = np.lib.stride_tricks.sliding_window_view(moves, size).astype(np.uint64)
    numbers, places = np.unique(
        runs @ (np.uint64(2 * WIDEST + 2) ** np.arange(size, dtype=np.uint64)), return_index=True
    )
    return numbers, heights[places]


def fingerprint(pitches: np.ndarray) -> np.ndarray:
    """The fingerprint (BITS / 64,) uint64 of a melody of `pitches` (n,)."""
    bits = np.zeros(BITS, np.uint8)
    numbers, _ = figures(pitches, STEPS)
    bits[(numbers * SPREAD) >> np.uint64(64 - (BITS - 1).bit_length())] = 1
    return np.packbits(bits).view("<u8")


class BarMelodies:
    """The melody of each bar of a piece of patches, as `spelled`; bars are counted as in passages.

    Of ABC that is not interleaved nothing is known, nor of a piece with lengths and pitches beyond all music.
    """

    def __init__(self, patches: Sequence[str]):
        try:
            found = (_midi_bars if is_midi(patches) else _abc_bars)(patches)
        except (ValueError, ZeroDivisionError, OverflowError):
            found = {}
        self.numbers, self.melodies = list(found), list(found.values())

    def of(self, span: Span | None = None) -> np.ndarray:
        """The fingerprint of the melody of a passage, or of the whole piece."""
        first, last = (span.first, span.last) if span else (0, MOST_BARS)
        inside = self.melodies[bisect_left(self.numbers, first) : bisect_right(self.numbers, last)]
        return fingerprint(np.concatenate([np.zeros(0, np.int64), *inside]))


def _abc_bars(patches: Sequence[str]) -> dict[int, np.ndarray]:
    numbers = bars_of(patches)
    lines = [""] * (max(numbers, default=0) + 1)  # the header and each bar, whose patches may have lost their ends
    for number, patch in zip(numbers, patches, strict=True):
        lines[number] += patch.rstrip("\n") + "\n" * (not number)
    bars = read_bars("\n".join(lines))
    if len(bars) != len(lines) - 1:
        return {}
    return {number: Score.of(bar.notes).top_line() for number, bar in enumerate(bars, 1)}


def _midi_bars(patches: Sequence[str]) -> dict[int, np.ndarray]:
    ticks_per_beat, messages = messages_of(patches)
    metre = Metre(ticks_per_beat, messages)
    notes: dict[int, list[tuple[float, int]]] = {}
    for message in messages:
        if message.begins:
            channel, pitch = map(int, message.after.split()[:2])
            pitched = pitch + UNPITCHED * (channel == DRUMS)
            notes.setdefault(metre.bar(message.now) + 1, []).append((message.now / ticks_per_beat, pitched))
    return {bar: Score.of(some).top_line() for bar, some in sorted(notes.items())}
