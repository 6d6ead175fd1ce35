"""Checks of what reads files: audio decoders, and the converters of scores and MIDI, on small examples."""

import contextlib
import io
import math
import re
import wave
from collections.abc import Iterator

from clamp3.tasks.diagnosis.findings import Finding, Subject, fault, ok, warning

# Decoders of common audio files, and the files that need them.
CODECS = {
    "pcm_s16le": ".wav",
    "mp3": ".mp3",
    "aac": ".m4a .mp4 .aac",
    "flac": ".flac",
    "vorbis": ".ogg",
    "opus": ".opus .webm",
    "alac": ".m4a (Apple Lossless)",
    "wmav2": ".wma",
    "ac3": ".ac3 and video files",
}
RATE, HEARD_RATE, PITCH = 44_100, 24_000, 440.0  # Hz
TONE_TOLERANCE = 1e-3  # of a sine of amplitude 0.5, resampled
CUT = 0.1  # seconds at each end, where the resampler rings
ONSETS = b"\x00\x90\x3c\x40\x60\x80\x3c\x40" + b"\x00\x90\x3e\x40\x60\x80\x3e\x40" + b"\x00\xff\x2f\x00"
MIDI = b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + len(ONSETS).to_bytes(4, "big") + ONSETS
MTF = "ticks_per_beat 96\nnote_on 0 0 60 64\nnote_off 96 0 60 64\nnote_on 0 0 62 64\nnote_off 96 0 62 64"
MUSICXML = """<?xml version="1.0" encoding="UTF-8"?>
<score-partwise version="4.0"><part-list><score-part id="P1"><part-name>Voice</part-name></score-part></part-list>
<part id="P1"><measure number="1"><attributes><divisions>1</divisions><key><fifths>0</fifths></key>
<time><beats>4</beats><beat-type>4</beat-type></time><clef><sign>G</sign><line>2</line></clef></attributes>{}</measure>
</part></score-partwise>"""
NOTE = "<note><pitch><step>{}</step><octave>4</octave></pitch><duration>1</duration><voice>1</voice></note>"


def decoders(_subject: Subject) -> Iterator[Finding]:
    """PyAV, its decoders and the resampler, by a tone that must come out unchanged."""
    import av
    import numpy as np
    import soxr

    from clamp3.formats.audio import load_sound

    lacking = [f"{name} ({used})" for name, used in CODECS.items() if not _has_decoder(name)]
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    described = (
        f"PyAV {av.__version__} (libavcodec {version}, {len(av.codecs_available)} codecs), soxr {soxr.__version__}"
    )
    with contextlib.suppress(ImportError, OSError):  # only tests use it
        import soundfile

        described += f", libsndfile {soundfile.__libsndfile_version__}"
    heard = load_sound(_tone(), RATE, HEARD_RATE)
    expected = 0.5 * np.sin(2 * math.pi * PITCH / HEARD_RATE * np.arange(HEARD_RATE))
    edge = round(CUT * HEARD_RATE)
    if len(heard) != HEARD_RATE or np.abs(heard - expected)[edge:-edge].max() > TONE_TOLERANCE:
        yield fault(
            f"{described}: a test tone is decoded incorrectly", "python -m pip install --force-reinstall av soxr"
        )
    elif lacking:
        yield warning(
            f"{described}; no decoder for {', '.join(lacking)}", "python -m pip install --force-reinstall av"
        )
    else:
        yield ok(f"{described}; a test tone is decoded correctly")


def _has_decoder(name: str) -> bool:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        return Codec(name, "r") is not None
    except UnknownCodecError:
        return False


def _tone() -> bytes:
    """A second of a sine of amplitude 0.5, as a WAV file of 16 bits."""
    samples = b"".join(
        round(0.5 * 32767 * math.sin(2 * math.pi * PITCH * place / RATE)).to_bytes(2, "little", signed=True)
        for place in range(RATE)
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(RATE)
        written.writeframes(samples)
    return file.getvalue()


def converters(_subject: Subject) -> Iterator[Finding]:
    """abctoolkit, and the readers of MIDI and ABC, by the notes that come out."""
    from importlib.metadata import version

    from clamp3.errors import ignore
    from clamp3.formats.abc import interleave
    from clamp3.formats.midi import midi_to_mtf
    from clamp3.formats.musicxml import abc_to_musicxml, musicxml_to_abc

    described = f"abctoolkit {version('abctoolkit')}"
    score = MUSICXML.format("".join(NOTE.format(step) for step in "CDEF")).encode()
    abc = interleave(musicxml_to_abc(score, ignore), ignore)
    wrong = []
    if "C2 D2 E2 F2" not in " ".join(abc.split()):
        wrong.append("MusicXML to ABC")
    if re.findall("<step>(.)</step>", abc_to_musicxml(abc, ignore)) != list("CDEF"):
        wrong.append("ABC to MusicXML")
    if midi_to_mtf(MIDI, m3_compatible=True, note=ignore).split("\n")[:5] != MTF.split("\n"):
        wrong.append("MIDI to MTF")
    if wrong:
        yield fault(
            f"{described}: {', '.join(wrong)} gives wrong notes", 'python -m pip install --upgrade "abctoolkit"'
        )
    else:
        yield ok(f"{described}; MusicXML, ABC and MIDI are converted correctly")
