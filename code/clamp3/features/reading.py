"""Raw files of any kind -> the sequences that the towers read. A file that cannot be read is an item too."""

import contextlib
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clamp3.errors import RepairWarning, UserError
from clamp3.io.files import load_array, read_text
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import reason

if TYPE_CHECKING:
    from clamp3.audio.mert import Mert
    from clamp3.features.embedder import Embedder
    from clamp3.inputs.encoder import InputEncoder

# A path, or a function that gives the waveform (samples,) at 24 kHz and calls its argument with what it has mended.
Sound = Path | Callable[[Callable[[str], None]], np.ndarray]
# To be raised with each change that makes other sequences of the same file: features before and after do not compare.
READING_VERSION = 1
MANY = 32  # scores, which are worth starting processes for
LISTENERS = {"cpu": 1, "other": 4}  # threads that decode ahead of the network; each holds a file's waveform


@dataclass
class Item:
    """A file that was read: what it holds, or why nothing, and what was mended."""

    index: int  # of the file, in the list that is read
    modality: str
    content: np.ndarray | Iterator[np.ndarray] | None = None  # its tower's sequence; of sound, first its windows
    error: Exception | None = None
    repairs: list[str] = field(default_factory=list)

    def problem(self, feature: np.ndarray | None, precision: str) -> str | None:
        """Why the file has no feature that can be used, if so; `feature` is the one computed in `precision`."""
        if self.error is not None:
            return reason(self.error)
        return None if np.isfinite(feature).all() else f"the feature is not finite in {precision}"


@cache
def raw_modalities() -> dict[str, str]:
    """The modality of each kind of file, by extension in small letters."""
    from clamp3.formats.audio import EXTENSIONS
    from clamp3.formats.midi import MIDI_EXTENSIONS

    symbolic = (".xml", ".musicxml", ".mxl", ".abc", ".mtf", *MIDI_EXTENSIONS)
    return {
        ".txt": "text",
        **dict.fromkeys(symbolic, "symbolic"),
        ".npy": "audio",
        **dict.fromkeys(EXTENSIONS, "audio"),
    }


def is_sound(path: Path) -> bool:
    from clamp3.formats.audio import EXTENSIONS

    return path.suffix.lower() in EXTENSIONS


def read_raw(embedder: "Embedder", paths: Sequence[Path], workers: int = 0) -> Iterator[Item]:
    """The items of `paths` of any kinds, sound last: its windows go through MERT together.

    With `workers`, so many processes convert MANY scores and MIDI files or more, and one that holds up or ends its
    process is an item with an error. It takes a main module that can be imported, so it is for commands.
    """
    sounds = [index for index, path in enumerate(paths) if is_sound(path)]
    scores = {index for index, path in enumerate(paths) if needs_conversion(path)}
    if not workers or len(scores) < MANY:
        scores = set()
    yield from _converted(embedder, paths, sorted(scores), workers)
    for index, path in enumerate(paths):
        if not is_sound(path) and index not in scores:
            modality = raw_modalities().get(path.suffix.lower(), "symbolic")
            yield read_item(Item(index, modality), partial(read_file, embedder, path))
    if sounds:
        for item in read_sounds(embedder, [paths[index] for index in sounds]):
            item.index = sounds[item.index]
            yield item


def needs_conversion(path: Path) -> bool:
    """Whether it is a score or MIDI of another kind than the models read."""
    extension = path.suffix.lower()
    return raw_modalities().get(extension) == "symbolic" and extension != ".mtf"


def _converted(embedder: "Embedder", paths: Sequence[Path], chosen: list[int], workers: int) -> Iterator[Item]:
    """The items of the scores at the places `chosen` in `paths`, in any order."""
    from clamp3.io.workers import TIME_LIMIT, in_processes

    places = {paths[index]: index for index in chosen}
    jobs = [Job(path, (), 0) for path in places]
    with contextlib.closing(in_processes(convert_score, jobs, workers, TIME_LIMIT)) as outcomes:
        for outcome in outcomes:
            item = Item(places[outcome.job.source], "symbolic", repairs=list(outcome.warnings))
            if outcome.failure is None:
                read_item(item, partial(embedder.encode_symbolic, outcome.content))
            else:
                item.error = ValueError(outcome.failure)
            yield item


def convert_score(job: Job) -> Outcome:
    """What `read_symbolic` makes of a file, in a process of its own."""
    from clamp3.formats.registry import read_symbolic

    item = read_item(Item(0, "symbolic"), partial(read_symbolic, job.source))
    failure = None if item.error is None else reason(item.error)
    return Outcome(job, failure, tuple(item.repairs), item.content)


def read_sounds(embedder: "Embedder", sounds: Iterable[Sound]) -> Iterator[Item]:
    """The items of `sounds`, as `listen` takes them, with the sequences of the audio tower, in any order."""
    for item in listen(embedder.mert, sounds):
        if item.content is not None:
            features = item.content.mean(axis=0)
            item.content = None
            read_item(item, partial(embedder.encode_audio_features, features))
        yield item


def read_file(encoder: "InputEncoder", path: Path) -> np.ndarray:
    """The sequence of a file that holds no sound: text, MERT features, else a score or MIDI."""
    extension = path.suffix.lower()
    if extension == ".txt":
        return encoder.encode_text(read_text(path))
    if extension == ".npy":
        return encoder.encode_audio_features(load_array(path))
    from clamp3.formats.registry import read_symbolic

    return encoder.encode_symbolic(read_symbolic(path))


def read_item(item: Item, read: Callable[[], np.ndarray]) -> Item:
    """Fill `item` with what `read` returns, or with its error, and with its RepairWarnings."""
    with warnings.catch_warnings(record=True) as caught, _errors_noted(item):
        warnings.simplefilter("always", RepairWarning)
        item.content = read()
    repairs = [str(warning.message) for warning in caught if issubclass(warning.category, RepairWarning)]
    item.repairs += dict.fromkeys(repairs)
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


def listen(mert: "Mert", sounds: Iterable[Sound]) -> Iterator[Item]:
    """The items of `sounds` with their MERT features (layers, windows, hidden), in any order.

    Sounds are taken as they are needed, few ahead of the network.
    """
    waiting: dict[int, Item] = {}  # those whose windows MERT has taken, in the order in which it took them
    unreadable: list[Item] = []

    def readable() -> Iterator[Iterator[np.ndarray]]:
        taken = itertools.count()
        for item in _read_ahead(sounds, LISTENERS["cpu" if mert.device.type == "cpu" else "other"]):
            if item.error is not None:
                unreadable.append(item)
            else:
                waiting[next(taken)] = item
                yield item.content

    for number, features in mert.extract_windows(readable()):
        item = waiting.pop(number)
        item.content = features  # in place of the windows, and with them of the waveform
        yield item
    yield from unreadable


def _read_ahead(sounds: Iterable[Sound], readers: int) -> Iterator[Item]:
    """The items of `sounds`, in their order, the next of them read while one is used."""
    waiting = iter(enumerate(sounds))
    with ThreadPoolExecutor(readers) as pool:
        upcoming = deque(pool.submit(_decode, *sound) for sound in itertools.islice(waiting, readers))
        while upcoming:
            item = upcoming.popleft().result()
            upcoming.extend(pool.submit(_decode, *sound) for sound in itertools.islice(waiting, 1))
            yield item


def _decode(index: int, sound: Sound) -> Item:
    from clamp3.audio.windows import windows
    from clamp3.formats.audio import read_audio

    item = Item(index, "audio")
    read = sound if callable(sound) else partial(read_audio, sound)
    with _errors_noted(item):
        item.content = windows(read(item.repairs.append), item.repairs.append)
    return item
