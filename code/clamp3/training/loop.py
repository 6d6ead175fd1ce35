"""One training loop for M3 and for CLaMP 3 with symbolic music or audio, in one process or many."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clamp3.distributed import PRECISIONS, checked_precision, from_main, gather
from clamp3.errors import UserError
from clamp3.io.files import atomic_write, remove_orphans
from clamp3.models.weights import load_weights, read_checkpoint
from clamp3.training.checkpoints import epoch_path, last_path, optimizer_states
from clamp3.training.curves import draw_curves, figures_path, wandb_logger
from clamp3.training.data import Batch, Collate, Examples, ShareOfBatches, checked, loader
from clamp3.training.distributed import average_gradients, mean_over_processes, random_state, set_random_state
from clamp3.training.objectives import Contrastive, Reconstruction
from clamp3.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import PartialState

STOPPED = "training has stopped, and the last checkpoint is as it was"
DECAYS = ("none", "cosine")


# ---------- the loop ----------


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


class Trainer:
    """Trains the model of `objective` as `settings` say; `fit` does it all."""

    def __init__(
        self,
        objective: Contrastive | Reconstruction,
        training: Examples,
        evaluation: Examples,
        pad_values: dict[str, int],
        settings: Settings,
        state: "PartialState",
    ):
        """`pad_values` says what fills up which sequence; `state` is what `clamp3.distributed.start` returns."""
        self.objective, self.settings, self.state = objective, settings, state
        self.model = objective.model.to(state.device)
        self.log: Callable[[dict, int], None] = lambda _figures, _step: None
        self.frozen = sorted({n.split(".")[0] for n, p in self.model.named_parameters() if not p.requires_grad})
        self.shares = [
            ShareOfBatches(len(examples), settings.batch_size, state.num_processes, state.process_index, seed)
            for examples, seed in ((training, settings.seed), (evaluation, None))
        ]
        if not self.shares[0].step:
            raise UserError(f"{len(training)} items cannot be shared out to {state.num_processes} processes")
        if settings.decay not in DECAYS:
            raise UserError(f"RATE_DECAY must be one of {', '.join(DECAYS)}, not {settings.decay!r}")
        # Frozen parameters are in it too, but have no gradients: so a checkpoint fits whatever is frozen.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, fused=state.device.type in ("cpu", "cuda")
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate_share)
        precision = chosen_precision(settings.precision, state.device)
        self.autocast = partial(torch.autocast, state.device.type, precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(state.device.type, enabled=precision == torch.float16)
        self.progress = Progress()
        collate = Collate(pad_values)
        self.loaders = [
            loader(examples, share, collate, settings.workers, state.device)
            for examples, share in zip((training, evaluation), self.shares, strict=True)
        ]
        self.pending: list[tuple[list[str], Tensor]] = []  # of the steps since losses were last looked at

    def rate_share(self, step: int) -> float:
        """The share of the learning rate that step `step`, from 0, is taken with."""
        warmup_steps = self.settings.warmup_steps
        if step < warmup_steps or self.settings.decay == "none":
            return min(1.0, (step + 1) / max(1, warmup_steps))
        done = (step - warmup_steps) / max(1, self.settings.epochs * self.shares[0].batches - warmup_steps)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2

    def fit(self, start_weights: Callable[[], str] = lambda: "all weights start at random") -> None:
        """Train all epochs that are left, from the last checkpoint; where there is none, from `start_weights()`.

        It returns a line for people.
        """
        settings = self.settings
        set_deterministic(settings.deterministic)
        torch.manual_seed(settings.seed + self.state.process_index)  # processes drop out different things
        if self.state.is_main_process:
            self.prepare_folders()
        if not (settings.resume and self.restore()):
            self.say(start_weights())
        if self.progress.epoch >= settings.epochs:
            self.say(f"all {settings.epochs} epochs are done; set more of them, or another stage, to go on")
            return
        if settings.wandb_log and self.state.is_main_process:
            self.log = wandb_logger(self.objective.project, settings)
        while self.progress.epoch < settings.epochs:
            self.train_epoch()
            self.end_epoch(self.evaluate())
        if self.state.is_main_process:
            draw_curves(settings.logs_path, settings.logs_path.with_suffix(".png"))

    def prepare_folders(self) -> None:
        """Make the folders of weights and logs, and remove what killed processes were writing there."""
        for folder in {self.settings.weights_path.parent, self.settings.logs_path.parent}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_orphans(folder)

    def train_epoch(self) -> None:
        """The epoch, or what is left of it."""
        step_items = self.shares[0].step
        self.shares[0].set(self.progress.epoch, first=self.progress.items // step_items)
        self.model.train()
        begin, seconds = time.perf_counter(), self.progress.seconds
        title = f"epoch {self.progress.epoch + 1}/{self.settings.epochs}"
        with self.bar(title, self.progress.items + len(self.shares[0]) * step_items, self.progress.items) as bar:
            for batch in checked(self.loaders[0]):
                self.step(batch)
                self.progress.items += step_items
                self.progress.seconds = seconds + time.perf_counter() - begin
                bar.update(step_items)
                save_now = self.settings.save_steps and self.progress.step % self.settings.save_steps == 0
                if save_now or self.progress.step % self.settings.log_steps == 0:
                    bar.set_postfix(loss=f"{self.log_losses():.4f}")
                if save_now:
                    self.save(last_path(self.settings.weights_path))
            if self.pending:
                bar.set_postfix(loss=f"{self.log_losses():.4f}")

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.backward(batch, self.autocast, self.scaler.scale)
        average_gradients(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.progress.step += 1
        self.pending.append((batch.names, loss))

    def log_losses(self) -> float:
        """Look at the losses since the last time, and return their mean: the one place that waits for the device.

        Raises UserError in all processes, with the step's items, where one is not a finite number.
        """
        losses = mean_over_processes(torch.stack([loss for _, loss in self.pending]).float()).tolist()
        for position, loss in enumerate(losses):
            if not np.isfinite(loss):
                step = self.progress.step - len(losses) + position + 1
                names = ", ".join(gather(self.state, self.pending[position][0]))
                raise UserError(f"the loss of step {step} is {loss}: {STOPPED}. The items of that step: {names}")
        self.pending.clear()
        self.progress.loss_sum += sum(losses) * self.shares[0].step
        self.log({"loss": losses[-1], "learning_rate": self.scheduler.get_last_lr()[0]}, self.progress.step)
        return sum(losses) / len(losses)

    def evaluate(self) -> dict[str, float]:
        """The figures of the evaluation set."""
        self.model.eval()
        with self.bar("evaluation", self.shares[1].size) as bar, self.autocast():
            return self.objective.evaluate(self.evaluation_batches(bar), self.state)

    def evaluation_batches(self, bar: tqdm) -> Iterator[Batch]:
        """This process's share of the evaluation set."""
        for batch in checked(self.loaders[1]):
            yield batch
            bar.update(min(self.shares[1].step, bar.total - bar.n))

    def end_epoch(self, figures: dict[str, float]) -> None:
        """Log the epoch, and save what is due."""
        done, settings = self.progress, self.settings
        figures = {"epoch": done.epoch + 1, "train_loss": done.loss_sum / done.items, **figures}
        self.say_epoch(figures, done.seconds)
        better = figures["eval_loss"] < done.min_eval_loss
        best = (done.epoch + 1, figures["eval_loss"]) if better else (done.best_epoch, done.min_eval_loss)
        self.progress = Progress(done.epoch + 1, step=done.step, best_epoch=best[0], min_eval_loss=best[1])
        if better:
            self.save(settings.weights_path)
        if settings.save_every and self.progress.epoch % settings.save_every == 0:
            self.save(epoch_path(settings.weights_path, self.progress.epoch))
        self.save(last_path(settings.weights_path))  # last, so that a run killed before does this epoch's end again

    # ---------- checkpoints ----------

    def save(self, path: Path) -> None:
        """Write the full state to `path`, whole or not at all. All processes take part, and the main one writes.

        Raises UserError where it cannot be written, and in all processes where a weight is not a finite number.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters() if parameter.requires_grad):
            raise UserError(f"after step {self.progress.step} there are weights that are not finite: {STOPPED}")
        random_states = gather(self.state, [random_state()])
        if not self.state.is_main_process:
            return
        checkpoint = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_sched": self.scheduler.state_dict(),
            "epoch": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "min_eval_loss": self.progress.min_eval_loss,
            "scaler": self.scaler.state_dict(),
            "frozen": self.frozen,
            "progress": asdict(self.progress),
            "random_states": random_states,
        }
        if self.objective.modality:
            checkpoint["modality"] = self.objective.modality
        try:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # some file systems find out only now that they are full
        except (OSError, RuntimeError) as error:  # torch reports what it could not write as the latter
            raise UserError(f"{path} cannot be written (is the disk full?): {error}; {STOPPED}") from error

    def restore(self) -> bool:
        """Go on from the last checkpoint of this stage, else from the weights that are there; False without any.

        A stage is a modality and what is frozen: with another one, as from symbolic music to audio or from frozen to
        trained texts, the best weights so far are taken and all counters start again.
        """
        weights_path = self.settings.weights_path
        candidates = [path for path in (last_path(weights_path), weights_path) if path.is_file()]
        for path in from_main(self.state, candidates):
            checkpoint = read_checkpoint(path)
            same_stage = checkpoint.get("modality") == self.objective.modality
            same_stage &= checkpoint.get("frozen", self.frozen) == self.frozen
            if same_stage or path == weights_path:
                break
        else:
            return False
        load_weights(self.model, path)
        if same_stage:
            self.restore_state(checkpoint)
            self.say(f"going on from {path}: {self.progress.epoch} epochs and {self.progress.items} items are done")
        else:
            self.say(f"a new stage, from the weights of {path}")
        return True

    def restore_state(self, checkpoint: dict) -> None:
        """Take everything but the weights from a checkpoint of this stage, ours or the original's."""
        if states := optimizer_states(checkpoint, self.model):
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
            own = self.scheduler.state_dict()
            self.scheduler.load_state_dict({**own, **checkpoint["lr_sched"], "base_lrs": own["base_lrs"]})
            for group in self.optimizer.param_groups:  # the rate is the configured one
                group["lr"] = group["initial_lr"] * self.rate_share(self.scheduler.last_epoch)
        else:
            self.say("optimizer and warm-up start anew: the checkpoint has no such state, or one that does not fit")
        if "progress" not in checkpoint:  # the original's
            self.progress = Progress(
                epoch=int(checkpoint.get("epoch", 0)),
                step=self.scheduler.last_epoch,
                best_epoch=int(checkpoint.get("best_epoch", 0)),
                min_eval_loss=float(checkpoint.get("min_eval_loss", "inf")),
            )
            return
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.progress = Progress(**checkpoint["progress"])
        if len(checkpoint["random_states"]) == self.state.num_processes:
            set_random_state(checkpoint["random_states"][self.state.process_index])

    # ---------- what people see ----------

    def say(self, text: str) -> None:
        if self.state.is_main_process:
            tqdm.write(text)

    def bar(self, title: str, total: int, done: int = 0) -> tqdm:
        hidden = not self.state.is_main_process
        return tqdm(desc=title, total=total, initial=done, unit="item", dynamic_ncols=True, disable=hidden)

    def say_epoch(self, figures: dict[str, float], seconds: float) -> None:
        """Add the epoch to the text log, to the figures beside it and to the logger, and print it."""
        if not self.state.is_main_process:
            return
        path = self.settings.logs_path
        lines = [f"Epoch {figures['epoch']}", *(f"{name}: {figures[name]}" for name in ("train_loss", "eval_loss"))]
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join([*lines, f"time: {time.asctime()}", "", ""]))
        with open(figures_path(path), "a", encoding="utf-8") as file:
            file.write(json.dumps({**figures, "step": self.progress.step, "seconds": seconds}) + "\n")
        self.log(figures, self.progress.step)
        self.say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f" ({seconds:.0f} s)")


def set_deterministic(deterministic: bool) -> None:
    """Let a run that is repeated give the same weights. What cannot do so raises RuntimeError."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # a check, not what makes runs repeatable
    torch.use_deterministic_algorithms(deterministic)


def chosen_precision(name: str, device: torch.device) -> torch.dtype:
    """What the towers compute in; "auto": bf16 on GPUs that have it, fp16 on others, fp32 elsewhere."""
    if name != "auto":
        return PRECISIONS[checked_precision(name)]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
