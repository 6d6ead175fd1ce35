"""Sound in files and arrays -> mono waveforms at the rate that is asked for.

FFmpeg's libraries (through PyAV) decode, packet by packet and block by block: a file takes no more memory than its own
mono waveform, and that of a long one lies in a file.
"""

import errno
import io
import itertools
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import soxr

from clamp3.errors import Note, warn
from clamp3.formats.containers import (
    WAVE64,
    declared_end,
    flac_frames,
    frame_length,
    lacks_last_block,
    lacks_last_page,
    mp3_seconds,
    ogg_links,
    opus_samples,
)
from clamp3.modalities import SAMPLING_RATE

BLOCK = 16_384  # frames that are mixed and resampled at once, or a few more
RATES = range(1000, 1_000_001)  # Hz; others come from damaged headers
MAX_HOURS = 3.0  # what is read of one file: 1 GB as a waveform at 24 kHz
IN_MEMORY = 1 << 28  # bytes of a waveform, 46 minutes at 24 kHz: longer ones lie in the temporary folder
MAX_CHANNELS = 64  # of an array
# Demuxers whose duration is written in the file; that of others is guessed from the bit rate.
TIMED = {"flac", "ogg", "mov", "matroska", "tta", "wv", "ape", "mpc", "mpc8", "caf", "aiff", "tak"}
SLACK = 0.12  # seconds by which durations of whole files are off: padding of encoders, rounded times
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # what stands between and behind MPEG audio
MAX_RETRIES = 50  # of reading a packet, without one between
QUIET = 1e-10  # mean square, of full scale 1: -100 dB
DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}  # of FFmpeg's sample formats
FULL_SCALE = {"u1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31, "i8": 1 << 63}

Source = Path | bytes | BinaryIO


def read_audio(
    source: Source, rate: int = SAMPLING_RATE, note: Note = warn, max_hours: float = MAX_HOURS
) -> np.ndarray:
    """The sound of a file, its path or its bytes -> float32 (samples,) at `rate` Hz, the mean of its channels.

    All that FFmpeg decodes is read, of the best sound track to the end of the file. Where it is damaged, cut short,
    silent or longer than `max_hours`, `note` is told what is missing, by default as a RepairWarning. Raises ValueError
    where there is no sound or where samples are not finite, and OSError where the path cannot be read.
    """
    with _opened(source) as file:
        mixer = _Mixer(note)
        samples = Samples()
        limit = int(max_hours * 3600 * rate) * 4
        runs = itertools.groupby(sound_blocks(file, note), key=itemgetter(0))
        for index, (file_rate, blocks) in enumerate(runs):
            if index == 1:
                note(f"its sampling rate changes within the file, to {file_rate} Hz: all of it is resampled")
            for piece in _resampled(mixer.mono(block for _, block in blocks), file_rate, rate):
                room = limit - samples.size
                samples.add(piece[:room])
                if len(piece) > room:
                    note(f"longer than {max_hours:g} h: the rest is not read")
                    return _finished(samples, mixer)
        return _finished(samples, mixer)


def resampled(
    blocks: Iterable[np.ndarray], rate: int, target_rate: int = SAMPLING_RATE, note: Note | None = None
) -> np.ndarray:
    """Blocks (frames, channels) of one sound at `rate` Hz -> float32 (samples,) at `target_rate`, channels averaged.

    Silence is remarked on to `note`. Raises ValueError where there are no samples, or where some are not finite.
    """
    mixer = _Mixer(note or (lambda _: None))
    samples = Samples()
    for piece in _resampled(mixer.mono(blocks), rate, target_rate):
        samples.add(piece)
    return _finished(samples, mixer)


def load_sound(source: Any, sampling_rate: int, rate: int = SAMPLING_RATE, note: Note = warn) -> np.ndarray:
    """A file or samples -> float32 (samples,) at `rate` Hz, the mean of its channels.

    `source` is what `read_audio` takes, or what `from_array` takes, at `sampling_rate` Hz or in a pair with its own
    rate. Raises as they do.
    """
    if isinstance(source, str | os.PathLike):
        return read_audio(Path(source), rate, note)
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        return read_audio(source, rate, note)
    if isinstance(source, tuple) and len(source) == 2 and np.ndim(source[1]) == 0:
        source, sampling_rate = source
    return resampled([from_array(source)], int(sampling_rate), rate, note)


def from_array(samples: Any) -> np.ndarray:
    """Samples of any library -> float32 (samples, channels), of full scale 1.

    They are (samples,), (samples, channels) or (channels, samples), which are told apart by their lengths; floating
    point, or integers of 8 (unsigned), 16 or 32 bits. Raises ValueError for what is none of these.
    """
    if hasattr(samples, "detach"):  # a tensor, of any device and precision
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
    array = np.asarray(samples)
    kind = array.dtype.str[1:]
    if array.dtype.kind != "f" and kind not in ("u1", "i2", "i4"):
        raise ValueError(f"samples are floating point, or integers of 8, 16 or 32 bits, not {array.dtype}")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"samples are (samples,), (samples, channels) or (channels, samples), not {array.shape}")
    short, long = sorted(array.shape)
    if array.size and (short > MAX_CHANNELS or (short == long > 1)):
        raise ValueError(f"samples {array.shape} do not tell which axis is time: give (samples, channels)")
    if array.shape[0] < array.shape[1] and array.size:
        array = array.T
    return _as_float(array)


class _File(io.BufferedReader):
    """A file for decoders that a damaged header may send to a position before its start: they stay where they are.

    An exception would not reach them: it would be printed, and they would go on.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError, OverflowError) as error:  # of a file, of bytes
            if self.closed or getattr(error, "errno", errno.EINVAL) != errno.EINVAL:
                raise
            return self.tell()


def _opened(source: Source) -> _File:
    if isinstance(source, bytes | bytearray | memoryview):
        return _File(io.BytesIO(source))
    if hasattr(source, "read"):
        return _File(io.BytesIO(source.read()))
    return _File(io.FileIO(source))


# ---------- file -> blocks ----------


def sound_blocks(file: BinaryIO, note: Note = warn) -> Iterator[tuple[int, np.ndarray]]:
    """The sound of an open file as (Hz, float32 (frames, channels)), of full scale 1, in blocks of about BLOCK frames.

    What is missing is told to `note`. Raises ValueError where nothing can be decoded.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ValueError("empty file")
    end, links = declared_end(file, size), ogg_links(file)
    decoder = _Decoder()
    if len(links) == 1:
        for rate, block in _joined(decoder.frames(file)):
            decoder.surplus, surplus = 0, decoder.surplus
            yield rate, block[surplus:]
    else:  # FFmpeg takes no links of other rates; here each is a file of its own
        for start, stop in zip(links, [*links[1:], size], strict=True):
            file.seek(start)
            try:
                yield from _joined(decoder.frames(io.BytesIO(file.read(stop - start))))
            except ValueError as error:
                decoder.failed(error)
    if not decoder.seconds and end is not None and end <= size and not decoder.errors and not decoder.packets:
        raise ValueError("empty: no samples")
    if not decoder.seconds:
        raise ValueError(f"none of its sound can be decoded{decoder.complaint}")
    lacks_end = {"ogg": lacks_last_page, "voc": lacks_last_block}.get(decoder.format)
    _remark(note, decoder, end, size, lacks_end(file, size) if lacks_end else decoder.is_cut)


def _container(file: BinaryIO) -> Any:
    options = {"protocol_whitelist": "none"}  # a playlist must not have other files opened, nor addresses
    file.seek(0)
    if (head := file.read(12))[8:] == b"WAVE" or head == WAVE64[:12]:
        options |= {
            "max_size": "65536",
            "probesize": "65536",
        }  # large packets, few of which are probed: 3 times faster
    file.seek(0)
    try:
        return av.open(file, metadata_errors="replace", options=options, buffer_size=1 << 17)
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise ValueError(f"cannot be decoded: {getattr(error, 'strerror', None) or error}") from None


class _Decoder:
    """Reads sound tracks to their end, over errors, and knows how much came out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.declared: float | None = 0.0  # seconds; None as soon as one file does not say
        self.packets = self.errors = 0
        self.format = self.complaint = ""
        self.surplus = 0  # samples at the start that are no sound
        self.is_cut = False  # of a file that does not say its length: its last frame is shorter than its header says

    def frames(self, file: BinaryIO) -> Iterator[Any]:
        """The frames of a file's best sound track. Raises ValueError where it cannot be opened, or has none."""
        with _container(file) as container:
            self.format = container.format.name
            try:
                stream = container.streams.best("audio")
            except av.FFmpegError:
                stream = None
            if stream is None or stream.codec_context is None:
                raise ValueError("there is no sound track in it that can be decoded")
            if channels := stream.codec_context.channels:
                # PyAV 17 and 18 free the map of an unusual order of channels (of some CAF) twice, which ends the
                # process. The order does not matter here.
                stream.codec_context.layout = f"{channels} channels"
            first = last = b""
            for packet in self._packets(container, stream):
                last = bytes(packet) or last
                frames = self._decoded(packet)
                if frames and not first:
                    first = last
                    self.surplus = _surplus(stream.codec_context, self.format, first, frames)
                    self.seconds -= self.surplus / frames[0].sample_rate
                if stream.codec_context.name == "flac" and frames is None:
                    frames = self._behind_damage(stream, bytes(packet))
                for frame in frames or ():
                    if frame.samples and frame.sample_rate:
                        self.seconds += frame.samples / frame.sample_rate
                        yield frame
            declared = _declared_seconds(container, stream, file)
            if declared is None or self.declared is None:
                self.declared = None
                self.is_cut = (frame_length(last) or 0) > len(last)
            else:
                self.declared += declared

    def _decoded(self, packet: Any) -> list[Any] | None:
        """The frames of a packet, None if it is damaged."""
        try:
            return packet.decode()
        except (av.FFmpegError, ValueError) as error:
            start = bytes(packet)
            if not any(start) or start.startswith(TAGS):  # tags between joined files, and padding, are no damage
                return []
            self.failed(error)
            return None

    def _behind_damage(self, stream: Any, data: bytes) -> list[Any]:
        """The frames that FFmpeg has left in one packet with a damaged one before them."""
        frames = []
        starts = [start for start in flac_frames(data) if start]
        for start, stop in zip(starts, [*starts, len(data)][1:], strict=True):
            try:
                frames += stream.codec_context.decode(av.Packet(data[start:stop]))
            except (av.FFmpegError, ValueError):
                continue
        return frames

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Its packets, the last of which flushes the decoder; reading goes on after errors while that gives more."""
        failures = 0
        while failures <= MAX_RETRIES:
            try:
                for packet in container.demux(stream):
                    failures = 0
                    self.packets += bool(packet.size)
                    yield packet
                return
            except (av.FFmpegError, ValueError) as error:
                failures += 1
                if failures == 1:
                    self.failed(error)

    def failed(self, error: Exception) -> None:
        """Count a stretch that cannot be decoded."""
        self.errors += 1
        self.complaint = f": {getattr(error, 'strerror', None) or error}"


def _surplus(codec: Any, container: str, first: bytes, frames: list[Any]) -> int:
    """How many samples of the first packet should have been left out and were not.

    Opus begins with some that only prepare the decoder. Their number counts samples at 48 kHz; where Matroska and WebM
    name the rate of the recording instead, FFmpeg 6 to 8 take it for a number at that rate.
    """
    head = codec.extradata or b""
    if codec.name not in ("opus", "libopus") or "matroska" not in container or head[:8] != b"OpusHead":
        return 0
    left_out = opus_samples(first) - sum(frame.samples for frame in frames)
    wanted = min(int.from_bytes(head[10:12], "little"), opus_samples(first))
    return max(0, wanted - left_out) if left_out else 0


def _joined(frames: Iterator[Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames, which are small, in blocks of one rate and one number of channels."""
    waiting: list[list[np.ndarray]] = []
    gathered, kind = 0, (0, 0, "")  # Hz, channels, FFmpeg's sample format
    packers: dict[tuple[int, int, str], Any] = {}
    for frame in frames:
        layout = frame.layout
        found = (frame.sample_rate, layout.nb_channels, frame.format.name)
        if waiting and (found != kind or gathered >= BLOCK):
            yield kind[0], _block(waiting)
            waiting, gathered = [], 0
        kind = found
        if frame.format.is_planar and layout.nb_channels > 8:  # of which PyAV finds too many planes
            if found not in packers:
                packers[found] = av.AudioResampler(format="flt", layout=layout, rate=frame.sample_rate)
            waiting += [_parts(packed) for packed in packers[found].resample(frame)]
        else:
            waiting.append(_parts(frame))
        gathered += frame.samples
    if waiting:
        yield kind[0], _block(waiting)


def _parts(frame: Any) -> list[np.ndarray]:
    """A frame's channels, each (frames,), or one array (frames, channels), in the numbers that the decoder gives.

    They are views of the frame: `to_ndarray` takes three times as long for the small frames of MP3.
    """
    dtype, channels = DTYPES[frame.format.name.rstrip("p")], frame.layout.nb_channels
    if frame.format.is_planar:
        planes = frame.planes[:channels]  # of 8, PyAV finds more
        return [np.frombuffer(plane, dtype, frame.samples) for plane in planes]
    return [np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels)]


def _block(waiting: list[list[np.ndarray]]) -> np.ndarray:
    """(frames, channels), float32."""
    parts = [joined[0] if len(joined) == 1 else np.concatenate(joined) for joined in zip(*waiting, strict=True)]
    array = parts[0] if parts[0].ndim == 2 else np.stack(parts).T
    return _as_float(array)


def _as_float(array: np.ndarray) -> np.ndarray:
    """float32 of full scale 1, as FFmpeg itself converts them."""
    kind = array.dtype.str[1:]
    if kind not in FULL_SCALE:
        return array.astype(np.float32, copy=False)
    scaled = array.astype(np.float32)
    if kind == "u1":
        scaled -= FULL_SCALE[kind]
    scaled *= np.float32(1 / FULL_SCALE[kind])
    return scaled


# ---------- what is missing ----------


def _declared_seconds(container: Any, stream: Any, file: BinaryIO) -> float | None:
    """How long the file says that the track is, where it does."""
    names = set(container.format.name.split(","))
    if "mp3" in names:
        return mp3_seconds(file)
    if not names & TIMED:
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len([other for other in container.streams if other.type in ("audio", "video")]) == 1
    return container.duration / av.time_base if container.duration and alone else None


def _remark(note: Note, decoder: _Decoder, end: int | None, size: int, unfinished: bool) -> None:
    seconds, declared = decoder.seconds, decoder.declared
    read = f"read up to {seconds:.2f} s" + (f" of {declared:.2f} s" if declared and declared > seconds else "")
    if end == 0:
        note(f"its header was never completed, as by a recorder that was stopped: all is read, {seconds:.2f} s")
    elif end is not None and end > size:
        note(f"cut short or damaged: {read}, {100 * (1 - size / end):.0f} % of the file is missing")
    elif declared is not None and declared - seconds > SLACK:
        note(f"cut short or damaged: {read}, {declared - seconds:.2f} s are missing")
    elif unfinished:
        note(f"cut short or damaged: {read}, and the end is missing")
    elif decoder.errors:
        stretches = "a stretch" if decoder.errors == 1 else f"{decoder.errors} stretches"
        note(f"cut short or damaged: {read}, without {stretches} that cannot be decoded")


# ---------- blocks -> waveform ----------


class _Mixer:
    """Averages channels, and notices silence."""

    def __init__(self, note: Note):
        self.note = note
        self.frames = 0
        self.power = self.mono_power = 0.0  # sums of squares, of all channels (their mean) and of the mix

    def mono(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks (frames, channels) -> (frames,), float32."""
        for block in blocks:
            channels = block.shape[1]
            if channels == 1:
                mono = np.ascontiguousarray(block[:, 0], np.float32)
            else:
                equal_parts = np.full(channels, 1 / channels, np.float32)
                mono = (block @ equal_parts).astype(np.float32, copy=False)  # far faster than mean(axis=1)
            power = float(np.dot(mono, mono))
            if not np.isfinite(power) and not np.isfinite(mono).all():
                raise ValueError("holds NaN or infinite samples")
            self.frames += len(mono)
            self.mono_power += power
            if self.mono_power <= QUIET * self.frames:  # only silence needs the channels' own power
                self.power += float(np.square(block, dtype=np.float64).mean(1).sum())
            yield mono

    def remark(self) -> None:
        """Say so where the mix is silent."""
        if self.mono_power > QUIET * self.frames:
            return
        if self.power > QUIET * self.frames * 100:
            self.note("its channels cancel each other out: as mono it is silent")
        else:
            self.note("silent: there is nothing to hear in it")


def _resampled(blocks: Iterable[np.ndarray], rate: int, target_rate: int) -> Iterator[bytes]:
    """Mono blocks at one rate -> the bytes of float32 samples at another."""
    if rate not in RATES:
        raise ValueError(f"its sampling rate is said to be {rate} Hz: the header is damaged")
    if rate == target_rate:
        yield from (block.tobytes() for block in blocks)
        return
    stream = soxr.ResampleStream(rate, target_rate, 1, dtype="float32", quality="VHQ")
    for block in blocks:
        yield stream.resample_chunk(block).tobytes()
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()


class Samples:
    """Bytes of float32 samples as they come; those of long sounds go into a file that has no name any more."""

    def __init__(self) -> None:
        self.size = 0
        self._memory = bytearray()  # grows in place
        self._file: Any = None
        self._most = IN_MEMORY

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= self._most:
            self._memory += piece
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)
            for part in (self._memory, piece):
                if part and self._file.write(part) != len(part):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._memory = bytearray()
        except OSError:  # the folder is full, or there is none: then all of it stays in memory
            written = bytearray()
            if self._file is not None:
                with self._file:
                    self._file.seek(0)
                    written += self._file.read(self.size - len(piece) - len(self._memory))
            self._memory = written + self._memory + piece
            self._file, self._most = None, 1 << 62

    def array(self) -> np.ndarray:
        """(samples,) float32."""
        if self._file is None:
            return np.frombuffer(self._memory, np.float32)
        with self._file:
            return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY), np.float32)


def _finished(samples: Samples, mixer: _Mixer) -> np.ndarray:
    if not samples.size:
        raise ValueError("empty: no samples")
    mixer.remark()
    return samples.array()
