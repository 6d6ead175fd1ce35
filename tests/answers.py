"""Features on disk, and the output of the commands that compare them."""

import json
from pathlib import Path

import numpy as np


def save_features(folder: Path, features: dict[str, np.ndarray]) -> None:
    for name, feature in features.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, feature)


def vectors(*names: str, seed: int = 0, hidden: int = 8) -> dict[str, np.ndarray]:
    """Random features (1, hidden) by file name; the same names and seed give the same features."""
    rng = np.random.default_rng(seed)
    return {f"{name}.npy": rng.normal(size=(1, hidden)).astype(np.float32) for name in names}


def answer(monkeypatch, command, *words) -> int:
    """Exit code of a command run in this process, which needs no model where all files are features."""
    monkeypatch.setattr("sys.argv", [command.__name__, *map(str, words)])
    return command.main()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
