"""What an Embedder gives besides global features: all layers of a tower, and its positions in the shared space."""

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from clamp3.features.calls import Positions
from clamp3.features.embedder import Embedder
from clamp3.inputs.segments import cut
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.layers import encode
from clamp3.models.m3 import M3Model
from golden_model import golden_model
from transformers_twins import twin

MODALITIES = ("text", "symbolic", "audio")


@pytest.fixture(scope="module")
def embedder(small_model) -> Embedder:
    return Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes)


@pytest.fixture(scope="module")
def m3_embedder(small_model) -> Embedder:
    return Embedder(golden_model(M3Model, small_model.sizes), small_model.sizes)


def sequences_of(embedder: Embedder, modality: str) -> list[np.ndarray]:
    """One shorter than a segment, as long as one, a little longer, and as long as two and a half."""
    rng, longest = np.random.default_rng(0), embedder.max_lengths[modality]
    lengths = (longest // 2, longest, longest + 3, longest * 5 // 2)
    if modality == "text":
        return [rng.integers(4, 90, length) for length in lengths]
    if modality == "symbolic":
        return [rng.integers(3, 90, (length, embedder.sizes.patch_size)) for length in lengths]
    return [rng.standard_normal((length, embedder.sizes.audio_hidden_size), np.float32) for length in lengths]


def outputs(embedder: Embedder, modality: str, sequences: list[np.ndarray], **options) -> list:
    found = dict(embedder.embed(modality, sequences, **options))
    return [found[index] for index in range(len(sequences))]


@pytest.mark.parametrize("modality", MODALITIES)
def test_weighted_positions_are_the_global_feature(embedder, modality):
    sequences = sequences_of(embedder, modality)
    features = outputs(embedder, modality, sequences)
    states = outputs(embedder, modality, sequences, pooled=False)
    projection = getattr(embedder._model, f"{modality}_proj").weight.detach().numpy()
    bias = getattr(embedder._model, f"{modality}_proj").bias.detach().numpy()
    everything = outputs(embedder, modality, sequences, pooled=False, projected=True)
    longest = embedder.max_lengths[modality]
    for positions, sequence, feature, hidden in zip(everything, sequences, features, states, strict=True):
        segments = cut(0, len(sequence), longest)
        assert positions.states.dtype == positions.weights.dtype == np.float32
        assert positions.states.shape == (len(segments) * min(longest, len(sequence)), feature.size)
        assert positions.weights.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(positions.weights @ positions.states, feature, atol=1e-5)
        np.testing.assert_allclose(positions.feature, feature, atol=1e-5)
        # The positions that only one segment holds, by another way: the hidden states, projected here.
        own = (
            np.concatenate(
                [
                    (positions.segments == n) & (positions.indices >= s.start + s.covered)
                    for n, s in enumerate(segments)
                ]
            )
            .reshape(len(segments), -1)
            .any(axis=0)
        )
        assert positions.indices[own].tolist() == list(range(len(sequence)))
        np.testing.assert_allclose(positions.states[own], hidden @ projection.T + bias, atol=1e-5)
    assert set(everything[-1].segments) == {0, 1, 2}


@pytest.mark.parametrize("modality", [*MODALITIES, "m3"])
def test_all_layers_are_those_of_transformers(embedder, m3_embedder, modality):
    """Judged by transformers, one segment at a time and without padding."""
    chosen, modality = (m3_embedder, "symbolic") if modality == "m3" else (embedder, modality)
    sequences = sequences_of(chosen, modality)
    layers = outputs(chosen, modality, sequences, pooled=False, layers="all")
    means = outputs(chosen, modality, sequences, layers="all")
    last = outputs(chosen, modality, sequences, pooled=False)
    tower = chosen._model.towers[modality]
    judge = twin(tower)
    for sequence, found, mean, final in zip(sequences, layers, means, last, strict=True):
        parts, weights = [], []
        for segment in cut(0, len(sequence), chosen.max_lengths[modality]):
            inputs = torch.from_numpy(sequence[segment.start : segment.stop])[None]
            if modality == "symbolic":
                network = chosen._model.encoder if chosen is m3_embedder else chosen._model.symbolic_model
                inputs = network.patch_embedding(inputs)
            name = "input_ids" if modality == "text" else "inputs_embeds"
            with torch.no_grad():
                states = judge(**{name: inputs}, output_hidden_states=True).hidden_states
            parts.append((torch.cat(states).numpy(), segment.covered))
            weights.append(segment.weight)
        expected = np.concatenate([states[:, covered:] for states, covered in parts], axis=1)
        assert found.shape == (tower.config.num_hidden_layers + 1, len(sequence), tower.config.hidden_size)
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
        averaged = np.average([states.mean(axis=1) for states, _ in parts], axis=0, weights=weights)
        np.testing.assert_allclose(mean, averaged, atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(found[-1], final, atol=2e-5, rtol=1e-4)


def test_a_text_model_of_another_family_gives_all_its_layers():
    tower = DistilBertModel(DistilBertConfig(vocab_size=10, dim=64, n_heads=1, n_layers=2, hidden_dim=128)).eval()
    ids, masks = torch.tensor([[4, 5, 0]]), torch.tensor([[1, 1, 0]])
    own = tower(ids, attention_mask=masks, output_hidden_states=True).hidden_states
    found = encode(tower, masks, output_hidden_states=True, input_ids=ids).hidden_states
    assert len(found) == 3 and all(map(torch.equal, found, own))


def test_methods_give_layers_and_positions(embedder, m3_embedder, texts):
    pieces = [texts["score_2"], "", texts["tune_0"]]
    features, errors = embedder.embed_symbolic(pieces, pooled=False, projected=True, errors="return")
    assert list(errors) == [1] and features[1] is None
    whole = embedder.embed_symbolic([pieces[0], pieces[2]])
    np.testing.assert_allclose([features[0].feature, features[2].feature], whole, atol=1e-5)
    [unit] = embedder.embed_text(["a reel"], pooled=False, projected=True, normalize=True)
    assert isinstance(unit, Positions)
    np.testing.assert_allclose(np.linalg.norm(unit.states, axis=1), 1, atol=1e-5)
    mixed = embedder.embed_any(["a reel", texts["tune_0"]], layers="all")
    assert [one.shape for one in mixed] == [
        (embedder._model.towers[name].config.num_hidden_layers + 1, embedder._model.towers[name].config.hidden_size)
        for name in ("text", "symbolic")
    ]
    assert embedder.embed_text([], layers="all") == []
    assert m3_embedder.embed_symbolic([pieces[0]], layers="all")[0].ndim == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layers": "first"}, 'layers must be "last" or "all", not \'first\''),
        ({"projected": True}, "projected=True is for the positions of the last layer"),
        ({"projected": True, "pooled": False, "layers": "all"}, "projected=True is for the positions of the last"),
    ],
)
def test_what_cannot_be_given_is_refused(embedder, m3_embedder, texts, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        embedder.embed_text(["a reel"], **options)
    with pytest.raises(ValueError, match="M3 has no projection into a shared space"):
        m3_embedder.embed_symbolic([texts["tune_0"]], pooled=False, projected=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_positions_and_layers_in_lower_precision(small_model, texts, precision):
    lower = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, precision=precision)
    [positions] = lower.embed_symbolic([texts["score_2"]], pooled=False, projected=True)
    [feature] = lower.embed_symbolic([texts["score_2"]])
    np.testing.assert_allclose(positions.feature, feature, atol=1e-3)
    [layers] = lower.embed_symbolic([texts["score_2"]], layers="all")
    assert layers.dtype == positions.states.dtype == np.float32
