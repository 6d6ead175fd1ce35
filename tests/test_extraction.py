"""The extraction commands as users run them: documented command lines, on real files, failing and interrupted too."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clamp3.features.embedder import Embedder
from clamp3.features.extraction import read_input
from clamp3.features.manifest import MANIFEST_FILE
from clamp3.features.reading import Item
from clamp3.formats.registry import extensions, model_inputs
from clamp3.io.reports import OUT_OF_MEMORY
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.models.weights import build_model
from conftest import BIN, CODE, ROOT, run, run_forked
from golden_model import formula_weights, golden_json

LAUNCH = (BIN / "accelerate", "launch")
TORCHRUN = (BIN / "torchrun", "--nproc_per_node", "2")


@pytest.fixture
def inputs(tmp_path, texts):
    """A folder tree of each kind of input, with capitals, other kinds and several levels in it."""
    folder = tmp_path / "in"
    for name, text in texts.items():
        kind = "mtf" if name.startswith("mi") else "abc"
        if name.startswith(("score", "tune", "midi", "repeats")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{name}.{kind}").write_text(text, encoding="utf-8")
    for name, text in {"a": "A lively reel\nfrom Ireland", "愛 & $x 'q'": "爱的曲子\n" * 3, "b": "word " * 90}.items():
        (folder / "texts" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "texts" / "deep" / f"{name}.TXT").write_text(text, encoding="utf-8")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for frames in (1, 14, 40):
        np.save(folder / "audio" / f"{frames}.npy", rng.normal(size=(1, frames, 128)).astype(np.float32))
    (folder / "audio" / "raw.wav").write_bytes(b"RIFF")
    return folder


def outputs(folder):
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*.npy"))}


MODEL_INPUTS = extensions(model_inputs())


def expected(model, sizes, inputs, pooled, taken=MODEL_INPUTS):
    """Each input alone, through the library."""
    embedder, features = Embedder(model, sizes), {}
    for path in inputs.rglob("*"):
        if path.suffix.lower() in taken:
            item = read_input(embedder, 0, path)
            features[str(path.relative_to(inputs).with_suffix(".npy"))] = next(
                feature[None] for _, feature in embedder.embed(item.modality, [item.content], pooled)
            )
    return features


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, feature in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], feature, atol=2e-5, rtol=1e-4)


def test_global_features_by_the_documented_command_from_inside_code(small_model, inputs, tmp_path):
    done = run(
        *LAUNCH, "extract_clamp3.py", inputs, tmp_path / "out", "--get_global", env=small_model.environment(), cwd=CODE
    )
    found = outputs(tmp_path / "out")
    assert {feature.shape for feature in found.values()} == {(1, 96)}
    assert_same(
        found,
        expected(build_model(CLaMP3Model, small_model.sizes, small_model.clamp3), small_model.sizes, inputs, True),
    )
    assert f"{len(found)} written" in done.stdout and "1 .wav" in done.stdout
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_hidden_states_of_an_epoch_from_the_root(small_model, inputs, tmp_path):
    """Options before the folders, as documented; the weights of epoch 7 are found beside the configured ones."""
    epoch = small_model.clamp3.with_name("weights_clamp3_small_7.pth")
    epoch.write_bytes(small_model.clamp3.read_bytes())
    command = [*LAUNCH, "code/extract_clamp3.py", "--epoch", "7", inputs, tmp_path / "out"]
    run(*command, env=small_model.environment(), cwd=ROOT)
    found = outputs(tmp_path / "out")
    assert_same(found, expected(build_model(CLaMP3Model, small_model.sizes, epoch), small_model.sizes, inputs, False))
    assert found["abc/score_2.npy"].shape == (1, 149, 128) and found["audio/40.npy"].shape == (1, 42, 128)
    command[command.index("7")], command[-1] = "8", tmp_path / "other"
    done = run_forked(*command[len(LAUNCH) :], env=small_model.environment(), cwd=ROOT, check=2)
    assert "no weights of epoch 8" in done.stderr


def test_m3_features_by_the_documented_command(small_model, inputs, tmp_path):
    """From inside code/ and from the root."""
    run(*LAUNCH, "extract_m3.py", inputs, tmp_path / "out", env=small_model.environment(), cwd=CODE)
    kinds = {".abc": "symbolic", ".mtf": "symbolic"}
    model = build_model(M3Model, small_model.sizes, small_model.m3)
    assert_same(outputs(tmp_path / "out"), expected(model, small_model.sizes, inputs, False, kinds))
    run_forked("code/extract_m3.py", inputs, tmp_path / "root", env=small_model.environment(), cwd=ROOT)
    assert_same(outputs(tmp_path / "root"), outputs(tmp_path / "out"))


@pytest.mark.parametrize(
    "launcher", [TORCHRUN, (*LAUNCH, "--multi_gpu", "--num_processes", "2")], ids=["torchrun", "accelerate"]
)
def test_two_processes_do_each_file_once(small_model, inputs, tmp_path, launcher):
    log = tmp_path / "written.log"
    spy = tmp_path / "spy"  # a sitecustomize that notes each feature as it is put in place, and by which process
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "import os\nreplace = os.replace\n"
        "def noting(source, target):\n"
        "    if str(target).endswith('.npy'):\n"
        f"        with open({str(log)!r}, 'a') as file: file.write(f'{{os.getpid()}} {{target}}\\n')\n"
        "    replace(source, target)\n"
        "os.replace = noting\n"
    )
    env = {**small_model.environment(), "PYTHONPATH": str(spy)}
    (inputs / "abc" / "bad.abc").write_bytes(b"\xff")
    (inputs / "texts" / "empty.txt").write_bytes(b"")
    done = run(*launcher, "extract_clamp3.py", inputs, tmp_path / "out", "--get_global", env=env, check=1)
    assert done.stdout.count("written in") == 1 and "2 failed" in done.stdout
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    targets = [target for _, target in lines]
    assert len(targets) == len(set(targets)) == len(outputs(tmp_path / "out"))
    processes = [process for process, _ in lines]
    counts = [processes.count(process) for process in set(processes)]
    assert len(counts) == 2 and max(counts) - min(counts) <= 2
    for path in (inputs / "abc" / "bad.abc", inputs / "texts" / "empty.txt"):
        path.unlink()
    model = build_model(CLaMP3Model, small_model.sizes, small_model.clamp3)
    assert_same(outputs(tmp_path / "out"), expected(model, small_model.sizes, inputs, True))


def test_bad_inputs_are_named_and_the_rest_is_done(small_model, inputs, tmp_path):
    bad = {
        "abc/latin.abc": (b"K:C\nC4|\n% caf\xe9\n", "not UTF-8"),
        "abc/empty.abc": (b"", "empty file"),
        "abc/header.abc": (b"M:4/4\nK:C\n", "no bars"),
        "mtf/header.mtf": (b"ticks_per_beat 480\n", "no MIDI messages"),
        "texts/blank.txt": (b"\n  \n", "no line of text"),
        "audio/other.npy": (b"not an array", "not a .npy file"),
    }
    for name, (content, _) in bad.items():
        (inputs / name).write_bytes(content)
    arrays = {
        "audio/width.npy": (np.zeros((1, 5, 100), np.float32), "shape"),
        "audio/int.npy": (np.zeros((1, 5, 128), np.int64), "floating-point"),
        "audio/nan.npy": (np.full((1, 5, 128), np.nan, np.float32), "NaN"),
        "audio/none.npy": (np.zeros((1, 0, 128), np.float32), "no frames"),
        "audio/pickle.npy": (np.array([None]), "pickled"),
    }
    for name, (array, _) in arrays.items():
        np.save(inputs / name, array, allow_pickle=True)
    (inputs / "abc" / "gone.abc").symlink_to("nowhere.abc")
    reasons = {**{name: why for name, (_, why) in (bad | arrays).items()}, "abc/gone.abc": "No such file"}

    command = ["extract_clamp3.py", inputs, tmp_path / "out", "--get_global"]
    done = run_forked(*command, env=small_model.environment(), check=1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    found = {line["file"].removeprefix(f"{inputs}/"): line["reason"] for line in lines}
    assert found.keys() == reasons.keys()
    for name, why in reasons.items():
        assert why in found[name] and f"{inputs}/{name}" in done.stdout, name
    written = outputs(tmp_path / "out").keys()
    assert len(written) == 15 and not {name.rsplit(".")[0] + ".npy" for name in reasons} & written

    for name in reasons:
        (inputs / name).unlink()
    done = run_forked(*command, env=small_model.environment())
    assert "0 written, 15 already there, 0 failed" in done.stdout
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_clashing_inputs_are_refused_before_anything_is_written(small_model, inputs, tmp_path):
    (inputs / "abc" / "tune_0.mtf").write_text("ticks_per_beat 480\nnote_on 0 0 60 64\n")
    command = ("extract_clamp3.py", inputs, tmp_path / "out")
    done = run_forked(*command, env=small_model.environment(), check=2, processes=2)
    assert done.stderr.count("error: two inputs would have one output") == 1
    assert "tune_0.abc" in done.stderr and "tune_0.mtf" in done.stderr and not (tmp_path / "out").exists()


def write_tunes(folder, texts, count):
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.abc").write_text(texts["tune_0"].replace("G", "ABCDEFG"[index % 7]))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_run_leaves_whole_files_and_is_taken_up(small_model, texts, tmp_path, how):
    write_tunes(tmp_path / "in", texts, 600)
    env = small_model.environment()
    command = ["extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--as_is", "--batch_tokens", "64"]
    words = [sys.executable, *map(str, command)]
    process = subprocess.Popen(words, env=env, cwd=CODE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out").exists() or len([*(tmp_path / "out").glob("*.npy")]) < 40:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how], errors
    if how is signal.SIGINT:
        assert "the same command goes on where it stopped" in errors
    done = {name: feature for name, feature in outputs(tmp_path / "out").items()}
    assert 40 <= len(done) + 1 and len(done) < 600 and all(f.shape == (1, 22, 128) for f in done.values())

    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npy")}
    printed = run_forked(*command, env=env).stdout
    assert f"{600 - len(done)} written" in printed and f"{len(done)} already there" in printed
    assert sorted(os.listdir(tmp_path / "out")) == sorted([MANIFEST_FILE, *(f"{index}.npy" for index in range(600))])
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == stamp for name, stamp in times.items())


def test_two_processes_that_are_killed_are_taken_up(small_model, texts, tmp_path):
    """One of the two dies, and the launcher ends the other; what they have written stays, and is whole."""
    write_tunes(tmp_path / "in", texts, 600)
    env = small_model.environment()
    command = ["extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--as_is", "--batch_tokens", "64"]
    words = [str(word) for word in (*TORCHRUN, *command)]
    process = subprocess.Popen(words, env=env, cwd=CODE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out").exists() or len([*(tmp_path / "out").glob("*.npy")]) < 40:
        assert process.poll() is None
        time.sleep(0.005)
    (worker, *_), *_ = [
        children.split()
        for task in os.listdir(f"/proc/{process.pid}/task")
        if (children := Path(f"/proc/{process.pid}/task/{task}/children").read_text())
    ]
    os.kill(int(worker), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    done = outputs(tmp_path / "out")
    assert len(done) < 600 and all(feature.shape == (1, 22, 128) for feature in done.values())

    printed = run_forked(*command, env=env, processes=2).stdout
    assert f"{600 - len(done)} written" in printed and f"{len(done)} already there" in printed
    assert sorted(os.listdir(tmp_path / "out")) == sorted([MANIFEST_FILE, *(f"{index}.npy" for index in range(600))])


def test_an_error_that_all_processes_meet_is_printed_once(small_model, texts, tmp_path):
    """The one text needs a tokenizer, which is not there."""
    write_tunes(tmp_path / "in", texts, 3)
    (tmp_path / "in" / "a.txt").write_text("a reel")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_bytes((small_model.folder / "config.json").read_bytes())
    env = small_model.environment(TEXT_MODEL_NAME=str(tmp_path / "text"))
    done = run_forked("extract_clamp3.py", tmp_path / "in", tmp_path / "out", env=env, check=2, processes=2)
    assert done.stderr.count("error: no tokenizer for") == 1


def test_outputs_that_cannot_be_written_are_named(small_model, texts, tmp_path):
    """Names as long as a file system takes are no trouble; a folder where the output should be is."""
    long_name = "n" * 251
    (tmp_path / "in").mkdir()
    for name in (long_name, "taken"):
        (tmp_path / "in" / f"{name}.abc").write_text(texts["tune_0"])
    (tmp_path / "out" / "taken.npy").mkdir(parents=True)
    command = ["extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--as_is", "--get_global"]
    done = run_forked(*command, env=small_model.environment(), check=1)
    assert "taken.npy cannot be written: Is a directory" in done.stdout and "1 written" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == [MANIFEST_FILE, "failures.jsonl", f"{long_name}.npy", "taken.npy"]


def test_a_folder_holds_features_of_one_maker(small_model, texts, tmp_path):
    """And says which; a changed input is done again, and a folder of an earlier version goes on as it was."""
    write_tunes(tmp_path / "in", texts, 3)
    weights, out = tmp_path / "weights.pth", tmp_path / "out"
    weights.write_bytes(small_model.clamp3.read_bytes())
    env = small_model.environment(CLAMP3_WEIGHTS_PATH=str(weights))
    command = ["extract_clamp3.py", tmp_path / "in", out]
    run_forked(*command, "--get_global", env=env)
    before = outputs(out)
    recorded = json.loads((out / MANIFEST_FILE).read_text())
    assert recorded["kind"] == "global features" and recorded["file"] == str(weights)

    trained = formula_weights(golden_json("model.json")["state_dict_shapes"])
    trained["symbolic_proj.bias"] += 1
    for words, shown in (
        ((), f"holds global features by {weights} in fp32; these would be hidden states by {weights}"),
        (("--get_global", "--precision", "bf16"), "these would be global features by .* in bf16: they do not compare"),
        (("--get_global", "--variant", "tiny"), "tiny/clamp3.safetensors in fp32: they do not compare; give another"),
        (("--get_global",), "weights.pth in fp32, which has changed since: they do not compare"),
    ):
        if "changed" in shown:
            torch.save({"model": trained}, weights)
        for is_done in (True, False):  # with nothing left to do, and with something
            if not is_done:
                (out / "0.npy").rename(tmp_path / "0.npy")
            done = run_forked(*command, *words, env=env, check=2)
            assert re.search(shown, done.stderr), done.stderr
        assert not (out / "0.npy").exists()
        (tmp_path / "0.npy").rename(out / "0.npy")
    weights.write_bytes(small_model.clamp3.read_bytes())

    (tmp_path / "in" / "1.abc").write_text(texts["tune_1"])
    os.utime(tmp_path / "in" / "2.abc", (0, 0))
    printed = run_forked(*command, "--get_global", env=env).stdout
    assert "1 written" in printed and "2 already there" in printed
    now = outputs(out)
    assert [name for name in now if not np.array_equal(now[name], before[name])] == ["1.npy"]

    (out / MANIFEST_FILE).write_text("{")
    assert "cannot be read" in run_forked(*command, "--get_global", env=env, check=2).stderr
    (out / MANIFEST_FILE).unlink()
    (out / "0.npy").unlink()
    (tmp_path / "in" / "1.abc").write_text(texts["tune_0"])
    printed = run_forked(*command, "--get_global", env=env).stdout
    assert "1 written" in printed and "2 already there" in printed and not (out / MANIFEST_FILE).exists()


def test_only_the_towers_in_use_are_touched(small_model, texts, tmp_path):
    """A folder of ABC needs no tokenizer, and no text or audio weights: those of this file would give NaN."""
    weights = formula_weights(golden_json("model.json")["state_dict_shapes"])
    for name, tensor in weights.items():
        if not name.startswith("symbolic"):
            tensor.fill_(np.nan)
    torch.save({"model": weights}, tmp_path / "symbolic.pth")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_bytes((small_model.folder / "config.json").read_bytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.abc").write_text(texts["tune_0"])
    changes = {"CLAMP3_WEIGHTS_PATH": str(tmp_path / "symbolic.pth"), "TEXT_MODEL_NAME": str(tmp_path / "text")}
    command = ["extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--get_global"]
    run_forked(*command, env=small_model.environment(**changes))
    assert np.isfinite(np.load(tmp_path / "out" / "a.npy")).all()
    (tmp_path / "in" / "b.txt").write_text("a reel")
    assert "no tokenizer for" in run_forked(*command, env=small_model.environment(**changes), check=2).stderr


def test_precision_is_that_of_the_option_or_of_the_launcher(small_model, inputs, tmp_path):
    script = ("extract_clamp3.py", inputs)
    flags = ("--get_global", "--threads", "1")  # by how many the same sums are rounded in another way
    env = small_model.environment()
    run(*LAUNCH, "--mixed_precision", "bf16", *script, tmp_path / "launcher", *flags, env=env)
    run_forked(*script, tmp_path / "option", *flags, "--precision", "bf16", env=env)
    run_forked(*script, tmp_path / "full", *flags, env=env)
    by = {name: outputs(tmp_path / name) for name in ("launcher", "option", "full")}
    for name, feature in by["full"].items():
        assert np.array_equal(by["launcher"][name], by["option"][name])
        assert not np.array_equal(by["option"][name], feature)
        np.testing.assert_allclose(by["option"][name], feature, atol=0.1)


@pytest.mark.parametrize("script", ["extract_clamp3.py", "extract_m3.py"])
def test_help_teaches_and_needs_no_libraries(script):
    blocked = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=CODE)
    assert done.returncode == 0, done.stderr
    assert f"accelerate launch {script} INPUT_DIR OUTPUT_DIR" in done.stdout and "--precision" in done.stdout


def test_wrong_options_end_with_a_line_not_a_traceback(small_model, inputs, tmp_path):
    env = small_model.environment()
    for words, complaint in (
        ((inputs,), "required: output_dir"),
        ((inputs, tmp_path / "out", "--batch_tokens", "0"), "invalid positive value: '0'"),
        ((inputs, tmp_path / "out", "--device", "cuda:9"), "error: cannot compute on device cuda:9"),
        ((tmp_path / "none", tmp_path / "out"), "error: there is no folder"),
    ):
        done = run_forked("extract_clamp3.py", *words, env=env, check=2)
        assert complaint in done.stderr and "Traceback" not in done.stderr
    env["CLAMP3_CONFIG"] = '{"PATCH_SIZ": 3}'
    assert "did you mean PATCH_SIZE?" in run_forked("extract_m3.py", inputs, "o", env=env, check=2).stderr


# ---------- ends, processes and memory ----------


@pytest.mark.parametrize(
    ("script", "how", "code", "said"),
    [("extract_clamp3.py", signal.SIGTERM, 143, "terminated"), ("clamp3_embd.py", signal.SIGINT, 130, "interrupted")],
)
def test_no_end_waits_for_a_thread_that_a_file_blocks(small_model, tmp_path, script, how, code, said):
    """What looked like a file is a FIFO by the time at which it is read."""
    source, out, blocked = tmp_path / "in", tmp_path / "out", tmp_path / "in" / "last.txt"
    source.mkdir()
    for number in range(300):
        (source / f"{number}.txt").write_text(f"a reel and {number} more words for it")
    blocked.write_text("a")
    words = [sys.executable, script, source, out, "--get_global", "--batch_tokens", "64", "--device", "cpu"]
    words += ["--no_cache"] * (script == "clamp3_embd.py")
    env = small_model.environment()
    process = subprocess.Popen([*map(str, words)], env=env, cwd=CODE, stderr=subprocess.PIPE, text=True)
    done, before = 0, -1
    while done == 0 or done > before:  # until no more come
        assert process.poll() is None
        if done and before <= 0:
            blocked.unlink()
            os.mkfifo(blocked)
        time.sleep(1 if done else 0.005)
        before, done = done, len([*out.glob("*.npy")])
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.splitlines()[-1] == f"{said}; the same command goes on where it stopped"
    assert "Traceback" not in errors and not [*out.rglob("*.partial")]


PLAIN_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {code!r})
from clamp3 import Embedder
from clamp3.search.collection import load_collection
folder = Path({folder!r})
embedder = Embedder.from_pretrained("tiny", device="cpu")
print(len(load_collection(folder, lambda: embedder).files), embedder.embed_files(sorted(folder.iterdir())).shape)
"""


def test_the_library_works_in_a_script_without_a_guard(texts, tmp_path):
    """With more scores than commands would convert in one process."""
    write_tunes(tmp_path / "in", texts, 40)
    (tmp_path / "script.py").write_text(PLAIN_SCRIPT.format(code=str(CODE), folder=str(tmp_path / "in")))
    done = run(sys.executable, "-W", "ignore", tmp_path / "script.py", cwd=tmp_path)
    assert done.stdout == "40 (40, 128)\n" and not done.stderr


def test_memory_that_does_not_suffice_for_a_batch_does_for_a_half_or_is_a_failure(small_model, texts, monkeypatch):
    """A device that has not the memory for a whole segment."""
    embedder = Embedder(build_model(CLaMP3Model, small_model.sizes, small_model.clamp3), small_model.sizes)
    pieces = [texts["tune_0"], texts["score_2"], texts["tune_0"], texts["tune_0"]]
    sequences = [embedder.encode_symbolic(piece) for piece in pieces]
    expected = dict(embedder.embed("symbolic", sequences))
    forward, sizes = embedder._forward, []

    def limited(modality, inputs, output):
        sizes.append(len(inputs))
        if max(map(len, inputs)) * len(inputs) >= embedder.max_lengths["symbolic"]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you …")
        return forward(modality, inputs, output)

    monkeypatch.setattr(embedder, "_forward", limited)
    items = [Item(index, "symbolic", sequence) for index, sequence in enumerate(sequences)]
    found = {
        item.index: (item.problem(feature, "fp32"), feature) for item, feature in embedder.embed_items(iter(items))
    }
    assert max(sizes) > 1 and [found[index][0] for index in range(4)] == [None, OUT_OF_MEMORY, None, None]
    for index in (0, 2, 3):
        np.testing.assert_allclose(found[index][1], expected[index], atol=2e-5, rtol=1e-4)
    with pytest.raises(MemoryError):
        list(embedder.embed("symbolic", sequences))
    monkeypatch.setattr(embedder, "_forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(embedder.embed("symbolic", sequences))
