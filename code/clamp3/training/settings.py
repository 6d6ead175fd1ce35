"""How a run is trained; apart from the loop, so that a command can read the knobs at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clamp3.errors import UserError

SUFFIXES = (".pth", ".safetensors")  # of the files that weights are written to


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside the weights, which stay as they are."""

    rank: int
    targets: tuple[str, ...]  # the linear layers that get one, by the last part of their names
    merge: bool = True  # whether the sums of weights and adapters are saved; else a folder of adapters is

    def __str__(self) -> str:
        return f"adapters of rank {self.rank} in {', '.join(self.targets)}"


@dataclass(frozen=True)
class Settings:
    """How to train; config.py says what each knob means."""

    weights_path: Path
    logs_path: Path
    epochs: int
    batch_size: int  # of each process
    learning_rate: float
    seed: int = 42
    warmup_steps: int = 1000
    longest_warmup: float = math.inf  # as a share of all steps; a longer warm-up is shortened
    decay: str = "none"  # of DECAYS
    save_every: int = 0  # epochs
    save_steps: int = 0
    log_steps: int = 10
    workers: int = 0
    max_skipped_share: float = 0.01
    precision: str = "auto"
    deterministic: bool = True
    resume: bool = True
    init_weights: str = ""  # the name of the weights that a new run starts with
    audio_encoder: str | None = None  # what listens to sound for them, if that is not MERT; the weights keep it
    lora: Lora | None = None
    hard_negatives: int = 0  # items of a batch of each process that are drawn as neighbours of others in it
    early_stopping: int = 0  # epochs without a better evaluation loss; 0: never
    compile_layers: bool = False
    recompute_layers: bool = False
    wandb_log: bool = False
    wandb_key: str = ""
    knobs: Mapping[str, Any] = field(default_factory=dict)  # all of config.py's, which the weights keep

    def check_suffix(self) -> None:
        """Raise UserError where weights cannot be written to a file of that name."""
        if self.weights_path.suffix not in SUFFIXES:
            raise UserError(
                f"{self.weights_path}: weights are written as {' or '.join(SUFFIXES)}, told by the end of the name: "
                "set CLAMP3_WEIGHTS_PATH or M3_WEIGHTS_PATH to such a name"
            )
