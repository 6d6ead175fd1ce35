"""The released models' real size: 458 M parameters, loaded strictly, against the plain way to run them."""

import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from clamp3.inputs.patchilizer import M3Patchilizer
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.releases import RELEASES
from clamp3.models.text import text_config
from clamp3.models.weights import build_model
from clamp3.sizes import XLM_R_BASE, ModelSizes
from conftest import BIN, run, save_tokenizer
from golden_model import golden_json, save_checkpoint
from transformers_twins import twin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of the released SAAS model's name, tensors and layout, with weights by formula."""
    path = tmp_path_factory.mktemp("released") / RELEASES["saas"].file_name
    save_checkpoint(path, golden_json("released_clamp3_state_dict.json"), modality="symbolic")
    yield path
    path.unlink()  # 1.8 GB


def naive_symbolic_feature(model, text: str) -> np.ndarray:
    """One item, padded to the maximum, through one-hot vectors: what the original does."""
    patches = torch.from_numpy(M3Patchilizer().encode(text, add_special_patches=True).astype(np.int64))
    assert len(patches) <= 512
    masks = torch.zeros(1, 512)
    masks[0, : len(patches)] = 1
    patches = F.pad(patches, (0, 0, 0, 512 - len(patches)))
    one_hot = F.one_hot(patches, 128).float().reshape(1, 512, 8192)
    embedding = model.symbolic_model.patch_embedding
    embedded = F.linear(one_hot, embedding.weight, embedding.bias)
    with torch.no_grad():
        states = twin(model.symbolic_model.base)(inputs_embeds=embedded, attention_mask=masks).last_hidden_state
        return model.symbolic_proj((states * masks[..., None]).sum(dim=1) / masks.sum()).numpy()


def naive_audio_feature(model, frames: np.ndarray) -> np.ndarray:
    zeros = np.zeros((1, 768), np.float32)
    frames = np.concatenate([zeros, frames.reshape(-1, 768), zeros])
    masks = torch.zeros(1, 128)
    masks[0, : len(frames)] = 1
    padded = F.pad(torch.from_numpy(frames), (0, 0, 0, 128 - len(frames)))[None]
    with torch.no_grad():
        states = twin(model.audio_model)(inputs_embeds=padded, attention_mask=masks).last_hidden_state
        return model.audio_proj((states * masks[..., None]).sum(dim=1) / masks.sum()).numpy()


def naive_text_feature(model, tokenizer, text: str) -> np.ndarray:
    lines = tokenizer.sep_token.join(dict.fromkeys(line for line in text.split("\n") if line))
    inputs = tokenizer(lines, padding="max_length", max_length=128, return_tensors="pt")
    with torch.no_grad():
        states = twin(model.text_model)(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        masks = inputs["attention_mask"].float()
        return model.text_proj((states * masks[..., None]).sum(dim=1) / masks.sum()).numpy()


def test_features_at_full_size_are_those_of_a_naive_run(released, texts, tmp_path):
    """The documented command with the released file's name, sizes and defaults, several items in a batch."""
    inputs = tmp_path / "in"
    (inputs / "audio").mkdir(parents=True)
    names = ("tune_0", "tune_1", "score_1")
    for name in names:
        (inputs / f"{name}.abc").write_text(texts[name])
    frames = np.random.default_rng(0).normal(size=(2, 30, 768)).astype(np.float32)
    np.save(inputs / "audio" / "a.npy", frames[:1])
    np.save(inputs / "audio" / "b.npy", frames[1:, :9])
    descriptions = {"text_a": "A lively reel\nfrom Ireland", "text_b": "ein ruhiges Wiegenlied"}
    for name, text in descriptions.items():
        (inputs / f"{name}.txt").write_text(text)
    text_model = tmp_path / "text_model"  # XLM-R base's real configuration, and a tokenizer that needs no network
    text_model.mkdir()
    (text_model / "config.json").write_text(text_config(XLM_R_BASE).to_json_string())
    save_tokenizer(text_model, vocab_size=400)
    knobs = {"CLAMP3_WEIGHTS_PATH": str(released), "TEXT_MODEL_NAME": str(text_model)}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CLAMP3_CONFIG": json.dumps(knobs)}
    run(
        BIN / "accelerate", "launch", "extract_clamp3.py", inputs, tmp_path / "out", "--as_is", "--get_global", env=env
    )

    model = build_model(CLaMP3Model, ModelSizes(), released)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(458e6, rel=0.001)
    expected = {f"{name}.npy": naive_symbolic_feature(model, texts[name]) for name in names}
    expected["audio/a.npy"] = naive_audio_feature(model, frames[0])
    expected["audio/b.npy"] = naive_audio_feature(model, frames[1, :9])
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    expected |= {f"{name}.npy": naive_text_feature(model, tokenizer, text) for name, text in descriptions.items()}
    for name, feature in expected.items():
        found = np.load(tmp_path / "out" / name)
        assert found.shape == (1, 768)
        np.testing.assert_allclose(found, feature, atol=1e-4, rtol=1e-3)
        assert np.sum(found * feature) / np.linalg.norm(found) / np.linalg.norm(feature) > 0.999999
