"""Fine-tuning: where it starts, what it says of a run that cannot learn, adapters, hard negatives, and early ends."""

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from clamp3.errors import UserError
from clamp3.models.releases import RELEASES, TINY
from clamp3.models.weights import read_weights
from clamp3.sizes import ModelSizes
from clamp3.training.learning import Learning
from clamp3.training.settings import Settings
from clamp3.training.start import find_start, refuse_to_overwrite
from conftest import run_forked
from training_runs import differences, make_trainer


@pytest.fixture
def trainer_of(small_model, training_data, tmp_path):
    """Makes a trainer of the golden model whose weights and logs go to a folder of the test."""

    def make(kind: str = "symbolic", output: str = "run", **options):
        return make_trainer(kind, small_model.folder, training_data.folder, tmp_path / output, **options)

    return make


@pytest.fixture
def told(caplog):
    """What the library has logged since the last call."""
    caplog.set_level(logging.INFO, "clamp3")

    def text() -> str:
        found = caplog.text
        caplog.clear()
        return found

    return text


def train(script: str, tmp_path: Path, check: int = 0, **knobs):
    """Run a training command, with weights in `tmp_path`."""
    chosen = {
        "CLAMP3_WEIGHTS_PATH": str(tmp_path / "tuned.pth"),
        "M3_WEIGHTS_PATH": str(tmp_path / "m3.pth"),
        "CLAMP3_NUM_EPOCH": 2,
        "M3_NUM_EPOCH": 1,
        "CLAMP3_BATCH_SIZE": 8,
        "TRAIN_WORKERS": 0,
        "CLAMP3_WANDB_LOG": False,
        "M3_WANDB_LOG": False,
        **knobs,
    }
    environment = {**os.environ, "CLAMP3_CONFIG": json.dumps(chosen), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return run_forked(script, "--device", "cpu", env=environment, check=check)


# ---------- where training starts ----------


def test_a_run_starts_with_tiny_and_goes_on_from_its_own_checkpoint(training_data, tmp_path):
    """The knobs are those of the releases: the sizes are tiny's all the same, and its files stay as they are."""
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in TINY.rglob("*.safetensors")}
    knobs = {"CLAMP3_TRAIN_JSONL": str(training_data.symbolic), "CLAMP3_INIT_WEIGHTS": "tiny"}
    done = train("train_clamp3_symbolic.py", tmp_path, **knobs, CLAMP3_LEARNING_RATE=0.0)
    assert "sizes as the weights have them, not as config.py does: patch_length 128".upper() in done.stdout.upper()
    assert f"all weights start with those of tiny ({TINY / 'clamp3.safetensors'})" in done.stdout
    assert "warm-up is shortened from 1000 steps (WARMUP_STEPS) to 1: " in done.stderr
    assert "items in the evaluation set: 1, fewer than 50" in done.stderr
    assert "the weights have hardly moved: by 0 of their size, in 10 steps" in done.stderr
    assert "the evaluation cannot tell the 2 epochs apart: 1 items" in done.stderr
    assert not differences(dict(read_weights(tmp_path / "tuned.pth")), dict(read_weights(TINY / "clamp3.safetensors")))

    (tmp_path / "tuned.pth").unlink()  # the newest state is enough
    again = {**knobs, "CLAMP3_INIT_WEIGHTS": str(TINY), "CLAMP3_NUM_EPOCH": 3}
    done, last = train("train_clamp3_symbolic.py", tmp_path, **again), tmp_path / "tuned_last.pth"
    assert f"going on from {last}: 2 epochs" in done.stdout and "weights start with" not in done.stdout
    assert f"note: {TINY} is not read: the run of {last}, which goes on, started with tiny" in done.stderr
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in before} == before


def test_m3_starts_with_tinys_m3(training_data, tmp_path):
    done = train("train_m3.py", tmp_path, M3_TRAIN_FOLDERS=[str(training_data.abc)], M3_INIT_WEIGHTS="tiny")
    assert f"all weights start with those of tiny ({TINY / 'm3.safetensors'})" in done.stdout
    shapes = {name: tensor.shape for name, tensor in read_weights(tmp_path / "m3.pth").items()}
    assert shapes == {name: tensor.shape for name, tensor in read_weights(TINY / "m3.safetensors").items()}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere.pth", "CLAMP3_INIT_WEIGHTS: there is no nowhere.pth; give saas, c2, tiny, or the path of a file"),
        ("m3", "CLAMP3_INIT_WEIGHTS: there is no m3"),
        ("empty", "empty must hold clamp3.safetensors and config.json"),
        ("broken", "config.json cannot be read: "),
    ],
)
def test_weights_that_are_not_there_are_named(tmp_path, monkeypatch, name, complaint):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "broken"):
        Path(folder).mkdir()
    Path("broken", "clamp3.safetensors").touch()
    Path("broken", "config.json").write_text("[128")
    with pytest.raises(UserError, match=complaint):
        find_start(name, "CLAMP3", ModelSizes(), tmp_path)


def test_weights_of_another_kind_or_size_are_refused_in_a_line(training_data, small_model, tmp_path):
    sizes = {name: value for name, value in small_model.knobs(PATCH_NUM_LAYERS=1).items() if "WEIGHTS" not in name}
    for path, complaint in ((small_model.m3, "it is an M3 checkpoint"), (small_model.clamp3, "layers")):
        knobs = {"CLAMP3_TRAIN_JSONL": str(training_data.symbolic), "CLAMP3_INIT_WEIGHTS": str(path)}
        done = train("train_clamp3_symbolic.py", tmp_path, 2, **sizes, **knobs)
        assert done.stderr.startswith(f"error: {path} does not fit this model: ") and complaint in done.stderr
        assert not (tmp_path / "tuned_last.pth").exists()


def test_a_run_never_writes_where_it_starts(tmp_path, monkeypatch):
    """By its own name, through links of both kinds, or under a name that the run makes of the weights' path."""
    monkeypatch.chdir(tmp_path)
    Path("start.pth").write_bytes(b"weights")
    Path("link.pth").symlink_to("start.pth")
    os.link("start.pth", "other_name.pth")
    Path("folder").mkdir()
    Path("looped").symlink_to("folder")
    for written in ("folder/clamp3.safetensors", "folder/config.json"):
        Path(written).write_text("{}")
    Path("run_last.pth").symlink_to("start.pth")
    Path("run2_3.pth").symlink_to("start.pth")

    def refuse(name: str, output: str, stage: str = "CLAMP3", epochs: int = 3) -> None:
        settings = Settings(Path(output), Path("log"), epochs, 1, 0.1, save_every=1)
        refuse_to_overwrite(find_start(name, stage, ModelSizes(), Path("beside")), stage, settings)

    for name in ("start.pth", "link.pth", "other_name.pth", str(Path("start.pth").resolve())):
        for output in ("start.pth", "link.pth", "other_name.pth", "../" + tmp_path.name + "/start.pth"):
            with pytest.raises(UserError, match=r"CLAMP3_INIT_WEIGHTS is .* set CLAMP3_WEIGHTS_PATH to another path"):
                refuse(name, output)
        for output in ("run.pth", "run2.pth"):
            with pytest.raises(UserError, match="training would write there"):
                refuse(name, output)
        refuse(name, "run2.pth", epochs=2)
        refuse(name, "fine.pth")
    with pytest.raises(UserError, match="training would write there"):
        refuse("folder", "looped/clamp3.safetensors")
    for name, output, stage in (("saas", "saas", "CLAMP3"), ("c2", "saas", "CLAMP3"), ("m3", "m3", "M3")):
        with pytest.raises(UserError, match="training would write there|the name of released weights"):
            refuse(name, f"new/{RELEASES[output].file_name}", stage)


# ---------- whether a run learns ----------


def test_a_run_as_short_as_its_warm_up_says_that_it_has_not_learned(trainer_of, told):
    """The defaults on few pairs, as they were: a warm-up of 1,000 steps at 1e-5, and 2 items to evaluate on."""
    options = {"learning_rate": 1e-5, "warmup_steps": 1000, "held_out": 2}
    trainer_of(output="stuck", **options).fit()
    text = told()
    assert "the weights have hardly moved: by" in text and "in 10 steps" in text
    assert "the evaluation cannot tell the 2 epochs apart: 2 items, losses from" in text
    assert "items in the evaluation set: 2, fewer than 50" in text

    trainer_of(output="learns", learning_rate=1e-3, warmup_steps=1000, longest_warmup=0.1, held_out=11).fit()
    text = told()
    assert "hardly moved" not in text and "apart" not in text
    assert "warm-up is shortened from 1000 steps (WARMUP_STEPS) to 0" in text


def test_a_shortened_warm_up_follows_from_the_run_and_an_old_run_keeps_its_own(trainer_of, tmp_path):
    options = {"warmup_steps": 1000, "longest_warmup": 0.5, "epochs": 3}
    rates = [trainer_of(**options).lr_multiplier(step) for step in range(8)]
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])
    trainer_of(**{**options, "epochs": 1}).fit()
    resumed = trainer_of(**options)
    assert resumed.restore() and resumed.lr_multiplier(4) == pytest.approx(5 / 6)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 5 / 6)
    path = tmp_path / "run" / "weights_clamp3_last.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["warmup_steps"], checkpoint["learning"]  # as earlier versions wrote it
    torch.save(checkpoint, path)
    old = trainer_of(**options)
    assert old.restore() and old.lr_multiplier(4) == pytest.approx(5 / 1000)
    assert old.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 5 / 1000)
    old.fit()
    assert torch.load(path, weights_only=True)["learning"]["evaluations"]


def test_how_far_weights_have_moved_is_what_all_values_say(trainer_of):
    trainer = trainer_of()
    before = {
        name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad and p.ndim > 1
    }
    trainer.fit()
    moved = [
        float((trainer.model.get_parameter(name).detach() - start).norm() / start.norm())
        for name, start in before.items()
        if start.any()
    ]
    assert trainer.learning.moved(trainer.model) == pytest.approx(float(torch.tensor(moved).median()), rel=0.2)


@pytest.mark.parametrize(
    ("losses", "ranks", "apart"),
    [
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], False),
        ([3.2, 3.1, 3.0], [0.1, 0.15, 0.1], True),
        ([3.2, 3.1, 3.0], [1.0, 1.0, 1.0], False),
        ([3.20001, 3.20002, 3.2], [0.1, 0.15, 0.1], False),
        ([2.0, 1.9], [], True),
        ([2.0], [1.0], True),
    ],
)
def test_evaluations_that_cannot_tell_epochs_apart(losses, ranks, apart):
    learning = Learning()
    learning.evaluations = [{"eval_loss": loss} for loss in losses]
    for figures, value in zip(learning.evaluations, ranks, strict=False):
        figures["text_to_music_MRR"] = value
    assert learning.tells_epochs_apart() is apart


def test_a_run_ends_early_where_the_loss_no_longer_falls(trainer_of, told):
    """Also where it was killed after that epoch; and not while it falls."""
    trainer = trainer_of(epochs=9, early_stopping=2)
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    trainer.evaluate = lambda: {"eval_loss": next(losses)}
    trainer.fit()
    assert (trainer.progress.epoch, trainer.progress.best_epoch) == (4, 2)
    text = told()
    assert "ended after 4 epochs, as none since epoch 2 has had a lower evaluation loss (EARLY_STOPPING 2)" in text
    again = trainer_of(epochs=9, early_stopping=2)
    again.fit()
    assert again.progress.epoch == 4 and "ended after 4 epochs" in told()
    more = trainer_of(epochs=5, early_stopping=3)
    more.fit()
    assert more.progress.epoch == 5
