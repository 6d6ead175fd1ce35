"""Linear layers by oneDNN."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clamp3.models.linear import SMALL, Linear, has_onednn, multiply_by_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="PyTorch has no oneDNN here, or another processor's")
WIDTHS = [(768, 768), (768, 3072), (3072, 768), (300, 257)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_right_and_the_same_whatever_the_other_rows_are(widths, bias):
    """Against products in float64; to the last bit for each number of rows from 2 on."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(*widths, bias=bias))
    assert layer[0].weight.numel() > SMALL
    inputs = torch.randn(700, widths[0])
    expected = layer.double()(inputs.double()).float()
    multiply_by_onednn(layer.float())
    assert type(layer[0]) is Linear
    with torch.inference_mode():
        whole = layer(inputs)  # later products are made with a copy that is arranged for oneDNN
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(layer(inputs.view(7, 100, -1)).view(700, -1), whole)
        for count in (*range(2, 70), 127, 128, 129, 255, 256, 257, 500):
            assert torch.equal(layer(inputs[33 : 33 + count]), whole[33 : 33 + count]), count


def test_where_gradients_are_needed_and_in_other_precisions_it_is_pytorchs_own():
    layer = Linear(768, 768)
    own = nn.Linear(768, 768)
    own.load_state_dict(layer.state_dict())
    inputs = torch.randn(20, 768)
    assert torch.equal(layer(inputs), own(inputs)) and layer(inputs).requires_grad
    with torch.inference_mode():
        for network in (layer, own):
            network.bfloat16()
        assert torch.equal(layer(inputs.bfloat16()), own(inputs.bfloat16()))


@pytest.mark.parametrize("widths", WIDTHS)
def test_gelu_is_that_of_pytorch_and_the_same_whatever_the_other_rows_are(widths):
    torch.manual_seed(0)
    layer = Linear(*widths)
    inputs = torch.randn(700, widths[0])
    expected = F.gelu(layer.double()(inputs.double())).float()
    layer.float()
    with torch.inference_mode():
        whole = layer.gelu(inputs)
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
        for count in (*range(2, 70), 128, 257, 500):
            assert torch.equal(layer.gelu(inputs[33 : 33 + count]), whole[33 : 33 + count]), count
        seen = []
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        torch.testing.assert_close(layer.gelu(inputs), whole)
        assert torch.equal(seen[0], layer(inputs)), "a hook sees what the layer gives"
    assert layer.gelu(inputs).requires_grad


CHANGES = {
    "in place": lambda layer: layer.weight.detach().mul_(2),
    "assigned": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach() * 2)),
    "in inference mode": torch.inference_mode()(lambda layer: layer.weight.mul_(2)),
    "data assigned": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
    "turned": lambda layer: setattr(layer.weight, "data", layer.weight.data.T),
    "loaded": lambda layer: layer.load_state_dict({**layer.state_dict(), "weight": layer.weight.detach() * 2}),
    "taught": lambda layer: teach(layer),
    "in another precision": lambda layer: layer.bfloat16().float(),
}


def teach(layer):
    """One step of training."""
    layer(torch.randn(5, 768)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_done_to_the_weight_is_noticed(change):
    layer, inputs = Linear(768, 768), torch.randn(20, 768)

    def computed():
        with torch.inference_mode():
            return layer(inputs)

    before = [computed() for _ in range(3)][-1]
    CHANGES[change](layer)
    for _ in range(3):
        torch.testing.assert_close(computed(), F.linear(inputs, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
    assert not torch.equal(computed(), before)


def test_other_numbers_in_the_place_of_freed_ones_are_noticed():
    layer, inputs = Linear(300, 300), torch.randn(20, 300)
    with torch.inference_mode():
        for _ in range(100):
            for _ in range(3):
                torch.testing.assert_close(layer(inputs), F.linear(inputs, layer.weight, layer.bias))
            layer.weight.data = layer.weight.data * 0.5
            layer.weight.data = layer.weight.data * 1.9


def test_copies_and_pickles_hold_the_weight_once():
    layer, inputs = Linear(768, 768), torch.randn(20, 768)
    with torch.inference_mode():
        expected = [layer(inputs) for _ in range(3)][-1]
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            for _ in range(3):
                assert torch.equal(other(inputs), expected)
        assert len(pickle.dumps(layer)) < 1.1 * layer.weight.nbytes
        assert layer.state_dict().keys() == {"weight", "bias"}


def test_weights_that_were_made_in_inference_mode_are_multiplied_too():
    with torch.inference_mode():
        layer, inputs = Linear(768, 768), torch.randn(20, 768)
        for _ in range(3):
            torch.testing.assert_close(layer(inputs), F.linear(inputs, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_layers_of_other_kinds_stay_what_they_are():
    class Own(nn.Linear):
        pass

    network = nn.ModuleList([Own(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)])
    multiply_by_onednn(network)
    assert list(map(type, network)) == [Own, Linear, nn.LayerNorm]
