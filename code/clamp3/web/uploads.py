"""Work on files within a time: uploads, kept under names of our own while they are read, and views of scores."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from clamp3.errors import UserError
from clamp3.features.cache import embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.features.passages import melody_of
from clamp3.features.reading import in_thread
from clamp3.formats.captions import caption_of
from clamp3.formats.registry import extensions
from clamp3.io.reports import describe_error, printable
from clamp3.search.collection import ready_feature

T = TypeVar("T")
AT_ONCE = 2  # files that are worked on
SHOWN_NAME = 80  # characters of an upload's name in sentences about it
PICTURES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".avif", ".heic", ".heif"),
    *(".bmp", ".tif", ".tiff", ".svg", ".ico", ".pdf", ".psd"),
}
NO_PICTURES = (
    "pictures are not read here. Started with --captioner, the server puts what they show into words, and searches by "
    "these; of a page of sheet music, a program for optical music recognition makes MusicXML"
)


class Late(Exception):
    """The work takes longer than it may, or what came before it does; the message says so."""


class Workshop:
    """Runs calls in threads, AT_ONCE at most, and gives each up after `seconds`; its place is free once it ends."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises Late, and what `call` raises."""
        try:
            await asyncio.wait_for(self._places.acquire(), self.seconds)
        except asyncio.TimeoutError:  # noqa: UP041  (another class in Python 3.10)
            raise Late("the server is busy with other files: try again in a minute") from None
        loop = asyncio.get_running_loop()
        future = in_thread(call)

        def leave(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._places.release)

        future.add_done_callback(leave)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self.seconds)
        except asyncio.TimeoutError:  # noqa: UP041
            raise Late(f"it takes longer than {self.seconds:.0f} s, the most that is allowed here") from None


@dataclass
class Embedded:
    """An upload's feature (hidden,), the modality of its kind, and what was mended to read it."""

    feature: np.ndarray
    modality: str
    remarks: list[str]
    melody: np.ndarray | None = None  # its fingerprint


def shown_name(name: str | None) -> str:
    """What an upload is called in answers: the end of a path, without control characters."""
    return printable((name or "").replace("\\", "/").rsplit("/", 1)[-1])[:SHOWN_NAME] or "the upload"


@contextlib.contextmanager
def kept_upload(name: str | None, content: BinaryIO) -> Iterator[Path]:
    """An uploaded file, for the block: in a folder of its own, as "upload" with the extension of its `name`.

    Raises ValueError where nothing reads files of that kind.
    """
    suffix = Path(shown_name(name)).suffix.lower()
    if suffix in PICTURES:
        raise ValueError(NO_PICTURES)
    if suffix not in extensions():
        raise ValueError(f"nothing here reads {suffix or 'files without an extension'}")
    with _kept(suffix, content) as path:
        yield path


@contextlib.contextmanager
def _kept(suffix: str, content: BinaryIO) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clamp3-upload-") as folder:
        path = Path(folder, f"upload{suffix}")
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
        yield path


def caption_upload(captioner: str, name: str | None, content: BinaryIO) -> str:
    """What an uploaded picture shows, in the words of `captioner`. Raises ValueError with the reason for none."""
    with _kept(Path(shown_name(name)).suffix.lower(), content) as path:
        try:
            return caption_of(path, captioner)
        except UserError as error:
            raise ValueError(str(error)) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"the picture {describe_error(error)}") from None


def embed_upload(embedder: Embedder, name: str | None, content: BinaryIO, with_melody: bool = False) -> Embedded:
    """The feature of an uploaded file, of the kind that the extension of its `name` tells, and its melody if wanted.

    Raises ValueError with the reason where it has no feature.
    """
    with kept_upload(name, content) as path:
        made = embed_kept(embedder, path)
        made.melody = melody_of(embedder, path) if with_melody else None
        return made


def embed_kept(embedder: Embedder, path: Path) -> Embedded:
    """The feature of a kept upload. Raises ValueError with the reason where it has none."""
    if (feature := ready_feature(path)) is not None:
        if feature.size != embedder.sizes.clamp3_hidden_size:
            raise ValueError(f"a feature of {feature.size} numbers, not {embedder.sizes.clamp3_hidden_size}")
        return Embedded(feature, "feature", [])
    try:
        ((item, made),) = embed_files_once(embedder, [path], None)
    except UserError:
        raise
    except OSError as error:
        raise ValueError(describe_error(error)) from None
    if (reason := item.problem(made, embedder.precision)) or made is None:
        raise ValueError(reason)
    return Embedded(made, item.modality, item.repairs)
