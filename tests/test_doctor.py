"""clamp3_doctor.py: what is in order passes, and each thing that is really broken is found, with what to do."""

import http.server
import json
import math
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clamp3.cli.doctor import diagnose
from clamp3.models.releases import RELEASES, TINY
from clamp3.tasks.diagnosis.checks import CHECKS
from clamp3.tasks.diagnosis.findings import Subject, ok
from clamp3.tasks.diagnosis.machine import cgroup_limits, threads_finding
from conftest import BIN, ROOT, run, run_forked

SCRIPT = "clamp3_doctor.py"
MODEL_CHECKS = ("weights", "tensors", "tokenizer", "towers", "pairs", "numerics")


def findings(done: subprocess.CompletedProcess) -> dict[str, list[dict]]:
    """By check; the exit code is what they say it is, and nothing ended in a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[dict]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        found.setdefault(record["check"], []).append(record)
    faulty = any(record["state"] == "fault" for records in found.values() for record in records)
    assert done.returncode == int(faulty)
    return found


def doctor(*options, only=(), script=SCRIPT, **environment) -> dict[str, list[dict]]:
    """The findings of the command in a fork; of `environment`, what is None is taken out."""
    chosen = ["--only", *only] if only else []
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return findings(run_forked(script, *chosen, "--json", "-", *options, env=env, check=None))


def started(*command: str, only, **environment) -> dict[str, list[dict]]:
    """As `doctor`, as a user would start it; `command` comes before Python."""
    env = {**os.environ, "PYTHONPATH": "", **environment}
    return findings(run(*command, BIN / "python", SCRIPT, "--json", "-", "--only", *only, env=env, check=None))


def states(records: list[dict]) -> set[str]:
    return {record["state"] for record in records}


def one(records: list[dict], state: str) -> dict:
    """The finding of that state, which says what to do."""
    [found] = [record for record in records if record["state"] == state]
    assert found["advice"] or state == "unchecked"
    return found


# ---------- what is in order, and the command itself ----------


def test_help_teaches_all_of_it():
    shown = run_forked(SCRIPT, "--help").stdout
    said = " ".join(shown.split())
    assert all(name in said for name in (*CHECKS, "--variant", "--weights", "--online", "exit code is 1", "unchecked"))


def test_the_small_model_on_this_machine_is_in_order(tmp_path):
    done = run_forked(SCRIPT, "--variant", "tiny", "--output_dir", tmp_path, "--json", tmp_path / "found.jsonl")
    lines = (tmp_path / "found.jsonl").read_text(encoding="utf-8")
    found = findings(subprocess.CompletedProcess([], done.returncode, lines, done.stderr))
    assert list(found) == list(CHECKS)
    for name in (*MODEL_CHECKS, "python", "libraries", "settings", "decoders", "converters", "outputs", "cache"):
        assert states(found[name]) == {"ok"}, found[name]
    assert done.stdout.splitlines()[0].split() == ["check", "state", "what", "was", "found"]
    for records in found.values():
        assert all(record["found"] in done.stdout and record["advice"] in done.stdout for record in records)
    assert sorted(os.listdir(tmp_path)) == ["found.jsonl"]  # no traces


def test_released_weights_that_are_missing_are_said_to_be_downloaded(tmp_path):
    places = {"CLAMP3_CONFIG": "", "HF_HOME": str(tmp_path), "CLAMP3_CACHE": str(tmp_path)}
    found = doctor(only=["weights", "pairs"], HF_HUB_OFFLINE="0", **places)
    assert RELEASES["saas"].file_name in one(found["weights"], "warning")["found"]
    assert states(found["weights"]) == {"warning", "ok"} and states(found["pairs"]) == {"ok"}  # the small model's
    found = doctor("--variant", "saas", only=["weights", "pairs"], HF_HUB_OFFLINE="0", **places)
    assert states(found["weights"]) == {"warning"}
    assert "no weights" in one(found["pairs"], "unchecked")["found"]


def test_checks_can_be_chosen_by_their_names_alone():
    run_forked(SCRIPT, "--only", "everything", check=2)
    run_forked(SCRIPT, "--variant", "tiny", "--weights", "a.pth", check=2)


def test_knobs_that_do_not_exist_are_a_finding_and_the_rest_is_looked_at():
    found = doctor(only=["settings", "shared memory", "tensors"], CLAMP3_CONFIG='{"NO_KNOB": 1}')
    assert "NO_KNOB" in one(found["settings"], "fault")["found"]
    assert states(found["shared memory"]) == {"unchecked"} and states(found["tensors"]) == {"ok"}


# ---------- checks that go wrong ----------


def _is_killed(_subject):
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(_subject):
    time.sleep(60)
    yield ok("never")


def _exits(_subject):
    yield ok("first")
    raise SystemExit("a library that ends Python")


def _works(_subject):
    yield ok("still here")


def test_a_check_that_crashes_hangs_or_exits_is_a_finding():
    checks = {"is killed": _is_killed, "hangs": _hangs, "exits": _exits, "works": _works}
    found = [(finding.check, finding.state, finding.found) for finding in diagnose(checks, Subject(), time_limit=1)]
    assert found == [
        ("is killed", "fault", "its process was killed by SIGKILL"),
        ("hangs", "fault", "takes longer than 1 s"),
        ("exits", "ok", "first"),
        ("exits", "fault", "the check failed: SystemExit: a library that ends Python"),
        ("works", "ok", "still here"),
    ]


# ---------- the installation ----------


def test_broken_libraries(tmp_path):
    """NumPy cannot be imported, soxr is too old and gives silence, faiss ends Python."""
    (tmp_path / "numpy.py").write_text("raise ImportError('libblas.so.3: cannot open shared object file')\n")
    (tmp_path / "soxr-0.1.dist-info").mkdir()
    (tmp_path / "soxr-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: soxr\nVersion: 0.1\n")
    (tmp_path / "faiss.py").write_text("import os\nos.abort()\n")
    found = started(only=["python", "libraries", "extras", "decoders", "weights", "cache"], PYTHONPATH=str(tmp_path))
    said = "\n".join(record["found"] for record in found["libraries"] if record["state"] == "fault")
    assert "numpy is installed and cannot be imported: ImportError: libblas.so.3" in said
    assert "soxr 0.1, where >=0.3.7 is needed" in said
    assert "killed by SIGABRT" in one(found["extras"], "fault")["found"]
    assert states(found["python"]) == {"ok"}
    for name in ("decoders", "weights", "cache"):
        assert states(found[name]) == {"unchecked"} and "libblas" in found[name][0]["found"]


def test_decoders_that_give_another_sound(tmp_path):
    real = f"import importlib.machinery, sys\npath = [one for one in sys.path if one != {str(tmp_path)!r}]\n"
    (tmp_path / "soxr.py").write_text(
        f"{real}spec = importlib.machinery.PathFinder.find_spec('soxr', path)\n"
        "from importlib.util import module_from_spec\n"
        "true = module_from_spec(spec)\nsys.modules['soxr'] = true\nspec.loader.exec_module(true)\n"
        "class ResampleStream(true.ResampleStream):\n"
        "    def resample_chunk(self, *args, **options):\n"
        "        return super().resample_chunk(*args, **options) * 0.9\n"
        "true.ResampleStream = ResampleStream\n"
    )
    found = started(only=["decoders"], PYTHONPATH=str(tmp_path))
    assert "a test tone is decoded incorrectly" in one(found["decoders"], "fault")["found"]


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        known = self.path.endswith(RELEASES["saas"].file_name)
        self.send_response(200 if known else 404)
        for name, value in (("ETag", '"0"'), ("X-Repo-Commit", "0" * 40), ("X-Linked-Size", RELEASES["saas"].size)):
            self.send_header(name, str(value))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_hub_is_asked_only_when_it_is_wanted():
    assert states(doctor(only=["hub"], HF_HUB_OFFLINE="0")["hub"]) == {"unchecked"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        here = {"HF_ENDPOINT": place, "HF_HUB_OFFLINE": "0"}
        found = started(only=["hub", "--online"], **here)
        assert states(found["hub"]) == {"ok"} and place in found["hub"][0]["found"]
        server.shutdown()
    found = started(only=["hub", "--online"], **here)
    assert "cannot be reached" in one(found["hub"], "warning")["found"]


# ---------- the machine ----------


def test_limits_of_the_process():
    limited = ("sh", "-c", 'ulimit -n 100; ulimit -v 12000000; exec "$@"', "sh")
    found = started(*limited, only=["open files", "memory"])
    assert "100 files" in one(found["open files"], "warning")["found"]
    assert "address space is limited to 12.3 GB" in found["memory"][0]["found"]


def test_small_and_read_only_file_systems(tmp_path):
    mounts = f"mount -t tmpfs -o size=1m none /dev/shm; mount -t tmpfs -o ro none {tmp_path}/cache; "
    mounts += f"mount -t tmpfs -o size=64k none {tmp_path}/outputs; "
    for name in ("cache", "outputs"):
        (tmp_path / name).mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", tmp_path / "cache"]).returncode:
        pytest.skip("file systems cannot be mounted here")
    found = started(
        *("unshare", "-m", "sh", "-c", f'{mounts}exec "$@"', "sh"),
        only=["disk", "shared memory", "cache", "outputs", "--output_dir", str(tmp_path / "outputs")],
        CLAMP3_CACHE=str(tmp_path / "cache"),
    )
    assert "audio training may need 0.50 GB" in one(found["shared memory"], "warning")["found"]
    assert "Read-only file system" in one(found["cache"], "fault")["found"]
    assert any("outputs" in record["found"] for record in found["disk"] if record["state"] == "fault")
    assert states(found["outputs"]) == {"ok"}  # it is small, but all there


def test_temporary_folders(tmp_path):
    long = tmp_path / ("long" * 32)
    long.mkdir()
    found = doctor(only=["temporary files"], TMPDIR=str(long))
    assert "too long for a socket's path" in one(found["temporary files"], "fault")["found"]
    found = doctor(only=["temporary files"], TMPDIR=str(tmp_path / "missing"))
    assert "missing" in one(found["temporary files"], "warning")["found"]


def test_a_closed_home_folder():
    closed = {"CLAMP3_CACHE": None, "XDG_CACHE_HOME": None, "HOME": "/proc/closed"}
    found = doctor(only=["cache", "outputs", "disk"], **closed)
    assert "CLAMP3_CACHE" in one(found["cache"], "fault")["advice"]


def test_a_cache_that_is_a_file_and_a_damaged_one(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert one(doctor(only=["cache"], CLAMP3_CACHE=str(tmp_path / "file"))["cache"], "fault")
    (tmp_path / "features.sqlite").write_bytes(b"SQLite format 3\0" + random.Random(0).randbytes(5000))
    found = doctor(only=["cache"], CLAMP3_CACHE=str(tmp_path))
    assert "delete" in one(found["cache"], "warning")["advice"]


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "max"}, "0::/", {"cpus": 1.5}),
        (
            {"cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/memory.max": "1000000"},
            *("0::/a/b", {"cpus": 2, "memory": 1e6}),
        ),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            *("3:cpu,cpuacct:/docker/x", {"cpus": 0.5}),
        ),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, "4:memory:/", {}),
        ({"memory/memory.limit_in_bytes": "2000000"}, "4:memory:/elsewhere\n0::/", {"memory": 2e6}),
    ],
)
def test_limits_of_containers(tmp_path, files, own, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert cgroup_limits(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("used", "usable", "quota", "state"),
    [
        (2, 2, math.inf, "ok"),
        (8, 16, math.inf, "ok"),
        (1, 16, math.inf, "warning"),
        (32, 64, 2.5, "warning"),
        (3, 64, 2.5, "ok"),
    ],
)
def test_threads_suit_the_processors(used, usable, quota, state):
    assert threads_finding(used, usable, quota).state == state


# ---------- the weights ----------


@pytest.fixture(scope="module")
def tiny_tensors():
    return load_file(TINY / "clamp3.safetensors")


@pytest.fixture
def looked_at(tmp_path, tiny_tensors):
    """The findings on the small model with other tensors, or another tokenizer."""

    def look(only, text_model=TINY / "text", **changed) -> dict[str, list[dict]]:
        path = tmp_path / "weights_mine.pth"
        torch.save({"model": {**tiny_tensors, **changed}}, path)
        knobs = {**json.loads((TINY / "config.json").read_text()), "TEXT_MODEL_NAME": str(text_model)}
        return doctor("--weights", path, only=only, CLAMP3_CONFIG=json.dumps(knobs))

    return look


def test_weights_of_ones_own_that_are_sound(looked_at):
    found = looked_at([name for name in MODEL_CHECKS if name != "numerics"])
    assert all(states(records) == {"ok"} for records in found.values())


def test_a_projection_of_zeros(looked_at, tiny_tensors):
    zeros = torch.zeros_like(tiny_tensors["symbolic_proj.weight"])
    found = looked_at(["tensors", "towers", "pairs"], **{"symbolic_proj.weight": zeros})
    assert "symbolic_proj.weight" in one(found["tensors"], "fault")["found"]
    assert "symbolic" in one(found["towers"], "fault")["found"] and states(found["towers"]) == {"ok", "fault"}
    assert one(found["pairs"], "warning")


def test_a_projection_onto_one_line_numbers_that_are_none_and_words_with_each_others_meanings(looked_at, tiny_tensors):
    line = tiny_tensors["audio_proj.weight"][:1].repeat(len(tiny_tensors["audio_proj.weight"]), 1)
    none = tiny_tensors["symbolic_proj.bias"].clone()
    none[3] = math.nan
    found = looked_at(["tensors", "towers"], **{"audio_proj.weight": line, "symbolic_proj.bias": none})
    assert "symbolic_proj.bias" in one(found["tensors"], "fault")["found"]
    said = [record["found"] for record in found["towers"] if record["state"] == "fault"]
    assert ["not finite" in said[0], "along one direction only" in said[1]] == [True, True]

    name = "text_model.embeddings.word_embeddings.weight"
    order = torch.randperm(len(tiny_tensors[name]), generator=torch.Generator().manual_seed(0))
    found = looked_at(["tensors", "pairs"], **{name: tiny_tensors[name][order]})
    assert states(found["tensors"]) == {"ok"} and one(found["pairs"], "warning")


def broken_tokenizer(folder: Path, change) -> Path:
    shutil.copytree(TINY / "text", folder)
    path = folder / "tokenizer.json"
    serialized = json.loads(path.read_text(encoding="utf-8"))
    change(serialized["model"])
    path.write_text(json.dumps(serialized), encoding="utf-8")
    return folder


def without_foreign_bytes(model: dict) -> None:
    """Only what is made of ASCII is left; the rest is unknown."""
    model["merges"] = [merge for merge in model["merges"] if "".join(merge).replace("Ġ", "").isascii()]
    model["vocab"] = {
        token if token.replace("Ġ", "").isascii() else f"<gone {number}>": number
        for token, number in model["vocab"].items()
    }
    model["unk_token"] = "<unk>"


def without_words(model: dict) -> None:
    model["merges"] = []
    model["vocab"] = {token if token[0] == "<" else f"<gone {n}>": n for token, n in model["vocab"].items()}
    model["unk_token"] = "<unk>"


def with_other_ids(model: dict) -> None:
    """A vocabulary of the same words in another order, as another training would give it."""
    words = [token for token, number in model["vocab"].items() if number > 3]
    numbers = [model["vocab"][word] for word in words]
    random.Random(0).shuffle(numbers)
    model["vocab"].update(zip(words, numbers, strict=True))


def test_a_vocabulary_that_lacks_scripts(looked_at, tmp_path):
    found = looked_at(["tokenizer"], broken_tokenizer(tmp_path / "text", without_foreign_bytes))
    said = one(found["tokenizer"], "fault")["found"]
    assert "mostly <unk>" in said and "Chinese" in said and "Latin" not in said


def test_a_vocabulary_of_which_nothing_is_left_and_one_that_is_not_there(looked_at, tmp_path):
    found = looked_at(["tokenizer", "tensors"], broken_tokenizer(tmp_path / "text", without_words))
    assert "vocabulary is missing" in one(found["tokenizer"], "fault")["found"]
    assert states(found["tensors"]) == {"ok"}
    (tmp_path / "text" / "tokenizer.json").unlink()
    assert one(looked_at(["tokenizer"], tmp_path / "text")["tokenizer"], "fault")


def test_a_vocabulary_in_another_order(looked_at, tmp_path):
    found = looked_at(["tokenizer", "pairs"], broken_tokenizer(tmp_path / "text", with_other_ids))
    assert "does not give the ids" in one(found["tokenizer"], "fault")["found"]
    assert one(found["pairs"], "warning")


def test_damaged_files(tmp_path, small_model):
    good = small_model.clamp3.read_bytes()
    middle = len(good) // 2

    def look(content: bytes, name: str = "weights.pth") -> dict[str, list[dict]]:
        path = tmp_path / name
        path.write_bytes(content)
        env = {"CLAMP3_CONFIG": json.dumps(small_model.knobs())}
        return doctor("--weights", path, only=["weights", "tensors"], **env)

    assert states(look(good)["weights"]) == {"ok"}
    assert "damaged" in one(look(good[:middle] + bytes(1000) + good[middle + 1000 :])["weights"], "fault")["found"]
    cut = look(good[:middle])
    assert "cut short" in one(cut["weights"], "fault")["found"] and states(cut["tensors"]) == {"unchecked"}
    released = look(good, RELEASES["saas"].file_name)
    assert "2,571,027,658" in one(released["weights"], "fault")["found"]
    path = tmp_path / "missing.pth"
    found = doctor("--weights", path, only=["weights", "tensors"])
    assert str(path) in one(found["weights"], "fault")["found"] and states(found["tensors"]) == {"unchecked"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the code with the small model, in which something can be broken."""
    folder = tmp_path_factory.mktemp("clone")
    tiny = TINY.relative_to(ROOT)
    shutil.copytree(ROOT / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TINY, folder / tiny, dirs_exist_ok=True)
    return folder / "code" / SCRIPT, folder / tiny / "clamp3.safetensors"


def test_a_small_model_whose_numbers_are_a_little_off(clone, tiny_tensors):
    """It finds what belongs together still, but is not what was recorded."""
    script, weights = clone
    name = "audio_model.encoder.layer.1.output.dense.weight"
    save_file({**tiny_tensors, name: tiny_tensors[name] * 1.001}, weights)
    found = doctor("--variant", "tiny", only=["weights", "pairs", "numerics"], script=script)
    assert "SHA-256" in one(found["weights"], "fault")["found"]
    assert states(found["pairs"]) == {"ok"}
    assert "audio" in one(found["numerics"], "fault")["found"]


def test_an_m3_checkpoint(small_model):
    env = {"CLAMP3_CONFIG": json.dumps(small_model.knobs())}
    found = doctor("--weights", small_model.m3, only=["tensors", "tokenizer", "towers", "pairs"], **env)
    assert states(found["towers"]) == states(found["tensors"]) == {"ok"}
    assert states(found["pairs"]) == states(found["tokenizer"]) == {"unchecked"}
    assert states(doctor("--weights", TINY / "m3.safetensors", only=["weights"])["weights"]) == {"ok"}
