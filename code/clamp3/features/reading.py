"""Raw files of any kind -> the sequences that the towers read. A file that cannot be read is an item too."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.audio.encoder import AudioEncoder
from clamp3.errors import Note, UserError
from clamp3.formats.registry import SOUND, format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import describe_error
from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC

# A path, or a function that gives the waveform (samples,) at a rate in Hz, with a `Note` for what it has mended.
Sound = Path | Callable[[int, Note], np.ndarray]

# To be raised with each change that makes other sequences of the same file: features before and after do not compare.
READING_VERSION = 3
MIN_FOR_WORKERS = 32  # slow conversions, which are worth starting processes for
DECODERS = {"cpu": 1, "other": 4}  # threads that decode ahead of the network; each holds a file's waveform


@dataclass
class Item:
    """A file that was read: what it holds, or why nothing, and what was mended."""

    index: int  # of the file, in the list that is read
    modality: str
    content: Any = None  # its tower's sequence (length, …); of sound, first what its AudioEncoder takes
    error: Exception | None = None
    repairs: list[str] = field(default_factory=list)

    def note(self, repair: str) -> None:
        """Add a remark, unless it is there already."""
        if repair not in self.repairs:
            self.repairs.append(repair)

    def problem(self, feature: np.ndarray | None, precision: str) -> str | None:
        """Why the file has no feature that can be used, if so; `feature` is the one computed in `precision`."""
        if self.error is not None:
            return describe_error(self.error)
        if feature is None or not np.isfinite(feature).all():
            return f"the feature is not finite in {precision}"
        return None


def is_sound(path: Path) -> bool:
    """Whether the file's extension is one of sound, which an AudioEncoder reads."""
    known = format_of(path)
    return known is not None and known.decode is not None


def read_raw(
    encoder: InputEncoder,
    paths: Sequence[Path],
    load_audio_encoder: Callable[[], AudioEncoder] | None = None,
    workers: int = 0,
) -> Iterator[Item]:
    """The items of `paths` of any kinds, sound last, which goes through an AudioEncoder together.

    With `workers`, so many processes convert MIN_FOR_WORKERS scores and MIDI files or more, and one that holds up or
    ends its process is an item with an error. It takes a main module that can be imported, so it is for commands.
    """
    formats = [format_of(path) for path in paths]
    sounds = [index for index, known in enumerate(formats) if known and known.decode]
    slow = [index for index, known in enumerate(formats) if known and known.is_slow]
    in_workers = set(slow if workers and len(slow) >= MIN_FOR_WORKERS else ())
    yield from _converted(encoder, paths, sorted(in_workers), workers)
    for index, (path, known) in enumerate(zip(paths, formats, strict=True)):
        if index not in in_workers and not (known and known.decode):
            item = Item(index, _modality(path))
            yield read_item(item, partial(read_file, encoder, path))
    if sounds:
        if load_audio_encoder is None:
            raise UserError(f"{paths[sounds[0]]} is sound, and there is no audio encoder to read it")
        for item in read_sounds(encoder, load_audio_encoder(), [paths[index] for index in sounds]):
            item.index = sounds[item.index]
            yield item


def _converted(encoder: InputEncoder, paths: Sequence[Path], chosen: list[int], workers: int) -> Iterator[Item]:
    """The items of the files at the places `chosen` in `paths`, converted in processes, in any order."""
    from clamp3.io.workers import TIME_LIMIT, in_processes

    places = {paths[index]: index for index in chosen}
    jobs = [Job(path, (), 0) for path in places]
    with contextlib.closing(in_processes(convert_raw, jobs, workers, TIME_LIMIT)) as outcomes:
        for outcome in outcomes:
            item = Item(places[outcome.job.source], SYMBOLIC.name, repairs=list(outcome.warnings))
            if outcome.content is not None:
                content, modality = outcome.content
                item.modality = modality
                read_item(item, partial(encode, encoder, modality, content))
            else:
                item.error = ValueError(outcome.failure)
            yield item


def convert_raw(job: Job) -> Outcome:
    """What the format of a file makes of it, with its modality, in a process of its own."""
    item = read_item(Item(0, _modality(job.source)), partial(read_content, job.source))
    if item.error is not None:
        return Outcome(job, describe_error(item.error), tuple(item.repairs))
    return Outcome(job, None, tuple(item.repairs), (item.content, item.modality))


def read_content(path: Path, note: Note) -> str | np.ndarray:
    """What the format of a file makes of it: text or audio features. Raises ValueError for sound and unknown files."""
    known = format_of(path)
    if known is None or known.read is None:
        raise ValueError(f"nothing here reads {path.suffix.lower() or 'files without an extension'}")
    return known.read(path, note)


def _modality(path: Path) -> str:
    known = format_of(path)
    return known.modality if known else SYMBOLIC.name


def read_file(encoder: InputEncoder, path: Path, note: Note) -> np.ndarray:
    """The sequence of a file of any format but sound. Raises ValueError for others, and as the format's `read`."""
    return encode(encoder, _modality(path), read_content(path, note), note)


def encode(encoder: InputEncoder, modality: str, content: str | np.ndarray, note: Note) -> np.ndarray:
    """The sequence (length, …) of a `modality`'s tower for what a file holds."""
    return getattr(encoder, MODALITIES[modality].encode)(content, note)


def read_item(item: Item, read: Callable[[Note], Any]) -> Item:
    """Fill `item` with what `read` returns, or with its error, and with the remarks that it makes."""
    with _errors_noted(item):
        item.content = read(item.note)
    return item


@contextlib.contextmanager
def _errors_noted(item: Item) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        item.error = ValueError(f"its converter gave up: {error}")
    except Exception as error:  # whatever a damaged file leads a reader to, the others go on
        item.error = error


# ---------- sound ----------


def read_sounds(encoder: InputEncoder, audio_encoder: AudioEncoder, sounds: Iterable[Sound]) -> Iterator[Item]:
    """The items of `sounds` with the sequences of the audio tower, in any order."""
    for item in listen(audio_encoder, sounds, audio_encoder.extract):
        if item.error is None:
            frames, item.content = item.content, None
            read_item(item, partial(encode, encoder, AUDIO.name, frames))
        yield item


def listen(
    audio_encoder: AudioEncoder,
    sounds: Iterable[Sound],
    extract: Callable[[Iterable], Iterator[tuple[int, np.ndarray]]],
) -> Iterator[Item]:
    """The items of `sounds` with what `extract` makes of them, in any order.

    `extract` takes what the encoder's `prepare` returns. Sounds are taken as they are needed, few ahead of it.
    """
    waiting: dict[int, Item] = {}
    unreadable: list[Item] = []
    taken = itertools.count()

    def readable() -> Iterator[Any]:
        decoders = DECODERS["cpu" if audio_encoder.device.type == "cpu" else "other"]
        for item in _read_ahead(audio_encoder, sounds, decoders):
            if item.error is not None:
                unreadable.append(item)
            else:
                waiting[next(taken)] = item
                yield item.content

    for number, features in extract(readable()):
        item = waiting.pop(number)
        item.content = features  # in place of the waveform
        yield item
    yield from unreadable


def _read_ahead(audio_encoder: AudioEncoder, sounds: Iterable[Sound], readers: int) -> Iterator[Item]:
    """The items of `sounds`, in their order, the next of them read while one is used."""
    waiting = iter(enumerate(sounds))
    with ThreadPoolExecutor(readers) as pool:
        upcoming = deque(pool.submit(_decode, audio_encoder, *one) for one in itertools.islice(waiting, readers))
        while upcoming:
            item = upcoming.popleft().result()
            upcoming.extend(pool.submit(_decode, audio_encoder, *one) for one in itertools.islice(waiting, 1))
            yield item


def _decode(audio_encoder: AudioEncoder, index: int, sound: Sound) -> Item:
    def read(note: Note) -> Any:
        if isinstance(sound, Path):
            known = format_of(sound) if is_sound(sound) else SOUND
            assert known and known.decode
            waveform = known.decode(sound, audio_encoder.rate, note)
        else:
            waveform = sound(audio_encoder.rate, note)
        return audio_encoder.prepare(waveform, note)

    return read_item(Item(index, AUDIO.name), read)
