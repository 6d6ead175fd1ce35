"""Runs of training that are killed at random moments and started again, against runs that are left alone.

    python tests/killed_runs.py MODEL_FOLDER DATA_FOLDER OUTPUT_FOLDER SEED
Each run is a fork of this process, or two of them that find each other by gloo: so nothing has to be imported anew.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which optimizers need: once for all forks

sys.path.insert(0, str(Path(__file__).parent.parent / "code"))
from clamp3.distributed import finish, start
from forks import free_port, launched
from training_runs import differences, make_trainer

LEFT_ALONE = 10**9
RUNS = [  # what is trained, in how many processes, and with how many data workers each
    ({"kind": "symbolic", "micro_batch": 3}, 1, 0),
    ({"kind": "m3", "epochs": 1, "save_every": 1}, 1, 1),
    ({"kind": "audio", "frozen": ("text_model", "text_proj")}, 2, 0),
]


def main() -> None:
    model_folder, data_folder, output = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    chance = random.Random(int(sys.argv[4]))
    for number, (options, processes, workers) in enumerate(RUNS):
        options = {**options, "model_folder": model_folder, "data_folder": data_folder}
        whole, broken = output / f"{number}_whole", output / f"{number}_broken"
        train({**options, "output": whole}, processes, LEFT_ALONE, chance)
        kills, saves = 0, chance.randint(1, 3)
        while not train({**options, "output": broken, "workers": workers}, processes, saves, chance):
            kills += 1
            saves = chance.randint(1, 3) if kills < 2 else LEFT_ALONE
        compare(whole, broken)
        print(f"equal after {kills} kills: {options['kind']}, {processes} processes, {workers} workers", flush=True)


def train(options: dict, processes: int, saves: int, chance: random.Random) -> bool:
    """Start a run, and kill it some time after so many checkpoints; returns whether it came to its end."""
    port = free_port()
    children = [fork(options, rank, processes, port) for rank in range(processes)]
    name = "weights_m3_last.pth" if options["kind"] == "m3" else "weights_clamp3_last.pth"
    newest, deadline = written(options["output"] / name), time.monotonic() + 120
    while saves and time.monotonic() < deadline:
        now = written(options["output"] / name)
        saves, newest = saves - (now != newest), now
        done, status = os.waitpid(children[0], os.WNOHANG)
        if done:
            codes = [status, *(os.waitpid(child, 0)[1] for child in children[1:])]
            assert not any(codes), codes
            return True
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.1))
    for child in chance.sample(children, len(children)):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert time.monotonic() < deadline, "it hangs"
    return False


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def fork(options: dict, rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= launched(rank, processes, port)
        state = start("cpu", threads=1)
        how = {"epochs": 2, "batch_size": 8 // processes, "save_steps": 2, "save_every": 2}
        make_trainer(**{**how, **options}, state=state).fit()
        finish(state)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def compare(whole: Path, broken: Path) -> None:
    """Checkpoints, and the lists of the items that were skipped."""
    listed = [sorted(next(folder.glob("*_skipped.jsonl")).read_text().splitlines()) for folder in (broken, whole)]
    assert listed[0] == listed[1] != [], listed
    names = sorted(path.name for path in whole.glob("*.pth"))
    assert len(names) == 3 and names == sorted(path.name for path in broken.glob("*.pth"))
    for name in names:
        different = differences(*(torch.load(folder / name, weights_only=True) for folder in (broken, whole)))
        assert not different, (name, different[:3])


if __name__ == "__main__":
    main()
