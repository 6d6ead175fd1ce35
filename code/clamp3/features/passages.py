"""Files -> the features of their passages, each encoded on its own: a window of bars, of seconds, or a line."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clamp3.errors import ignore
from clamp3.features.reading import Item, is_sound, read_content, read_file
from clamp3.formats.registry import format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.inputs.melodies import NO_MELODY, BarMelodies
from clamp3.inputs.passages import Span, audio_passages, lines_of, spelled, symbolic_passages
from clamp3.inputs.patchilizer import M3Patchilizer
from clamp3.modalities import AUDIO, SYMBOLIC, TEXT

if TYPE_CHECKING:
    from clamp3.audio.encoder import AudioEncoder

FRAME_SECONDS = 5.0  # that a frame of ready-made MERT features stands for


@dataclass(frozen=True)
class Passage:
    """A stretch of a file, its feature (hidden,), and the fingerprint of its melody, that of none but of notes."""

    span: Span
    feature: np.ndarray
    melody: np.ndarray = field(default_factory=lambda: NO_MELODY)


class Embeds(Protocol):
    """What is needed of an Embedder."""

    patchilizer: M3Patchilizer

    @property
    def audio_encoder(self) -> "AudioEncoder": ...

    def encode_text(self, text: str) -> np.ndarray: ...

    def prepare_for(self, paths: Iterable[Path]) -> None: ...

    def read_raw(self, paths: Sequence[Path]) -> Iterator[Item]: ...

    def embed_items(self, items: Iterator[Item]) -> Iterator[tuple[Item, np.ndarray | None]]: ...


@dataclass
class _Waiting:
    """A file some of whose features are not there yet."""

    item: Item
    places: list[tuple[Span, np.ndarray]]  # of its passages, with their melodies
    features: dict[int, np.ndarray | None] = field(default_factory=dict)  # by place; the file's own at the end


def melody_of(encoder: InputEncoder, path: Path) -> np.ndarray | None:
    """The fingerprint of the melody of a file, as `BarMelodies` gives it; None of a file without notes.

    Raises as the format's `read` does.
    """
    known = format_of(path)
    if not known or known.modality != SYMBOLIC.name:
        return None
    melody = BarMelodies(spelled(read_file(encoder, path, ignore))).of()
    return melody if melody.any() else None


def embed_with_passages(
    embedder: Embeds, paths: Sequence[Path]
) -> Iterator[tuple[Item, np.ndarray | None, list[Passage]]]:
    """Each of `paths` as an Item, in any order, with its feature (hidden,) and its passages; no feature if it fails.

    Each file is read once. Raises UserError where weights that reading needs are missing.
    """
    embedder.prepare_for(paths)
    waiting: dict[int, _Waiting] = {}
    places: dict[int, tuple[int, int]] = {}  # of sequences, by their number: the file, and the place in it

    def sequences() -> Iterator[Item]:
        number = 0
        for item in embedder.read_raw(paths):
            parts = [] if item.error is not None else _readable_parts(embedder, item, paths[item.index])
            waiting[item.index] = _Waiting(item, [place for place, _ in parts])
            own = Item(number, item.modality, item.content, item.error)
            item.content = None
            for place, one in enumerate([*(Item(0, item.modality, sequence) for _, sequence in parts), own]):
                one.index, number = number, number + 1
                places[one.index] = item.index, place
                yield one

    for one, feature in embedder.embed_items(sequences()):
        index, place = places.pop(one.index)
        known = waiting[index]
        known.features[place] = feature
        known.item.error = known.item.error or one.error
        if len(known.features) > len(known.places):
            del waiting[index]
            yield _whole(known)


def _readable_parts(embedder: Embeds, item: Item, path: Path) -> list[tuple[tuple[Span, np.ndarray], np.ndarray]]:
    """The passages of a file that was read: their spans and melodies, and their sequences.

    Where they cannot be made, the item gets the error.
    """
    try:
        melodies = BarMelodies(spelled(item.content) if item.modality == SYMBOLIC.name else ())
        return [((span, melodies.of(span)), sequence) for span, sequence in _parts(embedder, item, path)]
    except (ValueError, OSError) as error:
        item.error = error
        return []


def _parts(embedder: Embeds, item: Item, path: Path) -> Iterator[tuple[Span, np.ndarray]]:
    if item.modality == SYMBOLIC.name:
        yield from symbolic_passages(item.content, embedder.patchilizer)
    elif item.modality == AUDIO.name:
        yield from audio_passages(item.content, embedder.audio_encoder.window if is_sound(path) else FRAME_SECONDS)
    elif item.modality == TEXT.name:
        text = read_content(path, ignore)
        assert isinstance(text, str)
        for span, line in lines_of(text):
            yield span, embedder.encode_text(line)


def _whole(known: _Waiting) -> tuple[Item, np.ndarray | None, list[Passage]]:
    *others, own = (known.features[place] for place in range(len(known.places) + 1))
    if known.item.error is not None or own is None:
        return known.item, None, []
    features = [feature for feature in others if feature is not None]
    passages = [Passage(span, feature, melody) for (span, melody), feature in zip(known.places, features, strict=True)]
    return known.item, own, passages
