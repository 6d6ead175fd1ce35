"""Run by torchrun: the steps and figures of these processes against those of one process on the global batches.

torchrun --nproc_per_node 2 tests/two_processes.py MODEL_FOLDER DATA_FOLDER
"""

import shutil
import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
from clamp3.distributed import gather, start
from clamp3.models.weights import start_from_text_model
from training_runs import (
    ALONE,
    assert_pieces_drop_out_the_same,
    assert_same_weights,
    differences,
    make_trainer,
    with_plain_steps,
)

RUNS = {
    "symbolic": {"kind": "symbolic"},
    "audio with frozen texts": {"kind": "audio", "frozen": ("text_model", "text_proj")},
    "M3, with unequal numbers of characters": {"kind": "m3"},
    "symbolic in pieces": {"kind": "symbolic", "micro_batch": 2},
}


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    state = start("cpu")
    found = {}
    for name, options in RUNS.items():
        trainer = make_trainer(**options, **names(folders), state=state, dropout=False, batch_size=4)
        found[name] = figures_of_an_epoch(with_plain_steps(trainer)), trainer
    check_pieces_with_dropout(folders, state)
    check_equal_starts(folders, state)
    dist.destroy_process_group()
    for name, options in RUNS.items():
        figures, trainer = found[name]
        whole = make_trainer(**{**options, "micro_batch": 0}, **names(folders), state=ALONE, dropout=False)
        expected = figures_of_an_epoch(with_plain_steps(whole))
        assert figures.keys() == expected.keys()
        for key, figure in expected.items():
            assert abs(figures[key] - figure) < 1e-4 * max(1, abs(figure)), (name, key, figures[key], figure)
        assert_same_weights(trainer.model, whole.model, atol=2e-6, rtol=2e-5)
        print(f"equal: {name}", flush=True)


def names(folders: list[Path]) -> dict[str, Path]:
    return {"model_folder": folders[0], "data_folder": folders[1], "output": folders[1]}


def figures_of_an_epoch(trainer) -> dict[str, float]:
    trainer.train_epoch()
    return {"train_loss": trainer.progress.loss_sum / trainer.progress.items, **trainer.evaluate()}


def check_pieces_with_dropout(folders: list[Path], state) -> None:
    """In all processes at once."""
    trainer = make_trainer("symbolic", **names(folders), state=state, batch_size=6, micro_batch=4)
    assert_pieces_drop_out_the_same(trainer, seed=dist.get_rank(), atol=1e-5, rtol=1e-4)


def check_equal_starts(folders: list[Path], state) -> None:
    """From a text model's folder that lacks tensors, for which each process draws random ones."""
    folder = folders[1] / f"text_model_{state.process_index}"
    shutil.copytree(folders[0], folder, dirs_exist_ok=True)
    trainer = make_trainer("symbolic", **names(folders), state=state, new=True, batch_size=4, resume=False, epochs=1)
    weights = dict(trainer.model.text_model.state_dict())
    lacking = ("pooler.dense.weight", "encoder.layer.0.output.dense.weight")
    save_file({name: tensor for name, tensor in weights.items() if name not in lacking}, folder / "model.safetensors")
    starts = []

    def start_weights() -> str:
        start_from_text_model(trainer.model, str(folder))
        starts.append([weights[name].sum().item() for name in lacking])
        return ""

    trainer.fit(start_weights)
    starts = gather(state, starts)
    assert all(first != second for first, second in zip(*starts, strict=True)), "else this shows nothing"
    first, second = gather(state, [trainer.model.state_dict()])
    assert not differences(first, second)
    print("the same weights from a text model without some of them", flush=True)


if __name__ == "__main__":
    main()
