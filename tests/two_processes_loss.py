"""Run by torchrun: each process checks that loss and gradients of its part, averaged, are those of the whole batch."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
from clamp3.losses import ClipLoss


def loss_of(model: nn.Module, text: torch.Tensor, music: torch.Tensor) -> torch.Tensor:
    return ClipLoss(2.0)(model(text), model(music) ** 2)


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    text, music = torch.randn(2, 8, 6)
    whole = nn.Linear(6, 5)
    whole.load_state_dict(model.state_dict())
    part = slice(rank * 4, rank * 4 + 4)

    loss = loss_of(model, text[part], music[part])
    loss.backward()
    mean_loss = loss.detach()
    for tensor in (mean_loss, model.weight.grad, model.bias.grad):  # what DistributedDataParallel does to gradients
        dist.all_reduce(tensor)
        tensor /= size
    dist.destroy_process_group()

    expected = loss_of(whole, text, music)  # no process group: the whole batch in one process
    expected.backward()
    torch.testing.assert_close(mean_loss, expected.detach())
    torch.testing.assert_close(model.weight.grad, whole.weight.grad)
    torch.testing.assert_close(model.bias.grad, whole.bias.grad)
    print("equal", flush=True)


if __name__ == "__main__":
    main()
