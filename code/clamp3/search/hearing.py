"""What is compared of the notes of files; worker processes import it, and so it does without torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import Note
from clamp3.features.reading import read_content
from clamp3.formats.notes import UNPITCHED, Score, scores_of
from clamp3.inputs.melodies import FEWEST, figures
from clamp3.search.versions import FIGURE


@dataclass(frozen=True)
class Heard:
    """What is compared of a file's notes: checksums of all of them, as written and as played, and the melody."""

    exact: list[bytes]
    moved: list[tuple[bytes, int]]  # of the intervals between them, and the first note's pitch
    melody: tuple[np.ndarray, np.ndarray]  # its `figures`


def hear(path: Path, note: Note) -> Heard:
    """What is compared of the notes of a score or a MIDI file. Raises as its format's `read` does."""
    text = read_content(path, note)
    if not isinstance(text, str):
        raise ValueError("no score")
    try:
        return heard_of(scores_of(text))
    except (ZeroDivisionError, OverflowError):
        raise ValueError("a length or a pitch in it is beyond all music") from None


def heard_of(scores: Sequence[Score]) -> Heard:
    """What is compared of the notes of one piece, as `scores_of` gives them."""
    exact = [_digest(score.starts, score.pitches) for score in scores]
    moved = [
        (_digest(score.starts, score.pitches - score.pitches[0]), int(score.pitches[0]))
        for score in scores
        if len(score.pitches) > FEWEST and score.pitches.max() < UNPITCHED
    ]
    return Heard(exact, moved, figures(scores[0].top_line() if scores else np.zeros(0, np.int64), FIGURE))


def _digest(*arrays: np.ndarray) -> bytes:
    return hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=16).digest()
