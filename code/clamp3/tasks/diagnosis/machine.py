"""Checks of the machine: processor, accelerators, threads, memory, disks, system limits."""

import contextlib
import math
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clamp3.tasks.diagnosis.findings import GB, Finding, Subject, Unchecked, fault, ok, one_line, warning
from clamp3.tasks.diagnosis.folders import existing_parent, folders_in_use

FEATURES = {
    "x86_64": ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"),
    "aarch64": ("asimd", "sve", "bf16"),
}
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # any of these: the processor has bf16 arithmetic
MATRIX = 512  # size of the matrices whose product is timed
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 2 * GB, 0.5 * GB  # full-size extraction takes 0.8 GB, Python with PyTorch 0.4
LITTLE_DISK, TOO_LITTLE_DISK = 1 * GB, 0.01 * GB
FEW_FILES = 1024  # open files; Linux's default limit. Training's workers share memory through open files
PREFETCHED = 2  # batches that each training worker holds ready: PyTorch's default
SUM_TOLERANCE = 1e-3  # of a product of matrices on an accelerator, relative to the processor's


# ---------- processor and accelerators ----------


def processor(_subject: Subject) -> Iterator[Finding]:
    """The processor's vector instructions, and how fast it computes in bf16."""
    import torch

    name, flags = processor_facts()
    known = [feature for feature in FEATURES.get(platform.machine(), ()) if feature in flags]
    capability = torch.backends.cpu.get_cpu_capability()
    speed = _bf16_speed()
    described = f"{name}, PyTorch uses {capability}"
    if known:
        described += f" ({', '.join(known)})"
    described += f"; bf16 matrix products run at {speed:.2g}x the speed of fp32: "
    described += "use --precision bf16" if speed > 1.2 else "use fp32"
    if any(feature in flags for feature in BF16) and speed <= 1:
        yield warning(described, "the processor supports bf16 but PyTorch does not use it: update torch")
    elif capability == "DEFAULT" and platform.machine() == "x86_64":
        yield warning(described, "everything is slow without AVX2 or AVX-512: unset ATEN_CPU_CAPABILITY if it is set")
    else:
        yield ok(described)


def processor_facts() -> tuple[str, set[str]]:
    """The processor's name and, on Linux, its features."""
    name, flags = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            elif key in ("flags", "Features"):
                flags = set(value.split())
                break
    return name, flags


def _bf16_speed() -> float:
    """How many times as fast as fp32 this processor multiplies matrices in bf16."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(MATRIX, MATRIX, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def accelerators(_subject: Subject) -> Iterator[Finding]:
    """GPUs: that PyTorch can use them, and that they compute what the CPU does."""
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    for device in devices:
        yield _computes(device)
    if devices:
        return
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        built = torch.version.cuda
        yield warning(
            f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use",
            "check the driver's version, CUDA_VISIBLE_DEVICES, and in Docker `--gpus all`"
            if built
            else "this is a CPU-only build of PyTorch: install one with CUDA",
        )
    else:
        yield ok("no GPU: computing on the CPU")


def _computes(device: str) -> Finding:
    import torch

    matrix = torch.linspace(-1, 1, MATRIX * MATRIX).reshape(MATRIX, MATRIX)
    try:
        product = (matrix.to(device) @ matrix.to(device)).cpu()
    except RuntimeError as error:
        return fault(f"{device}: {one_line(error)}", "check its driver and free memory, or use --device cpu")
    expected = matrix @ matrix
    if (product - expected).abs().max() > SUM_TOLERANCE * expected.abs().max():
        return fault(f"{device} computes wrong matrix products", "use --device cpu")
    if device == "mps":
        return ok("mps: Apple's GPU")
    facts = torch.cuda.get_device_properties(device)
    bf16 = "" if torch.cuda.is_bf16_supported(including_emulation=False) else ", no bf16: use fp16"
    free = torch.cuda.mem_get_info(device)[0] / GB
    return ok(f"{device}: {facts.name}, {free:.1f} of {facts.total_memory / GB:.1f} GB free{bf16}")


# ---------- threads and memory ----------


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> dict[str, float]:
    """What the container allows this process, of either version of cgroups: "cpus", and "memory" in bytes."""
    limits: dict[str, float] = {}

    def limit(name: str, value: float) -> None:
        limits[name] = min(limits.get(name, math.inf), value)

    for folder in _own_cgroups(root, own):
        if (quota := _words(folder / "cpu.max")) and quota[0] != "max":
            limit("cpus", int(quota[0]) / int(quota[1]))
        if (most := _words(folder / "memory.max")) and most[0] != "max":
            limit("memory", int(most[0]))
        former, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if former and period and int(former[0]) > 0:
            limit("cpus", int(former[0]) / int(period[0]))
        if (most := _words(folder / "memory.limit_in_bytes")) and int(most[0]) < 2**60:  # which stands for none
            limit("memory", int(most[0]))
    return limits


def _own_cgroups(root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of those that hold them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        bases = [root / controllers, *(root / one for one in controllers.split(","))] if controllers else [root]
        for base in bases:
            folder = base / path.lstrip("/")
            yield from (one for one in (folder, *folder.parents) if one.is_relative_to(base))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def threads(_subject: Subject) -> Iterator[Finding]:
    """PyTorch's number of threads against the CPUs that this process may use."""
    import torch

    from clamp3.io.workers import cores

    yield threads_finding(torch.get_num_threads(), cores(), cgroup_limits().get("cpus", math.inf))


def threads_finding(used: int, usable: int, quota: float) -> Finding:
    """The finding on `used` threads where `usable` CPUs may be used, for `quota` CPU seconds a second."""
    most = usable if quota >= usable else max(1, math.ceil(quota))
    described = f"{used} threads, {usable} of {os.cpu_count()} CPUs usable"
    if quota < usable:
        described += f"; the container is limited to {quota:g} CPUs"
    said = os.environ.get("OMP_NUM_THREADS")
    if used > most:
        return warning(f"{described}: too many", f"use --threads {most}, or OMP_NUM_THREADS={most}")
    if 2 * used < most:  # a core's two hardware threads count as two CPUs
        reason = f"OMP_NUM_THREADS={said}: unset it, or " if said else ""
        return warning(f"{described}: too few", f"{reason}use --threads {most}")
    return ok(described)


def memory(_subject: Subject) -> Iterator[Finding]:
    """Free memory, and the limits of the container and of this process."""
    import psutil

    available = psutil.virtual_memory().available
    described = f"{available / GB:.1f} GB free"
    if most := cgroup_limits().get("memory"):
        described += f"; the container is limited to {most / GB:.1f} GB"
        available = min(available, most)
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            described += f"; address space is limited to {most / GB:.1f} GB (ulimit -v)"
            available = min(available, most)
    advice = "close other programs or raise the limit; or lower --batch_tokens, or use --variant tiny"
    if available < TOO_LITTLE_MEMORY:
        yield fault(described, advice)
    else:
        yield warning(described, advice) if available < LITTLE_MEMORY else ok(described)


# ---------- disks ----------


def disk(subject: Subject) -> Iterator[Finding]:
    """Free space and inodes where outputs, cached features, downloads and temporary files go."""
    sound = []
    for use, folder in folders_in_use(subject).items():
        place = existing_parent(folder)
        free = shutil.disk_usage(place).free
        needed = LITTLE_DISK
        if use == "downloads" and subject.found is None and subject.release and subject.release.size:
            needed += subject.release.size
        described = f"{use} ({folder}): {free / GB:.2f} GB free"
        advice = f"free some space, or use another disk by means of {MOVES[use]}"
        if free < TOO_LITTLE_DISK:
            yield fault(described, advice)
        elif free < needed:
            yield warning(f"{described}, up to {needed / GB:.1f} GB may be needed", advice)
        elif not _names_left(place):
            yield fault(f"{use} ({folder}): no inodes left for new files", advice)
        else:
            sound.append(described)
    if sound:
        yield ok("; ".join(sound))


MOVES = {
    "outputs": "another OUTPUT_DIR",
    "cache": "CLAMP3_CACHE",
    "downloads": "HF_HOME",
    "temporary files": "TMPDIR",
}


def _names_left(folder: Path) -> bool:
    if not hasattr(os, "statvfs"):  # Windows
        return True
    facts = os.statvfs(folder)
    return not facts.f_files or facts.f_favail > 100  # some file systems count none


def shared_memory(subject: Subject, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room for the batches that training's worker processes share, at the sizes set in config.py."""
    if sys.platform != "linux":
        raise Unchecked("applies to Linux only")
    try:
        batch, workers = audio_batch_bytes(subject.knobs), int(subject.knobs["TRAIN_WORKERS"])
    except KeyError:
        raise Unchecked("the batch size is unknown, since config.py cannot be read") from None
    needed = batch * (PREFETCHED * workers + 1)
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    described = (
        f"{folder} has {free / GB:.2f} GB free; audio training may need {needed / GB:.2f} GB, "
        f"{PREFETCHED * workers + 1} batches of {batch / 1e6:.0f} MB"
    )
    if free < needed and workers:
        yield warning(
            described,
            f"for training: docker run --shm-size={math.ceil(2 * needed / GB)}g, or TRAIN_WORKERS = 0, or a smaller "
            "CLAMP3_BATCH_SIZE",
        )
    else:
        yield ok(described)


def audio_batch_bytes(knobs: Mapping[str, Any]) -> int:
    """Of a full batch of frames (CLAMP3_BATCH_SIZE, MAX_AUDIO_LENGTH, AUDIO_HIDDEN_SIZE), float32."""
    return 4 * knobs["CLAMP3_BATCH_SIZE"] * knobs["MAX_AUDIO_LENGTH"] * knobs["AUDIO_HIDDEN_SIZE"]


# ---------- limits ----------


def temporary_files(_subject: Subject) -> Iterator[Finding]:
    """That TMPDIR is usable, and short enough for the sockets between training's processes."""
    folder, said = tempfile.gettempdir(), os.environ.get("TMPDIR")
    if said and os.path.abspath(said) != os.path.abspath(folder):
        yield warning(
            f"TMPDIR ({said}) cannot be written to, so {folder} is used", "set it to an existing, writable folder"
        )
    if not hasattr(socket, "AF_UNIX"):  # Windows
        yield ok(folder)
        return
    length = len(os.fsencode(folder))
    with tempfile.TemporaryDirectory(prefix="pymp-") as scratch, socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(f"{scratch}/listener-12345678")
        except OSError as error:
            reason = f"{length} bytes is too long for a socket's path" if "too long" in str(error) else error
            yield fault(
                f"no sockets can be created in {folder}: {reason}",
                "training's worker processes need them: export TMPDIR=/tmp, or another short path on a local disk",
            )
            return
    yield ok(f"{folder}: sockets can be created")


def open_files(_subject: Subject) -> Iterator[Finding]:
    """The limit on open files."""
    try:
        import resource
    except ImportError:
        raise Unchecked("applies to Unix only") from None

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "any number of files" if soft == resource.RLIM_INFINITY else f"{soft} files"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        bound = "" if hard == resource.RLIM_INFINITY or hard >= FEW_FILES else f" (the system allows {hard} at most)"
        yield warning(
            f"a process may have {most} open", f"ulimit -n {FEW_FILES}{bound}, else training's workers may fail"
        )
    else:
        yield ok(f"a process may have {most} open")
