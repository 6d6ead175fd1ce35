"""Small training runs on real tunes, for the tests of training and for their helper scripts."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from clamp3.inputs.encoder import InputEncoder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.sizes import ModelSizes
from clamp3.training.checks import find_pieces
from clamp3.training.data import Pairs, Pieces
from clamp3.training.loop import Trainer
from clamp3.training.lora import add_adapters
from clamp3.training.objectives import Contrastive, Reconstruction
from clamp3.training.settings import Settings
from clamp3.training.texts import JsonLines
from golden_model import golden_json, golden_model

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the training commands do
ALONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu"))
HELD_OUT = 11  # of the 48 tunes: the last evaluation batch is a short one


def make_trainer(
    kind: str,
    model_folder: Path,
    data_folder: Path,
    output: Path,
    state=ALONE,
    dropout: bool = True,
    micro_batch: int = 0,
    frozen: tuple[str, ...] = (),
    new: bool = False,
    held_out: int = HELD_OUT,
    draws: bool = False,
    suffix: str = ".pth",
    **settings,
) -> Trainer:
    """A trainer of the golden model, or a `new` one; `kind` is "m3", or a modality of CLaMP 3; `output` a folder."""
    dims = golden_json("model.json")["dims"]
    sizes = ModelSizes.from_knobs({**dims, "TEXT_MODEL_NAME": str(model_folder), "LOGIT_SCALE": 1.0})
    encoder, pad_values = InputEncoder(sizes), {}
    torch.manual_seed(0)
    model_class = M3Model if kind == "m3" else CLaMP3Model
    model = model_class(sizes) if new else golden_model(model_class, sizes)
    if kind == "m3":
        paths, _ = find_pieces([data_folder / "abc"])
        parts = paths[held_out:], paths[:held_out]
        sets = [Pieces(part, encoder, 0.45, 0, training) for part, training in zip(parts, (True, False), strict=True)]
        objective = Reconstruction(model)
    else:
        lines = JsonLines(data_folder / f"{kind}.jsonl")
        parts = np.arange(held_out, len(lines)), np.arange(held_out)
        sets = [
            Pairs(lines, part, encoder, kind, 0, training) for part, training in zip(parts, (True, False), strict=True)
        ]
        model.train_on(kind, frozen)
        objective, pad_values = Contrastive(model, kind, micro_batch), {"text": encoder.tokenizer.pad_token_id}
    if settings.get("lora"):
        add_adapters(objective.model, settings["lora"])
    if not dropout:
        no_dropout(objective.model)
    name = "m3" if kind == "m3" else "clamp3"
    chosen = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5, "log_steps": 3, **settings}
    chosen = {"max_skipped_share": 0.2, **chosen}
    chosen = Settings(output / f"weights_{name}{suffix}", output / f"logs_{name}.txt", **chosen)
    trainer = Trainer(objective, *sets, pad_values, chosen, state)
    if not draws:
        trainer.draw = lambda: None  # the picture of the curves takes longer than a short epoch
    return trainer


def damage(data_folder: Path) -> None:
    """Make items of all three kinds bad, in training and in evaluation, and others standard ABC."""
    for kind in ("symbolic", "audio"):
        path = data_folder / f"{kind}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[5] = '{"id": "tune 5"'
        lines[25] = lines[25].replace('"analysis": "', '"analysis": "\\ud800 ')
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for number in (3, 30):
        data_folder.joinpath("abc", f"{number}.abc").write_text("X:1\nT:No bars\nK:C\n", encoding="utf-8")
        whole = data_folder.joinpath(f"{number}.npy").read_bytes()
        data_folder.joinpath(f"{number}.npy").write_bytes(whole[: len(whole) // 2])
    data_folder.joinpath("abc", "40.abc").unlink()
    os.mkfifo(data_folder / "abc" / "40.abc")
    for number in (4, 35):
        data_folder.joinpath("abc", f"{number}.abc").write_text("X:1\nL:1/8\nM:4/4\nK:D\nDEFG ABcd|d8|]\n")


def no_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def with_plain_steps(trainer: Trainer) -> Trainer:
    """AdamW's steps hardly depend on the gradient's size; these do, so that a wrong gradient shows."""
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.5)
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, trainer.lr_multiplier)
    return trainer


def assert_same_weights(found: nn.Module, wanted: nn.Module, **tolerances) -> None:
    """On whichever devices they are."""
    weights, options = wanted.state_dict(), {"check_device": False, **tolerances}
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], msg=lambda text, name=name: f"{name}: {text}", **options)


def assert_pieces_drop_out_the_same(trainer: Trainer, seed: int = 0, **tolerances) -> None:
    """The gradient of a batch in pieces (GradCache), against one graph over the same pieces; dropout is on."""
    objective, model = trainer.objective, trainer.model.train()
    batch = next(iter(trainer.loaders[0]))

    def seeded_backward(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model.zero_grad()
        return objective.backward(batch, trainer.autocast, lambda loss: loss)

    loss, after = seeded_backward(seed), torch.get_rng_state()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(seed)
    text, music = zip(*(objective(piece) for piece in batch.pieces(objective.micro_batch)), strict=True)
    expected = model.loss(torch.cat(text), torch.cat(music))
    expected.backward()
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(loss, expected.detach())
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, **tolerances)
    assert not torch.allclose(loss, seeded_backward(seed + 100)), "other dropout would show"


def differences(found, wanted, place: str = "") -> list[str]:
    """Where two checkpoints are not bit for bit the same; how long things took does not count."""
    if isinstance(wanted, dict):
        same_keys = [] if found.keys() == wanted.keys() else [f"{place}: {found.keys()} {wanted.keys()}"]
        keys = [key for key in wanted if key in found and key != "seconds"]
        return sum((differences(found[key], wanted[key], f"{place}.{key}") for key in keys), same_keys)
    if isinstance(wanted, list | tuple):
        parts = [differences(f, w, f"{place}.{n}") for n, (f, w) in enumerate(zip(found, wanted, strict=True))]
        return sum(parts, [])
    same = torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted
    return [] if same else [f"{place}: {found} is not {wanted}"]
