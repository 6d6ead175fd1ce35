"""Where the figures of a run go: JSON lines beside the text log, Weights & Biases, and a picture of the curves.

wandb and matplotlib are the extra `train`: pip install "clamp3[train]".
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clamp3.errors import UserError
from clamp3.training.settings import Settings

INSTALL = 'pip install "clamp3[train]"'

logger = logging.getLogger("clamp3")


def figures_path(logs_path: Path) -> Path:
    """The figures of each epoch as JSON lines, beside the text log."""
    return logs_path.with_suffix(".jsonl")


def wandb_logger(project: str, settings: Settings) -> Callable[[dict, int], None]:
    """Logs the figures of a step to Weights & Biases: offline without a key, not at all where that does not work."""
    key = "" if settings.wandb_key.startswith("<") else settings.wandb_key
    try:
        import wandb

        if key:
            wandb.login(key=key)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if key or has_wandb_login() else "offline")
        described = {
            name: str(value) for name, value in asdict(settings).items() if name not in ("wandb_key", "knobs")
        }
        run = wandb.init(project=project, mode=mode, config=described)
    except Exception as error:  # a log is never worth a run
        advice = f"; {INSTALL}" if isinstance(error, ImportError) else ""
        logger.info("no log to Weights & Biases: %s%s", error, advice)
        return lambda _figures, _step: None
    return lambda figures, step: run.log(figures, step=step)


def has_wandb_login() -> bool:
    """Whether this user has a key in the environment or has logged in on this machine."""
    login = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return "WANDB_API_KEY" in os.environ or (login.is_file() and "wandb" in login.read_text())


def draw_curves(logs_path: Path, picture: Path) -> int:
    """Draw losses and retrieval figures over the epochs, as far as a run has come; returns the exit code 0.

    Raises UserError where no epoch has ended, or without matplotlib.
    """
    if not figures_path(logs_path).is_file():
        raise UserError(f"there is no {figures_path(logs_path)}: no epoch has ended yet")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"curves are drawn by matplotlib, which is missing: {INSTALL}") from error
    lines = figures_path(logs_path).read_text(encoding="utf-8").splitlines()
    epochs: dict[int, dict] = {}  # of the last stage; of an epoch that was done again, the last figures
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
