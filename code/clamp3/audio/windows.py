"""A waveform -> the normalized windows that MERT takes, and batches of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from clamp3.errors import Note, warn
from clamp3.io.memory import as_memory_allows, forget
from clamp3.modalities import SAMPLING_RATE

WINDOW = 5 * SAMPLING_RATE
SHORTEST_WINDOW = SAMPLING_RATE  # of a track's last window, and of a shorter track repeated
VARIANCE_FLOOR = 1e-7  # added to a track's variance, so that silence stays finite
# Enough to keep the arithmetic units busy; more makes no CPU faster, since activations then leave its caches.
BATCH_SECONDS = {"cpu": 20, "other": 160}
WAITING_BATCHES = 4  # bounds, in batches, what waits for more windows of its length


def windows(waveform: np.ndarray, note: Note = warn) -> Iterator[np.ndarray]:
    """A waveform (samples,) at 24 kHz -> its windows of 5 s, one after the other, float32 (up to 120000,).

    The whole track is normalized to zero mean and unit variance. A last window under 1 s is left out. A track under
    1 s is one window, repeated up to 1 s: `note` is told so. Raises ValueError for none and for samples not finite.
    """
    if not len(waveform):
        raise ValueError("empty: no samples")
    total = 0.0
    for piece in _pieces(waveform):
        if not np.isfinite([piece.min(), piece.max()]).all():
            raise ValueError("holds NaN or infinite samples")
        total += np.sum(piece, dtype=np.float64)
    mean = total / len(waveform)
    squares = sum(np.sum((piece.astype(np.float64) - mean) ** 2) for piece in _pieces(waveform))
    deviation = np.sqrt(squares / len(waveform) + VARIANCE_FLOOR)
    if len(waveform) < SHORTEST_WINDOW:
        note(f"{len(waveform) / SAMPLING_RATE:.2f} s of sound, repeated up to 1 s")
        waveform = np.resize(waveform, SHORTEST_WINDOW)

    def normalized() -> Iterator[np.ndarray]:
        for piece in _pieces(waveform):
            if len(piece) >= SHORTEST_WINDOW:
                yield (piece - np.float32(mean)) / np.float32(deviation)

    return normalized()


def _pieces(waveform: np.ndarray) -> Iterator[np.ndarray]:
    """`waveform` in stretches of a window, of which the last may be shorter; one that lies in a file stays there."""
    for start in range(0, len(waveform), WINDOW):
        yield waveform[start : start + WINDOW]
        forget(waveform)


@dataclass(frozen=True)
class Window:
    """A stretch of a track that the network takes at once."""

    track: int
    position: int
    samples: np.ndarray


def batches(items: Iterable[Window], batch_samples: float) -> Iterator[list[Window]]:
    """Windows of one length together, without padding, which would change the norm over time in the first layer."""
    waiting: dict[int, list[Window]] = {}  # by length
    total = 0
    for item in items:
        length = len(item.samples)
        batch = waiting.setdefault(length, [])
        batch.append(item)
        total += length
        if (len(batch) + 1) * length > batch_samples:
            total -= len(batch) * length
            yield waiting.pop(length)
        elif total > WAITING_BATCHES * batch_samples:
            yield from waiting.values()
            waiting, total = {}, 0
    yield from waiting.values()


def each_whole(
    sounds: Iterable[Iterable[np.ndarray]], compute: Callable[[np.ndarray], np.ndarray], batch_seconds: float
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (index, what `compute` makes of each window) of each of `sounds`, iterables of windows, once it is whole.

    `compute` takes windows of one length (batch, samples). Sounds are taken one by one, as it gets to them.
    """
    lengths: dict[int, int] = {}  # in windows, of the tracks that have been taken to their end
    parts: dict[int, dict[int, np.ndarray]] = {}

    def items() -> Iterator[Window]:
        for track, cut in enumerate(sounds):
            parts[track], position = {}, -1
            for position, samples in enumerate(cut):
                yield Window(track, position, samples)
            lengths[track] = position + 1

    def forward(batch: list[Window]) -> np.ndarray:
        return compute(np.stack([window.samples for window in batch]))

    def whole() -> Iterator[tuple[int, list[np.ndarray]]]:
        for track in [track for track, length in lengths.items() if len(parts[track]) == length]:
            done = parts.pop(track)
            yield track, [done[position] for position in range(lengths.pop(track))]

    for batch in batches(items(), batch_seconds * SAMPLING_RATE):
        for window, feature in zip(batch, as_memory_allows(forward, batch), strict=True):
            if feature is None:
                raise MemoryError("there is not enough memory for 5 s of sound")
            parts[window.track][window.position] = feature
        yield from whole()
    yield from whole()
