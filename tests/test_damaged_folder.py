"""One folder of 60 good and damaged files of all kinds, through each command that takes raw files."""

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clamp3.audio.mert import Mert
from clamp3.audio.windows import windows
from clamp3.features.embedder import Embedder
from clamp3.features.manifest import MANIFEST_FILE
from clamp3.formats.abc import interleave, read_abc
from clamp3.formats.audio import read_audio
from clamp3.formats.midi import midi_to_mtf, mtf_to_midi
from clamp3.formats.musicxml import extracted, musicxml_to_abc
from clamp3.formats.registry import ABC, MIDI, MUSICXML, SOUND, extensions
from conftest import CODE, MERT_TINY, ROOT, run_forked
from corpus import corpus_folder, folk_tunes
from notes import read_melody, to_mtf, to_sound

ODD_NAMES = (
    "it's",
    'say "hi"',
    "$HOME `date`",
    "v1.2",
    "..",
    "夜曲 二胡",
    "caf\udce9",
    "-dash",
    "a & b; c",
    " blank ",
)
STATES = ("good",) * 4 + ("cut",) * 3 + ("flipped",) * 3 + ("empty", "another kind's")
RATE = 24_000

LISTS = ("failures.jsonl", "warnings.jsonl", MANIFEST_FILE)


@dataclass
class Mixed:
    """A folder, and the states of the files in it."""

    folder: Path
    files: dict[Path, str] = field(default_factory=dict)


def sound(samples: np.ndarray, extension: str) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, RATE, format=extension[1:])
    return data.getvalue()


def damaged(data: bytes, state: str, other: bytes, chance: random.Random) -> bytes:
    if state == "cut":
        return data[: chance.randrange(50, len(data) * 9 // 10)]
    if state == "flipped":
        flipped = bytearray(data)
        for _ in range(8):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    return {"good": data, "empty": b"", "another kind's": other}[state]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Mixed:
    """Scores, folk tunes, and the MIDI and the sound of folk tunes, with names that shells trip over."""
    found = Mixed(tmp_path_factory.mktemp("mixed"))
    chance = random.Random(0)
    paths = sorted(corpus_folder().joinpath("bach").glob("*.mxl"), key=lambda path: path.stat().st_size)
    tunes = [tune.abc for tune in islice(folk_tunes(), 0, 1200, 100)]
    melodies = [read_melody(abc) for abc in tunes]
    archives = [path.read_bytes() for path in paths[:12]]
    formats = (".wav", ".flac", ".ogg", ".mp3")
    kinds = {
        (".xml", ".musicxml"): [extracted(data) for data in archives],
        (".mxl",): archives,
        (".abc",): [abc.encode() for abc in tunes],
        (".mid",): [mtf_to_midi(to_mtf(melody)) for melody in melodies],
        formats: [
            sound(to_sound(melody, 2.5, RATE, "fiddle"), formats[number % 4]) for number, melody in enumerate(melodies)
        ],
    }
    others = [*kinds.values()][2:] + [*kinds.values()][:2]
    for (endings, contents), other in zip(kinds.items(), others, strict=True):
        for number, (data, state) in enumerate(zip(contents, STATES, strict=True)):
            name = f"{ODD_NAMES[len(found.files) % len(ODD_NAMES)]} {len(found.files)}"
            path = found.folder / f"{name}{endings[number % len(endings)]}"
            path.write_bytes(damaged(data, state, other[0], chance))
            found.files[path] = state
    assert len(found.files) == len(list(found.folder.iterdir())) == 60
    return found


@dataclass
class Command:
    """A command over a folder, what it takes and gives, and the same work by the library."""

    words: tuple[object, ...]
    extensions: tuple[str, ...]
    target_extension: str
    convert: Callable[[Path], str | np.ndarray]


@cache
def mert() -> Mert:
    return Mert.from_pretrained(MERT_TINY, "cpu")


@cache
def embedder() -> Embedder:
    return Embedder.from_pretrained("tiny", device="cpu")


def layers(path: Path) -> np.ndarray:
    ((_, features),) = mert().extract_layers([windows(read_audio(path))])
    return features


INPUT, OUTPUT = object(), object()
XML2ABC, INTERLEAVED_ABC = (
    ROOT / "preprocessing" / "abc" / f"batch_{name}.py" for name in ("xml2abc", "interleaved_abc")
)
MIDI2MTF, EXTRACT_MERT = ROOT / "preprocessing/midi/batch_midi2mtf.py", ROOT / "preprocessing/audio/extract_mert.py"
COMMANDS = {
    "xml2abc": Command((XML2ABC, INPUT, OUTPUT), MUSICXML.extensions, ".abc", musicxml_to_abc),
    "interleaved_abc": Command(
        (INTERLEAVED_ABC, INPUT, OUTPUT), (".abc",), ".abc", lambda path: interleave(read_abc(path))
    ),
    "midi2mtf": Command((MIDI2MTF, INPUT, OUTPUT), MIDI.extensions, ".mtf", midi_to_mtf),
    "extract_mert": Command(
        (EXTRACT_MERT, "--input_path", INPUT, "--output_path", OUTPUT, "--model_path", MERT_TINY, "--device", "cpu"),
        SOUND.extensions,
        ".npy",
        layers,
    ),
    "embd": Command(
        (CODE / "clamp3_embd.py", INPUT, OUTPUT, "--variant", "tiny", "--device", "cpu", "--get_global"),
        extensions((MUSICXML, ABC, MIDI, SOUND)),
        ".npy",
        lambda path: embedder().embed_files([path]),
    ),
}


def named(path: Path) -> set[str]:
    """The files that a list of failures or warnings names."""
    return {json.loads(line)["file"].rpartition("/")[2] for line in path.read_text().splitlines()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_good_file_comes_out_and_every_bad_one_is_named(mixed, tmp_path, name):
    command = COMMANDS[name]
    places = {INPUT: mixed.folder, OUTPUT: tmp_path}
    done = run_forked(*(places.get(word, word) for word in command.words), cwd="/", check=1)
    assert "Traceback" not in done.stdout + done.stderr
    failed, mended = (named(path) if path.exists() else set() for path in map(tmp_path.joinpath, LISTS[:2]))

    inputs = {path: state for path, state in mixed.files.items() if path.suffix in command.extensions}
    outputs = {path: tmp_path / f"{path.stem}{command.target_extension}" for path in inputs if path.name not in failed}
    assert {path.name for path in tmp_path.iterdir()} - set(LISTS) == {path.name for path in outputs.values()}
    assert f"{len(outputs)} written" in done.stdout and f"{len(inputs) - len(outputs)} failed" in done.stdout
    for path, state in inputs.items():
        if state in ("empty", "another kind's"):
            assert path.name in failed
        elif state == "cut" and path.suffix != ".abc":  # a tune cut short is a shorter tune
            assert path.name in failed | mended
        elif state == "good":
            assert path.name not in mended
            expected = command.convert(path)
            if isinstance(expected, str):
                assert outputs[path].read_text(encoding="utf-8") == expected
            else:
                np.testing.assert_allclose(np.load(outputs[path]), expected, atol=2e-5, rtol=1e-4)
