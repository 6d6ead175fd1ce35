"""Sequences -> features: against recorded values, against a naive computation, and alone against in company."""

import inspect
import os
import subprocess
import sys
import typing
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clamp3.errors import RepairWarning, UserError, ignore
from clamp3.features.calls import EmbedMethod
from clamp3.features.embedder import BATCH_TOKENS, Embedder
from clamp3.formats.abc import interleave
from clamp3.inputs.segments import batches, cut, pad
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from conftest import BIN, CODE
from golden_model import GOLDEN, golden_model

RECORDED = np.load(GOLDEN / "model.npz")
GLOBAL, TEMPORAL, M3 = (
    [name.rsplit(".", 1)[0] for name in RECORDED.files if name.endswith(ending)]
    for ending in (".global", ".temporal", ".m3")
)


@pytest.fixture(scope="module")
def embedder(small_model) -> Embedder:
    return Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, as_is=True)


@pytest.fixture(scope="module")
def m3_embedder(small_model) -> Embedder:
    return Embedder(golden_model(M3Model, small_model.sizes), small_model.sizes, as_is=True)


def golden_sequence(embedder: Embedder, texts: dict[str, str], name: str) -> tuple[str, np.ndarray]:
    if name.startswith("text_"):
        return "text", RECORDED[f"{name}.input"]
    if name.startswith("audio_"):
        return "audio", embedder.encode_audio_features(RECORDED[f"{name}.input"])
    return "symbolic", embedder.encode_symbolic(texts[name])


def features_of(embedder: Embedder, modality: str, sequences: list[np.ndarray], pooled: bool) -> list[np.ndarray]:
    features = dict(embedder.embed(modality, sequences, pooled))
    return [features[index] for index in range(len(sequences))]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.golden
@pytest.mark.parametrize("name", GLOBAL)
def test_global_features_are_the_originals(embedder, texts, name):
    modality, sequence = golden_sequence(embedder, texts, name)
    [feature] = features_of(embedder, modality, [sequence], pooled=True)
    np.testing.assert_allclose(feature, RECORDED[f"{name}.global"], atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", TEMPORAL)
def test_hidden_states_are_the_originals(embedder, texts, name):
    modality, sequence = golden_sequence(embedder, texts, name)
    [states] = features_of(embedder, modality, [sequence], pooled=False)
    np.testing.assert_allclose(states, RECORDED[f"{name}.temporal"], atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", M3)
def test_m3_hidden_states_are_the_originals(m3_embedder, texts, name):
    [states] = m3_embedder.embed_symbolic([texts[name]], pooled=False)
    np.testing.assert_allclose(states, RECORDED[f"{name}.m3"], atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("batch_tokens", [40, 100_000])
@pytest.mark.parametrize("modality", ["text", "symbolic", "audio"])
def test_results_do_not_depend_on_company(small_model, texts, modality, batch_tokens):
    embedder = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, batch_tokens=batch_tokens)
    prefixes = {"text": "text_", "audio": "audio_", "symbolic": ("score_", "midi_", "tune_")}
    names = [name for name in GLOBAL if name.startswith(prefixes[modality])]
    sequences = [golden_sequence(embedder, texts, name)[1] for name in names]
    for pooled in (True, False):
        together = features_of(embedder, modality, sequences, pooled)
        for feature, sequence in zip(together, sequences, strict=True):
            [alone] = features_of(embedder, modality, [sequence], pooled)
            np.testing.assert_array_equal(feature, alone)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_not_even_the_last_bits_depend_on_company(precision, threads):
    """So that a run that was killed goes on to the same files, whatever of them it still has to write."""
    embedder = Embedder.from_pretrained("tiny", precision=precision)
    chance, rng, before = Random(threads), np.random.default_rng(0), torch.get_num_threads()
    bars = ["GABc dedB|", "c2A2 A2BA|", "g4 z2|"]
    tunes = [
        "X:1\nL:1/8\nK:D\n" + "\n".join(chance.choices(bars, k=k)) + "\n" for k in (1, 2, 4, 4, 7, 8, 30, 31, 130)
    ]
    items = {
        "symbolic": [embedder.encode_symbolic(interleave(tune, ignore)) for tune in tunes],
        "text": [embedder.encode_text(" ".join(["reel"] * count)) for count in (1, 2, 5, 5, 13, 14, 40, 100, 200)],
        "audio": [rng.standard_normal((k, 128), np.float32) for k in (1, 2, 7, 8, 8, 33, 64, 65, 100, 127, 128, 300)],
    }
    torch.set_num_threads(threads)
    try:
        for modality, sequences in items.items():
            for pooled in (True, False):
                together = features_of(embedder, modality, sequences, pooled)
                for count in (1, 2, 3, 5, 8):
                    chosen = chance.sample(range(len(sequences)), count)
                    found = features_of(embedder, modality, [sequences[place] for place in chosen], pooled)
                    for place, feature in zip(chosen, found, strict=True):
                        np.testing.assert_array_equal(feature, together[place])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 40])
def test_segments_cover_a_sequence_once(length):
    segments = cut(3, length, max_length=8)
    positions = [p for s in segments for p in range(s.start + s.covered, s.stop)]
    assert positions == list(range(length)) and sum(s.weight for s in segments) == length
    assert all(s.owner == 3 and s.length == min(8, length) for s in segments)
    assert segments[-1].stop == length


def test_batches_hold_everything_and_stay_in_bounds():
    lengths = np.random.default_rng(0).integers(1, 500, 300)
    segments = [segment for owner, length in enumerate(lengths) for segment in cut(owner, int(length), 512)]
    made = list(batches(segments, 2048))
    assert sorted(s.owner for batch in made for s in batch) == list(range(300))
    sizes = [len(batch) * max(s.length for s in batch) for batch in made]
    assert max(sizes) <= 2048
    assert lengths.sum() / sum(sizes) > 0.95  # hardly any padding


def test_padding_is_masked():
    stacked, masks = pad([np.array([5, 6, 7]), np.array([8])], value=1)
    assert stacked.tolist() == [[5, 6, 7], [8, 1, 1]] and masks.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_library_calls_agree_with_a_naive_computation(embedder, small_model, texts):
    """One item, padded to the tower's maximum, as the original does it."""
    model = golden_model(CLaMP3Model, small_model.sizes)
    text = "a slow air\nfrom Ireland"
    ids = torch.tensor([embedder.tokenizer("a slow air</s>from Ireland")["input_ids"]])
    assert ids.shape[1] <= 24
    padded = torch.nn.functional.pad(ids, (0, 24 - ids.shape[1]), value=1)
    with torch.no_grad():
        expected = model.get_text_features(padded, (padded != 1).float(), get_global=True).numpy()
    np.testing.assert_allclose(embedder.embed_text([text]), expected, atol=1e-5)


def test_embed_keeps_the_order_and_normalises_on_request(embedder, texts):
    pieces = [texts[name] for name in ("score_2", "tune_0", "midi_0", "tune_1")]
    features = embedder.embed_symbolic(pieces)
    assert features.shape == (4, 96) and features.dtype == np.float32
    for row, piece in zip(features, pieces, strict=True):
        np.testing.assert_allclose(row, embedder.embed_symbolic([piece])[0], atol=1e-5)
    assert not np.allclose(np.linalg.norm(features, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(embedder.embed_symbolic(pieces, normalize=True), axis=1), 1, atol=1e-6)
    states = embedder.embed_symbolic(pieces, pooled=False)
    assert [s.shape for s in states] == [(149, 128), (22, 128), (60, 128), (19, 128)]
    assert embedder.embed_text([]).shape == (0, 96) and embedder.embed_text([], pooled=False) == []


def test_audio_features_of_any_layout_are_flattened_to_frames(embedder):
    frames = np.random.default_rng(0).normal(size=(20, 128))
    shapes = [frames, frames[None].astype(np.float16), frames.reshape(2, 10, 128).astype(np.float32)]
    features = embedder.embed_audio_features(shapes)
    np.testing.assert_allclose(features[0], features[2], atol=1e-6)
    assert cosine(features[0], features[1]) > 0.9999


def test_repeated_and_empty_lines_of_a_text_count_once(embedder):
    once = embedder.encode_text("a reel\nfrom Ireland")
    assert np.array_equal(embedder.encode_text("a reel\n\nfrom Ireland\na reel\n"), once)
    assert once[0] == 0 and once[-1] == 2 and (once == 2).sum() == 2


@pytest.mark.golden
def test_text_features_do_not_depend_on_the_hash_seed(small_model):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from clamp3.inputs.encoder import InputEncoder\nfrom clamp3.sizes import ModelSizes\n"
        "encoder = InputEncoder(ModelSizes(text_model_name=sys.argv[2]))\n"
        "print(encoder.encode_text('b\\na\\nd\\nc\\ne\\na\\nf').tolist())"
    )
    outputs = {
        subprocess.run(
            [BIN / "python", "-c", script, CODE, small_model.folder],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("call", "argument", "complaint"),
    [
        ("embed_text", " \n\n", "no line of text"),
        ("embed_symbolic", "", "empty"),
        ("embed_symbolic", "M:4/4\nK:C\n", "no bars"),
        ("embed_symbolic", "ticks_per_beat 480\n", "no bars of ABC and no MIDI messages"),
        ("embed_audio_features", np.zeros((1, 4, 100), np.float32), r"shape \(…, frames, 128\), not \(1, 4, 100\)"),
        ("embed_audio_features", np.zeros(128, np.float32), "shape"),
        ("embed_audio_features", np.zeros((1, 0, 128), np.float32), "no frames"),
        ("embed_audio_features", np.zeros((4, 128), np.int16), "floating-point numbers, not int16"),
        ("embed_audio_features", np.full((4, 128), np.nan, np.float32), "NaN"),
    ],
)
def test_inputs_without_a_feature_are_refused(embedder, call, argument, complaint):
    with pytest.raises(ValueError, match=complaint):
        getattr(embedder, call)([argument])


@pytest.mark.golden
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_close(small_model, texts, precision):
    model = golden_model(CLaMP3Model, small_model.sizes)
    lower = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, precision=precision)
    full = Embedder(model, small_model.sizes)
    pieces = [texts["score_2"], texts["tune_0"]]
    frames = [np.random.default_rng(0).normal(size=(20, 128))]
    for call, items in (
        ("embed_text", ["a reel"]),
        ("embed_symbolic", pieces),
        ("embed_audio_features", frames),
    ):
        for a, b in zip(getattr(lower, call)(items), getattr(full, call)(items), strict=True):
            assert a.dtype == np.float32 and 0.998 < cosine(a, b) < 1.0000001


def test_only_the_tower_in_use_is_prepared(small_model, texts):
    embedder = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, precision="bf16")
    embedder.embed_symbolic([texts["tune_0"]])
    dtypes = {name.split(".")[0] for name, p in embedder._model.named_parameters() if p.dtype == torch.bfloat16}
    assert dtypes == {"symbolic_model"} and embedder.batch_tokens == BATCH_TOKENS["cpu"]


def test_wrong_options_are_named(small_model):
    model = golden_model(CLaMP3Model, small_model.sizes)
    with pytest.raises(UserError, match="precision must be one of fp32, bf16, fp16, not 'int8'"):
        Embedder(model, small_model.sizes, precision="int8")
    with pytest.raises(UserError, match="cannot compute on device cuda:77"):
        Embedder(model, small_model.sizes, device="cuda:77")
    missing = type(small_model.sizes)(text_model_name=str(small_model.folder / "none"))
    with pytest.raises(UserError, match="no tokenizer for"):
        Embedder(model, missing).encode_text("a reel")


METHODS = ("text", "symbolic", "audio_features", "files", "midi", "musicxml", "audio")
ONE_ITEM = ("a reel", b"MThd", Path("a.mid"), np.zeros(24_000, np.float32), torch.zeros(2, 24_000))


@pytest.mark.parametrize("method", [f"embed_{name}" for name in METHODS])
@pytest.mark.parametrize("item", ONE_ITEM, ids=lambda item: type(item).__name__)
def test_one_item_is_not_taken_for_a_list_of_items(embedder, method, item):
    with pytest.raises(ValueError, match=rf"give a list of items, {method}\(\[item\]\), not one"):
        getattr(embedder, method)(item)


def test_any_iterable_of_items_is_a_list_of_them(embedder):
    texts = ("a reel", "a jig")
    assert np.array_equal(embedder.embed_text(text for text in texts), embedder.embed_text(list(texts)))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="overloads cannot be asked for")
@pytest.mark.parametrize("method", [f"embed_{name}" for name in METHODS])
def test_types_tell_what_is_returned(method):
    function = getattr(Embedder, method)
    common = SimpleNamespace(__module__=EmbedMethod.__module__, __qualname__=f"{EmbedMethod.__name__}.__call__")
    overloads = typing.get_overloads(function) or typing.get_overloads(common)
    returned = [inspect.signature(one).return_annotation for one in overloads]
    assert returned == [np.ndarray, list[np.ndarray], typing.Any]
    names = list(inspect.signature(function).parameters)[2:]  # after self and the items
    assert all(list(inspect.signature(one).parameters)[2:] == names for one in overloads)


def test_an_embedder_shows_its_weights_device_and_precision(small_model):
    embedder = Embedder.from_pretrained(small_model.clamp3, "cpu", "bf16", sizes=small_model.sizes)
    assert repr(embedder) == f"Embedder({small_model.clamp3}, device=cpu, precision=bf16)"


def test_m3_names_what_it_cannot_read(small_model):
    m3 = Embedder.from_pretrained(small_model.m3, sizes=small_model.sizes)  # told from the file
    with pytest.raises(ValueError, match="M3 reads symbolic music alone, not audio"):
        m3.embed_audio_features([np.zeros((3, 128), np.float32)], pooled=False)


def test_small_items_share_a_forward_pass(small_model, texts, monkeypatch):
    embedder = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, batch_tokens=2048)
    batches_seen = []
    forward = embedder._forward
    monkeypatch.setattr(
        embedder, "_forward", lambda *args, **named: batches_seen.append(args) or forward(*args, **named)
    )
    embedder.embed_symbolic([texts["tune_0"]] * 80)
    assert len(batches_seen) == 1


def test_standard_abc_is_interleaved_first_unless_taken_as_it_is(small_model):
    sizes = small_model.sizes
    ours, original = (Embedder(golden_model(CLaMP3Model, sizes), sizes, as_is=as_is) for as_is in (False, True))
    standard = "X:1\nT:A reel\nM:4/4\nL:1/8\nK:D\nDEFG A2d2|\nB2A2 F2D2|]\n"
    with pytest.warns(RepairWarning, match="standard ABC, which was interleaved first"):
        found = ours.embed_symbolic([standard, f"\ufeff{standard}"])
    right = ours.embed_symbolic([interleave(standard)])[0]
    np.testing.assert_allclose(found, [right, right], atol=1e-5)
    assert cosine(original.embed_symbolic([standard])[0], right) < 0.99
    with pytest.raises(ValueError, match="2 tunes"):
        ours.embed_symbolic([f"{standard}\n{standard}"])
    long_bar = f"V:1\n[V:1]{'A2' * 40}|\n"
    with pytest.warns(RepairWarning, match="bars longer than the 62 characters of a patch: 1"):
        ours.embed_symbolic([long_bar])


def test_features_taken_as_they_are_have_an_identity_of_their_own():
    assert len({Embedder.from_pretrained("tiny", as_is=as_is).identity for as_is in (False, True)}) == 2
