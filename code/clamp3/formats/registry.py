"""All kinds of files that can be read, by their extensions: raw files -> text, audio features or a waveform.

A new format is a module beside this one and a row in `FORMATS`. Converters are imported when they are first used.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamp3.errors import IN_WORDS, Note
from clamp3.io.files import load_array, read_text


@dataclass(frozen=True)
class Format:
    """A kind of file. It has `read`, or `decode` if it is sound.

    Both raise ValueError for a file that is damaged beyond reading, OSError where it cannot be opened, and call their
    `Note` with what they have mended or left out.
    """

    name: str
    extensions: tuple[str, ...]  # lower case; those of files may have any
    modality: str  # of the tower that reads it
    read: Callable[[Path, Note], str | np.ndarray] | None = None  # what InputEncoder takes: text or audio features
    decode: Callable[[Path, int, Note], np.ndarray] | None = None  # path, Hz, note -> mono waveform (samples,)
    is_model_input: bool = False  # extract_*.py and training take it as it stands
    is_slow: bool = False  # its converter takes time, and may run into trouble: commands have processes for it
    most_megabytes: int = 100  # of a file that is read; a larger one is no music, and would fill the memory


def _read_text(path: Path, _note: Note) -> str:
    return read_text(path)


def _read_frames(path: Path, _note: Note) -> np.ndarray:
    return load_array(path)


def _read_abc(path: Path, note: Note) -> str:
    from clamp3.formats.abc import interleave, read_abc

    return interleave(read_abc(path), note)


def _read_score(path: Path, note: Note) -> str:
    from clamp3.formats.abc import interleave

    return interleave(score_to_abc(path, note), note)


def score_to_abc(path: Path, note: Note) -> str:
    """The standard ABC of a score of the kind that its extension names; raises as `Format.read` does."""
    from clamp3.formats.musicxml import musicxml_to_abc
    from clamp3.formats.other_scores import humdrum_to_abc, mei_to_abc, refuse_musescore

    converters: dict[Format | None, Callable[[Path, Note], str]] = {
        MUSICXML: musicxml_to_abc,
        HUMDRUM: humdrum_to_abc,
        MEI: mei_to_abc,
        MUSESCORE: refuse_musescore,
    }
    return converters[format_of(path)](path, note)


def _read_midi(path: Path, note: Note) -> str:
    from clamp3.formats.midi import midi_to_mtf

    return midi_to_mtf(path, m3_compatible=True, note=note)


def _decode_sound(path: Path, rate: int, note: Note) -> np.ndarray:
    from clamp3.formats.audio import read_audio

    return read_audio(path, rate, note)


TEXT = Format("text", (".txt",), "text", _read_text, is_model_input=True, most_megabytes=10)
ABC = Format("ABC", (".abc",), "symbolic", _read_abc, is_model_input=True, is_slow=True)
MTF = Format("MTF", (".mtf",), "symbolic", _read_text, is_model_input=True)
MUSICXML = Format("MusicXML", (".xml", ".musicxml", ".mxl"), "symbolic", _read_score, is_slow=True)
HUMDRUM = Format("Humdrum", (".krn", ".kern"), "symbolic", _read_score, is_slow=True)
MEI = Format("MEI", (".mei",), "symbolic", _read_score, is_slow=True)
MUSESCORE = Format("MuseScore", (".mscz", ".mscx"), "symbolic", _read_score)
MIDI = Format("MIDI", (".mid", ".midi", ".kar", ".rmi"), "symbolic", _read_midi, is_slow=True)
FRAMES = Format("audio features", (".npy",), "audio", _read_frames, is_model_input=True, most_megabytes=1000)
SOUND = Format(
    "sound",
    (
        *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64"),
        *(".rf64", ".m4a", ".m4b", ".m4r", ".aac", ".alac", ".wma", ".mka", ".mp2", ".mp1", ".mpa", ".ac3", ".eac3"),
        *(".dts", ".wv", ".tta", ".ape", ".mpc", ".tak", ".amr", ".spx", ".voc", ".oma", ".ra", ".rm"),
        *(".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".3gp", ".3g2", ".mpg", ".mpeg", ".ts", ".flv", ".ogv"),
        *(".wmv", ".asf"),
    ),
    "audio",
    decode=_decode_sound,
)
SCORES = (MUSICXML, HUMDRUM, MEI, MUSESCORE)
FORMATS: tuple[Format, ...] = (TEXT, *SCORES, ABC, MTF, MIDI, FRAMES, SOUND)
PICTURE = "picture"  # the name of the format that `take_pictures` adds


def take_pictures(captioner: str) -> None:
    """From now on, have this process read pictures too: as texts, their captions in the words of `captioner`."""
    from clamp3.formats.captions import PICTURES, caption_of

    def read_picture(path: Path, note: Note) -> str:
        caption = caption_of(path, captioner)
        note(f"{IN_WORDS} {captioner}: {caption}")
        return caption

    global FORMATS
    others = (known for known in FORMATS if known.name != PICTURE)
    FORMATS = (*others, Format(PICTURE, tuple(PICTURES), "text", read_picture))


def format_of(path: Path) -> Format | None:
    """The format that the file's extension names, if any."""
    extension = path.suffix.lower()
    return next((known for known in FORMATS if extension in known.extensions), None)


def check_size(path: Path, known: Format) -> None:
    """Raise ValueError for a file that is too large for its format. Sound is decoded block by block: of any size."""
    size = path.stat().st_size
    if known.read and size > known.most_megabytes * 10**6:
        raise ValueError(
            f"{size / 1e6:.0f} MB of {known.name}, where {known.most_megabytes} MB are the most that is read"
        )


def extensions(formats: Collection[Format] | None = None) -> tuple[str, ...]:
    """The extensions of `formats`, by default of all."""
    return tuple(extension for known in (FORMATS if formats is None else formats) for extension in known.extensions)


def model_inputs(modality: str | None = None) -> tuple[Format, ...]:
    """The formats that models take as they stand, of one modality or of all."""
    return tuple(known for known in FORMATS if known.is_model_input and modality in (None, known.modality))
