"""Text towers of other families than XLM-R's, by TEXT_MODEL_NAME alone: features, training, weights, refusals."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    T5Config,
    ViTConfig,
)

from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import encode, prepare_layers
from clamp3.models.text import build_text_model, check_text_model
from clamp3.models.weights import build_model, start_from_text_model
from conftest import run_forked, save_tokenizer

VOCABULARY = 300
PADDING = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BERT_LIKE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
CONFIGS = {
    "modernbert": ModernBertConfig(
        **{**PADDING, **BERT_LIKE, "num_hidden_layers": 3, "max_position_embeddings": 64, "local_attention": 8},
        cls_token_id=0,
        sep_token_id=2,
    ),
    "distilbert": DistilBertConfig(
        **PADDING, dim=64, n_heads=2, n_layers=2, hidden_dim=128, max_position_embeddings=64
    ),
    "albert": AlbertConfig(**PADDING, **BERT_LIKE, embedding_size=32, max_position_embeddings=64),
    "deberta": DebertaV2Config(
        **PADDING, **BERT_LIKE, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "mpnet": MPNetConfig(**PADDING, **BERT_LIKE, max_position_embeddings=66),
}
TEXTS = ["a lively reel", "the slow air of the sea, from Ireland", "x"]


@pytest.fixture(scope="module", params=CONFIGS)
def family(request, tmp_path_factory, small_model):
    """The sizes of a small CLaMP 3 whose text model is of another family, in a local folder."""
    folder = tmp_path_factory.mktemp(request.param)
    CONFIGS[request.param].save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    return replace(small_model.sizes, text_model_name=str(folder), max_text_length=64)


@pytest.fixture
def model(family) -> CLaMP3Model:
    torch.manual_seed(0)
    return CLaMP3Model(family)


def text_batch(lengths=(9, 4, 1)) -> tuple[torch.Tensor, torch.Tensor]:
    masks = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(4, VOCABULARY, masks.shape, generator=torch.Generator().manual_seed(0))
    return ids.where(masks.bool(), 1), masks


def test_features_do_not_depend_on_padding_or_company(family, model):
    embedder = Embedder(model, family)
    together = embedder.embed_text(TEXTS)
    for text, feature in zip(TEXTS, together, strict=True):
        [alone] = embedder.embed_text([text])
        np.testing.assert_allclose(feature, alone, atol=1e-5)
        ids = torch.from_numpy(embedder.encode_text(text))[None]
        with torch.no_grad():  # the plain way
            states = embedder._model.text_model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            expected = embedder._model.text_proj(states.mean(dim=1))[0]
        np.testing.assert_allclose(feature, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_stay_close(family, model, precision):
    full = Embedder(copy.deepcopy(model), family).embed_text(TEXTS, normalize=True)
    lower = Embedder(model, family, precision=precision).embed_text(TEXTS, normalize=True)
    assert lower.dtype == np.float32 and ((full * lower).sum(axis=1) > 0.998).all()
    assert not np.array_equal(full, lower)


def gradients(model: CLaMP3Model) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    features = model.get_text_features(*text_batch(), get_global=True)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_recomputed_layers_have_the_same_gradients(model):
    """With dropout, which is to be drawn alike both times."""
    model.train()
    changed = copy.deepcopy(model)
    counts = [0, 0]
    for number, one in enumerate((model, changed)):
        for module in one.text_model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *_, n=number: counts.__setitem__(n, counts[n] + 1))
    prepare_layers(changed.towers.values(), compile_layers=False, recompute_layers=True)
    plain, recomputed = gradients(model), gradients(changed)
    assert plain.keys() == recomputed.keys() and any(name.startswith("text_model") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-7, rtol=1e-5, msg=name)
    assert counts[1] > 1.5 * counts[0]  # the layers did run twice


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("clang")), reason="torch.compile needs a C++ compiler on CPUs"
)
@pytest.mark.parametrize("family", ["modernbert"], indirect=True)
def test_compiled_layers_have_the_same_gradients(model):
    """Of a layer of global and one of local attention, without dropout, which compiled code draws otherwise."""
    model.text_model.layers = model.text_model.layers[:2]
    changed = copy.deepcopy(model)
    prepare_layers(changed.towers.values(), compile_layers=True, recompute_layers=False)
    plain, compiled = gradients(model.eval()), gradients(changed.eval())
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_frozen_text_tower_stays_as_it_is(model):
    model.train_on("symbolic", ["text_model", "text_proj"])
    model.train()
    assert not model.text_model.training and not any(p.requires_grad for p in model.text_model.parameters())
    batch = text_batch()
    assert torch.equal(model.get_text_features(*batch), model.get_text_features(*batch))


def test_training_steps_lower_the_loss(model):
    torch.manual_seed(0)
    model.train_on("audio")
    prepare_layers(model.towers.values(), compile_layers=False, recompute_layers=True)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    frames = torch.randn(3, 5, model.audio_model.config.hidden_size)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(*text_batch(), frames, torch.ones(3, 5), "audio"))
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_weights_are_loaded_strictly_and_say_what_is_missing(family, model, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    loaded = build_model(CLaMP3Model, family, path)
    batch = text_batch()
    model.eval()
    assert torch.equal(loaded.get_text_features(*batch), model.get_text_features(*batch))
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    weights = model.state_dict()
    missing = next(name for name in weights if name.startswith("text_model"))
    torch.save({"model": {name: tensor for name, tensor in weights.items() if name != missing}}, path)
    with pytest.raises(UserError, match=f"missing: {missing}"):
        build_model(CLaMP3Model, family, path)


def test_pretrained_weights_start_the_text_tower(family, model, tmp_path):
    """With and without a pooler in the file, which nothing uses."""
    pretrained = build_text_model(family)
    states = [encode(tower.eval(), text_batch()[1], input_ids=text_batch()[0]) for tower in (pretrained,)]
    shutil.copytree(family.text_model_name, tmp_path, dirs_exist_ok=True)
    weights = {name: tensor for name, tensor in pretrained.state_dict().items() if "pooler" not in name}
    pretrained.save_pretrained(tmp_path, state_dict=weights)
    assert start_from_text_model(model, str(tmp_path))
    found = encode(model.text_model.eval(), text_batch()[1], input_ids=text_batch()[0])
    torch.testing.assert_close(found.last_hidden_state, states[0].last_hidden_state)


def test_a_command_trains_and_embeds_with_a_modernbert(small_model, training_data, tmp_path):
    folder = tmp_path / "text"
    CONFIGS["modernbert"].save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    env = small_model.environment(
        TEXT_MODEL_NAME=str(folder),
        CLAMP3_WEIGHTS_PATH=str(tmp_path / "weights_mine.pth"),
        CLAMP3_TRAIN_JSONL=str(training_data.symbolic),
        M3_WEIGHTS_PATH=str(tmp_path / "none.pth"),
        CLAMP3_NUM_EPOCH=1,
        CLAMP3_BATCH_SIZE=8,
        CLAMP3_WANDB_LOG=False,
        RECOMPUTE_LAYERS=True,
        TRAIN_WORKERS=0,
        WARMUP_STEPS=1,
    )
    done = run_forked("train_clamp3_symbolic.py", "--device", "cpu", env=env)
    assert "random weights" in done.stdout
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a reel")
    run_forked("extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--get_global", env=env)
    assert np.isfinite(np.load(tmp_path / "out" / "a.npy")).all()


# ---------- what a text model cannot do is said before anything starts ----------

UNFIT = {
    "t5": (T5Config(vocab_size=VOCABULARY, d_model=64, num_layers=1, num_heads=2), "is an encoder-decoder"),
    "vit": (ViTConfig(**BERT_LIKE), "is no text encoder"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_models_that_are_no_text_encoders_are_refused(small_model, tmp_path, name):
    config, complaint = UNFIT[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=complaint):
        CLaMP3Model(replace(small_model.sizes, text_model_name=str(tmp_path)))


def test_more_tokens_than_positions_are_refused(family):
    check_text_model(family, range(VOCABULARY))
    with pytest.raises(UserError, match="MAX_TEXT_LENGTH is 65, and the text model .* has positions for 64 tokens"):
        check_text_model(replace(family, max_text_length=65), range(VOCABULARY))


def test_as_many_tokens_as_positions_are_computed(family, model):
    ids, masks = text_batch((64, 64))
    assert torch.isfinite(model.eval().get_text_features(ids, masks, get_global=True)).all()


def test_a_tokenizer_of_another_model_is_refused(family):
    with pytest.raises(UserError, match="has 301 tokens, and the text model embeds 300"):
        check_text_model(family, range(301))


def test_a_decoder_without_separator_is_refused_by_the_command_before_it_reads_data(small_model, tmp_path):
    GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=1, n_head=2, n_positions=64).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, VOCABULARY)
    for path in (tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"):
        if path.exists():
            path.write_text(path.read_text().replace('"sep_token"', '"other_token"'))
    (tmp_path / "broken.jsonl").write_text("this is not read\n")
    env = small_model.environment(TEXT_MODEL_NAME=str(tmp_path), CLAMP3_TRAIN_JSONL=str(tmp_path / "broken.jsonl"))
    done = run_forked("train_clamp3_audio.py", "--device", "cpu", env=env, check=2)
    assert "has no sep_token, which joins the lines of a text" in done.stderr and "Traceback" not in done.stderr
