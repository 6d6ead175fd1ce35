"""On a GPU everything is as on the CPU, up to rounding. Where there is none, these tests are skipped."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clamp3.audio.mert import Mert
from clamp3.audio.windows import windows
from clamp3.features.embedder import Embedder
from clamp3.io.files import read_text
from clamp3.models.layers import prepare_layers
from clamp3.models.packing import Packing
from clamp3.training.curves import figures_path
from conftest import CODE, MERT_TINY, run
from training_runs import (
    ALONE,
    assert_pieces_drop_out_the_same,
    assert_same_weights,
    differences,
    make_trainer,
    with_plain_steps,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU = SimpleNamespace(**{**vars(ALONE), "device": torch.device("cuda", 0)})
KINDS = ("symbolic", "audio", "m3")
CLOSE = {"fp32": 0.999999, "bf16": 0.999, "fp16": 0.99999}  # cosines


@pytest.fixture
def trainer_of(small_model, training_data, tmp_path):
    def make(kind: str, output: str = "run", state=ON_GPU, **options):
        options = {"precision": "fp32", **options}
        return make_trainer(kind, small_model.folder, training_data.folder, tmp_path / output, state, **options)

    return make


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / norms).min())


@pytest.mark.parametrize("precision", CLOSE)
def test_features_are_the_cpus(training_data, precision):
    """Batches of all lengths, of text, ABC and sound; the small model that comes with the code."""
    tunes = [read_text(path) for path in sorted(training_data.abc.iterdir())]
    texts = [row["analysis"] for row in training_data.rows(training_data.symbolic)]
    sounds = [np.sin(np.arange(24_000 * seconds) / 7).astype(np.float32) for seconds in (3, 7)]
    ours = Embedder.from_pretrained("tiny", device="cuda", precision=precision)
    cpu = Embedder.from_pretrained("tiny", device="cpu")
    for call, inputs in (("embed_text", texts), ("embed_symbolic", tunes), ("embed_audio", sounds)):
        options = {"sampling_rate": 24_000} if call == "embed_audio" else {}
        found, expected = (getattr(embedder, call)(inputs, **options) for embedder in (ours, cpu))
        assert least_cosine(found, expected) > CLOSE[precision], call


@pytest.mark.parametrize("precision", CLOSE)
def test_mert_is_the_cpus(precision):
    rng = np.random.default_rng(0)
    tracks = [rng.standard_normal(24_000 * seconds).astype(np.float32) * 0.1 for seconds in (2, 11)]
    ours, cpu = Mert.from_pretrained(MERT_TINY, "cuda", precision), Mert.from_pretrained(MERT_TINY, "cpu")
    expected = dict(cpu.extract_layers(map(windows, tracks)))
    for index, found in ours.extract_layers(map(windows, tracks)):
        assert least_cosine(found, expected[index]) > CLOSE[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_cpus(trainer_of, kind):
    """Weights and figures after an epoch, without dropout."""
    trainers = [with_plain_steps(trainer_of(kind, state=state, dropout=False)) for state in (ON_GPU, ALONE)]
    figures = []
    for trainer in trainers:
        trainer.train_epoch()
        figures.append(trainer.evaluate())
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert trainers[0].progress.loss_sum == pytest.approx(trainers[1].progress.loss_sum, rel=1e-5)
    assert_same_weights(trainers[0].model, trainers[1].model, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_mixed_precision_learns_as_full_precision_does(trainer_of, kind, precision):
    """bf16 where the GPU has it, and fp16 with its scaler."""
    losses = []
    for chosen in (precision, "fp32"):
        trainer = trainer_of(kind, precision=chosen, dropout=False, epochs=3)
        assert trainer.scaler.is_enabled() == (chosen == "fp16")
        trainer.fit()
        losses.append([trainer.progress.min_eval_loss, epochs_of(trainer)[-1]["train_loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def epochs_of(trainer) -> list[dict]:
    return [json.loads(line) for line in figures_path(trainer.settings.logs_path).read_text().splitlines()]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_items_of_all_lengths_are_attended_without_their_padding(dtype, is_causal):
    """Values and gradients of the packed kernel, against padded ones in full precision."""
    lengths = torch.tensor([40, 1, 17, 64])
    packing = Packing.of(torch.arange(64) < lengths[:, None], ON_GPU.device, is_causal)
    torch.manual_seed(0)
    heads = torch.randn(3, int(lengths.sum()), 128, device="cuda").to(dtype)
    found = []
    for precision in (dtype, torch.float32):
        projected = [part.to(precision).requires_grad_() for part in heads]
        context = packing.attend(projected, 2, nn.Dropout(0.0))
        found.append([context, *torch.autograd.grad(context.float().square().sum(), projected)])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed.float(), padded, atol=0.05, rtol=0.02)


def test_pieces_drop_out_the_same_the_second_time(trainer_of):
    assert_pieces_drop_out_the_same(trainer_of("symbolic", micro_batch=3), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", [(True, False), (False, True), (True, True)], ids=["compile", "recompute", "both"])
def test_compiled_and_recomputed_layers_have_the_same_gradients(trainer_of, options):
    plain, changed = (with_plain_steps(trainer_of("symbolic", dropout=False)) for _ in range(2))
    prepare_layers(changed.model.towers.values(), *options)
    for trainer in (plain, changed):
        trainer.train_epoch()
    assert changed.progress.loss_sum == pytest.approx(plain.progress.loss_sum, rel=1e-5)
    assert_same_weights(changed.model, plain.model, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_taken_up_gives_the_same_weights(trainer_of, kind):
    """Stopped in the middle of the second epoch; in mixed precision, with dropout."""
    whole = trainer_of(kind, "whole", precision="auto", save_steps=2)
    whole.fit()
    stopped = trainer_of(kind, "stopped", precision="auto", save_steps=2)
    stopped.step, steps = stop_after(stopped, whole.progress.step - 1), whole.progress.step
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = trainer_of(kind, "stopped", precision="auto", save_steps=2)
    again.fit()
    assert again.progress.step == steps
    assert_same_weights(again.model, whole.model, atol=0, rtol=0)


def stop_after(trainer, steps: int):
    step = trainer.step

    def stopping(batch) -> None:
        if trainer.progress.step >= steps:
            raise KeyboardInterrupt
        step(batch)

    return stopping


def test_the_documented_launch_over_nccl(small_model, training_data, tmp_path):
    """One process of torchrun's, extraction with its weights, and the same from plain python."""
    knobs = {
        "CLAMP3_TRAIN_JSONL": str(training_data.symbolic),
        "EVAL_SPLIT": 0.2,
        "CLAMP3_BATCH_SIZE": 8,
        "CLAMP3_NUM_EPOCH": 2,
        "CLAMP3_WANDB_LOG": False,
    }
    launches = {
        "torchrun": [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=1", "--use_env"],
        "plain": [sys.executable],
    }
    checkpoints = []
    for name, launch in launches.items():
        weights = tmp_path / name / "weights_clamp3.pth"
        env = small_model.environment(**knobs, CLAMP3_WEIGHTS_PATH=str(weights))
        assert "epoch 2, " in run(*launch, "train_clamp3_symbolic.py", env=env).stdout
        checkpoints.append(torch.load(weights.with_name("weights_clamp3_last.pth"), weights_only=True))
    assert not differences(*checkpoints)
    command = [sys.executable, "extract_clamp3.py", training_data.abc, tmp_path / "out", "--get_global"]
    run(*command, env=env, cwd=CODE)
    assert len(list((tmp_path / "out").glob("*.npy"))) == len(training_data.rows(training_data.symbolic))
