"""Files of weights: damage is seen, once; and a living embedder does not depend on what becomes of its file."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import XLMRobertaConfig, XLMRobertaModel

from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.releases import TINY
from clamp3.models.verification import BLOCK
from clamp3.models.weight_files import fingerprint, read_checkpoint, read_weights
from clamp3.models.weights import build_model, source_of, start_from_text_model
from conftest import BIN, CODE
from golden_model import formula_weights, golden_json, golden_model, save_checkpoint

SHAPES = golden_json("model.json")["state_dict_shapes"]
TUNE = "K:C\nCDEF GABc|\n"


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """The small model's weights as training and as others write them."""
    folder = tmp_path_factory.mktemp("whole")
    save_checkpoint(folder / "w.pth", SHAPES, optimizer={"state": {0: {"exp_avg": torch.rand(10_000)}}})
    save_file(formula_weights(SHAPES), folder / "w.safetensors")
    return {path.suffix: path for path in folder.iterdir()}


def overwrite(source: Path, target: Path, start: int, data: bytes) -> Path:
    """A copy of `source` with `data` from `start` on."""
    content = bytearray(source.read_bytes())
    content[start : start + len(data)] = data
    target.write_bytes(content)
    return target


# ---------- damage ----------


def test_a_megabyte_of_zeros_in_a_checkpoint_is_refused(whole, tmp_path):
    size = whole[".pth"].stat().st_size
    path = overwrite(whole[".pth"], tmp_path / "zeros.pth", size // 2, bytes(min(1 << 20, size // 4)))
    for read in (read_checkpoint, read_weights, fingerprint):
        with pytest.raises(UserError, match=r"zeros\.pth .* it is damaged: .*; delete it and download it again"):
            read(path)


def test_no_damage_to_a_checkpoint_changes_weights_silently(whole, tmp_path):
    """Single bits, blocks of zeros and of others, and stretches that moved, anywhere in the file."""
    right, content = formula_weights(SHAPES), whole[".pth"].read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for number in range(60):
        data, start = bytearray(content), int(rng.integers(len(content)))
        length = int(rng.integers(1, 20_000))
        if number % 4 == 0:
            data[start] ^= 1 << int(rng.integers(8))
        elif number % 4 == 1:
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif number % 4 == 2:
            data[start : start + length] = rng.bytes(len(data[start : start + length]))
        else:
            other = int(rng.integers(len(content) - length))
            moved = content[other : other + length][: len(content) - start]
            data[start : start + len(moved)] = moved
        path = tmp_path / "damaged.pth"
        path.write_bytes(data)
        try:
            weights = read_weights(path)
        except UserError as error:
            refused += 1
            assert "weights_only" not in str(error) and str(path) in str(error)
            continue
        assert all(torch.equal(weights[name], tensor) for name, tensor in right.items())
    assert refused > 50


def test_an_archive_that_goes_on_elsewhere_is_refused(whole, tmp_path):
    data, path = bytearray(whole[".pth"].read_bytes()), tmp_path / "split.pth"
    disks = data.rindex(b"PK\x06\x07") + 16
    data[disks : disks + 4] = (2).to_bytes(4, "little")
    path.write_bytes(data)
    for read in (read_checkpoint, read_weights, fingerprint):
        with pytest.raises(UserError, match=r"split\.pth .* it is damaged: .* multiple disks"):
            read(path)


def test_a_number_that_is_stretched_to_a_tensor_of_gigabytes_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(10**9)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth cannot be used: a is larger than what the file holds of it"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_every_byte_counts_whatever_the_size_of_a_tensor(tmp_path, size):
    torch.save({"a": torch.ones(size, dtype=torch.uint8)}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")["a"].sum() == size
    start = torch._C.PyTorchFileReader(str(tmp_path / "w.pth")).get_record_offset("data/0")
    for place in {start, start + size - 1}:
        with pytest.raises(UserError, match="the checksum of its part w/data/0 is wrong"):
            read_checkpoint(overwrite(tmp_path / "w.pth", tmp_path / "damaged.pth", place, b"\2"))


def test_safetensors_without_checksums_are_refused_where_values_or_sizes_tell(whole, tmp_path):
    source, rng = whole[".safetensors"], np.random.default_rng(0)
    size = source.stat().st_size
    with pytest.raises(UserError, match=r"it is damaged: \S+ holds NaN; delete it"):
        read_weights(overwrite(source, tmp_path / "random.safetensors", size // 2, rng.bytes(65_536)))
    header = int.from_bytes(source.read_bytes()[:8], "little")
    for number in range(40):  # of the header
        start = 8 + int(rng.integers(header - 10))
        path = overwrite(source, tmp_path / "header.safetensors", start, rng.bytes(int(rng.integers(1, 10))))
        try:
            read_checkpoint(path)
        except UserError as error:
            assert "damaged" in str(error) or "cut short" in str(error), number
    save_file({"a": torch.full((9,), float("-inf")), "b": torch.ones(9, dtype=torch.int8)}, tmp_path / "i.safetensors")
    assert torch.isinf(read_checkpoint(tmp_path / "i.safetensors")["a"]).all()  # masks hold such values


def test_in_the_hubs_cache_a_safetensors_file_is_compared_with_its_name(whole, tmp_path):
    content = whole[".safetensors"].read_bytes()
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    blob.write_bytes(content)
    assert fingerprint(link) == fingerprint(whole[".safetensors"])
    overwrite(blob, blob, len(content) // 2, bytes(4096))
    with pytest.raises(UserError, match="it is damaged: its SHA-256 is not the one that it is named after"):
        read_weights(link)


def test_files_that_torch_wrote_without_checksums_are_told_apart_by_all_bytes(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        for value in (1, 2):
            torch.save({"a": torch.full((1000,), value)}, tmp_path / f"{value}.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "2.pth")["a"][0] == 2
    assert fingerprint(tmp_path / "1.pth") != fingerprint(tmp_path / "2.pth")


def test_a_checkpoint_packed_again_with_compression_is_refused(whole, tmp_path):
    """Mapped, its compressed bytes would be taken for weights."""
    with zipfile.ZipFile(whole[".pth"]) as source:
        with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in source.namelist():
                packed.writestr(name, source.read(name))
    with pytest.raises(UserError, match="it is a compressed archive"):
        read_checkpoint(tmp_path / "packed.pth")


def test_numbers_in_the_other_byte_order_are_turned_around_once(tmp_path):
    values = torch.arange(1000, dtype=torch.float32)
    torch.save(
        {"model": {"a": values.view(torch.uint8).reshape(-1, 4).flip(1).flatten().view(torch.float32)}}, tmp_path / "l"
    )
    with zipfile.ZipFile(tmp_path / "l") as source, zipfile.ZipFile(tmp_path / "big.pth", "w") as other:
        for name in source.namelist():
            other.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    weights = read_weights(tmp_path / "big.pth", mapped=False)
    assert torch.equal(weights["a"], values)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_damaged_text_model_is_named_and_nothing_is_advised_against_protection(small_model, tmp_path, name):
    config = XLMRobertaConfig(**golden_json("model.json")["dims"]["text"])
    model = golden_model(CLaMP3Model, small_model.sizes)
    torch.manual_seed(0)
    XLMRobertaModel(config).save_pretrained(tmp_path)
    if name == "pytorch_model.bin":
        weights = read_checkpoint(tmp_path / "model.safetensors")
        torch.save({key: tensor.clone() for key, tensor in weights.items()}, tmp_path / name)
        del weights
        (tmp_path / "model.safetensors").unlink()
    whole = (tmp_path / name).read_bytes()
    contents = [whole[:1000], b"<html>", b"version https://git-lfs", pickle.dumps(Path())]
    if name == "pytorch_model.bin":
        contents.append(whole[: len(whole) // 2] + bytes(9) + whole[len(whole) // 2 + 9 :])
    for content in contents:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as raised:
            start_from_text_model(model, str(tmp_path))
        assert "weights_only" not in str(raised.value)


# ---------- once ----------


def bytes_read() -> int:
    """By this process, with system calls; pages of mapped files do not count."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="nothing counts what is read")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("writable", [True, False])
def test_a_file_is_verified_once_where_that_can_be_remembered(whole, own_cache, tmp_path, suffix, writable):
    path = Path(shutil.copy(whole[suffix], tmp_path))
    size = path.stat().st_size
    if not writable:
        own_cache.write_text("in the way")

    def is_verified() -> bool:
        before = bytes_read()
        read_weights(path)
        fingerprint(path)
        return bytes_read() - before > 0.9 * size

    assert size > 1_000_000 and is_verified()
    assert is_verified() is not writable
    os.utime(path)
    assert is_verified()  # it may be another one
    if writable:
        [record] = (own_cache / "verified").iterdir()
        for nonsense in (b"", b"[]", b'{"state": 1}', b"\xff\xfe"):
            record.write_bytes(nonsense)
            assert is_verified() and not is_verified()
    overwrite(path, path, size // 2, bytes(4096) if suffix == ".pth" else b"\xff" * 4096)
    with pytest.raises(UserError, match="damaged"):
        read_weights(path)


def test_fingerprints_are_those_of_earlier_versions(whole):
    """Indexes and folders of features have recorded them."""
    with zipfile.ZipFile(whole[".pth"]) as archive:
        checksums = " ".join(f"{part.file_size}:{part.CRC}" for part in archive.infolist())
    assert fingerprint(whole[".pth"]) == hashlib.sha256(checksums.encode()).hexdigest()[:16]
    content = hashlib.sha256(whole[".safetensors"].read_bytes()).hexdigest()
    assert fingerprint(whole[".safetensors"]) == hashlib.sha256(content.encode()).hexdigest()[:16]


# ---------- what becomes of the file of a living embedder ----------


def test_the_fingerprint_is_that_of_what_was_loaded(small_model, whole, tmp_path):
    path = Path(shutil.copy(whole[".pth"], tmp_path))
    before = fingerprint(path)
    model = build_model(None, small_model.sizes, path)
    embedder = Embedder.from_pretrained(path, sizes=small_model.sizes)
    os.replace(shutil.copy(whole[".safetensors"], tmp_path), path.with_suffix(".safetensors"))
    torch.save({"model": {k: v + 1 for k, v in formula_weights(SHAPES).items()}}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    assert fingerprint(path) != before
    assert embedder.fingerprint == before == Embedder(model, small_model.sizes, weights=path).fingerprint
    other = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, weights=path)
    assert other.fingerprint == fingerprint(path)  # of a model made by others


def test_weights_are_mapped_until_a_tower_is_used_and_then_its_own(small_model):
    """And equal, tied and strided ones too."""
    embedder = Embedder.from_pretrained(small_model.clamp3, sizes=small_model.sizes)
    source = source_of(embedder._model)
    mapped = {name for name, weight in embedder.named_parameters() if source.own(weight) is not weight}
    assert mapped == {name for name, _ in embedder.named_parameters()}
    embedder.embed_symbolic([TUNE])
    left = {name for name, weight in embedder.named_parameters() if source.own(weight) is not weight}
    assert {name.split("_")[0] for name in left} == {"text", "audio"}
    golden = golden_model(CLaMP3Model, small_model.sizes).state_dict()
    for name, weight in embedder.named_parameters():
        if "patch_embedding" not in name:  # which is stored in another order
            assert torch.equal(weight, golden[name]) and torch.equal(source.own(weight), golden[name])


LIVING = """
import os, shutil, sys, threading, time
from pathlib import Path
import numpy as np, torch
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.weight_files import read_checkpoint
from clamp3.sizes import ModelSizes

torch.set_num_threads(1)
folder, sizes, tune = Path(sys.argv[1]), ModelSizes(**eval(sys.argv[2])), sys.argv[3]
frames = np.random.default_rng(0).standard_normal((9, sizes.audio_hidden_size)).astype(np.float32)
sound = np.sin(np.arange(48_000) / 20).astype(np.float32)
calls = {
    "symbolic": lambda embedder: embedder.embed_symbolic([tune]),
    "text": lambda embedder: embedder.embed_text(["a slow air"]),
    "audio": lambda embedder: embedder.embed_audio_features([frames]),
}
uses = {name: call(Embedder.from_pretrained(folder / "w.pth", sizes=sizes)) for name, call in calls.items()}

def living(first):
    path = Path(shutil.copy(folder / "w.pth", folder / "living.pth"))
    embedder = Embedder.from_pretrained(path, sizes=sizes)
    for name in first:
        calls[name](embedder)
    return path, embedder

def tell(embedder):
    said = []
    for name, call in calls.items():
        try:
            said.append("right" if np.array_equal(call(embedder), uses[name]) else "WRONG")
        except UserError as error:
            assert "living.pth was changed in place after it had been loaded: load it again" in str(error), error
            said.append("refused")
    return " ".join(said)

path, embedder = living(["symbolic"])
shutil.copyfile(folder / "other.pth", path)
print("overwritten:", tell(embedder))
path, embedder = living(["symbolic"])
os.truncate(path, 5000)
print("cut short:", tell(embedder))
path, embedder = living(["symbolic"])
os.replace(shutil.copy(folder / "other.pth", folder / "copy.pth"), path)
print("replaced:", tell(embedder))
path, embedder = living([])
path.unlink()
print("deleted:", tell(embedder))
said = set()
for turn in range(12):
    path, embedder = living([])
    def change():
        time.sleep(turn * 0.0005)
        os.truncate(path, 0) if turn % 2 else shutil.copyfile(folder / "other.pth", path)
    thread = threading.Thread(target=change)
    thread.start()
    said |= set(tell(embedder).split())
    thread.join()
print("meanwhile:", *sorted(said - {"refused", "right"}))
mert = Path(shutil.copytree(sys.argv[4], folder / "mert"))
weights = next(file for file in mert.iterdir() if file.suffix in (".bin", ".safetensors"))
embedder = Embedder.from_pretrained("tiny", "cpu", mert=mert)
embedder._audio_encoder = None
ears = embedder.audio_encoder
before = [features for _, features in ears.extract([ears.prepare(sound)])]
os.truncate(weights, 0)
after = [features for _, features in ears.extract([ears.prepare(sound)])]
print("ears:", "right" if np.array_equal(before, after) else "WRONG")
"""


def test_a_living_embedder_is_right_or_refuses_whatever_becomes_of_its_file(small_model, whole, tmp_path):
    """Never other features silently, and never a killed process: so this runs in one of its own."""
    shutil.copy(whole[".pth"], tmp_path / "w.pth")
    torch.save({"model": {k: v * 2 for k, v in formula_weights(SHAPES).items()}}, tmp_path / "other.pth")
    command = [
        sys.executable,
        "-c",
        LIVING,
        tmp_path,
        repr(asdict(small_model.sizes)),
        TUNE,
        TINY / "mert",
    ]
    env = {**os.environ, "PYTHONPATH": str(CODE), "CLAMP3_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "overwritten: right refused refused",
        "cut short: right refused refused",
        "replaced: right right right",
        "deleted: right right right",
        "meanwhile:",
        "ears: right",
    ]


# ---------- users without a home ----------


UNKNOWN_USER = 54321


@pytest.mark.skipif(not hasattr(os, "setresuid") or os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("chosen", [True, False])
def test_a_user_whom_nobody_knows_needs_no_home(tmp_path, chosen):
    """Its files are still root's to read: the effective user stays."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.abc").write_text(TUNE)
    (tmp_path / "in" / "b.txt").write_text("a slow air")
    env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    if chosen:
        env["CLAMP3_CACHE"] = str(tmp_path / "cache")
    command = [BIN / "python", "clamp3_search.py", "a slow air", tmp_path / "in", "--variant", "tiny"]
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=CODE,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.setresuid(UNKNOWN_USER, 0, 0),
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "b.txt" in done.stdout
    assert ("features are not kept: no home folder; set CLAMP3_CACHE" in done.stderr) is not chosen
    assert (tmp_path / "cache" / "features.sqlite").exists() is chosen
