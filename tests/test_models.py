"""The networks and losses, against what the original computes and against the plain formulas."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, DistilBertConfig, DistilBertModel, GPT2Config, GPT2LMHeadModel, XLMRobertaConfig

from clamp3.models.bert import Bert
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import encode, masked_mean
from clamp3.models.losses import ClipLoss
from clamp3.models.m3 import M3Model, M3TokenDecoder, PatchEmbedding
from clamp3.models.text import build_text_model, text_config
from clamp3.sizes import ModelSizes
from golden_model import GOLDEN, golden_json, golden_model
from transformers_twins import CONFIGS, twin

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
    judge = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    assert config.to_dict().items() <= judge.to_dict().items()


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
def test_layers_without_padding_are_transformers_own(small_model, tower_name):
    """Hidden states of real positions, and all gradients, against transformers' padded forward."""
    tower = getattr(golden_model(CLaMP3Model, small_model.sizes), tower_name)
    judge = twin(tower)
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
    for network, forward in (
        (tower, lambda: encode(tower, masks, **inputs)),
        (judge, lambda: judge(attention_mask=masks, **inputs)),
    ):
        states.append(forward().last_hidden_state * masks[..., None])
        (states[-1] * target).sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if "pooler" not in name})
    torch.testing.assert_close(*states, atol=2e-5, rtol=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.golden
@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_of_berts_kin_is_computed_as_by_transformers(small_model, tmp_path, family):
    """Whatever its config.json leaves to defaults, or says otherwise."""
    for number, more in enumerate(({}, {"hidden_act": "relu"}, {"pad_token_id": 3, "layer_norm_eps": 0.1})):
        folder = tmp_path / str(number)
        few = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        config = CONFIGS[family](**few, max_position_embeddings=40, **more)
        config.save_pretrained(folder)
        settings = json.loads((folder / "config.json").read_text())
        defaults = CONFIGS[family]().to_dict()
        left = {name: value for name, value in settings.items() if defaults.get(name) != value or name == "model_type"}
        (folder / "config.json").write_text(json.dumps(left))
        own = build_text_model(replace(small_model.sizes, text_model_name=str(folder), max_text_length=20)).eval()
        judge = AutoModel.from_config(config).eval()
        assert isinstance(own, Bert) is ("hidden_act" not in more)
        judge.load_state_dict(own.state_dict())
        ids, masks = torch.randint(4, 100, (2, 9)), torch.ones(2, 9)
        ids[1, 5:], masks[1, 5:] = config.pad_token_id, 0
        with torch.no_grad():
            found, expected = (
                states.last_hidden_state * masks[..., None]
                for states in (encode(own, masks, input_ids=ids), judge(ids, attention_mask=masks))
            )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.golden
def test_the_decoder_is_transformers_own(small_model):
    """The loss of whole patches, their characters' gradients, and the spread of new weights."""
    torch.manual_seed(0)
    decoder = M3TokenDecoder(small_model.sizes).eval()
    judge = twin(decoder.base)
    size = small_model.sizes.patch_size
    features = torch.randn(3, small_model.sizes.m3_hidden_size)
    patches = torch.randint(4, 128, (3, size))
    embeddings = torch.cat([features[:, None], judge.transformer.wte(patches[:, 1:])], dim=1)
    logits = judge(inputs_embeds=embeddings).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), patches[:, 1:].flatten())
    found = decoder(features, patches)
    torch.testing.assert_close(found, expected)
    for loss in (found, expected):
        loss.backward()
    for (name, own), other in zip(decoder.base.named_parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-3, msg=name)
    assert torch.equal(decoder.base.lm_head.weight, decoder.base.transformer.wte.weight)
    new = M3TokenDecoder(ModelSizes()).base, GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=64, n_layer=3))
    for (name, own), other in zip(new[0].named_parameters(), new[1].parameters(), strict=True):
        assert own.std().item() == pytest.approx(other.std().item(), rel=0.1, abs=1e-9), name


@pytest.mark.golden
def test_new_towers_have_the_spread_of_transformers_own(small_model):
    own = build_text_model(small_model.sizes)
    judge = AutoModel.from_config(CONFIGS["xlm-roberta"](**own.config.to_dict()))
    others = dict(judge.named_parameters())
    assert sorted(others) == sorted(name for name, _ in own.named_parameters())
    for name, one in own.named_parameters():
        assert one.std().item() == pytest.approx(others[name].std().item(), rel=0.15, abs=1e-9), name
    assert not own.embeddings.word_embeddings.weight[1].any()


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
