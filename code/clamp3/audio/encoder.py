"""What turns sound into the frames that the audio tower reads: the protocol, and how one is found by name."""

import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from clamp3.errors import Note, UserError

if TYPE_CHECKING:
    import torch

OWN = re.compile(r"(.+\.py):(\w+)")  # the file and the class of an encoder of one's own


@runtime_checkable
class AudioEncoder(Protocol):
    """A network that listens. MERT is the released model's; an object with these members can take its place."""

    rate: int  # Hz, of the waveforms that it takes
    window: float  # seconds of sound that a frame stands for
    width: int  # numbers in a frame; the audio tower's AUDIO_HIDDEN_SIZE
    device: Any  # a torch.device, or what has a `type` as that has
    identity: str | None  # tells it from others whose features do not compare; None: unknown, so nothing is cached

    def prepare(self, waveform: np.ndarray, note: Note) -> Any:
        """What `extract` takes of a mono waveform (samples,) at `rate`; called in threads that read ahead.

        Raises ValueError for one that has no features, and calls `note` with a remark on one that is out of the
        ordinary.
        """

    def extract(self, sounds: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, frames (frames, width) float32) of each of `sounds`, in any order, as soon as it is whole.

        `sounds` are what `prepare` returned, and are taken one by one: not all of them fit into memory.
        """


def load_audio_encoder(
    name: "str | Path | AudioEncoder | None", device: "str | torch.device | None", precision: str
) -> AudioEncoder:
    """The audio encoder `name`: the folder or the hub's name of a MERT, by default the released one, or an object.

    FILE.py:CLASS is an object of that class, which is made without arguments. Raises UserError where it cannot be had.
    """
    if isinstance(name, AudioEncoder):
        return name
    if name is not None and (own := OWN.fullmatch(str(name))):
        return _own_encoder(*own.groups())
    from clamp3.audio.mert import RELEASED, Mert

    return Mert.from_pretrained(name or RELEASED, device, precision)


def audio_encoder_identity(name: "str | Path | AudioEncoder | None") -> str | None:
    """What tells the audio encoder that `load_audio_encoder` would load from others, without loading a MERT."""
    if isinstance(name, AudioEncoder):
        return name.identity
    if name is not None and (own := OWN.fullmatch(str(name))):
        return _own_encoder(*own.groups()).identity
    from clamp3.audio.mert import RELEASED, mert_identity

    return mert_identity(name or RELEASED)


@functools.cache
def _own_encoder(path: str, class_name: str) -> AudioEncoder:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader  # for its name ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        encoder = getattr(module, class_name)()
    except Exception as error:  # whatever the user has written
        raise UserError(f"no audio encoder {class_name} in {path}: {type(error).__name__}: {error}") from error
    if not isinstance(encoder, AudioEncoder):
        lacking = [
            name for name in (*AudioEncoder.__annotations__, "prepare", "extract") if not hasattr(encoder, name)
        ]
        raise UserError(f"{class_name} in {path} is no audio encoder: it lacks {', '.join(lacking)}")
    return encoder
