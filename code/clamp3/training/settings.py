"""How a run is trained; apart from the loop, so that a command can read the knobs at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clamp3.errors import UserError

SUFFIXES = (".pth", ".safetensors")  # of the files that weights are written to


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
    decay: str = "none"  # of DECAYS
    save_every: int = 0  # epochs
    save_steps: int = 0
    log_steps: int = 10
    workers: int = 0
    max_skipped_share: float = 0.01
    precision: str = "auto"
    deterministic: bool = True
    resume: bool = True
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
