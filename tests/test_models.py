"""The networks and losses, against what the original computes and against the plain formulas."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import DistilBertConfig, DistilBertModel

from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import encode, masked_mean
from clamp3.models.losses import ClipLoss
from clamp3.models.m3 import M3Model, PatchEmbedding
from clamp3.models.text import text_config
from clamp3.sizes import ModelSizes
from golden_model import GOLDEN, golden_json, golden_model

RECORDED = golden_json("model.json")
BATCHES = np.load(GOLDEN / "model.npz")


def recorded_batch(prefix: str, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(BATCHES[f"{prefix}.{name}"]) for name in names]


def assert_gradient_norms(model: torch.nn.Module, recorded: dict[str, float]) -> None:
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == recorded.keys()
    for name, norm in recorded.items():
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@pytest.mark.golden
@pytest.mark.parametrize("modality", ["symbolic", "audio"])
def test_clamp3_loss_and_gradients_are_the_originals(small_model, modality):
    model = golden_model(CLaMP3Model, small_model.sizes)
    key = f"clamp3_{modality}"
    batch = recorded_batch(key, "text_inputs", "text_masks", "music_inputs", "music_masks")
    loss = model(*batch, modality)
    loss.backward()
    assert loss.item() == pytest.approx(RECORDED[f"{key}_loss"], rel=1e-4, abs=2e-5)
    assert_gradient_norms(model, RECORDED[f"{key}_grad_norms"])


@pytest.mark.golden
def test_m3_loss_and_gradients_are_the_originals(small_model):
    model = golden_model(M3Model, small_model.sizes)
    loss = model(*recorded_batch("m3", "input_patches", "input_masks", "selected_indices", "target_patches"))
    loss.backward()
    assert loss.item() == pytest.approx(RECORDED["m3_loss"], rel=1e-4, abs=2e-5)
    assert_gradient_norms(model, RECORDED["m3_grad_norms"])


@pytest.mark.golden
def test_released_checkpoints_have_exactly_these_tensors():
    with torch.device("meta"):
        for model_class, name in ((CLaMP3Model, "clamp3"), (M3Model, "m3")):
            shapes = {key: list(tensor.shape) for key, tensor in model_class(ModelSizes()).state_dict().items()}
            assert shapes == golden_json(f"released_{name}_state_dict.json")


@pytest.mark.golden
def test_xlm_roberta_base_is_known_without_a_network():
    config = text_config("FacebookAI/xlm-roberta-base")
    facts = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert facts == (768, 12, 12, 3072)
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)


@pytest.mark.golden
@pytest.mark.parametrize("reloaded", [False, True])
def test_patch_embedding_is_the_linear_layer_over_one_hots(reloaded):
    torch.manual_seed(0)
    embedding = PatchEmbedding(64, 32)
    linear = torch.nn.Linear(64 * 128, 32)
    linear.load_state_dict(copy.deepcopy(embedding.state_dict()))
    if reloaded:  # a load that replaces the parameter leaves it in the file's memory layout
        embedding.load_state_dict({name: p.clone() for name, p in linear.state_dict().items()}, assign=True)
    patches = torch.randint(0, 128, (3, 5, 64), dtype=torch.uint8)
    one_hot = F.one_hot(patches.long(), 128).float().flatten(-2)  # (3, 5, 8192)
    target = torch.randn(3, 5, 32)
    for output in (embedding(patches), linear(one_hot)):
        F.mse_loss(output, target).backward()
    torch.testing.assert_close(embedding(patches), linear(one_hot))
    torch.testing.assert_close(embedding.weight.grad, linear.weight.grad)
    torch.testing.assert_close(embedding.bias.grad, linear.bias.grad)


def test_patch_embedding_trains():
    torch.manual_seed(0)
    embedding = PatchEmbedding(64, 16)
    optimizer = torch.optim.AdamW(embedding.parameters(), lr=1e-2)
    patches, target = torch.randint(0, 128, (8, 64)), torch.randn(8, 16)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(F.mse_loss(embedding(patches), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.golden
@pytest.mark.parametrize("tower_name", ["text_model", "audio_model"])
def test_layers_without_padding_are_the_towers_own(small_model, tower_name):
    """Hidden states of real positions, and all gradients, against the library's padded forward."""
    tower = getattr(golden_model(CLaMP3Model, small_model.sizes), tower_name)
    lengths = torch.tensor([9, 3, 1])
    masks = (torch.arange(9) < lengths[:, None]).long()
    torch.manual_seed(0)
    if tower_name == "text_model":
        ids = torch.randint(4, tower.config.vocab_size, (3, 9))
        inputs = {"input_ids": ids.where(masks.bool(), tower.config.pad_token_id)}
    else:
        inputs = {"inputs_embeds": torch.randn(3, 9, tower.config.hidden_size)}
    target = torch.randn(3, 9, tower.config.hidden_size)
    states, gradients = [], []
    for forward in (lambda: encode(tower, masks, **inputs), lambda: tower(attention_mask=masks, **inputs)):
        tower.zero_grad()
        states.append(forward().last_hidden_state * masks[..., None])
        (states[-1] * target).sum().backward()
        gradients.append({name: p.grad for name, p in tower.named_parameters() if "pooler" not in name})
    torch.testing.assert_close(*states, atol=2e-5, rtol=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_text_models_of_other_architectures_run_their_own_forward():
    tower = DistilBertModel(DistilBertConfig(vocab_size=10, dim=64, n_heads=1, n_layers=1, hidden_dim=128)).eval()
    masks = torch.tensor([[1, 1, 0]])
    ids = torch.tensor([[4, 5, 0]])
    own = tower(ids, attention_mask=masks).last_hidden_state
    assert torch.equal(encode(tower, masks, input_ids=ids).last_hidden_state, own)


def test_training_drops_out_where_the_towers_own_layers_do(small_model):
    """Attention weights, and each half layer's output: with one of the three set to 0, the other two still vary."""
    tower = golden_model(CLaMP3Model, small_model.sizes).audio_model.train()
    inputs, masks = torch.randn(1, 5, tower.config.hidden_size), torch.ones(1, 5)
    tower.embeddings.dropout.p = 0.0
    layer_parts = [
        [layer.attention.self.dropout for layer in tower.encoder.layer],
        [layer.attention.output.dropout for layer in tower.encoder.layer],
        [layer.output.dropout for layer in tower.encoder.layer],
    ]
    for kept in [*layer_parts, []]:
        for part in sum(layer_parts, []):
            part.p = 0.5 if part in kept else 0.0
        first, second = (encode(tower, masks, inputs_embeds=inputs).last_hidden_state for _ in range(2))
        assert torch.equal(first, second) is (not kept)


def test_mean_leaves_masked_positions_out():
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [100.0], [100.0]]])
    masks = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(states, masks).tolist() == [[2.0], [5.0]]


def test_frozen_parts_have_no_gradients_and_no_dropout_even_in_training(small_model):
    model = golden_model(CLaMP3Model, small_model.sizes)
    model.set_trainable(["text_model", "text_proj"])
    model.train()
    assert not model.text_model.training and model.symbolic_model.training
    assert {name.split("_")[0] for name, p in model.named_parameters() if p.requires_grad} == {"symbolic", "audio"}
    batch = recorded_batch("clamp3_symbolic", "text_inputs", "text_masks")
    assert torch.equal(model.get_text_features(*batch), model.get_text_features(*batch))
    model.set_trainable([])
    assert model.text_model.training and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="no such part.*txt_model"):
        model.set_trainable(["txt_model"])


def test_m3_has_no_global_feature(small_model):
    with pytest.raises(ValueError, match="hidden states alone"):
        golden_model(M3Model, small_model.sizes).get_symbolic_features(None, None, get_global=True)


def test_clip_loss_is_the_symmetric_cross_entropy():
    rng = np.random.default_rng(0)
    text, music = rng.normal(size=(2, 7, 12))
    logits = 3 * text @ music.T
    rows = -np.diag(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).mean()
    columns = -np.diag(logits - np.log(np.exp(logits).sum(axis=0, keepdims=True))).mean()
    loss = ClipLoss(logit_scale=3)(torch.from_numpy(text), torch.from_numpy(music))
    assert loss.item() == pytest.approx((rows + columns) / 2)
