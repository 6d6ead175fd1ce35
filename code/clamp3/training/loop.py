"""One training loop for M3 and for CLaMP 3 with symbolic music or audio, in one process or many."""

import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clamp3.distributed import PRECISIONS, checked_precision, from_main, gather, long_work, on_main
from clamp3.errors import OneProcessError, UserError, is_out_of_memory
from clamp3.io.files import remove_orphans
from clamp3.io.reports import FileIssue, load_issues
from clamp3.models.description import ENTRY
from clamp3.models.weights import load_weights
from clamp3.training import lora
from clamp3.training.batches import Batch, Collate, GlobalBatchSampler, Loader, is_worker_error
from clamp3.training.checkpoints import (
    STOPPED,
    Progress,
    Stage,
    checkpoint_of,
    describe_run,
    epoch_path,
    find_checkpoint,
    last_path,
    link_checkpoint,
    named_failures,
    progress_of,
    restore_optimizer,
    run_lock,
    skipped_path,
    without_optimizer,
    write_checkpoint,
)
from clamp3.training.checks import SHOWN_ISSUES, SkippedItems, line_of
from clamp3.training.curves import draw_curves, figures_path, wandb_logger
from clamp3.training.data import Examples, Pairs
from clamp3.training.distributed import (
    data_parallel,
    mean_over_processes,
    random_state,
    set_random_state,
)
from clamp3.training.learning import FEWEST_ITEMS, Learning
from clamp3.training.monitor import Bar, MakeBar, NoBar
from clamp3.training.neighbours import (
    Numbered,
    load_neighbours,
    nearest_items,
    neighbours_path,
    same_items,
    save_neighbours,
    with_neighbours,
)
from clamp3.training.objectives import Contrastive, Reconstruction
from clamp3.training.settings import Lora, Settings

if TYPE_CHECKING:
    from accelerate import PartialState

DECAYS = ("none", "cosine")

logger = logging.getLogger("clamp3")


class Trainer:
    """Trains the model of `objective` as `settings` say; `fit` does it all.

    What people should know is logged by the logger "clamp3", in the main process.
    """

    def __init__(
        self,
        objective: Contrastive | Reconstruction,
        training: Examples,
        evaluation: Examples,
        pad_values: dict[str, int],
        settings: Settings,
        state: "PartialState",
        make_bar: MakeBar = NoBar,
        issues: Sequence[FileIssue] = (),
    ):
        """`pad_values` says what fills up which sequence; `state` is what `clamp3.distributed.start` returns.

        `issues` are those that are known of the items; the same in all processes.
        """
        self.objective, self.settings, self.state = objective.to(state.device), settings, state
        self.model = objective.model
        self.make_bar = make_bar if state.is_main_process else NoBar
        self.log: Callable[[dict, int], None] = lambda _figures, _step: None
        frozen = {name.split(".")[0] for name, p in self.model.named_parameters() if not p.requires_grad}
        trained = [f"all but {settings.lora}"] if settings.lora else []
        self.stage = Stage(objective.modality, [*sorted(frozen), *trained])
        facts = self.stage, training, evaluation, settings.knobs, settings.audio_encoder
        self.describe = cache(partial(describe_run, *facts))
        self.samplers = [
            GlobalBatchSampler(len(examples), settings.batch_size, state.num_processes, state.process_index, seed)
            for examples, seed in ((training, settings.seed), (evaluation, None))
        ]
        settings.check_suffix()
        if not self.samplers[0].global_batch_size:
            raise UserError(f"{len(training)} items cannot be shared out to {state.num_processes} processes")
        if settings.decay not in DECAYS:
            raise UserError(f"RATE_DECAY must be one of {', '.join(DECAYS)}, not {settings.decay!r}")
        # Frozen parameters are in it too, but have no gradients: so a checkpoint fits whatever is frozen.
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, fused=state.device.type in ("cpu", "cuda")
        )
        self.steps = settings.epochs * self.samplers[0].batches_per_epoch  # of the whole run
        self.warmup_steps = int(min(settings.warmup_steps, settings.longest_warmup * self.steps))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.lr_multiplier)
        precision = chosen_precision(settings.precision, state.device)
        self.autocast = partial(torch.autocast, state.device.type, precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(state.device.type, enabled=precision == torch.float16)
        self.progress = Progress()
        self.learning = Learning(settings.init_weights)
        self.collate = Collate(pad_values)
        self.loaders = [
            Loader(examples, sampler, self.collate, settings.workers, state.device)
            for examples, sampler in zip((training, evaluation), self.samplers, strict=True)
        ]
        self.pending: list[tuple[list[str], Tensor]] = []  # names and loss of the steps since `log_losses`
        total = len(training) + len(evaluation)
        self.skipped = SkippedItems(skipped_path(settings.weights_path), total, settings.max_skipped_share)
        self.new_issues = list(issues)  # those of this process that are not in `skipped` yet
        self.read = 0  # items of this process
        self.remarks: Counter[str] = Counter()  # of how many of them the input encoder made each
        self.told_remarks = False

    @cached_property
    def parallel_objective(self) -> nn.Module:
        """The objective, its gradients averaged over the processes.

        It is made for the first step, when the model has its first weights: then all processes take those of rank 0.
        """
        return data_parallel(self.objective)

    def lr_multiplier(self, step: int) -> float:
        """Learning-rate multiplier at 0-based `step`."""
        warmup_steps = self.warmup_steps
        if step < warmup_steps or self.settings.decay == "none":
            return min(1.0, (step + 1) / max(1, warmup_steps))
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2

    def fit(self, start_weights: Callable[[], str] = lambda: "all weights start at random") -> None:
        """Train all epochs that are left, from the last checkpoint; where there is none, from `start_weights()`.

        It fills the model, and returns a line that says with what.
        """
        cause = ""
        try:
            with contextlib.ExitStack() as stack:
                self.in_main(lambda: stack.enter_context(run_lock(self.settings.weights_path)))
                self.in_main(self.prepare_folders)
                with deterministic(self.settings.deterministic):
                    self.train_epochs(start_weights)
        except (RuntimeError, MemoryError) as error:
            cause = self.outer_cause(error)
            if not cause:
                raise
        if cause:  # without the error itself, whose traceback keeps memory and data workers alive
            raise OneProcessError(cause)

    def train_epochs(self, start_weights: Callable[[], str]) -> None:
        """All that `fit` does once nobody else writes to the run's files."""
        settings = self.settings
        torch.manual_seed(settings.seed + self.state.process_index)  # processes drop out different things
        checkpoints = self.checkpoints() if settings.resume else []
        with long_work(self.state):  # weights are downloaded, or read by all processes from one disk
            if self.state.is_main_process:
                self.describe()
            if not self.restore(checkpoints):
                self.tell(start_weights())
                self.learning.begin(self.model)
        if self.progress.step:
            self.skipped.add(from_main(self.state, load_issues(self.skipped.path)))
        self.note_skipped(self.new_issues)
        if settings.hard_negatives:
            self.arrange_neighbours(self.loaders[0].dataset)
        if self.state.is_main_process:
            self.skipped.save()  # a new run's list takes the place of another's
        if self.progress.epoch >= settings.epochs or self.stops_early():
            done = "" if self.stops_early() else f"all {settings.epochs} epochs are done"
            self.tell(f"{done or self.early_end()}; set more of them, or another stage, to go on")
            if from_main(self.state, not self.picture.exists()):  # it was killed behind its last checkpoint
                self.end()
            return
        self.warn_of_short_run()
        if settings.wandb_log and self.state.is_main_process:
            self.log = wandb_logger(self.objective.project, settings)
        while self.progress.epoch < settings.epochs and not self.stops_early():
            self.train_epoch()
            self.end_epoch(self.evaluate())
        if self.progress.epoch < settings.epochs:
            self.tell(self.early_end())
        self.end()

    def end(self) -> None:
        """What follows the last epoch: say what was odd about the run, and draw its curves."""
        for complaint in self.learning.complaints(self.model, self.progress.step, self.samplers[1].size):
            self.warn(complaint)
        self.in_main(self.draw)

    @property
    def picture(self) -> Path:
        """Of the run's curves, beside its log."""
        return self.settings.logs_path.with_suffix(".png")

    def arrange_neighbours(self, pairs: Examples) -> None:
        """Let batches hold neighbours, as the first weights find them; the same in all processes and restarts."""
        sampler, path = self.samplers[0], neighbours_path(self.settings.weights_path)
        hard, size = self.settings.hard_negatives * self.state.num_processes, sampler.global_batch_size
        if not isinstance(pairs, Pairs) or not 0 < hard < size:
            raise UserError(f"HARD_NEGATIVES takes {hard} of the {size} items of a batch: it must leave some of them")
        same, step = on_main(self.state, lambda: same_items(pairs)), self.progress.step
        found = from_main(self.state, load_neighbours(path, same) if step else None)
        if found is None:
            if step:
                self.warn(f"no neighbours of these items are in {path}: they are found by the weights of step {step}")
            with long_work(self.state):
                parts = gather(self.state, [self.features_of(pairs)])
            parts = [part for part in parts if len(part[0])]
            if not parts:
                raise UserError("HARD_NEGATIVES: no item can be read")
            indices, features = (torch.cat(found).to(self.state.device) for found in zip(*parts, strict=True))
            found = nearest_items(indices, features, torch.from_numpy(same))
            self.in_main(lambda: save_neighbours(path, same, found))
            found = from_main(self.state, found)
        sampler.arrange = partial(with_neighbours, neighbours=found, size=size, hard=hard)

    @torch.no_grad()
    def features_of(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Indices (n,) and features of text and music (n, 2, hidden) of this process's share of the items."""
        state, batch_size = self.state, self.settings.batch_size
        sampler = GlobalBatchSampler(len(pairs), batch_size, state.num_processes, state.process_index, None)
        loader = Loader(Numbered(pairs), sampler, self.collate, self.settings.workers, state.device)
        indices, features = [torch.zeros(0, dtype=torch.long)], []
        self.model.eval()
        with self.make_bar("finding neighbours", len(pairs)) as bar, self.autocast():
            for batch in loader:
                if len(batch):
                    indices.append(torch.tensor([int(name) for name in batch.names]))
                    features.append(torch.stack([side.float() for side in self.objective(batch)], dim=1).cpu())
                bar.update(len(batch) * state.num_processes)
        return torch.cat(indices), torch.cat(features) if features else torch.zeros(0)

    def stops_early(self) -> bool:
        """Whether so many epochs have brought no better evaluation loss that the run is over."""
        patience = self.settings.early_stopping
        return 0 < patience <= self.progress.epoch - self.progress.best_epoch

    def early_end(self) -> str:
        return (
            f"ended after {self.progress.epoch} epochs, as none since epoch {self.progress.best_epoch} has had a "
            f"lower evaluation loss (EARLY_STOPPING {self.settings.early_stopping})"
        )

    def warn_of_short_run(self) -> None:
        """Say what of the settings does not suit a run as short, or a set as small, as this one."""
        if self.warmup_steps < self.settings.warmup_steps:
            self.warn(
                f"warm-up is shortened from {self.settings.warmup_steps} steps (WARMUP_STEPS) to {self.warmup_steps}: "
                f"it may take a share of {self.settings.longest_warmup:g} of this run's {self.steps} steps"
            )
        items = self.samplers[1].size
        if items < FEWEST_ITEMS:
            self.warn(
                f"items in the evaluation set: {items}, fewer than {FEWEST_ITEMS}, so that its figures may not tell a "
                "better epoch from a worse one (EVAL_SPLIT, CLAMP3_EVAL_JSONL or M3_EVAL_FOLDERS hold out more)"
            )

    def outer_cause(self, error: BaseException) -> str:
        """What to tell of an error that this process meets alone, and whose cause lies outside; "" for any other."""
        if is_worker_error(error):
            return f"a process that reads training data has ended (killed?): {first_line(error)}; {STOPPED}"
        if is_out_of_memory(error):
            text = f"out of memory after step {self.progress.step}, with {self.settings.batch_size} items at once"
            return f"{text}: {first_line(error)}. {self.objective.less_memory}, or fewer items in a batch; {STOPPED}"
        return ""

    def in_main(self, work: Callable[[], Any]) -> None:
        """Let the main process do some work on files; a UserError there is raised in all processes."""
        error = None
        if self.state.is_main_process:
            try:
                work()
            except UserError as raised:
                error = raised
        error = from_main(self.state, error)
        if error is not None:
            raise error

    def prepare_folders(self) -> None:
        """Make the folders of weights and logs, and remove what killed processes were writing there."""
        for folder in {self.settings.weights_path.parent, self.settings.logs_path.parent}:
            with named_failures(folder):
                folder.mkdir(parents=True, exist_ok=True)
            remove_orphans(folder)

    def draw(self) -> None:
        """The picture, if that is possible."""
        try:
            draw_curves(self.settings.logs_path, self.picture)
        except (UserError, OSError) as error:
            logger.info("no picture of the curves: %s", error)

    def train_epoch(self) -> None:
        """The epoch, or what is left of it."""
        sampler = self.samplers[0]
        size = sampler.global_batch_size
        sampler.set(self.progress.epoch, first=self.progress.items // size)
        self.model.train()
        begin, seconds = time.perf_counter(), self.progress.seconds
        title = f"epoch {self.progress.epoch + 1}/{self.settings.epochs}"
        with self.make_bar(title, self.progress.items + len(sampler) * size, self.progress.items) as bar:
            for batch in self.loaders[0]:
                self.note(batch)
                if len(batch) < size // self.state.num_processes:
                    last = line_of(batch.skipped[-1])
                    raise OneProcessError(f"one item after another cannot be read, such as {last}; {STOPPED}")
                self.step(batch)
                self.progress.items += size
                self.progress.seconds = seconds + time.perf_counter() - begin
                bar.update(size)
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
        loss = self.objective.backward(batch, self.autocast, self.scaler.scale, self.parallel_objective)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.progress.step += 1
        self.pending.append((batch.names, loss))

    def log_losses(self) -> float:
        """Look at the losses since the last time, and return their mean: the one place that waits for the device.

        Raises UserError in all processes, with the step's items, where one is not a finite number.
        """
        own = torch.stack([loss for _, loss in self.pending]).float()
        *losses, issues = mean_over_processes(torch.cat([own, own.new_tensor([len(self.new_issues)])])).tolist()
        if issues:
            self.note_skipped(gather(self.state, self.new_issues))
        for position, loss in enumerate(losses):
            if not np.isfinite(loss):
                step = self.progress.step - len(losses) + position + 1
                names = ", ".join(gather(self.state, self.pending[position][0]))
                raise UserError(f"the loss of step {step} is {loss}: {STOPPED}. The items of that step: {names}")
        self.pending.clear()
        self.progress.loss_sum += sum(losses) * self.samplers[0].global_batch_size
        self.log({"loss": losses[-1], "learning_rate": self.scheduler.get_last_lr()[0]}, self.progress.step)
        return sum(losses) / len(losses)

    def evaluate(self) -> dict[str, float]:
        """The figures of the evaluation set."""
        self.model.eval()
        with self.make_bar("evaluation", self.samplers[1].size) as bar, self.autocast():
            return self.objective.evaluate(self.evaluation_batches(bar), self.state)

    def evaluation_batches(self, bar: Bar) -> Iterator[Batch]:
        """This process's share of the evaluation set."""
        left, size = self.samplers[1].size, self.samplers[1].global_batch_size
        for batch in self.loaders[1]:
            self.note(batch)
            yield batch
            bar.update(min(size, left))
            left -= min(size, left)

    def end_epoch(self, figures: dict[str, float]) -> None:
        """Log the epoch, and save what is due."""
        self.note_skipped(gather(self.state, self.new_issues))  # of the evaluation
        done = self.progress
        figures = {"epoch": done.epoch + 1, "train_loss": done.loss_sum / done.items, **figures}
        self.in_main(lambda: self.log_epoch(figures, done.seconds))
        self.tell_remarks()
        self.learning.evaluations.append({k: v for k, v in figures.items() if k == "eval_loss" or k.endswith("MRR")})
        better = figures["eval_loss"] < done.min_eval_loss
        best = (done.epoch + 1, figures["eval_loss"]) if better else (done.best_epoch, done.min_eval_loss)
        self.progress = Progress(done.epoch + 1, step=done.step, best_epoch=best[0], min_eval_loss=best[1])
        checkpoint = self.checkpoint()
        self.in_main(lambda: self.write_epoch(checkpoint, better))

    def write_epoch(self, checkpoint: dict, better: bool) -> None:
        """Write the files that are due after an epoch."""
        path, last = self.settings.weights_path, last_path(self.settings.weights_path)
        if self.settings.lora and not self.settings.lora.merge:
            self.write_adapters(self.settings.lora, checkpoint, better)
            return
        if self.settings.save_every and self.progress.epoch % self.settings.save_every == 0:
            write_checkpoint(epoch_path(path, self.progress.epoch), without_optimizer(checkpoint))
        # The last state comes last, so that a run that is killed before does the end of this epoch again.
        if better:
            write_checkpoint(path, checkpoint)
        if better and path.suffix == last.suffix:
            link_checkpoint(path, last)
        else:
            write_checkpoint(last, checkpoint)

    def write_adapters(self, adapters: Lora, checkpoint: dict, better: bool) -> None:
        """As `write_epoch`, for a run whose adapters are kept on their own."""
        settings, epoch, path = self.settings, self.progress.epoch, self.settings.weights_path
        is_due = settings.save_every and epoch % settings.save_every == 0
        for weights in [epoch_path(path, epoch)] * bool(is_due) + [path] * better:
            folder = lora.adapter_path(weights)
            with named_failures(folder):
                lora.save_adapter(self.model, adapters, folder, settings.init_weights)
        write_checkpoint(last_path(path), checkpoint)

    # ---------- checkpoints ----------

    def checkpoint(self) -> dict:
        """The full state, in which all processes take part.

        Raises UserError in all of them where a weight is not a finite number.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters() if parameter.requires_grad):
            raise UserError(f"after step {self.progress.step} there are weights that are not finite: {STOPPED}")
        parts = self.model, self.optimizer, self.scheduler, self.scaler, self.progress, self.stage
        random_states = gather(self.state, [random_state(self.state.device)])
        others: dict[str, Any] = {
            "random_states": random_states,
            "global_batch_size": self.samplers[0].global_batch_size,
            "warmup_steps": self.warmup_steps,
            "learning": self.learning.state_dict(),
        }
        if self.settings.lora:
            names = [name for name, _ in self.model.named_parameters()]
            others["lora"] = {"state": lora.state(self.model), "parameters": names}
        others[ENTRY] = self.describe() if self.state.is_main_process else {}
        return checkpoint_of(*parts, **others)

    def save(self, path: Path) -> None:
        """Write the full state to `path`, whole or not at all. All processes take part, and the main one writes."""
        checkpoint = self.checkpoint()
        self.in_main(lambda: write_checkpoint(path, checkpoint))

    def checkpoints(self) -> list[Path]:
        """The files that the run may go on from, the newest first; the same in all processes."""
        path = self.settings.weights_path
        return from_main(self.state, [file for file in (last_path(path), path) if file.is_file()])

    def restore(self, checkpoints: list[Path] | None = None) -> bool:
        """Go on from the last checkpoint of this stage, else from the weights that are there; False without any.

        With another stage, as from symbolic music to audio or from frozen to trained texts, the best weights so far
        are taken and all counters start again.
        """
        found = find_checkpoint(self.checkpoints() if checkpoints is None else checkpoints, self.stage)
        if not found:
            return False
        path, checkpoint = found
        if not self.stage.wrote(checkpoint) and path != self.settings.weights_path:
            return False
        load_weights(self.model, path)
        self.warn_of_other_start(checkpoint, path)
        if self.stage.wrote(checkpoint):
            self.restore_state(checkpoint)
            self.tell(f"going on from {path}: {self.progress.epoch} epochs and {self.progress.items} items are done")
            self.tell_changes(checkpoint)
        else:
            self.tell(f"a new stage, from the weights of {path}")
            self.learning.begin(self.model)
        return True

    def warn_of_other_start(self, checkpoint: dict, path: Path) -> None:
        """Say where the run did not start with the weights that are configured now."""
        wanted, before = self.settings.init_weights, checkpoint.get("learning", {}).get("init_weights", "")
        if wanted and wanted != before:
            origin = f"started with {before}" if before else "did not start with them"
            self.warn(
                f"{wanted} is not read: the run of {path}, which goes on, {origin}. For a new run give another path, "
                "or remove the old run's files"
            )

    def restore_state(self, checkpoint: dict) -> None:
        """Take everything but the weights from a checkpoint of this stage, ours or the original's."""
        if "warmup_steps" not in checkpoint:  # of a version that shortened no warm-up: the schedule stays what it was
            self.warmup_steps = self.settings.warmup_steps
        own = checkpoint
        if self.settings.lora:  # the optimizer's parameters are not those that the merged weights are named after
            lora.restore(self.model, checkpoint["lora"]["state"])
            own = {**checkpoint, "model": dict.fromkeys(checkpoint["lora"]["parameters"])}
        if not restore_optimizer(own, self.model, self.optimizer, self.scheduler):
            self.tell("optimizer and warm-up start anew: the checkpoint has no such state, or one that does not fit")
        self.progress = progress_of(checkpoint, self.scheduler.last_epoch)
        if "learning" in checkpoint:
            self.learning.load_state_dict(checkpoint["learning"])
        if "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])
        random_states = checkpoint.get("random_states", [])
        if len(random_states) == self.state.num_processes:
            set_random_state(random_states[self.state.process_index], self.state.device)

    def tell_changes(self, checkpoint: dict) -> None:
        """Say what another number of processes, or another batch size, means for the rest of the run."""
        sampler, processes = self.samplers[0], len(checkpoint.get("random_states", []))
        before, now = checkpoint.get("global_batch_size"), sampler.global_batch_size
        if processes and processes != self.state.num_processes:
            self.tell(
                f"processes: {self.state.num_processes}, where the checkpoint had {processes}: dropout is drawn anew, "
                "so the weights will not be those of a run without a restart"
            )
        if before and before != now:
            steps = sampler.size // before, sampler.batches_per_epoch
            again = self.progress.items % now
            lines = [
                f"a global batch has {now} items where it had {before}",
                f"an epoch has {steps[1]} steps, not {steps[0]}",
                f"warm-up ({self.warmup_steps} steps) and decay go on from step {self.progress.step}"
                f" of now {self.settings.epochs * steps[1]}",
                f"the learning rate stays {self.settings.learning_rate:g}",
            ]
            if again:
                lines.append(f"{again} items of this epoch are trained on again")
            self.tell("; ".join(lines))

    # ---------- what people see ----------

    def tell(self, text: str) -> None:
        """Log a line, once."""
        if self.state.is_main_process:
            logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Log a line about what may not be as it is meant to be, once."""
        if self.state.is_main_process:
            logger.warning("note: %s", text)

    def note(self, batch: Batch) -> None:
        """Count what a batch says of its items."""
        self.read += len(batch)
        self.remarks += batch.remarks
        self.new_issues += batch.skipped

    def note_skipped(self, issues: Sequence[FileIssue]) -> None:
        """Log and list the items that are skipped, once each; `issues` are those of all processes.

        Raises UserError in all of them where there are too many.
        """
        self.new_issues = []
        before, new = len(self.skipped.issues), self.skipped.add(issues)
        if new and self.state.is_main_process:
            self.skipped.save()
            for issue in new[: max(0, SHOWN_ISSUES - before)]:
                self.tell(f"skipped: {line_of(issue)}")
            self.tell(f"items skipped so far: {len(self.skipped.issues)}; all of them are in {self.skipped.path}")
        self.skipped.check()

    def tell_remarks(self) -> None:
        """Say once, after the first epoch since the start, of how many items the input encoder made which remark."""
        if not self.told_remarks:
            self.told_remarks = True
            read = sum(gather(self.state, [self.read]))
            for remark, count in sum(gather(self.state, [self.remarks]), Counter[str]()).items():
                self.tell(f"{remark}: {count} of the {read} items read so far")

    def log_epoch(self, figures: dict[str, float], seconds: float) -> None:
        """Add the epoch to the text log and to the figures beside it, and log it."""
        path = self.settings.logs_path
        lines = [f"Epoch {figures['epoch']}", *(f"{name}: {figures[name]}" for name in ("train_loss", "eval_loss"))]
        with named_failures(path), open(path, "a", encoding="utf-8") as file:
            file.write("\n".join([*lines, f"time: {time.asctime()}", "", ""]))
        with named_failures(figures_path(path)), open(figures_path(path), "a", encoding="utf-8") as file:
            file.write(json.dumps({**figures, "step": self.progress.step, "seconds": seconds}) + "\n")
        self.log(figures, self.progress.step)
        self.tell(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f" ({seconds:.0f} s)")


def first_line(error: BaseException) -> str:
    """What `error` says, in its first line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Where a run that is repeated gives the same weights, if `enabled`. What cannot do so raises RuntimeError.

    On CUDA the environment must hold CUBLAS_WORKSPACE_CONFIG=:4096:8, as the training commands see to.
    """
    flags: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory
    if enabled:
        flags.fill_uninitialized_memory = False  # a check, not what makes runs repeatable
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        flags.fill_uninitialized_memory = before[1]


def chosen_precision(name: str, device: torch.device) -> torch.dtype:
    """What the towers compute in; "auto": bf16 on GPUs that have it, fp16 on others, fp32 elsewhere."""
    if name != "auto":
        return PRECISIONS[checked_precision(name)]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
