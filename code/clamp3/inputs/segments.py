"""Sequences longer than a tower takes -> segments, and segments -> padded batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def pad(sequences: list[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (length, …) -> (batch, longest, …), filled up with `value`, and masks (batch, longest)."""
    lengths = np.array([len(sequence) for sequence in sequences])
    longest = lengths.max()
    stacked = np.full((len(sequences), longest, *sequences[0].shape[1:]), value, sequences[0].dtype)
    for row, sequence in zip(stacked, sequences, strict=True):
        row[: len(sequence)] = sequence
    return stacked, (np.arange(longest) < lengths[:, None]).astype(np.int64)


@dataclass(frozen=True)
class Segment:
    """A stretch of a sequence that fits its tower."""

    owner: int  # which sequence
    start: int
    stop: int
    covered: int  # how many of its positions, at its start, the segment before has covered

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def weight(self) -> int:
        """Its share in the sequence's mean: the positions that it alone covers."""
        return self.length - self.covered


def cut(owner: int, length: int, max_length: int) -> list[Segment]:
    """Segments of `max_length`, side by side; the last is the sequence's last `max_length` positions, so overlaps."""
    segments = [
        Segment(owner, start, start + max_length, 0) for start in range(0, length - max_length + 1, max_length)
    ]
    remainder = length % max_length
    if remainder:
        start = max(0, length - max_length)
        segments.append(Segment(owner, start, length, length - start - remainder))
    return segments


def batches(segments: list[Segment], batch_tokens: int) -> Iterator[list[Segment]]:
    """Longest first, so that neighbours are alike and padding is small; no padded batch exceeds `batch_tokens`."""
    batch: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: -segment.length):
        if batch and (len(batch) + 1) * batch[0].length > batch_tokens:
            yield batch
            batch = []
        batch.append(segment)
    if batch:
        yield batch
