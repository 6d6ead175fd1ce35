"""One rule for the model in all commands: the weights that config.py names, or those asked for, said and recorded."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from answers import lines, vectors
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.features.manifest import MANIFEST_FILE
from clamp3.models.releases import TINY
from clamp3.models.weight_files import fingerprint
from clamp3.search.collection import check_comparable, load_collection, provenance
from clamp3.tasks.probe import Probe
from conftest import CODE, run_forked

TUNE = "X:1\nL:1/8\nM:6/8\nK:D\n|: dAF DFA | ded cBA | dcd efg | fdf ecA :|\n"
# Every command that loads a model, but mteb_eval.py (test_mteb.py); OUT is a folder, and FOUND a file in it.
ANSWERS = {
    "clamp3_search.py": "jig {IN} --json {FOUND}",
    "clamp3_index.py build": "{OUT}/index {IN}",
    "clamp3_index.py search": "{INDEX} {IN}/jig/1.abc --json {FOUND}",
    "clamp3_score.py": "{IN} {IN} --json {FOUND}",
    "clamp3_eval.py": "{IN} {IN} --json {FOUND}",
    "zero_shot.py": "{IN} {LABELS} --json {FOUND}",
    "train_cls.py": "{IN} {OUT}/p.safetensors --labels folder --eval_share 0",
    "inference_cls.py": "{PROBE} {IN} --labels folder --json {FOUND}",
}
FOLDERS = {
    "clamp3_embd.py": "{IN} {OUT} --get_global",
    "extract_clamp3.py": "{IN} {OUT}",
    "extract_m3.py": "{IN} {OUT}",
}
CASES = list((ANSWERS | FOLDERS).items())


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_model) -> dict[str, Path]:
    """Inputs, labels, a probe, and an index of the small model's features, by the words that stand for them."""
    folder = tmp_path_factory.mktemp("places")
    for kind in ("jig", "reel"):
        (folder / "in" / kind).mkdir(parents=True)
        for number in range(2):
            tune = TUNE.replace("d", "e" if kind == "reel" else "d", number + 1)
            (folder / "in" / kind / f"{number}.abc").write_text(tune)
    (folder / "labels.txt").write_text("jig\nreel\n")
    width = small_model.sizes.clamp3_hidden_size
    zeros = np.zeros(width, np.float32)
    probe = Probe(["jig", "reel"], np.zeros((2, width), np.float32), zeros[:2], zeros, zeros + 1)
    probe.save(folder / "probe.safetensors")
    env = small_model.environment()
    run_forked("clamp3_index.py", "build", folder / "index", folder / "in", env=env)
    names = {"IN": "in", "LABELS": "labels.txt", "PROBE": "probe.safetensors", "INDEX": "index"}
    return {word: folder / name for word, name in names.items()}


def started(name: str, words: str, places: dict[str, Path], out: Path, *options, **how):
    """The command with its words, and further options."""
    out.mkdir()
    given = words.format(**places, OUT=out, FOUND=out / "found.jsonl")
    return run_forked(*name.split(), *given.split(), *options, **how)


OF_RAW_FILES = [case for case in CASES if "{INDEX}" not in case[1]]


@pytest.mark.parametrize(("name", "words"), OF_RAW_FILES, ids=[name for name, _ in OF_RAW_FILES])
def test_without_the_weights_no_other_model_answers(name, words, places, tmp_path):
    """And the last line of the error names the way out."""
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CLAMP3_CACHE": str(tmp_path), "CLAMP3_CONFIG": ""}
    env = {**os.environ, **cache}
    done = started(name, words, places, tmp_path / "out", env=env, check=2)
    assert done.stderr.splitlines()[-1].startswith("  or:   --variant tiny, ") and "no weights at " in done.stderr
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.jsonl")) and "tiny" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "clamp3_index.py search jig {INDEX}",
        "clamp3_index.py add {INDEX} {MORE}",
        "clamp3_search.py jig {INDEX}",
        "clamp3_search.py jig {FEATURES}",
        "clamp3_score.py jig {FEATURES}",
        "clamp3_eval.py {IN} {FEATURES}",
        "clamp3_eval.py {FEATURES} {IN}",
        "clamp3_map.py {INDEX} --queries jig --output {OUT}/map",
        "zero_shot.py {FEATURES} {LABELS}",
    ],
)
def test_an_index_and_ready_features_are_asked_by_the_weights_that_made_them(words, places, tmp_path):
    """Where config.py names a release; but where they are gone, by no others."""
    own = tmp_path / "own"
    Embedder.from_pretrained("tiny").save_pretrained(own)
    index, features = tmp_path / "index", tmp_path / "features"
    run_forked("clamp3_index.py", "build", index, places["IN"], "--weights", own)
    run_forked("clamp3_embd.py", places["IN"], features, "--get_global", "--weights", own)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CLAMP3_CONFIG": ""}
    for folder in ("out", "more"):
        (tmp_path / folder).mkdir()
    (tmp_path / "more" / "new.abc").write_text(TUNE.replace("dAF", "fAF"))
    found = {"INDEX": index, "FEATURES": features, "MORE": tmp_path / "more", "OUT": tmp_path / "out"}
    given = words.format(**places | found).split()
    done = run_forked(*given, env=env)
    assert f"weights: {own} (" in done.stdout
    own.rename(tmp_path / "elsewhere")
    (tmp_path / "more" / "newer.abc").write_text(TUNE.replace("dAF", "gAF"))
    done = run_forked(*given, "--no_cache", env=env, check=2)
    assert "no weights at " in done.stderr


def test_an_index_of_ready_features_knows_what_their_folder_says(places, small_model, tmp_path):
    """So that it takes raw files of the same weights beside them, and no others."""
    env, features, index = small_model.environment(), tmp_path / "features", tmp_path / "index"
    run_forked("clamp3_embd.py", places["IN"], features, "--get_global", env=env)
    (features / "more").mkdir()
    (features / "reel" / "1.npy").rename(features / "more" / "1.npy")
    done = run_forked("clamp3_index.py", "build", index, features, env=env)
    assert "4 files added" in done.stdout and f"{small_model.clamp3}" in done.stdout
    assert fingerprint(small_model.clamp3) in done.stdout
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tune.abc").write_text(TUNE.replace("dAF", "fAF"))
    done = run_forked("clamp3_index.py", "add", index, tmp_path / "new", env=env)
    assert "1 files added" in done.stdout
    (tmp_path / "new" / "tune.abc").write_text(TUNE.replace("dAF", "gAF"))
    done = run_forked("clamp3_index.py", "add", index, tmp_path / "new", "--variant", "tiny", env=env, check=2)
    assert "these do not compare" in done.stderr.replace("\n", " ")
    np.save(tmp_path / "new" / "unknown.npy", np.ones(small_model.sizes.clamp3_hidden_size, np.float32))
    done = run_forked("clamp3_index.py", "add", index, tmp_path / "new" / "unknown.npy", env=env, check=2)
    assert "ready-made features such as" in done.stderr


@pytest.mark.parametrize(("name", "words"), CASES, ids=[name for name, _ in CASES])
def test_weights_of_ones_own_are_used_said_first_and_recorded(name, words, places, small_model, tmp_path):
    """By any command, whatever config.py names."""
    path = small_model.m3 if name == "extract_m3.py" else small_model.clamp3
    env = small_model.environment(CLAMP3_WEIGHTS_PATH="nowhere.pth", M3_WEIGHTS_PATH="nowhere.pth")
    done = started(name, words, places, tmp_path / "out", "--weights", path, env=env)
    assert done.stdout.splitlines()[0] == f"weights: {path} ({fingerprint(path)})"
    for record in lines(tmp_path / "out" / "found.jsonl") if "FOUND" in words else ():
        assert (record["weights"], record["fingerprint"]) == (str(path), fingerprint(path))
    if name in FOLDERS:
        manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
        assert (manifest["file"], manifest["fingerprint"]) == (str(path), fingerprint(path))


def test_an_index_says_its_weights(places, small_model, tmp_path):
    run_forked("clamp3_index.py", "info", places["INDEX"], "--json", tmp_path / "info.jsonl")
    [info] = lines(tmp_path / "info.jsonl")
    assert (info["weights"], info["fingerprint"]) == (str(small_model.clamp3), fingerprint(small_model.clamp3))


def test_safetensors_the_small_models_folder_and_what_is_none(places, small_model, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(torch.load(small_model.clamp3, weights_only=True)["model"], path)
    words = ("clamp3_search.py", "a jig", places["IN"])
    env = small_model.environment(CLAMP3_WEIGHTS_PATH="nowhere.pth")
    assert f"weights: {path} (" in run_forked(*words, "--weights", path, env=env).stdout
    for tiny in (TINY, TINY / "clamp3.safetensors"):
        assert f"weights: {TINY / 'clamp3.safetensors'} (" in run_forked(*words, "--weights", tiny).stdout
    for options, complaint in (
        (("--weights", tmp_path / "none.pth"), "error: --weights: there is no file or folder"),
        (("--weights", path, "--variant", "tiny"), "not allowed with argument"),
        (("--weights", path, "--epoch", "3"), "not allowed with argument"),
        (("--variant", "tiny", "--epoch", "3"), "not allowed with argument"),
    ):
        assert complaint in run_forked(*words, *options, env=env, check=2).stderr


def test_features_that_other_weights_have_made_are_refused(places, small_model, tmp_path):
    """Also where their width is the same: the folder of features says what made them."""
    other = tmp_path / "other.pth"
    model = torch.load(small_model.clamp3, weights_only=True)
    model["model"]["text_proj.weight"] += 1
    torch.save(model, other)
    env = small_model.environment()
    run_forked("clamp3_embd.py", places["IN"], tmp_path / "features", "--get_global", env=env)
    done = run_forked("clamp3_search.py", "a jig", tmp_path / "features", env=env)
    assert done.stdout.splitlines()[0] == f"weights: {small_model.clamp3} ({fingerprint(small_model.clamp3)})"
    done = run_forked("clamp3_search.py", "a jig", tmp_path / "features", "--weights", other, env=env, check=2)
    assert all(f"({fingerprint(path)})" in done.stderr for path in (small_model.clamp3, other)), done.stderr
    ready = load_collection(tmp_path / "features", None)
    made = {"weights": str(small_model.clamp3), "fingerprint": fingerprint(small_model.clamp3)}
    assert provenance(ready) == provenance(ready, ready) == made
    (tmp_path / "unknown").mkdir()
    for name, feature in vectors("a", hidden=ready.features.shape[1]).items():
        np.save(tmp_path / "unknown" / name, feature)
    unknown = load_collection(tmp_path / "unknown", None)
    check_comparable(ready, unknown)
    ready.recorded["fingerprint"], unknown.recorded = "1", {"file": "b", "fingerprint": "2"}
    with pytest.raises(UserError, match="features of different models cannot be compared"):
        check_comparable(ready, unknown)


def test_an_installed_package_looks_for_weights_in_the_working_directory():
    from clamp3.cli import settings

    installed = {"__file__": str(Path(settings.__file__).with_name("config.py"))}
    assert settings.configured_path(installed, "mine.pth") == Path("mine.pth")
    assert settings.configured_path({"__file__": str(CODE / "config.py")}, "mine.pth") == CODE / "mine.pth"
