"""Attention among the positions of each item alone, and what training drops out of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clamp3.models.dropout import Dropout
from clamp3.models.packing import Packing, first_slots

LENGTHS = [40, 1, 17, 64, 0, 5, 5, 23, 3]
NEVER = 1e-12  # a probability


def attended_one_by_one(projected: list[Tensor], is_causal: bool) -> Tensor:
    heads = [[item.unflatten(-1, (2, -1)).transpose(0, 1) for item in part.split(LENGTHS)] for part in projected]
    found = [
        F.scaled_dot_product_attention(*item, is_causal=is_causal).transpose(0, 1).flatten(1)
        for item in zip(*heads, strict=True)
    ]
    return torch.cat(found)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("in_training", [False, True])
def test_items_that_share_a_row_do_not_see_each_other(is_causal, in_training):
    """Values and gradients, against PyTorch's attention of one item after the other."""
    lengths = torch.tensor(LENGTHS)
    packing = Packing.of(torch.arange(64) < lengths[:, None], torch.device("cpu"), is_causal)
    assert packing.layout[0] < len(LENGTHS) / 2
    torch.manual_seed(0)
    projected = [torch.randn(int(lengths.sum()), 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    target = torch.randn(int(lengths.sum()), 16)
    dropout = Dropout(NEVER).train(in_training)
    found = []
    for context in (packing.attend(projected, 2, dropout), attended_one_by_one(projected, is_causal)):
        found.append([context, *torch.autograd.grad((context * target).sum(), projected)])
    for own, judge in zip(*found, strict=True):
        torch.testing.assert_close(own, judge, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_of_full_batches_drops_out_too(is_causal):
    packing = Packing.of(torch.ones(3, 8), torch.device("cpu"), is_causal)
    torch.manual_seed(0)
    projected = [torch.randn(24, 16, dtype=torch.float64) for _ in range(3)]
    heads = [part.view(3, 8, 2, 8).transpose(1, 2) for part in projected]
    expected = F.scaled_dot_product_attention(*heads, is_causal=is_causal).transpose(1, 2).flatten(2).flatten(0, 1)
    found = packing.attend(projected, 2, Dropout(NEVER))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    means = torch.stack([packing.attend(projected, 2, Dropout(0.3)) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(means, expected, atol=0.1, rtol=0.0)


def test_rows_are_nearly_full_and_cut_no_item():
    lengths = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    begins, (rows, longest) = first_slots(lengths)
    taken = torch.zeros(rows * longest, dtype=torch.int64)
    for begin, length in zip(begins, lengths, strict=True):
        assert begin // longest == (begin + length - 1) // longest
        taken[begin : begin + length] += 1
    assert taken.max() == 1
    assert rows * longest < 1.2 * sum(lengths)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.013])
def test_dropout_keeps_its_share_and_its_sum(p):
    """Each element on its own, the four of one draw too; with gradients, and the same again after the same seed."""
    torch.manual_seed(1)
    ones = torch.ones(1000, 1001, requires_grad=True)
    dropped = Dropout(p)(ones)
    assert dropped.detach().unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)
    share = (dropped == 0).float().mean().item()
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    assert share == pytest.approx(p, abs=5 * deviation)
    both = ((dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)).float().mean().item()
    assert both == pytest.approx(p * p, abs=5 * (p * p / ones.numel()) ** 0.5)
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped)
    torch.manual_seed(1)
    assert torch.equal(Dropout(p)(ones), dropped)


@pytest.mark.parametrize(("p", "training", "factor"), [(0.0, True, 1.0), (1.0, True, 0.0), (0.5, False, 1.0)])
def test_dropout_of_nothing_and_of_all(p, training, factor):
    values = torch.randn(3, 5)
    assert torch.equal(Dropout(p).train(training)(values), factor * values)
