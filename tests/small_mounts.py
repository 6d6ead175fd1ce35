"""Training with little shared memory, disk and memory, in a mount namespace that nothing else sees.

    python tests/small_mounts.py MODEL_FOLDER DATA_FOLDER OUTPUT_FOLDER
It ends with the code 77 where this user may not mount.
"""

import contextlib
import ctypes
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
sys.path.insert(0, str(Path(__file__).parent))
from clamp3.errors import UserError
from clamp3.training.batches import Batch, Loader
from training_runs import make_trainer

NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
MAY_NOT = 77
SHARED_MEMORY = Path("/dev/shm")


def main() -> None:
    model_folder, data_folder, output = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    folders = {"model_folder": model_folder, "data_folder": data_folder}
    if ctypes.CDLL(None).unshare(NEW_NAMESPACE) or subprocess.run(["mount", "--make-rprivate", "/"]).returncode:
        sys.exit(MAY_NOT)
    shared_memory(folders, output)
    full_disk(folders, output / "full")
    out_of_memory(folders, output / "memory")


def mount(folder: Path, kilobytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill up a disk but for about `left` bytes."""
    disk = os.statvfs(folder)
    path = folder / "filler"
    path.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - left)))
    return path


def shared_memory(folders: dict, output: Path) -> None:
    """The same batches whatever is missing, and it is said what is."""
    mount(SHARED_MEMORY, 4096)
    logger, told = logging.getLogger("clamp3"), []
    logger.setLevel(logging.INFO)
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: told.append(record.getMessage())
    trainer = make_trainer("audio", **folders, output=output)
    expected = batches(trainer, 0)

    long_path = output / ("x" * 130)
    long_path.mkdir(parents=True)
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR", "/tmp"), str(long_path)
    compare(batches(trainer, 1), expected)
    assert "AF_UNIX path too long" in told.pop(), told
    os.environ["TMPDIR"] = before
    filler = fill(SHARED_MEMORY, 100_000)
    compare(batches(trainer, 1), expected)
    assert "is too much for /dev/shm: 4 MB, 0 free" in told.pop(), told
    filler.unlink()
    fill(SHARED_MEMORY, 0)
    compare(batches(trainer, 1), expected)
    assert "data workers cannot be started" in told.pop() and not told
    logger.removeHandler(handler)
    print("batches arrive", flush=True)


def batches(trainer, workers: int) -> list[Batch]:
    old = trainer.loaders[0]
    old.sampler.set(0)
    return list(Loader(old.dataset, old.sampler, old.collate, workers, torch.device("cpu")))


def compare(found: list[Batch], wanted: list[Batch]) -> None:
    assert [batch.names for batch in found] == [batch.names for batch in wanted]
    for first, second in zip(found, wanted, strict=True):
        for name, pair in second.tensors.items():
            assert all(torch.equal(a, b) for a, b in zip(first.tensors[name], pair, strict=True))


def full_disk(folders: dict, run: Path) -> None:
    """The last checkpoint stays as it was, and with room on the disk the run goes on."""
    mount(run, 80_000)
    make_trainer("m3", **folders, output=run, epochs=1).fit()
    before = {path.name: path.read_bytes() for path in run.glob("*.pth")}
    filler = fill(run, len(before["weights_m3_last.pth"]) // 2)
    try:
        make_trainer("m3", **folders, output=run, save_steps=1).fit()
    except UserError as error:
        assert "weights_m3_last.pth cannot be written (is the disk full?)" in str(error), error
        assert "the last checkpoint is as it was" in str(error)
    else:
        raise AssertionError("no error")
    assert {path.name: path.read_bytes() for path in run.glob("*.pth")} == before
    assert not list(run.glob(".*"))
    filler.unlink()
    trainer = make_trainer("m3", **folders, output=run)
    trainer.fit()
    assert trainer.progress.epoch == 2
    print("a full disk", flush=True)


def out_of_memory(folders: dict, run: Path) -> None:
    trainer = make_trainer("symbolic", **folders, output=run, batch_size=32)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 8_000_000, limits[1]))
    taken = []  # what is free within the process in one piece, else it may be enough for the run
    with contextlib.suppress(MemoryError):
        while True:
            taken.append(bytearray(1 << 20))
    try:
        trainer.fit()
    except UserError as error:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert "out of memory after step 0, with 32 items at once" in str(error), error
        assert "CLAMP3_MICRO_BATCH" in str(error) and "RECOMPUTE_LAYERS" in str(error)
    else:
        raise AssertionError("no error")
    print("out of memory", flush=True)


if __name__ == "__main__":
    main()
