"""The demo, as its user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamp3.inputs.patchilizer import M3Patchilizer

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"
TUNES, SCORES = 12, 3


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DEMO), "--output", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished process and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return run_demo(folder, "--tunes", str(TUNES), "--scores", str(SCORES)), folder


def test_it_runs_through_and_says_what_it_does(demo):
    process, folder = demo
    assert process.returncode == 0, process.stderr
    code, tiny = DEMO.parents[1] / "code", "--variant tiny"
    for command in (
        f"accelerate launch {code}/extract_clamp3.py {tiny} {folder}/inputs {folder}/features --get_global",
        f"accelerate launch {code}/extract_m3.py {tiny} {folder}/inputs/mtf {folder}/m3",
        f"python {code}/clamp3_index.py build {folder}/index {folder}/inputs/abc {tiny}",
    ):
        assert command.replace(f"{Path.cwd()}/", "") in process.stdout
    assert "         Irish reel\n" in process.stdout
    page = folder.joinpath("index.html").read_text(encoding="utf-8")
    assert "gigue irlandaise" in page and "a recording.flac" in page and "O'Neill's Music of Ireland" in page
    assert f"{TUNES} files added" in process.stdout and process.stdout.count("features made by") == 2


def test_descriptions_find_their_tunes(demo):
    process, _ = demo
    found = re.search(r"MRR ([\d.]+) \(chance ([\d.]+)\)", process.stdout)
    assert float(found[1]) > 2 * float(found[2])


def test_every_input_has_its_global_feature(demo):
    _, folder = demo
    for kind, count in (("abc", TUNES), ("txt", TUNES), ("mtf", SCORES)):
        inputs = {path.stem for path in folder.joinpath("inputs", kind).iterdir()}
        features = {path.stem: np.load(path) for path in folder.joinpath("features", kind).glob("*.npy")}
        assert features.keys() == inputs and len(inputs) == count
        assert all(feature.shape == (1, 128) and feature.dtype == np.float32 for feature in features.values())
        assert all(np.isfinite(feature).all() for feature in features.values())
        assert len({feature.tobytes() for feature in features.values()}) == count


def test_hidden_states_have_a_row_for_each_patch(demo):
    _, folder = demo
    for kind in ("hidden", "m3"):
        paths = sorted(folder.joinpath(kind).glob("*.npy"))
        assert len(paths) == SCORES
        for path in paths:
            text = folder.joinpath("inputs", "mtf", f"{path.stem}.mtf").read_text(encoding="utf-8")
            patches = M3Patchilizer().encode(text, add_special_patches=True)
            assert np.load(path).shape == (1, len(patches), 128)


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    process = run_demo(tmp_path)
    assert process.returncode != 0 and "not made by the demo" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
