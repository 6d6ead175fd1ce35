"""A run on disk: which files it writes, what they hold, and how it is taken up from them.

`..._last.pth` holds the newest full state, the weights file itself that of the best epoch so far by evaluation loss:
where the newest epoch is the best, both names stand for one file (hard links). `..._EPOCH.pth` holds the state after
an epoch without the optimizer's, which is two thirds of it all. Where the weights file is named .safetensors, it and
the epochs' files hold the weights and what describes them and the run; the full state is `..._last.pth` all the same.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clamp3.errors import UserError
from clamp3.io.files import atomic_link, atomic_write, try_lock
from clamp3.models.description import AUDIO_ENCODER, CLAMP3, M3, Description, describe
from clamp3.models.weight_files import safetensors_of
from clamp3.models.weights import read_checkpoint

if TYPE_CHECKING:
    from clamp3.training.data import Examples

STOPPED = "training has stopped, and the last checkpoint is as it was"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger("clamp3")


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside model and optimizer."""

    epoch: int = 0  # epochs that are done
    items: int = 0  # that are done in the epoch after
    loss_sum: float = 0.0  # over those items
    seconds: float = 0.0  # that they took
    step: int = 0  # optimizer steps in all
    best_epoch: int = 0
    min_eval_loss: float = float("inf")


@dataclass(frozen=True)
class Stage:
    """What is trained on what; with another stage, all counters start again."""

    modality: str | None  # None: M3
    frozen: list[str]  # parts of the model

    def wrote(self, checkpoint: dict) -> bool:
        """Whether a checkpoint is of this stage; the original's do not say what was frozen."""
        return (checkpoint.get("modality"), checkpoint.get("frozen", self.frozen)) == (self.modality, self.frozen)


def describe_run(
    stage: Stage,
    training: "Examples",
    evaluation: "Examples",
    knobs: Mapping[str, Any],
    audio_encoder: str | None = None,
) -> Description:
    """What the weights of a run say of themselves; reads its data files through.

    `audio_encoder` is what listens to sound for them, if that is not MERT.
    """
    data = {
        name: {"items": len(examples), "fingerprint": examples.fingerprint()}
        for name, examples in (("training", training), ("evaluation", evaluation))
    }
    kind = CLAMP3 if stage.modality else M3
    listens = {AUDIO_ENCODER: audio_encoder} if audio_encoder else {}
    return describe(kind, training.encoder.sizes, knobs, stage=asdict(stage), data=data, **listens)


# ---------- files ----------


def last_path(weights_path: Path) -> Path:
    """Where a run's newest full state is kept; `weights_path` itself holds the best so far."""
    return weights_path.with_name(f"{weights_path.stem}_last.pth")


def epoch_path(weights_path: Path, epoch: int) -> Path:
    """Where the weights after an epoch are kept, and where --epoch looks for them."""
    return weights_path.with_name(f"{weights_path.stem}_{epoch}{weights_path.suffix}")


def skipped_path(weights_path: Path) -> Path:
    """Where the items are listed that a run has skipped."""
    return weights_path.with_name(f"{weights_path.stem}_skipped.jsonl")


@contextlib.contextmanager
def run_lock(weights_path: Path) -> Iterator[None]:
    """The block in which no other training writes to `weights_path`. Raises UserError where one does already.

    What is locked is a file beside the weights (beside what a link leads to), which is removed at the end. A killed
    process leaves the file, but not the lock.
    """
    target = Path(os.path.realpath(weights_path))
    path = target.with_name(f"{target.stem}.pth.lock")  # .safetensors of that name has the same `last_path`
    locked, file = _locked_file(path)
    with file:
        if locked is False:
            raise UserError(
                f"another training writes to {weights_path} (it holds {path}): wait for its end, or give this one a "
                "path of its own, by CLAMP3_WEIGHTS_PATH or M3_WEIGHTS_PATH"
            )
        if locked is None:
            logger.info("there are no locks in %s: see to it that no other training writes there", path.parent)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked


def _locked_file(path: Path) -> tuple[bool | None, IO[bytes]]:
    """The file `path`, open, and whether this process holds its lock; None where there are no locks."""
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "ab")
            locked = try_lock(file)
            if not locked or os.fstat(file.fileno()).st_nlink:
                return locked, file
            file.close()  # a training that has just ended removed it before it could be locked


def find_checkpoint(paths: list[Path], stage: Stage) -> tuple[Path, dict] | None:
    """The first of `paths` that this stage has written, else the last one, with what it holds; None without any."""
    found = None
    for path in paths:
        found = path, read_checkpoint(path)
        if stage.wrote(found[1]):
            break
    return found


# ---------- write ----------


def checkpoint_of(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    stage: Stage,
    **others: Any,
) -> dict[str, Any]:
    """The full state of a run: the original's keys, ours, and `others`."""
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_sched": scheduler.state_dict(),
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "min_eval_loss": progress.min_eval_loss,
        "scaler": scaler.state_dict(),
        "frozen": stage.frozen,
        "progress": asdict(progress),
        **others,
    }
    return {**checkpoint, "modality": stage.modality} if stage.modality else checkpoint


def without_optimizer(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What an epoch's file holds of the full state."""
    return {name: part for name, part in checkpoint.items() if name != "optimizer"}


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint` to `path`, whole or not at all. Raises UserError where it cannot be written.

    To .safetensors, without what JSON and that format cannot hold.
    """
    with named_failures(path), atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(safetensors_of(checkpoint))
        else:
            torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # some file systems find out only now that they are full


def link_checkpoint(source: Path, path: Path) -> None:
    """Let `path` be another name of the file `source`, or a copy of it where a file can have one name alone.

    Checkpoints are replaced as a whole and never changed in place, so neither name changes what the other holds.
    """
    try:
        atomic_link(source, path)
    except OSError:
        with named_failures(path), open(source, "rb") as whole, atomic_write(path) as file:
            shutil.copyfileobj(whole, file, 1 << 24)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Where a failure to write `path` is a UserError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports what it could not write as the latter
        full = not isinstance(error, OSError) or error.errno in DISK_FULL
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise UserError(f"{path} cannot be written{' (is the disk full?)' * full}: {reason}; {STOPPED}") from error


# ---------- restore ----------


def restore_optimizer(checkpoint: dict, model: nn.Module, optimizer: Optimizer, scheduler: LambdaLR) -> bool:
    """Take the state of optimizer and scheduler from a checkpoint; False where it has none, or one that does not fit.

    The learning rate and its schedule are the configured ones, at the checkpoint's step.
    """
    states = optimizer_states(checkpoint, model)
    if not states:
        return False
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    configured = scheduler.state_dict()
    scheduler.load_state_dict({**configured, **checkpoint["lr_sched"], "base_lrs": configured["base_lrs"]})
    for group, multiplier in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * multiplier(scheduler.last_epoch)
    return True


def optimizer_states(checkpoint: dict, model: nn.Module) -> dict[int, dict]:
    """AdamW's state in a checkpoint, by the place of the parameter in `model`; empty where it does not fit.

    A checkpoint numbers parameters in the order of its weights, and library versions differ in that order.
    """
    own = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    names = [name for name in checkpoint.get("model", ()) if name in own]
    saved = checkpoint.get("optimizer") or {}
    if not saved or sum(len(group["params"]) for group in saved.get("param_groups", ())) != len(names):
        return {}
    return {own[names[index]]: state for index, state in saved["state"].items()}


def progress_of(checkpoint: dict, step: int) -> Progress:
    """Where the run stood; the original's checkpoints do not say at which `step`."""
    if "progress" in checkpoint:
        return Progress(**checkpoint["progress"])
    return Progress(
        epoch=int(checkpoint.get("epoch", 0)),
        step=step,
        best_epoch=int(checkpoint.get("best_epoch", 0)),
        min_eval_loss=float(checkpoint.get("min_eval_loss", "inf")),
    )
