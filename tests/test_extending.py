"""docs/extending.md is true: what it adds to the library works, within the files that it names."""

import json
import re
import shutil
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
from clamp3.inputs.encoder import InputEncoder
from clamp3.modalities import MODALITIES, Modality
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from conftest import ROOT, run_forked

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## \((.)\) .*?\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
MOST_FILES = {"a": 5, "b": 2, "c": 2, "d": 1}
THEIRS = {"my_encoder.py", "code/clamp3/formats/notelist.py"}  # which the reader writes
RATE = 44_100


def blocks(section: str) -> list[tuple[str, str]]:
    """The Python blocks of a section, each with the line before it, which says where it belongs."""
    return re.findall(r"([^\n]+)\n\n```python\n(.*?)```", SECTIONS[section], re.DOTALL)


def names_of(section: str) -> dict:
    """What the first Python block of a section defines."""
    names: dict = {}
    exec(blocks(section)[0][1], names)
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
    """The registry with the document's format, in this process."""
    added = registry.Format("note list", (".notes",), "symbolic", names_of("c")["read_notelist"])
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


# ---------- in a copy of the code, as the document's reader would change it, through the commands ----------


def place_block(where: str, block: str, folder: Path) -> str:
    """Put a block where the line before it says, in a copy of the project; returns the file."""
    said = re.search(r"(?:At|at) the end of `(.+?)`|In `(.+?)`, after `(.+?)`", where)
    assert said, where
    name = said[1] or said[2]
    path = folder / name
    text = path.read_text(encoding="utf-8")
    if said[1]:
        text += ("\n" if block.startswith(" ") else "\n\n") + block
    else:
        lines = text.splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if re.match(rf"\s+{re.escape(said[3])}\b.*=", line)]
        text = "".join(lines[: place + 1]) + block + "".join(lines[place + 1 :])
    path.write_text(text, encoding="utf-8")
    return name


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """The folder of a copy of the scripts with all that the document adds, as it says where."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    listed = {section: set(re.findall(r"^- `(.*?)`", SECTIONS[section], re.MULTILINE)) for section in "abc"}
    changed = {place_block(where, block, folder) for where, block in blocks("a")}
    assert changed == listed["a"]
    (folder / "code" / "clamp3" / "formats" / "notelist.py").write_text(blocks("c")[0][1])
    assert {place_block(where, block, folder) for where, block in blocks("c")[1:]} < listed["c"]
    (folder / "code" / "my_encoder.py").write_text(blocks("b")[0][1])
    return folder / "code"


MAKE_MODEL = """
import sys
import numpy as np, torch
import utils
from clamp3.features.embedder import Embedder
from clamp3.models.layers import encode
from clamp3.models.weights import build_model

path, sizes = sys.argv[1], utils.configured_sizes()
torch.manual_seed(0)
model = utils.CLaMP3Model(sizes)
torch.save({"model": model.state_dict()}, path)

rng = np.random.default_rng(0)
frames = rng.normal(size=(130, 64)).astype(np.float32)  # longer than the tower takes: two segments
with open(sys.argv[2], "w") as file:
    file.writelines(" ".join(f"{number:.9g}" for number in frame) + "\\n" for frame in frames)
embedder = Embedder.from_pretrained(path, "cpu", sizes=sizes)
[found] = embedder.embed_files([sys.argv[2]])
with torch.no_grad():
    model.eval()
    parts = [torch.from_numpy(part)[None] for part in (frames[:100], frames[30:])]
    means = [encode(model.motion_model, torch.ones(part.shape[:2]), inputs_embeds=part).last_hidden_state.mean(1)
             for part in parts]
    plain = model.motion_proj((100 * means[0] + 30 * means[1]) / 130)[0]
np.testing.assert_allclose(found, plain.numpy(), atol=1e-5)
[hidden] = embedder.embed_files([sys.argv[2]], pooled=False)
assert hidden.shape == (130, 64)
lower = Embedder.from_pretrained(path, "cpu", "bf16", sizes=sizes).embed_files([sys.argv[2]])[0]
assert 0.99 < found @ lower / np.linalg.norm(found) / np.linalg.norm(lower) < 1

model.train_on("motion", ["text_model", "text_proj"])
assert not model.audio_proj.weight.requires_grad and model.motion_proj.weight.requires_grad
text, masks = torch.randint(4, 200, (3, 5)), torch.ones(3, 5)
steps = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
losses = []
for _ in range(12):
    losses.append(model(text, masks, torch.from_numpy(frames[:30].reshape(3, 10, 64)), torch.ones(3, 10), "motion"))
    steps.zero_grad()
    losses[-1].backward()
    steps.step()
assert losses[-1] < 0.8 * losses[0]
"""


@pytest.fixture(scope="module")
def new_model(extended, small_model, tmp_path_factory):
    """The settings of a model that was made by the copy, whose audio tower reads 64 bands."""
    folder = tmp_path_factory.mktemp("new model")
    weights = folder / "weights_new.pth"
    env = small_model.environment(AUDIO_HIDDEN_SIZE=64, CLAMP3_WEIGHTS_PATH=str(weights))
    env["CLAMP3_CACHE"] = str(folder / "cache")
    (extended / "make_model.py").write_text(MAKE_MODEL)
    run_forked(extended / "make_model.py", weights, folder / "dance.motion", env=env)
    return env, folder / "dance.motion"


def test_the_commands_take_a_new_modality_format_and_audio_encoder(extended, new_model, tmp_path):
    """More note lists than one, so that worker processes convert them, which know of the format by the registry."""
    env, motion = new_model
    folder, out = tmp_path / "music", tmp_path / "out"
    folder.mkdir()
    shutil.copy(motion, folder)
    for name, length, pitch in (("a", 3.4, 440), ("b", 2.5, 880)):
        tone(folder / f"{name}.wav", length, pitch)
    tone(folder / "short.wav", 0.5, 440)
    for number in range(40):
        (folder / f"{number}.notes").write_text(f"C {number + 1}\nD 2\nE 4\n")
    (folder / "odd.notes").write_text("C 2\nloud\n")
    (folder / "none.notes").write_text("\n")
    options = ["--mert", f"{extended / 'my_encoder.py'}:BandEncoder", "--device", "cpu"]
    done = run_forked(extended / "clamp3_embd.py", folder, out, "--get_global", *options, env=env, check=1)
    reasons = {
        Path(entry["file"]).name: entry["reason"]
        for entry in map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    }
    assert reasons == {"none.notes": "holds no notes", "short.wav": "under a second of sound"}, done.stdout
    assert "left out, not a note: loud" in (out / "warnings.jsonl").read_text()
    features = {path.stem: np.load(path) for path in out.glob("*.npy")}
    assert len(features) == 44 and all(np.isfinite(feature).all() for feature in features.values())

    done = run_forked(
        *(extended / "clamp3_search.py", folder / "7.notes", folder, "--json", tmp_path / "found.jsonl", *options),
        *("--top_k", "3"),
        env=env,
        check=1,
    )
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert found[0]["file"] == "7.notes" and found[0]["cosine"] > 0.9999
    done = run_forked(extended / "clamp3_search.py", folder / "a.wav", out, *options, "--top_k", "1", env=env)
    assert "a.npy" in done.stdout


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("x = 1", "AttributeError: .*Ear"),
        ("class Ear:\n    rate = 8000", "lacks window, width"),
        (None, "FileNotFound"),
    ],
)
def test_an_audio_encoder_that_is_none_is_refused_by_name(tmp_path, embedder_with, code, complaint):
    path = tmp_path / "ear.py"
    if code:
        path.write_text(code)
    with pytest.raises(UserError, match=f"Ear.*{complaint}|{complaint}.*Ear"):
        embedder_with(f"{path}:Ear", 64).embed_files([tone(tmp_path / "a.wav", 2, 440)])


def test_a_modality_that_goes_through_another_ones_tower(small_model, monkeypatch):
    """Chord symbols, written out as ABC, through the symbolic tower: no tensor is new, so released weights serve."""
    chords = {"C": "[CEG]4", "F": "[FAc]4", "G": "[GBd]4", "Am": "[Ace]4"}

    def encode_chords(encoder: InputEncoder, text: str, note=None) -> np.ndarray:
        return encoder.encode_symbolic(
            "L:1/8\nM:4/4\nK:C\nV:1\n" + " ".join(f"[V:1]{chords[one]}|\n" for one in text.split())
        )

    monkeypatch.setattr(InputEncoder, "encode_chords", encode_chords, raising=False)
    row = Modality("chords", "symbolic_model", "symbolic_proj", "encode_chords", "patch_length")
    monkeypatch.setitem(MODALITIES, "chords", row)
    songs = ["C F G C", "Am F C G", "C"]
    for precision in ("fp32", "bf16"):
        embedder = Embedder.from_pretrained(small_model.clamp3, "cpu", precision, sizes=small_model.sizes)
        sequences = [embedder.encode_chords(song) for song in songs]
        found = [feature for _, feature in sorted(embedder.embed("chords", sequences), key=lambda one: one[0])]
        expected = [feature for _, feature in sorted(embedder.embed("symbolic", sequences), key=lambda one: one[0])]
        np.testing.assert_array_equal(found, expected)
    model = CLaMP3Model(small_model.sizes)
    for modality in ("chords", "symbolic"):
        model.train_on(modality)
        assert model.symbolic_proj.weight.requires_grad and not model.audio_proj.weight.requires_grad
    model.train_on("audio")
    assert not model.symbolic_proj.weight.requires_grad
