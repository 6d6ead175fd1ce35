"""A waveform -> the normalized windows that MERT takes."""

from collections.abc import Iterator

import numpy as np

from clamp3.errors import Note, warn
from clamp3.modalities import SAMPLING_RATE

WINDOW = 5 * SAMPLING_RATE
SHORTEST_WINDOW = SAMPLING_RATE  # of a track's last window, and of a shorter track repeated
VARIANCE_FLOOR = 1e-7  # added to a track's variance, so that silence stays finite


def windows(waveform: np.ndarray, note: Note = warn) -> Iterator[np.ndarray]:
    """A waveform (samples,) at 24 kHz -> its windows of 5 s, one after the other, float32 (up to 120000,).

    The whole track is normalized to zero mean and unit variance. A last window under 1 s is left out. A track under
    1 s is one window, repeated up to 1 s: `note` is told so. Raises ValueError for none and for samples not finite.
    """
    if not len(waveform):
        raise ValueError("empty: no samples")
    if not np.isfinite([waveform.min(), waveform.max()]).all():
        raise ValueError("holds NaN or infinite samples")
    mean = np.mean(waveform, dtype=np.float64)
    starts = range(0, len(waveform), WINDOW)
    squares = sum(np.sum((waveform[start : start + WINDOW].astype(np.float64) - mean) ** 2) for start in starts)
    deviation = np.sqrt(squares / len(waveform) + VARIANCE_FLOOR)
    if len(waveform) < SHORTEST_WINDOW:
        note(f"{len(waveform) / SAMPLING_RATE:.2f} s of sound, repeated up to 1 s")
        waveform = np.resize(waveform, SHORTEST_WINDOW)

    def normalized() -> Iterator[np.ndarray]:
        for start in range(0, len(waveform) - SHORTEST_WINDOW + 1, WINDOW):
            yield (waveform[start : start + WINDOW] - np.float32(mean)) / np.float32(deviation)

    return normalized()
