"""Which melodies are versions of one another, in any key: by figures of notes that few others have.

A figure here has FIGURE steps (see `inputs.melodies`). Melodies that share many, moved by one interval, are the same
music. So it matters neither in what key, metre and rhythm they are, nor how often parts are repeated, nor that notes
differ here and there.
"""

from collections.abc import Sequence

import numpy as np

FIGURE = 7  # steps
SHARED = 0.15  # of the figures of both melodies, by weight: two that share more are the same music
LENGTHS = 0.5  # of the longer melody's figures, that the shorter has at least: a medley is not each of its tunes
NEIGHBOURS = 50  # melodies with a common figure that each is compared with, in the order of their places
INTERVALS = 512  # between the beginnings of two figures, from half of it below to half of it above


def same_music(melodies: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Triples (pairs, 3): two melodies, given by their `figures`, that are the same music, and the interval between.

    The interval is in semitones, from the first up to the second. A figure weighs the more, the fewer have it.
    """
    counts = np.array([len(numbers) for numbers, _ in melodies], np.int64)
    if not counts.sum():
        return np.zeros((0, 3), np.int64)
    owners = np.repeat(np.arange(len(melodies)), counts)
    numbers = np.concatenate([numbers for numbers, _ in melodies])
    order = np.lexsort((owners, numbers))
    owners, starts = owners[order], np.concatenate([starts for _, starts in melodies])[order]
    _, kinds, frequencies = np.unique(numbers[order], return_inverse=True, return_counts=True)
    weights = np.log((1 + len(melodies)) / frequencies)[kinds]
    pairs, intervals, shared = _shared(len(melodies), owners, kinds, starts, weights)
    one, other = pairs // len(melodies), pairs % len(melodies)
    totals = np.bincount(owners, weights, len(melodies))
    is_same = shared >= SHARED * (totals[one] + totals[other] - shared)
    is_same &= np.minimum(counts[one], counts[other]) >= LENGTHS * np.maximum(counts[one], counts[other])
    return np.stack([one, other, intervals], axis=1)[is_same]


def _shared(
    size: int, owners: np.ndarray, kinds: np.ndarray, starts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of `size` melodies (first · size + second), the interval at which they share most, and the weight of that.

    `owners` (n,) have figures of `kinds` (n,) that begin at pitches `starts` (n,), in the order of kinds, then owners.
    """
    found, their_weights = [np.zeros(0, np.int64)], [np.zeros(0)]
    for distance in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(kinds[distance:] == kinds[:-distance])
        interval = (starts[same + distance] - starts[same]).clip(-INTERVALS // 2, INTERVALS // 2 - 1)
        found.append((owners[same] * size + owners[same + distance]) * INTERVALS + interval + INTERVALS // 2)
        their_weights.append(weights[same])
    keys, places = np.unique(np.concatenate(found), return_inverse=True)
    sums = np.bincount(places, np.concatenate(their_weights), len(keys))
    order = np.lexsort((-sums, keys // INTERVALS))  # of each pair, the most first
    keys, sums = keys[order], sums[order]
    first = np.append(True, keys[1:] // INTERVALS != keys[:-1] // INTERVALS)[: len(keys)]
    return keys[first] // INTERVALS, keys[first] % INTERVALS - INTERVALS // 2, sums[first]
