"""Why two items are alike: the cosine as an exact sum over the positions of either.

A global feature is the weighted mean of the positions' projected states, so each bar, message run, frame and word has
its share of the cosine, and the shares add up to it. A state has seen its context: a share says where the sum comes
from, not what that place would be worth alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clamp3.errors import ignore
from clamp3.features.calls import Positions
from clamp3.features.passages import FRAME_SECONDS
from clamp3.features.reading import Item, is_sound, read_content
from clamp3.inputs.passages import BARS, SECONDS, Metre, bars_of, is_midi, messages_of, spelled
from clamp3.inputs.tokenizer import Tokenizer
from clamp3.modalities import AUDIO, SYMBOLIC, TEXT

if TYPE_CHECKING:
    from clamp3.audio.encoder import AudioEncoder

WORDS = "words"
UNSPACED = 0x2E80  # from here on, scripts do without spaces: each token is a word


@dataclass(frozen=True)
class Share:
    """What a place adds to the cosine: bars, seconds or words from `first` to `last`, counted as in passages.

    `unit` is "" of what is no such place: fields of a header, and the beginning and the end of a sequence.
    """

    unit: str
    first: float
    last: float
    text: str  # what stands there, if it is text: notes, the kind of message, a word
    share: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Explanation:
    """The cosine of a query and an item, and its shares: those of each add up to it."""

    cosine: float
    query: list[Share]
    item: list[Share]

    def strongest(self, count: int = 3) -> dict[str, list[Share]]:
        """The places of both that add most, in their order of strength."""
        sides = {"query": self.query, "item": self.item}
        return {
            name: sorted((one for one in shares if one.unit), key=lambda one: -one.share)[:count]
            for name, shares in sides.items()
        }


class Reads(Protocol):
    """What is needed of an Embedder."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def audio_encoder(self) -> "AudioEncoder": ...


@dataclass
class _Place:
    unit: str
    first: float
    last: float
    text: str
    positions: list[int]


def explained(
    embedder: Reads, sources: Sequence[Any], items: Sequence[Item], found: Sequence[Positions]
) -> Explanation:
    """The explanation for two `sources`, a query and an item, that were read as `items` and have these positions."""
    units = [positions.feature.astype(np.float64) for positions in found]
    lengths = [float(np.linalg.norm(unit)) for unit in units]
    if not all(lengths):
        raise ValueError("a feature of length zero is like nothing")
    sides = []
    for own, other in ((0, 1), (1, 0)):
        sums = np.zeros(len(items[own].content))
        states = found[own].states.astype(np.float64) @ (units[other] / lengths[other])
        np.add.at(sums, found[own].indices, found[own].weights * states / lengths[own])
        places = _places(embedder, sources[own], items[own])
        sides.append([Share(p.unit, p.first, p.last, p.text, float(sums[p.positions].sum())) for p in places])
    return Explanation(float(units[0] @ units[1] / lengths[0] / lengths[1]), *sides)


def _places(embedder: Reads, source: Any, item: Item) -> list[_Place]:
    """The places of an item, which take all positions of its sequence."""
    last = len(item.content) - 1
    ends = [_Place("", 0, 0, "beginning", [0]), _Place("", 0, 0, "end", [last])]
    if item.modality == SYMBOLIC.name:
        patches = spelled(item.content)
        inner = list(_message_runs(patches) if is_midi(patches) else _bars(patches))
    elif item.modality == AUDIO.name:
        window = embedder.audio_encoder.window if _is_sound(source) else FRAME_SECONDS
        inner = [_Place(SECONDS, window * n, window * (n + 1), "", [n + 1]) for n in range(last - 1)]
    elif item.modality == TEXT.name:
        return _words(embedder.tokenizer, source, item.content)
    else:
        inner = [_Place("", n, n, "", [n]) for n in range(1, last)]
    return [ends[0], *inner, ends[1]]


def _is_sound(source: Any) -> bool:
    return is_sound(source) if isinstance(source, Path) else True


def _bars(patches: Sequence[str]) -> Iterator[_Place]:
    bars: dict[int, _Place] = {}
    for position, (patch, number) in enumerate(zip(patches, bars_of(patches), strict=True), 1):
        if not number:
            yield _Place("", 0, 0, patch.strip(), [position])
        elif number in bars:
            bars[number].text += patch.strip()
            bars[number].positions.append(position)
        else:
            bars[number] = _Place(BARS, number, number, patch.strip(), [position])
    yield from bars.values()


def _message_runs(patches: Sequence[str]) -> Iterator[_Place]:
    """Each patch of MTF: messages of one kind, one after the other, and the bars that they come in."""
    ticks, messages = messages_of(patches)
    metre, times = Metre(ticks, messages), dict[int, list[int]]()
    for message in messages:
        times.setdefault(message.patch, []).append(message.now)
    for place, patch in enumerate(patches):
        name = patch.split(" ")[0].strip()
        if place in times and name.startswith("note_"):
            first, last = (metre.bar(now) + 1 for now in (times[place][0], times[place][-1]))
            yield _Place(BARS, first, last, name, [place + 1])
        else:
            yield _Place("", 0, 0, name, [place + 1])


def _words(tokenizer: Tokenizer, source: Any, ids: np.ndarray) -> list[_Place]:
    """The words of a text, counted from 1; each has the tokens that begin in it."""
    text = str(read_content(source, ignore) if isinstance(source, Path) else source)
    joined = tokenizer.sep_token.join(line for line in dict.fromkeys(text.split("\n")) if line)
    encoding = tokenizer(joined, verbose=False, return_offsets_mapping=True)
    if encoding["input_ids"] != ids.tolist():
        raise ValueError("the text has changed while it was read")
    special = {tokenizer.sep_token, tokenizer.cls_token, tokenizer.eos_token, tokenizer.bos_token}
    places: list[_Place] = []
    end = -1  # of the word that the last place is
    count = 0
    for position, (first, last) in enumerate(encoding["offset_mapping"]):
        piece = joined[first:last]
        if not piece.strip() or piece.strip() in special:  # empty, or a space that no word follows
            name = "end of line" if piece.strip() else "space" if piece else "end" if position else "beginning"
            places.append(_Place("", 0, 0, name, [position]))
            end = -1
            continue
        start = first + len(piece) - len(piece.lstrip())
        if start < end and places[-1].unit:
            places[-1].positions.append(position)
            continue
        unspaced = ord(joined[start]) >= UNSPACED
        end = max(last, start) if unspaced else _word_end(joined, start, special)
        count += 1
        places.append(_Place(WORDS, count, count, joined[start:end], [position]))
    return places


def _word_end(text: str, start: int, special: Iterable[str | None]) -> int:
    """Where the word ends that begins at `start`: at a space, at a token that joins lines, or before other scripts."""
    stops = [at for token in special if token and (at := text.find(token, start)) >= 0]
    end = start
    while end < min([*stops, len(text)]) and not text[end].isspace() and ord(text[end]) < UNSPACED:
        end += 1
    return max(end, start + 1)
