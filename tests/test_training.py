"""The training loop: gradients, figures, restarts, logs, and the commands as users run them."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clamp3.errors import UserError
from clamp3.io.files import atomic_write
from clamp3.io.reports import FileIssue, load_issues
from clamp3.models.layers import prepare_layers
from clamp3.models.m3 import M3Model
from clamp3.models.weights import start_from_m3
from clamp3.search.metrics import metrics
from clamp3.search.ranking import ranks_of_pairs
from clamp3.training import checkpoints, evaluation
from clamp3.training.batches import Collate
from clamp3.training.checkpoints import run_lock
from clamp3.training.curves import draw_curves
from clamp3.training.distributed import random_state, set_random_state
from clamp3.training.settings import Settings
from conftest import BIN, CODE, ROOT, run, run_forked, write_training_data
from forks import free_port
from training_runs import (
    HELD_OUT,
    assert_pieces_drop_out_the_same,
    assert_same_weights,
    damage,
    differences,
    make_trainer,
    with_plain_steps,
)


@pytest.fixture(scope="session")
def damaged_data(tmp_path_factory):
    """The folder of training data of which some items cannot be read."""
    data = write_training_data(tmp_path_factory.mktemp("damaged") / "data", 48)
    damage(data.folder)
    return data


# ---------- gradients and figures ----------


def test_two_processes_step_like_one_on_the_global_batch(small_model, damaged_data):
    """Weights after an epoch and all figures; for M3 too, with batches in pieces, and with items that are skipped."""
    command = [BIN / "torchrun", "--nproc_per_node", "2", ROOT / "tests" / "two_processes.py"]
    done = run(*command, small_model.folder, damaged_data.folder, cwd=ROOT)
    assert done.stdout.count("equal: ") == 2 * 4
    assert done.stdout.count("the same weights from a text model without some of them") == 2


def test_a_stuck_process_ends_the_run_within_the_timeout_and_a_slow_one_does_not(small_model, training_data, tmp_path):
    command = [sys.executable, ROOT / "tests" / "stuck_processes.py"]
    done = run(*command, small_model.folder, training_data.folder, tmp_path, cwd=ROOT)
    assert done.stdout.count("as expected") == 3
    assert done.stderr.count("process 0 has waited in vain for the others") == 1


@pytest.mark.parametrize("kind", ["symbolic", "audio"])
def test_batches_in_pieces_have_the_gradients_of_the_whole(trainer_of, kind):
    whole = with_plain_steps(trainer_of(kind, dropout=False))
    pieces = with_plain_steps(trainer_of(kind, dropout=False, micro_batch=3))
    for trainer in (whole, pieces):
        trainer.train_epoch()
    assert pieces.progress.loss_sum == pytest.approx(whole.progress.loss_sum, rel=1e-5)
    assert_same_weights(pieces.model, whole.model, atol=1e-6, rtol=1e-5)


def test_pieces_drop_out_the_same_the_second_time(trainer_of):
    assert_pieces_drop_out_the_same(trainer_of("symbolic", micro_batch=3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["symbolic", "m3"])
def test_recomputing_layers_changes_nothing(trainer_of, kind):
    plain, changed = trainer_of(kind), trainer_of(kind)
    prepare_layers(towers_of(changed.model), compile_layers=False, recompute_layers=True)
    for trainer in (plain, changed):
        torch.manual_seed(0)
        with_plain_steps(trainer).train_epoch()
    assert changed.progress.loss_sum == plain.progress.loss_sum
    assert_same_weights(changed.model, plain.model, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="needs a C++ compiler")
def test_compiled_layers_have_the_same_gradients(trainer_of):
    """Without dropout, which compiled code draws in another order."""
    plain, changed = (trainer_of("m3", dropout=False) for _ in range(2))
    prepare_layers(towers_of(changed.model), compile_layers=True, recompute_layers=False)
    for trainer in (plain, changed):
        with_plain_steps(trainer).train_epoch()
    assert changed.progress.loss_sum == pytest.approx(plain.progress.loss_sum, rel=1e-5)
    assert_same_weights(changed.model, plain.model, atol=1e-6, rtol=1e-5)


def towers_of(model) -> list:
    return [model.encoder.base] if isinstance(model, M3Model) else model.towers.values()


def test_a_frozen_tower_is_run_once_and_a_trained_one_twice(trainer_of):
    trainer = trainer_of("symbolic", micro_batch=3, frozen=("text_model", "text_proj"))
    calls, get_features = [], trainer.model.get_features

    def noting(modality, *inputs, **options):
        calls.append(modality)
        return get_features(modality, *inputs, **options)

    trainer.model.get_features = noting
    trainer.step(next(iter(trainer.loaders[0])))
    assert Counter(calls) == {"text": 3, "symbolic": 6}
    text_trained = trainer_of("symbolic", micro_batch=3, frozen=("text_model",))
    assert text_trained.objective.trained_sides() == ("text", "music")


@pytest.mark.parametrize("frozen", [(), ("text_model", "text_proj"), ("text_model",)])
def test_frozen_towers_in_pieces_have_the_gradients_of_the_whole(trainer_of, frozen):
    whole, pieces = (
        with_plain_steps(trainer_of("audio", dropout=False, frozen=frozen, micro_batch=size)) for size in (0, 3)
    )
    for trainer in (whole, pieces):
        trainer.train_epoch()
    assert_same_weights(pieces.model, whole.model, atol=1e-6, rtol=1e-5)


def test_the_random_state_is_that_of_the_device(monkeypatch):
    """A device whose functions take no argument, as MPS's do; those of CUDA run in test_gpu.py."""
    kept = {"state": torch.tensor([7])}
    module = SimpleNamespace(
        get_rng_state=lambda: kept["state"].clone(), set_rng_state=lambda state: kept.update(state=state)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _device: module)
    device = torch.device("mps")
    state, drawn = random_state(device), torch.rand(1)
    kept["state"] = torch.tensor([8])
    set_random_state(state, device)
    assert kept["state"] == 7 and torch.rand(1) == drawn


@pytest.mark.parametrize("count", [1, 2, 300])
def test_ranks_on_the_device_are_numpys(monkeypatch, count):
    """In blocks of other sizes than those of the sets; with equal rows, zeros and numbers that are none."""
    monkeypatch.setattr(evaluation, "QUERIES", 32)
    monkeypatch.setattr(evaluation, "REFERENCES", 100)
    rng = np.random.default_rng(count)
    texts, music = rng.standard_normal((2, count, 16)).astype(np.float32)
    music += texts
    music[count // 3] = music[count // 2]
    texts[count // 4] = 0
    music[-1, 0] = np.nan
    for queries, references in ((texts, music), (music, texts), (texts * 1e-30, music * 1e15)):
        found = evaluation.ranks_of_pairs(torch.from_numpy(queries), torch.from_numpy(references))
        np.testing.assert_array_equal(found.numpy(), ranks_of_pairs(queries, references))


def test_figures_of_half_precision_features_are_computed_in_full_precision(trainer_of):
    trainer = trainer_of("symbolic", precision="bf16")
    figures, features = trainer.evaluate(), []
    with torch.no_grad(), trainer.autocast():
        for batch in trainer.loaders[1]:
            features.append([part.float().numpy() for part in trainer.objective(batch)])
    assert trainer.objective(batch)[0].dtype == torch.float32 and features[0][0].dtype == np.float32
    text, music = (np.concatenate(parts) for parts in zip(*features, strict=True))
    expected = metrics(ranks_of_pairs(text, music))
    assert {name: figures[f"text_to_music_{name}"] for name in expected} == expected


def test_figures_are_those_of_plain_numpy(trainer_of):
    """Loss and retrieval over all held-out items, the last and short batch too: each item alone, without padding."""
    trainer = trainer_of("symbolic", batch_size=4, new=True)
    figures = trainer.evaluate()
    examples = trainer.loaders[1].dataset
    trainer.model.eval()
    features = {"text": [], "music": []}
    for index in range(len(examples)):
        batch = Collate({})([examples[0, index]])
        with torch.no_grad():
            for name, part in zip(features, trainer.objective(batch), strict=True):
                features[name].append(part[0].numpy())
    text, music = (np.array(part, np.float64) for part in features.values())

    losses = []
    for start in range(0, HELD_OUT, 4):
        logits = text[start : start + 4] @ music[start : start + 4].T
        for square in (logits, logits.T):
            losses += list(-np.diag(square - np.log(np.exp(square).sum(axis=1, keepdims=True))))
    assert len(losses) == 2 * HELD_OUT
    expected = {"eval_loss": np.mean(losses)}
    cosines = (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (music / np.linalg.norm(music, axis=1)[:, None]).T
    for direction, scores in (("text_to_music", cosines), ("music_to_text", cosines.T)):
        # Two of the tunes have one text: what ties with the right one ranks before it.
        ranks = np.array([sum(row > row[index] - 1e-6) for index, row in enumerate(scores)])
        expected[f"{direction}_MRR"] = np.mean(1 / ranks)
        expected |= {f"{direction}_Hit@{k}": np.mean(ranks <= k) for k in (1, 10, 100)}
    assert figures == pytest.approx(expected, rel=1e-4)


def test_train_loss_is_the_mean_over_the_items_of_the_epoch(trainer_of):
    trainer, seen = trainer_of("symbolic", log_steps=3), []
    backward = trainer.objective.backward

    def noting(batch, *others):
        loss = backward(batch, *others)
        seen.append((loss.item(), len(batch)))
        return loss

    trainer.objective.backward = noting
    trainer.train_epoch()
    losses, counts = zip(*seen, strict=True)
    assert trainer.progress.items == sum(counts) == 32
    assert trainer.progress.loss_sum / trainer.progress.items == pytest.approx(np.average(losses, weights=counts))


# ---------- learning ----------


def test_warm_up_is_a_thousand_steps_and_goes_on_after_a_restart(trainer_of):
    assert trainer_of("m3", warmup_steps=Settings.warmup_steps).lr_multiplier(0) == 0.001
    trainer, rates = trainer_of("symbolic", warmup_steps=6, save_steps=3), []
    step = trainer.step

    def noting(batch):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        step(batch)

    trainer.step = noting
    trainer.fit()
    assert rates == pytest.approx([1e-3 * min(1, number / 6) for number in range(1, 9)])
    resumed = trainer_of("symbolic", warmup_steps=6, epochs=3)
    assert resumed.restore() and resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert resumed.scheduler.last_epoch == 8
    # A checkpoint from within the warm-up, and a changed knob, which counts.
    early = trainer_of("symbolic", "early", warmup_steps=16, epochs=1)
    early.fit()
    other = trainer_of("symbolic", "early", warmup_steps=16, learning_rate=1e-2)
    assert other.restore() and other.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 5 / 16)


def test_frozen_parts_stay_as_they_are_bit_for_bit(trainer_of):
    frozen = ("text_model", "text_proj")
    trainer = trainer_of("symbolic", frozen=frozen)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    assert not trainer.model.text_model.training and not trainer.model.audio_model.training
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"symbolic_model", "symbolic_proj"}


@pytest.mark.slow
def test_m3_reconstructs_bars_that_it_has_not_seen_far_better_than_chance(small_model, tmp_path):
    """After two epochs on 200 tunes. Chance: characters by how often they occur."""
    write_training_data(tmp_path / "data", 240)
    folders = small_model.folder, tmp_path / "data", tmp_path / "run"
    trainer = make_trainer("m3", *folders, new=True, held_out=40, batch_size=16, epochs=2)
    untrained = trainer.evaluate()["eval_loss"]
    trainer.fit()
    characters = Counter("".join(path.read_text() for path in tmp_path.glob("data/abc/*")))
    shares = np.array(list(characters.values())) / sum(characters.values())
    chance = -(shares * np.log(shares)).sum()
    assert trainer.progress.min_eval_loss < 0.7 * chance < 0.7 * untrained


def test_clamp3_starts_from_m3s_encoder(trainer_of, tmp_path):
    trainer_of("m3", epochs=1).fit()
    m3 = torch.load(tmp_path / "run" / "weights_m3.pth", weights_only=True)["model"]
    model = trainer_of("symbolic").model
    start_from_m3(model, tmp_path / "run" / "weights_m3.pth")
    for name, tensor in model.symbolic_model.state_dict().items():
        assert torch.equal(tensor, m3[f"encoder.{name}"])


# ---------- checkpoints ----------


def test_runs_that_are_killed_and_started_again_give_the_same_weights(small_model, damaged_data, tmp_path):
    """By kill -9 at random moments, with and without data workers, in one process and in two; bit for bit.

    Some of the items cannot be read.
    """
    seed = np.random.default_rng().integers(10**6)
    command = [sys.executable, ROOT / "tests" / "killed_runs.py", small_model.folder, damaged_data.folder, tmp_path]
    done = run(*command, seed, cwd=ROOT)
    assert len(re.findall("equal after [12] kills", done.stdout)) == 3, done.stdout


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("weights*")}


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(trainer_of, tmp_path):
    trainer_of("symbolic", epochs=1).fit()
    folder = tmp_path / "run"
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(before["weights_clamp3_last.pth"])
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"weights_clamp3_last\.pth cannot be written .*checkpoint is as it was"):
            trainer_of("symbolic", save_steps=2).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(folder) == before and not list(folder.glob(".*"))
    trainer_of("symbolic", save_steps=2).fit()
    whole = trainer_of("symbolic", "whole", save_steps=2)
    whole.fit()
    saved = [torch.load(tmp_path / run / "weights_clamp3_last.pth") for run in ("run", "whole")]
    assert not differences(*saved)


def test_what_a_killed_process_was_writing_is_removed(trainer_of, tmp_path):
    left = tmp_path / "run" / f".{'0' * 16}.partial"
    left.parent.mkdir()
    left.write_bytes(b"half a checkpoint")
    with atomic_write(left.with_name("weights.pth")) as file:  # of a process that lives
        trainer_of("symbolic", epochs=0).fit()
        assert not left.exists() and os.path.exists(file.name)


def test_checkpoints_hold_what_the_original_writes_and_more(trainer_of, tmp_path):
    trainer_of("symbolic", save_every=1).fit()
    checkpoint = torch.load(tmp_path / "run" / "weights_clamp3_last.pth", weights_only=True)
    assert checkpoint["epoch"] == 2 and checkpoint["modality"] == "symbolic"
    for key in ("model", "optimizer", "lr_sched", "best_epoch", "min_eval_loss", "scaler", "random_states"):
        assert key in checkpoint
    each = [torch.load(tmp_path / "run" / f"weights_clamp3_{epoch}.pth", weights_only=True) for epoch in (1, 2)]
    assert [saved["epoch"] for saved in each] == [1, 2]
    assert not differences(each[1], {key: part for key, part in checkpoint.items() if key != "optimizer"})
    trainer_of("m3", epochs=1).fit()
    assert "modality" not in torch.load(tmp_path / "run" / "weights_m3_last.pth", weights_only=True)


def test_an_epoch_writes_one_full_state_and_the_best_is_a_name_of_it(trainer_of, tmp_path, monkeypatch):
    """While the loss falls; when it rises, the best stays as it was."""
    trainer, folder, written, save = trainer_of("symbolic", save_every=1), tmp_path / "run", [], torch.save
    best, last_state = folder / "weights_clamp3.pth", folder / "weights_clamp3_last.pth"

    def noting(checkpoint, file):
        written.append("optimizer" in checkpoint)
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", noting)
    trainer.prepare_folders()
    losses = (5.0, 4.0, 6.0, 3.0)
    for epoch, loss in enumerate(losses, 1):
        before = contents(folder).get(best.name)
        trainer.train_epoch()
        trainer.end_epoch({"eval_loss": loss})
        assert written == [False, True] * epoch  # the epoch's own file is without the optimizer's state
        assert best.samefile(last_state) == (loss != 6.0)
        assert (best.read_bytes() == before) == (loss == 6.0)
        saved = torch.load(last_state, weights_only=True)
        assert (saved["epoch"], saved["min_eval_loss"]) == (epoch, min(losses[:epoch]))
    assert (folder / "weights_clamp3_2.pth").stat().st_size < 0.6 * last_state.stat().st_size
    assert not list(folder.glob(".*"))


def test_where_files_have_one_name_alone_checkpoints_are_copied(trainer_of, tmp_path, monkeypatch):
    def refuse(*_paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    trainer_of("m3", epochs=1).fit()
    best, last_state = (tmp_path / "run" / f"weights_m3{end}.pth" for end in ("", "_last"))
    assert not best.samefile(last_state) and best.read_bytes() == last_state.read_bytes()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_goes_on_from_the_weights_of_an_epoch(trainer_of, tmp_path, told):
    """Which have no optimizer's state: it warms up again."""
    trainer_of("symbolic", save_every=1).fit()
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "run" / "weights_clamp3_1.pth", tmp_path / "again" / "weights_clamp3.pth")
    again = trainer_of("symbolic", "again")
    assert again.restore() and again.progress.epoch == 1 and again.lr_multiplier(again.scheduler.last_epoch) == 0.2
    assert "optimizer and warm-up start anew" in told()
    weights = torch.load(tmp_path / "run" / "weights_clamp3_1.pth", weights_only=True)["model"]
    assert not differences(dict(again.model.state_dict()), weights)
    again.fit()
    assert again.progress.epoch == 2


def test_another_batch_size_says_what_changes(trainer_of, told):
    stopped = trainer_of("symbolic", save_steps=3, epochs=1)
    stopped.end_epoch = lambda _figures: None
    stopped.train_epoch()  # 37 items: 4 steps of 8, of which the third is saved
    told()
    other = trainer_of("symbolic", batch_size=16, epochs=3)
    assert other.restore() and other.progress.items == 24
    text = told()
    assert "a global batch has 16 items where it had 8; an epoch has 2 steps, not 4" in text
    assert "go on from step 3 of now 6" in text and "8 items of this epoch are trained on again" in text
    same = trainer_of("symbolic", epochs=3)
    assert same.restore() and "global batch" not in told()


@pytest.mark.parametrize("other_order", [False, True])
def test_a_run_of_the_original_is_taken_up(trainer_of, tmp_path, other_order):
    """Its best weights, with the optimizer's state over all parameters, in whatever order its library had them."""
    trainer_of("symbolic", epochs=1).fit()
    ours = torch.load(tmp_path / "run" / "weights_clamp3_last.pth", weights_only=True)
    weights, saved = ours["model"], ours["optimizer"]
    if other_order:
        weights = dict(sorted(weights.items()))
        places = {name: place for place, name in enumerate(ours["model"])}
        states = {new: saved["state"].get(places[name]) for new, name in enumerate(weights)}
        saved = {**saved, "state": {place: state for place, state in states.items() if state}}
    keys = ("lr_sched", "epoch", "best_epoch", "min_eval_loss", "modality")
    folder = tmp_path / "original"
    folder.mkdir()
    theirs = {"model": weights, "optimizer": saved, **{key: ours[key] for key in keys}}
    torch.save(theirs, folder / "weights_clamp3.pth")
    resumed, trainer = trainer_of("symbolic", "original"), trainer_of("symbolic")
    for taken in (resumed, trainer):
        assert taken.restore()
    assert not differences(resumed.optimizer.state_dict(), trainer.optimizer.state_dict())
    assert resumed.progress == trainer.progress and resumed.progress.epoch == 1
    resumed.fit()
    assert resumed.progress.epoch == 2 and resumed.scheduler.last_epoch == 8


def test_an_optimizer_that_does_not_fit_starts_anew(trainer_of, tmp_path, told):
    trainer = trainer_of("symbolic", epochs=1)
    trainer.fit()
    path = tmp_path / "run" / "weights_clamp3_last.pth"
    for saved in (None, {"state": {}, "param_groups": [{"params": [0, 1]}]}):
        torch.save({**torch.load(path, weights_only=True), "optimizer": saved}, path)
        resumed = trainer_of("symbolic")
        assert resumed.restore() and resumed.progress.epoch == 1 and not resumed.optimizer.state
        assert "optimizer and warm-up start anew" in told()


def test_another_modality_or_another_frozen_part_is_a_new_stage(trainer_of, tmp_path, told):
    frozen = ("text_model", "text_proj")
    trainer_of("symbolic", epochs=1).fit()
    best = torch.load(tmp_path / "run" / "weights_clamp3.pth", weights_only=True)
    for kind, frozen_parts in (("audio", frozen), ("audio", ()), ("symbolic", frozen)):
        stage = trainer_of(kind, frozen=frozen_parts, epochs=1)
        assert stage.restore() and stage.progress == trainer_of("audio").progress and not stage.optimizer.state
        assert not differences(dict(stage.model.state_dict()), best["model"])
        assert "a new stage" in told()
        stage.fit()
        assert stage.progress.epoch == 1
        best = torch.load(tmp_path / "run" / "weights_clamp3.pth", weights_only=True)
        assert best["epoch"] == 1 and best["modality"] == kind
    again = trainer_of("symbolic", frozen=frozen, epochs=1)
    again.fit()
    assert "all 1 epochs are done" in told()
    scratch = trainer_of("symbolic", frozen=frozen, epochs=1, resume=False)
    scratch.fit(lambda: "from the very start")
    assert "from the very start" in told()


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_items(trainer_of, training_data, tmp_path, value):
    trainer_of("audio", epochs=1).fit()
    before = contents(tmp_path / "run")
    data = tmp_path / "data"
    shutil.copytree(training_data.folder, data)
    huge = np.where(np.arange(128) % 2, value, value / 2).astype(np.float32)  # but finite, so that no check refuses it
    for number in (20, 30):
        np.save(data / f"{number}.npy", np.tile(huge, (1, 4, 1)))
    trainer = trainer_of("audio", data_folder=data, save_steps=1)
    with pytest.raises(UserError, match=r"the loss of step \d is nan: .*items of that step: .*tune (20|30)\b"):
        trainer.fit()
    files = contents(tmp_path / "run")
    assert files["weights_clamp3.pth"] == before["weights_clamp3.pth"]
    last = torch.load(tmp_path / "run" / "weights_clamp3_last.pth", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


def test_weights_that_are_no_numbers_are_not_saved(trainer_of, tmp_path):
    trainer = trainer_of("symbolic", epochs=1)
    trainer.fit()
    before = contents(tmp_path / "run")
    with torch.no_grad():
        trainer.model.text_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="weights that are not finite"):
        trainer.save(tmp_path / "run" / "weights_clamp3_last.pth")
    assert contents(tmp_path / "run") == before


def test_small_sets_will_do(trainer_of):
    """Batches larger than the set, in training and in evaluation."""
    trainer = trainer_of("symbolic", batch_size=100, epochs=1)
    trainer.fit()
    assert trainer.progress.step == 1 and np.isfinite(trainer.progress.min_eval_loss)


# ---------- items that cannot be read ----------


def test_bad_items_are_skipped_named_and_counted(trainer_of, damaged_data, tmp_path, told):
    trainer = trainer_of("symbolic", data_folder=damaged_data.folder, epochs=1, max_skipped_share=0.5)
    trainer.new_issues.append(FileIssue("items.jsonl:99", "known before"))
    trainer.fit()
    text, path = told(), tmp_path / "run" / "weights_clamp3_skipped.jsonl"
    listed = {issue.file: issue.reason for issue in load_issues(path)}
    assert (
        len(listed) == text.count("skipped: ") > 4
        and f"skipped so far: {len(listed)}; all of them are in {path}" in text
    )
    reasons = {int(place.rpartition(":")[2]): reason for place, reason in listed.items()}
    assert reasons.pop(99) == "known before"
    wanted = {4: "3.abc: no bars", 6: "Expecting", 26: "surrogate U+D800", 31: "30.abc: no bars", 41: "is a FIFO"}
    assert reasons.keys() <= wanted.keys() and {4, 6} <= reasons.keys()  # those are held out; not all others come up
    assert all(wanted[line] in reason for line, reason in reasons.items())
    found = re.search(r"standard ABC, which was interleaved first: (\d) of the (\d+) items read so far", text)
    assert int(found[1]) in (1, 2) and int(found[2]) == 32 + HELD_OUT - 2


def test_a_run_in_which_a_file_goes_bad_goes_on_as_if_it_were_started_again(trainer_of, training_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(training_data.folder, data)
    started_again, not_stopped = trainer_of("audio", "again", data, epochs=1), trainer_of("audio", data_folder=data)
    started_again.fit()
    end_epoch = not_stopped.end_epoch

    def spoiling(figures) -> None:
        end_epoch(figures)
        for number in (7, 20, 21, 22):
            data.joinpath(f"{number}.npy").unlink(missing_ok=True)

    not_stopped.end_epoch = spoiling
    not_stopped.fit()
    trainer_of("audio", "again", data).fit()
    saved = [torch.load(tmp_path / run / "weights_clamp3_last.pth") for run in ("run", "again")]
    assert not differences(*saved)
    lists = [load_issues(tmp_path / run / "weights_clamp3_skipped.jsonl") for run in ("run", "again")]
    assert lists[0] == lists[1] and len(lists[0]) > 2


def test_too_many_bad_items_stop_a_run(trainer_of, damaged_data, tmp_path):
    trainer = trainer_of("symbolic", data_folder=damaged_data.folder, max_skipped_share=0.02)
    stopped = (
        r"(?s)items cannot be trained on, more than the share 0\.02 that may be \(MAX_SKIPPED_SHARE\):\n  .*jsonl:"
    )
    with pytest.raises(UserError, match=stopped):
        trainer.fit()
    nothing = trainer_of("m3", data_folder=damaged_data.folder, max_skipped_share=1.0)
    nothing.loaders[0].dataset.paths = [tmp_path / "gone.abc"] * len(nothing.loaders[0].dataset)
    with pytest.raises(UserError, match=r"one item after another cannot be read, such as .*gone\.abc: "):
        nothing.fit()


def test_a_set_of_which_nothing_can_be_read_is_no_evaluation_set(trainer_of, tmp_path):
    for kind in ("m3", "audio"):
        trainer = trainer_of(kind)
        examples = trainer.loaders[1].dataset
        if kind == "m3":
            examples.paths = [tmp_path / "gone.abc"] * len(examples)
        else:
            examples.lines.path = tmp_path / "gone.jsonl"
        with pytest.raises(UserError, match="no item of the evaluation set can be read"):
            trainer.evaluate()


# ---------- faults ----------


def test_a_killed_data_worker_ends_the_run_with_a_sentence(trainer_of):
    trainer = trainer_of("audio", workers=1, epochs=10**6)
    step, started = trainer.step, time.monotonic()

    def killing(batch) -> None:
        nonlocal started
        step(batch)
        if trainer.progress.step == 2:
            started = time.monotonic()
            multiprocessing.active_children()[0].kill()

    trainer.step = killing
    with pytest.raises(
        UserError, match=r"a process that reads training data has ended .* last checkpoint is as it was"
    ):
        trainer.fit()
    assert time.monotonic() - started < 60


def test_a_worker_says_nothing_of_shared_memory_that_an_ending_run_does_not_fetch():
    program = """if True:
        import multiprocessing, os, sys
        from multiprocessing import connection, resource_sharer
        from clamp3.training import batches

        batches.end_with_parent = lambda: None  # it has none of its kind
        batches._start_worker(0)
        for error in (BrokenPipeError, EOFError, ValueError):
            def send(connection, _pid, error=error):
                raise error("from the thread")
            address, key = resource_sharer._resource_sharer.register(send, lambda: None)
            with connection.Client(address, authkey=multiprocessing.current_process().authkey) as client:
                client.send((key, os.getpid()))
            resource_sharer.stop(timeout=30)
    """
    done = run(sys.executable, "-c", program)
    assert "ValueError: from the thread" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_two_trainings_do_not_write_to_one_path(trainer_of, tmp_path, told):
    folder = tmp_path / "run"
    path = folder / "weights_m3.pth"
    trainer_of("m3", epochs=0).fit()  # makes the folder
    link = folder / "link.pth"
    link.symlink_to(path)
    for name in (path, link):
        with run_lock(name), pytest.raises(UserError, match=rf"another training writes to {path}"):
            trainer_of("m3").fit()
    assert sorted(folder.iterdir()) == [link]  # nothing was written, and no lock is left
    path.with_name(f"{path.name}.lock").touch()  # of a process that was killed
    trainer_of("m3", epochs=0).fit()
    assert sorted(folder.iterdir()) == [link]


def test_where_there_are_no_locks_it_is_said(trainer_of, monkeypatch, told):
    monkeypatch.setattr(checkpoints, "try_lock", lambda _file: None)
    trainer_of("m3", epochs=0).fit()
    assert "there are no locks in" in told()


def test_little_shared_memory_disk_or_memory(small_model, training_data, tmp_path):
    """In a mount namespace of its own."""
    script = [ROOT / "tests" / "small_mounts.py", small_model.folder, training_data.folder, tmp_path / "mounts"]
    done = run_forked(*script, cwd=ROOT, check=None)
    if done.returncode == 77:
        pytest.skip(f"mounts are not allowed here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["batches arrive", "a full disk", "out of memory"], done.stderr


# ---------- logs ----------


def test_logs_are_as_documented_and_go_on(trainer_of, tmp_path):
    trainer_of("symbolic", epochs=1).fit()
    trainer_of("symbolic", epochs=2, draws=True).fit()
    number = r"\d+\.\d+(e-\d+)?"
    entry = rf"Epoch {{}}\ntrain_loss: {number}\neval_loss: {number}\ntime: \w+ \w+ [\d :]+\n\n"
    log = tmp_path / "run" / "logs_clamp3.txt"
    assert re.fullmatch("".join(entry.format(epoch) for epoch in (1, 2)), log.read_text())
    figures = [json.loads(line) for line in log.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in figures] == [1, 2] and [line["step"] for line in figures] == [4, 8]
    assert {"train_loss", "eval_loss", "text_to_music_MRR", "music_to_text_Hit@100", "seconds"} <= set(figures[0])
    picture = log.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()  # as if the run had been killed before it drew them
    trainer_of("symbolic", epochs=2, draws=True).fit()
    assert picture.read_bytes().startswith(b"\x89PNG") and len(log.with_suffix(".jsonl").read_text().splitlines()) == 2
    draw_curves(log, tmp_path / "more" / "curves.png")
    assert tmp_path.joinpath("more", "curves.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="no epoch has ended yet"):
        draw_curves(tmp_path / "logs_none.txt", tmp_path / "curves.png")


def test_wandb_is_used_where_it_works_and_missed_by_nobody_where_not(trainer_of, tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trainer_of("m3", epochs=1, wandb_log=True).fit()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    trainer_of("m3", epochs=2, wandb_log=True).fit()
    assert "no log to Weights & Biases" in (text := told()) and 'pip install "clamp3[train]"' in text


def test_curves_without_matplotlib_are_a_notice_at_the_end_of_a_run(trainer_of, tmp_path, monkeypatch, told):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer_of("m3", epochs=1, draws=True).fit()
    assert "no picture of the curves: " in (text := told()) and 'pip install "clamp3[train]"' in text
    with pytest.raises(UserError, match="drawn by matplotlib, which is missing"):
        draw_curves(tmp_path / "run" / "logs_m3.txt", tmp_path / "curves.png")


def test_the_library_shows_nothing_and_leaves_the_process_as_it_was(trainer_of, capfd):
    trainer_of("symbolic", epochs=1).fit()
    shown = capfd.readouterr()
    assert not shown.out and not shown.err
    assert not torch.are_deterministic_algorithms_enabled()


# ---------- the commands ----------

LAUNCH = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", "--use_env"]
TORCHRUN = [BIN / "torchrun", "--nproc_per_node", "2"]


@pytest.fixture
def environment(small_model, training_data, tmp_path):
    """The environment of a command that trains on the small data, with weights in `folder` of the test's."""

    def make(folder: str, kind: str = "symbolic", **knobs) -> dict[str, str]:
        chosen = {
            "CLAMP3_TRAIN_JSONL": str(training_data.folder / f"{kind}.jsonl"),
            "M3_TRAIN_FOLDERS": [str(training_data.abc)],
            "CLAMP3_WEIGHTS_PATH": str(tmp_path / folder / "weights_clamp3.pth"),
            "M3_WEIGHTS_PATH": str(tmp_path / folder / "weights_m3.pth"),
            "EVAL_SPLIT": 0.2,
            "CLAMP3_BATCH_SIZE": 4,
            "CLAMP3_NUM_EPOCH": 2,
            "CLAMP3_LEARNING_RATE": 1e-3,
            "M3_NUM_EPOCH": 1,
            "TRAIN_WORKERS": 0,
            "SAVE_STEPS": 2,
            "SAVE_EVERY": 1,
            "CLAMP3_WANDB_LOG": False,
            "M3_WANDB_LOG": False,
            **knobs,
        }
        return {**small_model.environment(**chosen), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}

    return make


def last(folder) -> dict:
    return torch.load(folder / "weights_clamp3_last.pth", weights_only=True)


def wait_for(path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_documented_launch_and_a_lost_process(environment, training_data, tmp_path):
    """Two processes to the end; then by the documented command, where one is killed, and again: the same weights bit
    for bit. Only rank 0 speaks; features are extracted with the weights of an epoch."""
    done = run_forked("train_clamp3_symbolic.py", env=environment("whole"), processes=2)
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert lines[0].startswith("the text tower starts with random weights")
    assert len(lines) == 4 and lines[2].startswith("bars longer than the 62 characters of a patch: ")
    assert done.stderr.count("evaluation: 100%") >= 2 and "item/s, loss=" in done.stderr
    assert last(tmp_path / "whole")["epoch"] == 2

    command = [*LAUNCH, "train_clamp3_symbolic.py"]
    process = subprocess.Popen(command, env=environment("lost"), cwd=CODE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "lost" / "weights_clamp3_last.pth")
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    assert "SIGKILL" in process.communicate(timeout=100)[1] and process.returncode != 0
    done = run(*command, env=environment("lost"))
    assert "going on from" in done.stdout
    assert not differences(last(tmp_path / "lost"), last(tmp_path / "whole"))

    (tmp_path / "in").mkdir()
    shutil.copy(training_data.abc / "0.abc", tmp_path / "in")
    extract = ["extract_clamp3.py", "--epoch", "1", tmp_path / "in", tmp_path / "out", "--get_global"]
    run_forked(*extract, env=environment("whole"))
    assert np.load(tmp_path / "out" / "0.npy").shape == (1, 96)


def test_another_number_of_processes_says_what_changes(environment, tmp_path):
    run_forked("train_clamp3_symbolic.py", env=environment("more", CLAMP3_NUM_EPOCH=1), processes=2)
    assert last(tmp_path / "more")["global_batch_size"] == 8
    done = run_forked("train_clamp3_symbolic.py", env=environment("more"))
    assert "processes: 1, where the checkpoint had 2: dropout is drawn anew" in done.stdout
    assert "a global batch has 4 items where it had 8; an epoch has 9 steps, not 4" in done.stdout
    assert last(tmp_path / "more")["progress"]["step"] == 4 + 9


def children_of(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_two_nodes_train_audio_and_stop_together_at_a_bad_loss(environment, training_data, tmp_path):
    """Two agents on the loopback. In the second run an item's features overflow."""
    data = tmp_path / "data"
    shutil.copytree(training_data.folder, data)
    knobs = {"CLAMP3_TRAIN_JSONL": str(data / "audio.jsonl"), "CLAMP3_NUM_EPOCH": 1}

    def nodes(port: int, **more) -> list[tuple[int, str, str]]:
        address = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
        command = [BIN / "torchrun", *address, "--rdzv_endpoint", f"127.0.0.1:{port}", "train_clamp3_audio.py"]
        options = {"env": environment("nodes", "audio", **{**knobs, **more}), "cwd": CODE, "text": True}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        agents = [subprocess.Popen(list(map(str, command)), **options, **pipes) for _ in range(2)]
        return [(*agent.communicate(timeout=200), agent.returncode) for agent in agents]

    found = nodes(free_port())
    assert [code for *_, code in found] == [0, 0], found
    assert sum("epoch 1," in stdout for stdout, *_ in found) == 1
    before = contents(tmp_path / "nodes")
    for number in range(48):
        np.save(data / f"{number}.npy", np.tile(np.float32([[[3e38, 1e38]]]), (1, 4, 64)))
    found = nodes(free_port(), CLAMP3_NUM_EPOCH=2)
    assert all(code != 0 for *_, code in found)
    errors = [re.search(r"error: the loss of step 5 is nan.*items of that step: (.*)", err) for _, err, _ in found]
    assert all(error and error[1].count("tune") == 8 for error in errors), found
    assert contents(tmp_path / "nodes") == before


def test_plain_python_trains_m3_with_workers_checks_and_plots(environment, training_data, tmp_path):
    script = CODE / "train_m3.py"
    env = environment("m3", M3_WANDB_LOG=True, TRAIN_WORKERS=1)
    checked = run_forked(script, "--check", env=env, cwd=tmp_path).stdout
    long_bars = "1 of them: bars longer than the 62 characters of a patch"
    assert checked.splitlines() == ["all 38 + 10 items can be trained on", long_bars]
    assert "epoch 1," in run(sys.executable, script, env=env, cwd=tmp_path).stdout
    assert list(tmp_path.glob("wandb/offline-run-*"))
    run_forked(script, "--plot", "curves.png", env=env, cwd=tmp_path)
    assert tmp_path.joinpath("curves.png").read_bytes().startswith(b"\x89PNG")


def test_bad_data_are_skipped_or_refused_by_the_commands(environment, training_data, tmp_path):
    """By two processes, of which either may be the one to meet a file that cannot be read."""
    rows = training_data.rows(training_data.symbolic)
    for row in rows:
        row["filepaths"] = [str(training_data.folder / name) for name in row["filepaths"]]
    tmp_path.joinpath("latin.abc").write_bytes(b"K:C\nC4|\n% caf\xe9\n")
    rows[7]["filepaths"] = rows[30]["filepaths"] = ["latin.abc"]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = environment("bad", CLAMP3_TRAIN_JSONL=str(path), CLAMP3_NUM_EPOCH=1)
    done = run(*TORCHRUN, "train_clamp3_symbolic.py", env=env, check=None)
    assert done.returncode != 0
    refused = (
        rf"error: \d items cannot be trained on, more than the share 0.01.*\n +{path}:(8|31): .*latin\.abc: not UTF-8"
    )
    assert re.search(refused, done.stderr)
    # The launcher's report, which is long, ends with the same sentence.
    assert re.search(refused, done.stderr.rsplit("Root Cause", 1)[1])
    path.write_text(path.read_text() + "{}\n")
    env = environment("bad", CLAMP3_TRAIN_JSONL=str(path), CLAMP3_NUM_EPOCH=1, MAX_SKIPPED_SHARE=0.1)
    done = run_forked("train_clamp3_symbolic.py", env=env, processes=2)
    assert f"skipped: {path}:49: no text in any of its fields" in done.stdout and "epoch 1," in done.stdout
    listed = {issue.file for issue in load_issues(tmp_path / "bad" / "weights_clamp3_skipped.jsonl")}
    assert {f"{path}:49"} < listed <= {f"{path}:{line}" for line in (8, 31, 49)}
    done = run_forked("train_clamp3_symbolic.py", "--check", env=env, check=2)
    assert f"{path}:49: no text in any of its fields" in done.stderr and not done.stdout
    assert all(f"{path}:{line}: " in done.stderr for line in (8, 31))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_one_line_and_no_process_is_left(environment, tmp_path, number, code):
    """With a data worker, to all processes of the group, as a terminal and launchers do."""
    command = [sys.executable, "train_clamp3_audio.py"]
    env = environment("stopped", "audio", CLAMP3_NUM_EPOCH=10**6, TRAIN_WORKERS=1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=env, cwd=CODE, start_new_session=True, **pipes)
    wait_for(tmp_path / "stopped" / "weights_clamp3_last.pth")
    os.killpg(process.pid, number)
    _, shown = process.communicate(timeout=60)  # which waits for all that have the pipes
    assert process.returncode == code
    assert shown.count("the last checkpoint stays, and the same command goes on from it") == 1
    assert "Traceback" not in shown and "Error" not in shown and "leaked" not in shown
    assert not list((tmp_path / "stopped").glob("*.lock")) and not list((tmp_path / "stopped").glob(".*"))
