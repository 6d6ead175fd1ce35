"""Linear layers by oneDNN."""

import pytest
import torch
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
        whole = layer(inputs)
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


def test_layers_of_other_kinds_stay_what_they_are():
    class Own(nn.Linear):
        pass

    network = nn.ModuleList([Own(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)])
    multiply_by_onednn(network)
    assert list(map(type, network)) == [Own, Linear, nn.LayerNorm]
