"""Recordings for browsers: as they are where every browser plays them, else as WAV."""

import tempfile
import wave
from pathlib import Path

import numpy as np

from clamp3.errors import ignore
from clamp3.formats.audio import read_audio
from clamp3.web.collection import id_of

# What Chromium, Firefox and Safari all play, with its type.
PLAYABLE = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".m4b": "audio/mp4",
    ".aac": "audio/aac",
    ".mp4": "audio/mp4",
    ".m4v": "audio/mp4",
}
RATE = 24_000  # Hz
MOST_HOURS = 1.0  # that are converted
KEPT = 20  # converted recordings


class Recordings:
    """Converts recordings when they are first asked for, and keeps the last KEPT until `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="clamp3-sounds-")
        self._made: dict[Path, Path] = {}  # in the order in which they were made

    def close(self) -> None:
        self._folder.cleanup()

    def playable(self, path: Path) -> tuple[Path, str]:
        """A file that browsers play, and its type. Raises ValueError and OSError as `read_audio` does."""
        if kind := PLAYABLE.get(path.suffix.lower()):
            return path, kind
        if path not in self._made:
            samples = read_audio(path, RATE, ignore, MOST_HOURS)
            target = Path(self._folder.name, f"{id_of(path)}.wav")
            write_wave(target, samples)
            while len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made))).unlink(missing_ok=True)
            self._made[path] = target
        return self._made[path], "audio/wav"


def write_wave(path: Path, samples: np.ndarray) -> None:
    """Write sound (samples,) at RATE, in 16 bits; what is louder than full scale is cut."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
