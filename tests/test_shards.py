"""Runs of shards, which know nothing of each other, do together what one run does."""

import json
import os
import shutil
import subprocess
import threading
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clamp3.errors import UserError
from clamp3.features.manifest import MANIFEST_FILE, check_or_record_maker
from clamp3.io.folders import plan
from clamp3.io.shards import Shard
from conftest import CODE, ROOT, run_forked


@pytest.fixture
def inputs(tmp_path, texts) -> Path:
    folder = tmp_path / "in"
    for index in range(24):
        path = folder / f"{index % 3}" / f"{index}.abc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts["tune_0"].replace("G", "ABCDEFG"[index % 7]))
    (folder / "0" / "bad.abc").write_bytes(b"\xff")
    (folder / "2" / "empty.abc").write_bytes(b"")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def reports(folder: Path, name: str) -> dict[str, str]:
    lines = [line for path in folder.glob(name) for line in path.read_text().splitlines()]
    return {Path(record["file"]).name: record["reason"] for record in map(json.loads, lines)}


def test_a_share_is_two_numbers():
    assert Shard.parse("3/16") == Shard(3, 16)
    for text in ("0/3", "4/3", "3", "1/0", "-1/3", "1/3/4", "1.0/3", "a/b", " 1/3", "١/3", ""):
        with pytest.raises(ValueError, match="is no share of a folder, such as 3/16"):
            Shard.parse(text)


def test_an_input_stays_in_its_share(inputs, tmp_path):
    """For good: these are what the rule gave when it was made. Shares are even, and other inputs change nothing."""
    paths = [Path("a", f"{number}.abc") for number in range(3000)]
    counts = Counter(number for path in paths for number in range(1, 17) if Shard(number, 16).takes(path))
    assert sum(counts.values()) == 3000 and len(counts) == 16 and max(counts.values()) < 1.3 * min(counts.values())
    assert [next(n for n in range(1, 17) if Shard(n, 16).takes(path)) for path in paths[:8]] == [
        5,
        9,
        7,
        6,
        2,
        15,
        1,
        16,
    ]
    assert sum(Shard(number, 5).takes(Path(os.fsdecode(b"\xff.abc"))) for number in range(1, 6)) == 1

    before = {number: plan(inputs, tmp_path / "out", [".abc"], ".npy", shard=Shard(number, 3)) for number in (1, 2, 3)}
    shutil.copy(inputs / "0" / "0.abc", inputs / "new.abc")
    after = {number: plan(inputs, tmp_path / "out", [".abc"], ".npy", shard=Shard(number, 3)) for number in (1, 2, 3)}
    for number in before:
        old, new = ({job.source for job in done[number].jobs} for done in (before, after))
        assert old and new - old <= {inputs / "new.abc"} and old <= new
    assert sum(len(one.jobs) for one in after.values()) == 27


def test_shards_do_together_what_one_run_does(small_model, inputs, tmp_path):
    """Byte by byte where batches are the same, of one item; each input once, and all failures are kept."""
    env, out, whole = small_model.environment(), tmp_path / "out", tmp_path / "whole"
    options = ("--get_global", "--batch_tokens", "1")
    run_forked("extract_clamp3.py", inputs, whole, *options, env=env, check=1)
    written = 0
    for number in (2, 3, 1, 3):
        before = contents(out)
        code = int(any(Shard(number, 3).takes(Path(name)) for name in ("0/bad.abc", "2/empty.abc")))
        command = ("extract_clamp3.py", inputs, out, *options, "--shard", f"{number}/3")
        done = run_forked(*command, env=env, check=code, processes=2 if number == 2 else 1)
        written += int(done.stdout.split(" written")[0].split()[-1])
        assert before.items() <= contents(out).items()
    assert contents(out) == contents(whole) and written == len(contents(whole)) == 24
    assert (out / MANIFEST_FILE).read_bytes() == (whole / MANIFEST_FILE).read_bytes()
    assert not (out / "failures.jsonl").exists()
    assert reports(out, "failures-*-of-3.jsonl") == reports(whole, "failures.jsonl") != {}
    assert reports(out, "warnings-*-of-3.jsonl") == reports(whole, "warnings.jsonl") != {}

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    run_forked("extract_clamp3.py", inputs, out, *options, env=env, check=1)  # which tries again what has failed
    assert reports(out, "failures.jsonl") == reports(whole, "failures.jsonl") and not [*out.glob("*-of-*")]
    assert reports(out, "warnings.jsonl") == reports(whole, "warnings.jsonl")
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    wrong = run_forked("extract_clamp3.py", inputs, out, "--shard", "1/3", env=env, check=2)
    assert "they do not compare" in wrong.stderr  # hidden states, in a folder of global features


@pytest.mark.parametrize("script", ["extract_m3.py", "clamp3_embd.py", "extract_mert.py"])
def test_the_other_commands_have_shards_too(inputs, tmp_path, script):
    out, names = tmp_path / "out", [f"{index % 3}/{index}.abc" for index in range(24)]
    words = [script, inputs, out, "--variant", "tiny"]
    if script == "extract_mert.py":
        names = [f"{number}.wav" for number in range(6)]
        for name in names:
            with wave.open(str(inputs / name), "wb") as file:
                file.setparams((1, 2, 24_000, 0, "NONE", ""))
                file.writeframes(np.random.default_rng(0).integers(-999, 999, 30_000, np.int16).tobytes())
        words = [ROOT / "preprocessing" / "audio" / script, "--input_path", inputs, "--output_path", out]
        words += ["--model_path", CODE / "clamp3" / "tiny" / "mert"]
    for number in (1, 2):
        before = contents(out).keys()
        done = run_forked(*words, "--shard", f"{number}/2", check=None)
        share = {str(Path(name).with_suffix(".npy")) for name in names if Shard(number, 2).takes(Path(name))}
        assert contents(out).keys() - before == share != set(), done.stderr
    assert len(contents(out)) == len(names)


def test_of_makers_that_start_at_once_one_is_recorded(tmp_path):
    def record(name: str) -> str | None:
        begin.wait()
        try:
            check_or_record_maker(folder, {"kind": "global features", "weights": name}, is_new=True)
        except UserError as error:
            assert "they do not compare" in str(error)
            return None
        return name

    begin = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        for turn in range(100):
            folder = tmp_path / str(turn)
            folder.mkdir()
            accepted = [name for name in threads.map(record, "abcd") if name]
            assert accepted == [json.loads((folder / MANIFEST_FILE).read_text())["weights"]]
            assert os.listdir(folder) == [MANIFEST_FILE]


@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "python").exists(), reason="the script runs what `make setup` makes")
def test_jobs_of_slurm_start_at_once(inputs, tmp_path):
    """With the script as it stands, and an srun that starts what it is told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SHARDS": "2", "OMP_NUM_THREADS": "1"}
    script = ("bash", "examples/slurm/extract.sbatch", inputs, tmp_path / "out", "--get_global", "--variant", "tiny")
    started = [
        subprocess.Popen(script, env={**env, "SLURM_ARRAY_TASK_ID": number}, cwd=ROOT, stdout=subprocess.DEVNULL)
        for number in ("1", "2")
    ]
    assert {process.wait(timeout=120) for process in started} <= {0, 1}
    assert len(contents(tmp_path / "out")) == 24
    assert reports(tmp_path / "out", "failures-*-of-2.jsonl").keys() == {"bad.abc", "empty.abc"}
