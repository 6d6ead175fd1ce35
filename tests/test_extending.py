"""docs/extending.md is true: what it adds to the library works, within the files that it names."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clamp3.errors import RepairWarning, UserError
from clamp3.features.cache import FeatureCache, embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.formats import registry
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from conftest import ROOT

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## \((.)\) .*?\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
MOST_FILES = {"a": 5, "b": 2, "c": 2, "d": 1}
THEIRS = {"my_encoder.py", "code/clamp3/formats/notelist.py"}  # which the reader writes
RATE = 44_100


def names_of(section: str) -> dict:
    """What the Python blocks of a section define."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL):
        exec(block, names)
    return names


@pytest.fixture
def audio_encoder():
    return names_of("b")["BandEncoder"]()


@pytest.fixture
def embedder_with(small_model, tmp_path):
    """Embedders of a model whose audio tower reads frames of `width` numbers."""

    def make(encoder, width: int, precision: str = "fp32") -> Embedder:
        sizes = replace(small_model.sizes, audio_hidden_size=width)
        torch.manual_seed(0)
        weights = tmp_path / f"{width}.pth"
        if not weights.exists():
            torch.save({"model": CLaMP3Model(sizes).state_dict()}, weights)
        return Embedder.from_pretrained(weights, "cpu", precision, sizes=sizes, mert=encoder)

    return make


@pytest.fixture
def notes(monkeypatch):
    """The registry with the document's row, as its reader would add it."""
    added = names_of("c")["NOTELIST"]
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, added))
    return added


def tone(path: Path, seconds: float, pitch: float) -> Path:
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE), RATE)
    return path


@pytest.mark.parametrize(("section", "most"), MOST_FILES.items())
def test_few_files_are_to_be_touched_and_they_exist(section, most):
    listed = SECTIONS[section].split("Files to touch:\n")[1].split("\n\n")[0]
    files = re.findall(r"^- `(.*?)`", listed, re.MULTILINE)
    assert 0 < len(files) <= most
    assert all((ROOT / file).is_file() != (file in THEIRS) for file in files)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_another_audio_encoder(audio_encoder, embedder_with, tmp_path, precision):
    embedder = embedder_with(audio_encoder, audio_encoder.width, precision)
    path = tone(tmp_path / "a.wav", 3.4, 440)
    samples, _ = soundfile.read(path, dtype="float32")
    found = embedder.embed_files([path])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(embedder.embed_audio([samples], sampling_rate=RATE), found, atol=1e-5)
    ((hidden,),) = [embedder.embed_files([path], pooled=False)]
    assert hidden.shape == (3 + 2, audio_encoder.width)  # a frame a second, and a zero vector at each end
    with pytest.raises(ValueError, match=r"short\.wav: under a second"):
        embedder.embed_files([tone(tmp_path / "short.wav", 0.5, 440)])


def test_frames_of_another_width_than_the_towers_are_refused(audio_encoder, embedder_with, tmp_path):
    with pytest.raises(UserError, match="frames of 64 numbers.* reads 128"):
        embedder_with(audio_encoder, 128).embed_files([tone(tmp_path / "a.wav", 2, 440)])


def test_the_cache_tells_audio_encoders_apart(audio_encoder, embedder_with, tmp_path):
    path, cache = tone(tmp_path / "a.wav", 2, 440), FeatureCache(10)
    calls = []

    def feature(identity: str) -> np.ndarray:
        encoder = names_of("b")["BandEncoder"]()
        encoder.identity = identity
        extract = encoder.extract
        encoder.extract = lambda sounds: calls.append(identity) or extract(sounds)
        ((_, found),) = embed_files_once(embedder_with(encoder, encoder.width), [path], cache)
        return found

    np.testing.assert_array_equal(feature("one"), feature("one"))
    feature("two")
    assert calls == ["one", "two"]


def test_an_index_holds_sounds_and_files_of_the_new_format(audio_encoder, embedder_with, notes, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    tone(folder / "a.wav", 2, 440)
    folder.joinpath("scale.NOTES").write_text("C 2\nD 2\nE 4\n")
    folder.joinpath("none.notes").write_text("\n")
    index = Index.create(tmp_path / "index")
    changes = update_index(index, folder, lambda: embedder_with(audio_encoder, audio_encoder.width))
    assert (changes.added, len(changes.failures)) == (2, 1)
    assert {entry.modality for entry in index.entries()} == {"audio", "symbolic"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_another_file_format(embedder_with, notes, tmp_path, precision):
    path = tmp_path / "scale.notes"
    path.write_text("C 2\nD 2\nloud\nE 4\n")
    embedder = embedder_with(None, 128, precision)
    with pytest.warns(RepairWarning, match="left out, not a note: loud"):
        found = embedder.embed_files([path])
    expected = embedder.embed_symbolic(["%%score 1\nL:1/8\nM:none\nK:C\nV:1 treble\n[V:1]C2 D2 E4|\n"])
    np.testing.assert_array_equal(found, expected)
