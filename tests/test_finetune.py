"""Fine-tuning: where it starts, what it says of a run that cannot learn, adapters, hard negatives, and early ends."""

import hashlib
import json
import os
import re
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from clamp3.errors import UserError
from clamp3.models.releases import RELEASES, TINY, tiny_sizes
from clamp3.models.weights import read_weights
from clamp3.sizes import ModelSizes
from clamp3.training.learning import Learning
from clamp3.training.lora import merge_adapter, save_adapter
from clamp3.training.neighbours import nearest_items, with_neighbours
from clamp3.training.settings import Lora, Settings
from clamp3.training.start import find_start, refuse_to_overwrite
from conftest import CODE, ROOT, run, run_forked
from training_runs import differences


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
    # What training has written says its sizes itself.
    sizes = find_start(str(last), "CLAMP3", ModelSizes(logit_scale=2.0), tmp_path).sizes
    assert replace(sizes, text_model_name="") == replace(tiny_sizes(), text_model_name="", logit_scale=2.0)


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
    torch.save({"model": {"weight": torch.ones(2)}}, "start.pth")
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


# ---------- adapters ----------

LORA = Lora(4, ("query", "value", "dense", "text_proj"))


def features_of(model, batch, modality: str) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            model.eval().get_features(name, *batch.tensors[side], get_global=True)
            for side, name in (("text", "text"), ("music", modality))
        ]


@pytest.mark.parametrize("kind", ["symbolic", "audio"])
def test_towers_use_their_adapters_and_merged_weights_are_the_same(trainer_of, kind, tmp_path):
    """Padded items are packed, so this is the way that training takes. peft's own loader judges what is saved."""
    trainer = trainer_of(kind, lora=LORA)
    model, batch = trainer.model, next(iter(trainer.loaders[0]))
    plain = trainer_of(kind, output="plain").model
    before = features_of(model, batch, kind)
    for found, wanted in zip(before, features_of(plain, batch, kind), strict=True):
        assert torch.equal(found, wanted)  # at first they add nothing
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in adapters)
    assert {name.split(".")[0] for name in adapters} == {"text_model", "text_proj", f"{kind}_model"}
    with torch.no_grad():
        for name, adapter in adapters.items():
            if "lora_B" in name:
                adapter.normal_(std=0.05)
    model.train()
    trainer.objective.backward(batch, trainer.autocast, lambda loss: loss)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    changed = features_of(model, batch, kind)
    assert min(float((found - old).abs().max()) for found, old in zip(changed, before, strict=True)) > 0.01
    assert model.state_dict().keys() == plain.state_dict().keys()
    merged = trainer_of(kind, output="merged").model
    merged.load_state_dict(model.state_dict())
    save_adapter(model, LORA, tmp_path / "adapter", "golden")
    merge_adapter(plain, tmp_path / "adapter")
    for other in (merged, plain):
        for found, wanted in zip(features_of(other, batch, kind), changed, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="beside other weights than these"):
        merge_adapter(merged, tmp_path / "adapter")
    with pytest.raises(UserError, match="is no folder of adapters"):
        merge_adapter(merged, tmp_path / "nowhere")


@pytest.mark.parametrize("merge", [True, False])
def test_a_run_with_adapters_that_stops_goes_on_as_if_it_had_not(trainer_of, tmp_path, merge, told):
    options = {"lora": Lora(2, ("query", "dense"), merge), "save_steps": 3, "save_every": 1, "micro_batch": 3}
    trainer_of(output="whole", **options).fit()
    broken = trainer_of(output="broken", **options)
    step = broken.step

    def stop_at_the_fourth(batch):
        if broken.progress.step == 3:
            raise KeyboardInterrupt
        step(batch)

    broken.step = stop_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    again = trainer_of(output="broken", **options)
    again.fit()
    assert "going on from" in told()
    whole, found = (torch.load(tmp_path / name / "weights_clamp3_last.pth") for name in ("whole", "broken"))
    assert not differences(found, whole)
    assert 0 < again.learning.moved(again.model) < 1
    for name in ("weights_clamp3", "weights_clamp3_1", "weights_clamp3_2"):
        folder = tmp_path / "whole" / f"{name}_adapter"
        assert folder.is_dir() is not merge and folder.with_name(f"{name}.pth").is_file() is merge
    if merge:  # another stage, with all weights, goes on from the merged ones
        full = trainer_of(output="whole")
        assert full.restore() and "a new stage" in told()
        best = torch.load(tmp_path / "whole" / "weights_clamp3.pth")["model"]
        assert not differences(dict(full.model.state_dict()), dict(best))


def test_adapters_that_cannot_be_are_refused(trainer_of, training_data, tmp_path):
    with pytest.raises(UserError, match="LORA_TARGETS: text_model has dense, key, query, value, and none of q_lin"):
        trainer_of(lora=Lora(4, ("q_lin",)))
    knobs = {"CLAMP3_TRAIN_JSONL": str(training_data.symbolic), "LORA_RANK": 4}
    done = train("train_clamp3_symbolic.py", tmp_path, 2, **knobs)
    assert done.stderr.startswith("error: LORA_RANK trains adapters beside weights") and done.stderr.count("\n") == 1
    assert train("train_m3.py", tmp_path, 2, LORA_RANK=4).stderr.startswith("error: LORA_RANK is for CLaMP 3")


# ---------- hard negatives ----------


def test_batches_hold_the_nearest_that_are_left_and_every_item_once():
    rng = np.random.default_rng(0)
    order = rng.permutation(20)
    neighbours = np.array([[(item + 1) % 20, (item + 2) % 20, -1] for item in range(20)], np.int32)
    found = with_neighbours(order, neighbours, size=6, hard=2)
    assert len(found) == 18 and len(set(found)) == 18
    for batch in found.reshape(3, 6):
        assert (batch[4] - batch[0]) % 20 in (1, 2) or batch[4] in order
    assert found[0] == order[0] and (found[4] - found[0]) % 20 in (1, 2)
    assert np.array_equal(with_neighbours(order, neighbours, 6, 0), order[:18])


def test_neighbours_are_what_plain_numpy_finds_and_never_the_same_music_or_text():
    rng = np.random.default_rng(0)
    features, indices = rng.standard_normal((9, 2, 5)), np.array([0, 1, 2, 3, 4, 5, 6, 8, 9])  # 7 cannot be read
    same = np.stack([np.arange(10), 100 + np.arange(10)], axis=1)
    same[1, 0], same[2, 1] = same[0, 0], same[0, 1]
    text, music = (features / np.linalg.norm(features, axis=-1, keepdims=True)).transpose(1, 0, 2)
    found = nearest_items(*map(torch.from_numpy, (indices, features, same)))
    for row, index in enumerate(indices):
        scores = text[row] @ music.T + music[row] @ text.T
        wanted = [n for n in indices[np.argsort(-scores)] if not (same[n] == same[index]).any()]
        assert found[index][: len(wanted)].tolist() == wanted and (found[index][len(wanted) :] == -1).all()
    assert {1, 2}.isdisjoint(found[0].tolist()) and (found[7] == -1).all()


def test_a_run_with_hard_negatives_goes_on_with_the_same(trainer_of, tmp_path, told):
    options = {"hard_negatives": 3, "save_steps": 3}
    whole = trainer_of(output="whole", **options)
    seen = keep_batches(whole)
    whole.fit()
    plain = trainer_of(output="plain")
    others = keep_batches(plain)
    plain.fit()
    assert seen != others
    broken = trainer_of(output="broken", epochs=1, **options)
    broken.fit()
    again = trainer_of(output="broken", **options)
    rest = keep_batches(again)
    again.fit()
    assert rest == seen[4:]
    assert not differences(*(torch.load(tmp_path / name / "weights_clamp3_last.pth") for name in ("broken", "whole")))
    told()
    (tmp_path / "broken" / "weights_clamp3_neighbours.npz").write_bytes(b"damaged")
    trainer_of(output="broken", epochs=3, **options).fit()
    assert "they are found by the weights of step 8" in told()
    with pytest.raises(UserError, match="HARD_NEGATIVES takes 8 of the 8 items of a batch"):
        trainer_of(output="all", hard_negatives=8).fit()


def keep_batches(trainer) -> list[list[str]]:
    batches, step = [], trainer.step

    def keeping(batch):
        batches.append(batch.names)
        step(batch)

    trainer.step = keeping
    return batches


# ---------- the demo, and the documentation ----------


def test_a_chorale_has_the_phrases_of_its_first_voice_not_those_of_all():
    from finetune import describe

    bars = ["FG|[V:2]D2|", "!fermata!B4|[V:2]!fermata!D4|", "A4|[V:2]D4|", "!fermata!B4|]|[V:2]!fermata!D4|]|"]
    abc = "M:4/4\nK:Bmin\nV:1\nV:2\n" + "".join(f"[V:1]{bar}\n" for bar in bars)
    wanted = "Chorale in 4/4 in B minor, two voices, two phrases, 4 bars. Johann Sebastian Bach."
    assert describe(abc, "Title") == f"Title. {wanted}"


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    """As they stand, but for an epoch in place of ten, on a dozen chorales."""
    pytest.importorskip("music21")
    from finetune import chorales

    page = ROOT.joinpath("docs", "finetune.md").read_text(encoding="utf-8")
    make, train_it = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("music").mkdir()
    rows = ["file,text,group"]
    for name, abc, title, text in islice(chorales(), 12):
        Path("music", f"{name}.abc").write_text(abc, encoding="utf-8")
        rows.append(f'{name},"{text}","{title}"')
    Path("texts.csv").write_text("\n".join(rows), encoding="utf-8")
    words = make.replace("clamp3", f"{sys.executable} -m clamp3", 1)
    done = run("bash", "-ec", words, env={**os.environ, "PYTHONPATH": str(CODE)}, cwd=tmp_path)
    assert re.match(r"music/train.jsonl: (9|10) train, [23] eval items", done.stdout)

    script = re.search(r"python code/(\S+)", train_it)[1]
    for knobs in ({}, {"LORA_RANK": 8, "LORA_MERGE": False, "CLAMP3_WEIGHTS_PATH": "adapted.pth"}):
        chosen = {**json.loads(re.search(r"'(.*?)'", train_it, re.DOTALL)[1]), "CLAMP3_NUM_EPOCH": 1, **knobs}
        environment = {**os.environ, "CLAMP3_CONFIG": json.dumps(chosen), "HF_HUB_OFFLINE": "1"}
        run_forked(CODE / script, "--device", "cpu", "--threads", "1", env=environment, cwd=tmp_path)
    Path("adapted_adapter").rename("tuned_adapter")
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, {})
    merged, start = (dict(read_weights(path)) for path in (Path("merged.pth"), TINY / "clamp3.safetensors"))
    changed = {name.split(".")[0] for name, tensor in merged.items() if not torch.equal(tensor, start[name])}
    assert changed == {"text_model", "symbolic_model"}
