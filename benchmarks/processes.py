"""How fast 1, 2 and 4 processes train together on one machine, with the overlap of reduction and backward on and off.

    python benchmarks/processes.py                            both models: ten minutes on two cores
    python benchmarks/processes.py --only tiny --rounds 5     one of them
    python benchmarks/processes.py --json figures.json        the figures as JSON too
    python benchmarks/processes.py --quick                    few items, a shallow model, one round: does it run?
It prints a Markdown table. However many processes there are, they share the machine's cores, compute the gradient of
the same global batch of folk tunes, and talk by gloo. With overlap, DistributedDataParallel reduces gradients while
backward computes others, as training does; without, all gradients are reduced at once when backward is done. The two
take turns, step by step, in the same processes; the numbers of processes take turns by rounds. Batches are ready in
memory. Run it on an otherwise idle machine: it says how much of the processor other work took.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

from group import run_together
from report import add_parts_option, benchmark_parser, conditions, show, table_row
from training import Contest, Measure

PARTS = {"tiny": "hidden size 128", "middle": "hidden size 384"}
PROCESSES, FEW_PROCESSES = (1, 2, 4), (1, 2)
MEASURES = {"tiny": Measure(512, 64), "middle": Measure(192, 32)}  # items, and a global batch
QUICK = {name: Measure(32, 8) for name in PARTS}
GROUP = "CLAMP3_BENCHMARK_GROUP"  # the environment variable that tells a process what to do in its group


def main() -> int:
    if GROUP in os.environ:
        return train_in_group(**json.loads(os.environ[GROUP]))
    parser = benchmark_parser(__doc__, "of all contenders; default 3", "few items, a shallow model, one round")
    add_parts_option(parser, PARTS)
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import measure

    rounds = 1 if args.quick else args.rounds or 3
    interference = measure.Interference()
    figures = {"machine": measure.machine(), "quick": args.quick, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            found = {count: [] for count in (FEW_PROCESSES if args.quick else PROCESSES)}
            Contest(Path(folder, name), name, chosen(args.quick)[name], args.quick)  # writes what the groups read
            for number in range(rounds):
                for count in found:
                    measure.note(f"{PARTS[name]}: round {number + 1} of {rounds}, processes: {count}")
                    work = {"folder": str(Path(folder, name)), "name": name, "quick": args.quick}
                    told = run_together([sys.executable, __file__], count, **{GROUP: json.dumps(work)})
                    found[count].append(json.loads(told.splitlines()[-1]))
            figures[name] = {count: summary(runs) for count, runs in found.items()}
    figures["interference"] = interference.share()
    show(figures, markdown(figures), args.json)
    return 0


def chosen(quick: bool) -> dict[str, Measure]:
    return QUICK if quick else MEASURES


def summary(runs: list[dict]) -> dict:
    """Medians over the rounds; the ratio of the overlap is that of neighbouring steps."""
    return {key: None if runs[0][key] is None else median(run[key] for run in runs) for key in runs[0]}


def markdown(figures: dict) -> Iterator[str]:
    """The table, as lines."""
    yield from conditions(figures)
    yield ""
    yield table_row("model", "gradients", "processes", "overlap on", "overlap off", "on, over off", "over one process")
    yield "|---|---|---|---|---|---|---|"
    for name in (name for name in PARTS if name in figures):
        for count, found in figures[name].items():
            off = "" if count == 1 else f"{found['off']:.1f} items/s, {found['reducing']:.0%} of it reducing"
            ratio = "" if count == 1 else f"{found['ratio']:.2f}x"
            whole = f"{found['on'] / figures[name][1]['on']:.2f}x"
            size = f"{found['gradient_bytes'] / 1e6:.0f} MB"
            yield table_row(PARTS[name], size, str(count), f"{found['on']:.1f} items/s", off, ratio, whole)


# ---------- in each process of a group ----------


def train_in_group(folder: str, name: str, quick: bool) -> int:
    """Train for some steps with overlap and without in turn; the main process prints the figures as JSON."""
    from clamp3.distributed import finish

    measure = chosen(quick)[name]
    contest = Contest(Path(folder), name, measure, quick)
    contest.workers, processes = 0, contest.state.num_processes
    trainer = contest.trainer(batch_size=measure.batch_size // processes)
    batches, size = list(islice(trainer.loaders[0], measure.items // measure.batch_size)), measure.batch_size
    seconds, reducing = {True: [], False: []}, []
    for number, batch in enumerate([batches[0], *batches]):  # the first takes memory, and does not count
        for overlap in (True, False) if processes > 1 else (True,):
            contest.state.wait_for_everyone()
            begin = time.perf_counter()
            reduced = step(trainer, batch, overlap)
            contest.state.wait_for_everyone()
            if number:
                seconds[overlap].append(time.perf_counter() - begin)
                reducing += [] if overlap else [reduced]
    found = {"on": size / median(seconds[True]), "off": None, "ratio": None, "reducing": None}
    found["gradient_bytes"] = sum(4 * p.numel() for p in trainer.model.parameters() if p.grad is not None)
    if processes > 1:
        found |= {"off": size / median(seconds[False]), "reducing": median(reducing) / median(seconds[False])}
        found["ratio"] = median(off / on for on, off in zip(seconds[True], seconds[False], strict=True))
    if contest.state.is_main_process:
        print(json.dumps(found))
    finish(contest.state)
    return 0


def step(trainer, batch, overlap: bool) -> float:
    """A step of training; returns the seconds in which it did nothing but reduce gradients, 0 with overlap."""
    from clamp3.training.distributed import gradient_sync

    if overlap:
        trainer.step(batch)
        trainer.pending.clear()
        return 0.0
    trainer.optimizer.zero_grad(set_to_none=True)
    with gradient_sync(trainer.parallel_objective, enabled=False):
        trainer.objective.backward(batch, trainer.autocast, trainer.scaler.scale, trainer.parallel_objective)
    begin = time.perf_counter()
    average([p.grad for p in trainer.model.parameters() if p.grad is not None])
    seconds = time.perf_counter() - begin
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.scheduler.step()
    return seconds


def average(gradients: list) -> None:
    """Put the mean over the processes in place of each gradient, in one operation for all of them."""
    import torch
    import torch.distributed as dist

    together = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(together)
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "code"))  # config.py, for the knobs
    sys.exit(main())
