"""Audio files -> mono waveforms at the rate that is asked for.

Everything is done block by block: a file takes the memory of its own mono waveform and no more.
"""

import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from clamp3.errors import Note, warn

SAMPLING_RATE = 24_000  # Hz, where no other is asked for: MERT's
BLOCK = 16_384  # frames; damage inside a block costs the whole of it
RATES = range(1000, 1_000_001)  # Hz; others come from damaged headers
# What libsndfile's log says of files that are cut short.
CUT_SHORT = re.compile(r"^ *(data|SSND|Data Size) *: \d+ \(should be|end-of-stream bit|ended unexpectedly", re.M)


def read_audio(source: Path | bytes, rate: int = SAMPLING_RATE, note: Note = warn) -> np.ndarray:
    """The sound of a file, its path or its bytes -> float32 (samples,) at `rate` Hz, the mean of its channels.

    What soundfile cannot read (m4a, aac, video) is left to PyAV, if it is installed. A file that is damaged or cut
    short gives what stands before the damage: `note` is told so, by default as a RepairWarning. Raises ValueError
    where there is no sound or where samples are not finite, and OSError where the path cannot be read.
    """
    with _File(io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source)) as file:
        if not file.read(1):
            raise ValueError("empty file")
        file.seek(0)
        try:
            sound = soundfile.SoundFile(file)
        except soundfile.LibsndfileError as error:
            file.seek(0)
            file_rate, blocks = _open_with_pyav(file, str(error.error_string).strip(" ."), note)
        else:
            file_rate, blocks = sound.samplerate, _blocks(sound, note)
        return resampled(blocks, file_rate, rate)


class _File(io.BufferedReader):
    """A file for decoders, which a damaged header may send to a place before its start: they then stay where they are.

    An error would not reach them: it would be printed, and they would go on.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError) as error:  # of a file, of bytes
            if self.closed or getattr(error, "errno", errno.EINVAL) != errno.EINVAL:
                raise
            return self.tell()


def _blocks(sound: soundfile.SoundFile, note: Note) -> Iterator[np.ndarray]:
    """The sound in blocks (frames, channels)."""
    frames = 0
    with sound:
        try:
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                yield block
            whole = frames >= sound.frames and not CUT_SHORT.search(sound.extra_info)
        except soundfile.LibsndfileError:
            whole = False
        if not whole and not frames:
            raise ValueError("none of its sound can be decoded")
        if not whole:
            note(f"cut short or damaged: read up to {frames / sound.samplerate:.2f} s")


def _open_with_pyav(file: _File, complaint: str, note: Note) -> tuple[int, Iterator[np.ndarray]]:
    """The sampling rate and the blocks (frames, channels) of the first sound track."""
    try:
        import av
    except ImportError:
        raise ValueError(
            f"cannot be decoded: {complaint}; if it is m4a, aac or video, `pip install av` lets it be read"
        ) from None
    try:
        container = av.open(file, metadata_errors="replace")
    except av.FFmpegError as error:
        raise ValueError(f"cannot be decoded: {complaint}; PyAV says: {error.strerror}") from None
    codec = container.streams.audio[0].codec_context if container.streams.audio else None
    if codec is None:
        raise ValueError("there is no sound track in it that can be decoded")
    return codec.sample_rate, _pyav_blocks(container, note)


def _pyav_blocks(container: Any, note: Note) -> Iterator[np.ndarray]:
    import av

    to_float = av.AudioResampler(format="flt")  # not in planes, of which PyAV finds too many above 8 channels
    seconds = 0.0
    with container:
        try:
            for frame in container.decode(audio=0):
                for block in to_float.resample(frame):
                    seconds += block.samples / block.rate
                    yield block.to_ndarray().reshape(-1, block.layout.nb_channels)
        except av.FFmpegError as error:
            if not seconds:
                raise ValueError(f"none of its sound can be decoded: {error.strerror}") from None
            note(f"cut short or damaged: read up to {seconds:.2f} s")


def resampled(blocks: Iterable[np.ndarray], rate: int, target_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Blocks (frames, channels) of one sound at `rate` Hz -> float32 (samples,) at `target_rate`, channels averaged.

    Raises ValueError where there are no samples, or where some are not finite.
    """
    if rate not in RATES:
        raise ValueError(f"its sampling rate is said to be {rate} Hz: the header is damaged")
    stream = soxr.ResampleStream(rate, target_rate, 1, dtype="float32", quality="VHQ")
    samples = bytearray()  # grows in place
    for block in blocks:
        equal_parts = np.full(block.shape[1], 1 / block.shape[1], np.float32)
        mono = (block @ equal_parts).astype(np.float32, copy=False)  # far faster than mean(axis=1)
        if not np.isfinite(mono).all():
            raise ValueError("holds NaN or infinite samples")
        samples += (mono if rate == target_rate else stream.resample_chunk(mono)).tobytes()
    if rate != target_rate:
        samples += stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()
    if not samples:
        raise ValueError("empty: no samples")
    return np.frombuffer(samples, np.float32)
