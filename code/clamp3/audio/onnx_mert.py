"""MERT as an ONNX file, an AudioEncoder without PyTorch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clamp3.audio.windows import BATCH_SECONDS, WINDOW, each_whole, windows
from clamp3.errors import Note, warn
from clamp3.modalities import SAMPLING_RATE
from clamp3.models.onnx_files import FEATURES, WAVES, Session


@dataclass(frozen=True)
class Cpu:
    """Where onnxruntime computes here; named as devices of PyTorch are."""

    type: str = "cpu"

    def __str__(self) -> str:
        return self.type


class OnnxMert:
    """Turns sound into the frames of `Mert.extract`, float32."""

    rate = SAMPLING_RATE
    window = WINDOW / SAMPLING_RATE
    device: Any = Cpu()

    def __init__(self, session: Session, width: int):
        """`width` is that of a frame."""
        self.width = width
        self.identity: str | None = session.sha256[:16]
        self._session = session

    def __str__(self) -> str:
        return str(self._session.path)

    def prepare(self, waveform: np.ndarray, note: Note = warn) -> Iterator[np.ndarray]:
        """As Mert's."""
        return windows(waveform, note)

    def extract(self, sounds: Iterable[Iterable[np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """As Mert's."""
        for index, frames in each_whole(sounds, self.forward, BATCH_SECONDS["cpu"]):
            yield index, np.stack(frames)

    def forward(self, waves: np.ndarray) -> np.ndarray:
        """Normalized windows of one length, 5 s at most (batch, samples) -> (batch, width)."""
        return self._session.run([FEATURES], {WAVES: waves})[0]
