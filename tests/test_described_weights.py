"""Weights that describe themselves: what training writes needs nothing else to be used; old files go on working."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.inputs.tokenizer import tokenizer_files
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import ENTRY, XLM_R_SHA256, content_of, describe, sizes_of
from clamp3.models.m3 import M3Model
from clamp3.models.pretrained import inferred_sizes, load_pretrained
from clamp3.models.weight_files import read_weights
from clamp3.models.weights import build_model
from clamp3.sizes import XLM_R_BASE, ModelSizes
from clamp3.training.settings import Settings
from conftest import run_forked
from golden_model import formula_weights, golden_json
from training_runs import assert_same_weights, differences, make_trainer

TUNE = "K:C\n[V:1]CDEF GABc|\n"
KNOBS = {"PATCH_LENGTH": 64, "WANDB_KEY": "secret", "CLAMP3_WEIGHTS_PATH": "/home/me/w.pth", "EVAL_SPLIT": 0.1}


def features(embedder: Embedder) -> list[np.ndarray]:
    frames = np.random.default_rng(0).standard_normal((9, embedder.sizes.audio_hidden_size)).astype(np.float32)
    return [
        embedder.embed_text(["a slow air", "ein Lied"]),
        embedder.embed_symbolic([TUNE]),
        embedder.embed_audio_features([frames]),
    ]


def assert_same_features(one: Embedder, other: Embedder) -> None:
    for found, wanted in zip(features(one), features(other), strict=True):
        assert np.array_equal(found, wanted)


@pytest.fixture(scope="module")
def trained(small_model, training_data, tmp_path_factory) -> dict[str, Path]:
    """The folders of short runs of all kinds, as .pth and as .safetensors; the text model's own folder is gone."""
    folder = tmp_path_factory.mktemp("trained")
    text = Path(shutil.copytree(small_model.folder, folder / "text", ignore=shutil.ignore_patterns("*.pth")))
    runs = {}
    for name, kind in (("symbolic", "symbolic"), ("audio", "audio"), ("m3", "m3"), ("safe", "audio")):
        chosen = {"epochs": 1, "save_every": 1, "knobs": KNOBS, "suffix": ".safetensors" if name == "safe" else ".pth"}
        make_trainer(kind, text, training_data.folder, folder / name, **chosen).fit()
        runs[name] = folder / name
    text.rename(folder / "moved")
    return runs


# ---------- what training writes ----------


def test_all_that_training_writes_needs_nothing_else(trained, small_model, tmp_path):
    """Best, last and epochs' files, moved to another place; sizes, text model and tokenizer are in them."""
    for name, folder in trained.items():
        files = [path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors")]
        assert len(files) == 3
        for path in files:
            embedder = Embedder.from_pretrained(shutil.copy(path, tmp_path), "cpu")
            assert replace(embedder.sizes, text_model_name="") == replace(small_model.sizes, text_model_name="")
            if name == "m3":
                assert embedder.embed_symbolic([TUNE], pooled=False)[0].shape[1] == small_model.sizes.m3_hidden_size
            else:
                given = replace(small_model.sizes, text_model_name=str(trained["m3"].parent / "moved"))
                assert_same_features(embedder, Embedder.from_pretrained(path, "cpu", sizes=given))


def test_what_a_file_says_of_itself_is_plain_and_complete(trained, small_model, training_data):
    """As the original's code reads it, and torch.load without any list of what is safe."""
    for name in ("symbolic", "audio", "m3"):
        [path] = trained[name].glob("weights_*_last.pth")
        checkpoint = torch.load(path, weights_only=True)
        build = CLaMP3Model if name != "m3" else M3Model
        build(replace(small_model.sizes, text_model_name=str(small_model.folder))).load_state_dict(checkpoint["model"])
        said = checkpoint[ENTRY]
        assert json.loads(json.dumps(said)) == said
        assert said["kind"] == ("m3" if name == "m3" else "clamp3") and said["format"] == 1
        assert said["knobs"] == {"PATCH_LENGTH": 64, "EVAL_SPLIT": 0.1}  # no key, and no place of this machine
        assert said["versions"].keys() == {"clamp3", "torch", "transformers"}
        assert said["stage"]["modality"] == (None if name == "m3" else name)
        assert {part: said["data"][part]["items"] for part in said["data"]} == {"training": 37, "evaluation": 11}
        assert len({said["data"][part]["fingerprint"] for part in said["data"]}) == 2
        if name != "m3":
            assert set(said["tokenizer"]["files"]) >= {"tokenizer.json", "config.json"}
    symbolic, audio = (
        torch.load(trained[name] / "weights_clamp3.pth", weights_only=True)[ENTRY] for name in ("symbolic", "audio")
    )
    assert symbolic["data"] != audio["data"] and symbolic["tokenizer"]["sha256"] == audio["tokenizer"]["sha256"]


def test_the_fingerprint_of_data_follows_their_content(training_data, small_model, tmp_path):
    shutil.copytree(training_data.folder, tmp_path / "data")
    for kind, change in (("symbolic", tmp_path / "data" / "symbolic.jsonl"), ("m3", tmp_path / "data/abc/40.abc")):
        told = []
        for _ in range(3):
            trainer = make_trainer(kind, small_model.folder, tmp_path / "data", tmp_path / "out")
            told.append(trainer.describe()["data"]["training"]["fingerprint"])
            if len(told) == 2:
                change.write_text(change.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        assert told[0] == told[1] != told[2]


def test_xlm_r_is_named_and_not_stored():
    files = tokenizer_files(XLM_R_BASE)
    assert content_of(files) == XLM_R_SHA256
    said = describe("clamp3", ModelSizes())
    assert said["tokenizer"] == {"name": XLM_R_BASE, "sha256": XLM_R_SHA256}
    assert sizes_of(said, Path("x")) == ModelSizes()
    said["tokenizer"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="x: the tokenizer in it cannot be used: it is another one"):
        sizes_of(said, Path("x"))


def test_a_text_model_that_has_changed_where_it_was_is_taken_from_the_weights(small_model, tmp_path):
    folder = Path(shutil.copytree(small_model.folder, tmp_path / "text", ignore=shutil.ignore_patterns("*.pth")))
    said = describe("clamp3", replace(small_model.sizes, text_model_name=str(folder)))
    assert sizes_of(said, Path("x")).text_model_name == str(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokenizer_config.json").write_text("{}")
    unpacked = Path(sizes_of(said, Path("x")).text_model_name)
    assert unpacked != folder and {path.name: path.read_bytes() for path in unpacked.iterdir()} == before


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("format",), 2, "later version"),
        (("kind",), "clamp9", "cannot be read"),
        (("sizes",), [], "cannot be read"),
        (("sizes", "PATCH_LENGTH"), "64", "cannot be read"),
        (("tokenizer", "files"), {"../../evil": "eJwDAAAAAAE="}, "cannot be used: it is damaged"),
        (("tokenizer", "files"), {"tokenizer.json": "!"}, "cannot be used"),
        (("tokenizer", "files"), {"tokenizer.json": 7}, "cannot be used"),
        (("tokenizer",), 7, "cannot be used"),
    ],
)
def test_a_description_that_is_none_is_refused_in_a_sentence(trained, small_model, tmp_path, place, value, complaint):
    checkpoint = torch.load(trained["symbolic"] / "weights_clamp3_1.pth", weights_only=True)
    part = checkpoint[ENTRY]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    torch.save(checkpoint, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth.*{complaint}"):
        Embedder.from_pretrained(tmp_path / "w.pth", "cpu")
    assert not list(tmp_path.glob("**/evil"))


# ---------- .safetensors ----------


def test_a_safetensors_path_gets_weights_that_anybody_reads_and_resumes_exactly(
    trained, small_model, training_data, tmp_path
):
    """As a .pth path does: the same weights after the same epochs, with a restart or without."""
    path = trained["safe"] / "weights_clamp3.safetensors"
    assert not list(trained["safe"].glob("weights_clamp3.pth"))
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(golden_json("model.json")["state_dict_shapes"])
        assert json.loads(file.metadata()["training"])["epoch"] == 1 and file.metadata()["format"] == "pt"
    assert_same = torch.load(trained["audio"] / "weights_clamp3.pth", weights_only=True)["model"]
    assert all(torch.equal(tensor, assert_same[name]) for name, tensor in load_file(path).items())

    def run_to_the_end(folder: Path, suffix: str) -> dict:
        make_trainer("audio", small_model.folder, training_data.folder, folder, suffix=suffix).fit()
        return torch.load(folder / "weights_clamp3_last.pth", weights_only=True)

    ends = []
    for name, suffix in (("safe", ".safetensors"), ("audio", ".pth")):
        shutil.copytree(trained[name], tmp_path / name)
        ends.append(run_to_the_end(tmp_path / name, suffix))
        ends[-1].pop(ENTRY)
    ends.append(run_to_the_end(tmp_path / "whole", ".safetensors"))
    ends[-1].pop(ENTRY)
    assert not differences(ends[0], ends[1]) and not differences(ends[0], ends[2])


def test_the_weights_alone_are_gone_on_from(trained, small_model, training_data, tmp_path, caplog):
    caplog.set_level("INFO", "clamp3")
    for name in ("m3", "safe"):
        tmp_path.joinpath(name).mkdir()
        start = next(trained[name].glob("weights_*3.*"))
        path = tmp_path / name / f"{start.stem}.safetensors"
        if name == "m3":  # without any description
            save_file({name: tensor.contiguous().clone() for name, tensor in read_weights(start).items()}, path)
        else:
            shutil.copy(start, path)
        kind = "m3" if name == "m3" else "audio"
        trainer = make_trainer(kind, small_model.folder, training_data.folder, tmp_path / name, suffix=".safetensors")
        assert trainer.restore() and trainer.progress.epoch == (0 if name == "m3" else 1)
        assert "optimizer and warm-up start anew" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w", "w.pth.gz", "w.SAFETENSORS"])
def test_other_names_are_refused_before_anything_is_read(small_model, name):
    knobs = {"CLAMP3_WEIGHTS_PATH": name, "M3_WEIGHTS_PATH": name, "CLAMP3_TRAIN_JSONL": "/nowhere"}
    for script in ("train_clamp3_audio.py", "train_m3.py"):
        done = run_forked(script, env=small_model.environment(**knobs), check=2)
        assert f"{name}: weights are written as .pth or .safetensors" in done.stderr
    with pytest.raises(UserError, match="are written as"):
        Settings(Path(name), Path("logs.txt"), 1, 1, 1.0).check_suffix()


# ---------- files that say nothing ----------


def test_shapes_tell_sizes_where_they_determine_them(small_model, tmp_path):
    for name, kind in (("clamp3", "released_clamp3_state_dict.json"), ("m3", "released_m3_state_dict.json")):
        with torch.device("meta"):
            weights = {name: torch.empty(shape) for name, shape in golden_json(kind).items()}
        assert inferred_sizes(weights, Path(f"{name}.pth")) == ModelSizes()
    m3 = load_pretrained(small_model.m3)
    wanted = {**small_model.sizes.to_knobs()}
    for knob in ("PATCH_SIZE", "PATCH_LENGTH", "PATCH_NUM_LAYERS", "TOKEN_NUM_LAYERS", "M3_HIDDEN_SIZE"):
        assert m3.sizes.to_knobs()[knob] == wanted[knob]
    weights = formula_weights(golden_json("model.json")["state_dict_shapes"])
    with pytest.raises(UserError, match="does not say what its text model is, and that is not FacebookAI"):
        load_pretrained(small_model.clamp3)
    others = {name: tensor for name, tensor in weights.items() if "text_model" not in name}
    found = inferred_sizes(others, Path("weights_clamp3_t_length_77_a.pth")).to_knobs()
    assert found.pop("MAX_TEXT_LENGTH") == 77
    for knob in ("AUDIO_HIDDEN_SIZE", "AUDIO_NUM_LAYERS", "MAX_AUDIO_LENGTH", "CLAMP3_HIDDEN_SIZE", "PATCH_LENGTH"):
        assert found[knob] == wanted[knob]


def test_files_are_told_by_what_they_are_not_by_their_names(small_model, tmp_path):
    """Earlier versions wrote PyTorch's format whatever the name."""
    weights = formula_weights(golden_json("model.json")["state_dict_shapes"])
    torch.save({"model": weights}, tmp_path / "mine.safetensors")
    save_file(weights, tmp_path / "mine.pth")
    wanted = build_model(None, small_model.sizes, small_model.clamp3)
    for name in ("mine.safetensors", "mine.pth"):
        assert_same_weights(build_model(None, small_model.sizes, tmp_path / name), wanted, atol=0, rtol=0)


def test_what_a_file_says_goes_before_config_and_a_difference_is_told(trained, small_model, tmp_path):
    """In the commands; with --epoch, of .safetensors too."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.abc").write_text(TUNE)
    for name, end in (("audio", ".pth"), ("safe", ".safetensors")):
        path = trained[name] / f"weights_clamp3{end}"
        env = small_model.environment(CLAMP3_WEIGHTS_PATH=str(path), PATCH_LENGTH=512, TEXT_MODEL_NAME="/nowhere")
        command = ("extract_clamp3.py", tmp_path / "in", tmp_path / name, "--get_global", "--epoch", "1")
        done = run_forked(*command, env=env)
        assert "not config.py's: PATCH_LENGTH 32 (not 512)" in done.stdout
    assert np.array_equal(np.load(tmp_path / "audio" / "a.npy"), np.load(tmp_path / "safe" / "a.npy"))
