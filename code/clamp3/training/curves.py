import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from clamp3.errors import UserError
from clamp3.training.settings import Settings


def figures_path(logs_path: Path) -> Path:
    """The figures of each epoch as JSON lines, beside the text log."""
    return logs_path.with_suffix(".jsonl")


def wandb_logger(project: str, settings: Settings) -> Callable[[dict, int], None]:
    """Logs figures of a step to Weights & Biases: offline where no key is known, not at all where it does not work."""
    key = "" if settings.wandb_key.startswith("<") else settings.wandb_key
    try:
        import wandb

        if key:
            wandb.login(key=key)
        mode = os.environ.get("WANDB_MODE") or ("online" if key or has_wandb_login() else "offline")
        described = {name: str(value) for name, value in asdict(settings).items() if name != "wandb_key"}
        run = wandb.init(project=project, mode=mode, config=described)
    except Exception as error:  # a log is never worth a run
        tqdm.write(f"no log to Weights & Biases: {error}")
        return lambda _figures, _step: None
    return lambda figures, step: run.log(figures, step=step)


def has_wandb_login() -> bool:
    """Whether this user has a key in the environment or has logged in on this machine."""
    login = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return "WANDB_API_KEY" in os.environ or (login.is_file() and "wandb" in login.read_text())


def draw_curves(logs_path: Path, picture: Path) -> int:
    """Draw losses and retrieval figures over the epochs, as far as a run has come; returns the exit code 0."""
    from matplotlib.figure import Figure

    if not figures_path(logs_path).is_file():
        raise UserError(f"there is no {figures_path(logs_path)}: no epoch has ended yet")
    lines = figures_path(logs_path).read_text(encoding="utf-8").splitlines()
    epochs: dict[int, dict] = {}  # of the last stage, and the last of each, after restarts
    for figures in map(json.loads, lines):
        epochs = epochs if figures["epoch"] > 1 else {}
        epochs[figures["epoch"]] = figures
    figure = Figure(figsize=(10, 4), layout="constrained")
    last = next(reversed(epochs.values()))
    groups = [[name for name in last if name.endswith(ends)] for ends in ("loss", ("MRR", "Hit@10"))]
    groups = [names for names in groups if names]  # M3 has losses alone
    for axes, names in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for name in names:
            axes.plot(list(epochs), [figures[name] for figures in epochs.values()], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return 0
