"""Raw files of any kind -> the sequences that the towers read. A file that cannot be read is an item too."""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clamp3.errors import Note, UserError
from clamp3.formats.registry import SOUND, check_size, format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import describe_error
from clamp3.io.workers import Processes, in_processes
from clamp3.modalities import AUDIO, MODALITIES, SYMBOLIC

if TYPE_CHECKING:  # it imports torch, which worker processes do without
    from clamp3.audio.encoder import AudioEncoder

T = TypeVar("T")
# A path, or a function that gives the waveform (samples,) at a rate in Hz, with a `Note` for what it has mended.
Sound = Path | Callable[[int, Note], np.ndarray]

# To be raised with each change that makes other sequences of the same file: features before and after do not compare.
READING_VERSION = 3
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
    load_audio_encoder: "Callable[[], AudioEncoder] | None" = None,
    processes: Processes | None = None,
) -> Iterator[Item]:
    """The items of `paths` of any kinds, sound last, which goes through an AudioEncoder together.

    With `processes`, these convert scores and MIDI files, and one that holds up or ends its process is an item with an
    error. That takes a main module that can be imported, so it is for commands.
    """
    formats = [format_of(path) for path in paths]
    sounds = [index for index, known in enumerate(formats) if known and known.decode]
    slow = {index for index, known in enumerate(formats) if known and known.is_slow and processes}
    if slow and processes:
        yield from read_in_processes(partial(read_file, plain(encoder)), paths, slow, processes)
    for index, (path, known) in enumerate(zip(paths, formats, strict=True)):
        if index not in slow and not (known and known.decode):
            item = Item(index, _modality(path))
            yield read_item(item, partial(read_file, encoder, path))
    if sounds:
        if load_audio_encoder is None:
            raise UserError(f"{paths[sounds[0]]} is sound, and there is no audio encoder to read it")
        for item in read_sounds(encoder, load_audio_encoder(), [paths[index] for index in sounds]):
            item.index = sounds[item.index]
            yield item


def plain(encoder: InputEncoder) -> InputEncoder:
    """What encodes as `encoder` does and is nothing more, so that processes can be given it."""
    return InputEncoder(encoder.sizes, encoder.as_is)


def read_in_processes(
    read: Callable[[Path, Note], Any], paths: Sequence[Path], chosen: Collection[int], processes: Processes
) -> Iterator[Item]:
    """The items of the files at the places `chosen` in `paths`, in any order; `read` returns a file's content."""
    places: dict[Path, list[int]] = {}
    for index in sorted(chosen):
        places.setdefault(paths[index], []).append(index)
    jobs = [Job(path, (), 0) for path in places]
    with contextlib.closing(in_processes(partial(read_job, read), jobs, processes)) as outcomes:
        for outcome in outcomes:
            path, error = outcome.job.source, outcome.failure and ValueError(outcome.failure)
            for index in places[path]:
                yield Item(index, _modality(path), outcome.content, error or None, list(outcome.warnings))


def read_job(read: Callable[[Path, Note], Any], job: Job) -> Outcome:
    """What `read` makes of a file, as content, in a process of its own."""
    item = read_item(Item(0, _modality(job.source)), partial(read, job.source))
    failure = None if item.error is None else describe_error(item.error)
    return Outcome(job, failure, tuple(item.repairs), item.content)


def read_content(path: Path, note: Note) -> str | np.ndarray:
    """What the format of a file makes of it: text or audio features. Raises ValueError for sound and unknown files."""
    known = format_of(path)
    if known is None or known.read is None:
        raise ValueError(f"nothing here reads {path.suffix.lower() or 'files without an extension'}")
    check_size(path, known)
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


def read_sounds(encoder: InputEncoder, audio_encoder: "AudioEncoder", sounds: Iterable[Sound]) -> Iterator[Item]:
    """The items of `sounds` with the sequences of the audio tower, in any order."""
    for item in listen(audio_encoder, sounds, audio_encoder.extract):
        if item.error is None:
            frames, item.content = item.content, None
            read_item(item, partial(encode, encoder, AUDIO.name, frames))
        yield item


def listen(
    audio_encoder: "AudioEncoder",
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


def _read_ahead(audio_encoder: "AudioEncoder", sounds: Iterable[Sound], readers: int) -> Iterator[Item]:
    """The items of `sounds`, in their order, the next of them read while one is used."""
    calls = (partial(_decode, audio_encoder, index, sound) for index, sound in enumerate(sounds))
    upcoming = deque(map(in_thread, itertools.islice(calls, readers)))
    while upcoming:
        item = upcoming.popleft().result()
        upcoming.extend(map(in_thread, itertools.islice(calls, 1)))
        yield item


def in_thread(call: Callable[[], T]) -> "Future[T]":
    """What `call` returns, in a thread of its own: should a file block it for good, no exit waits for it."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _decode(audio_encoder: "AudioEncoder", index: int, sound: Sound) -> Item:
    def read(note: Note) -> Any:
        if isinstance(sound, Path):
            known = format_of(sound) if is_sound(sound) else SOUND
            assert known and known.decode
            waveform = known.decode(sound, audio_encoder.rate, note)
        else:
            waveform = sound(audio_encoder.rate, note)
        return audio_encoder.prepare(waveform, note)

    return read_item(Item(index, AUDIO.name), read)
