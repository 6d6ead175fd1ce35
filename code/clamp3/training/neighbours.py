"""Hard negatives: batches in which items stand beside those that the model, as it starts, takes them for."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clamp3.io.files import atomic_write
from clamp3.io.remembered import Remembered
from clamp3.search.ranking import spans
from clamp3.training.checkpoints import named_failures
from clamp3.training.data import Example, Examples, Pairs
from clamp3.training.texts import evaluation_text

NEAREST = 32  # neighbours that are kept of each item
SAME_VERSION = 1  # counts up when other items are the same
ROWS = 512  # items whose neighbours are looked for at once

logger = logging.getLogger("clamp3")


class Numbered(Examples):
    """The items of another set as evaluation sees them, named by their index."""

    def __init__(self, examples: Examples):
        super().__init__(examples.seed, False)
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def place(self, index: int) -> str:
        return self.examples.place(index)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        return replace(self.examples.example(index, None), name=str(index))


def same_items(pairs: Pairs) -> np.ndarray:
    """Two numbers for each item, (items, 2): those of items with the same music, and with the same text, are the same.

    Such items are no negatives of each other. What cannot be read has numbers of its own. As all items must be read
    for them, the numbers are remembered in the user's cache folder.
    """
    state = [SAME_VERSION, pairs.fingerprint()]
    remembered = Remembered("same", [str(pairs.lines.path.resolve()), pairs.modality], state)
    if kept := remembered.load("same"):
        return kept[0]
    numbers: dict[tuple, int] = {}
    found = np.zeros((len(pairs), 2), np.int64)
    for index in range(len(pairs)):
        try:
            item = pairs.item(index)
            keys = [("music", min(item["filepaths"])), ("text", evaluation_text(item, "\n"))]
        except ValueError:
            keys = [("music", index), ("text", index)]
        found[index] = [numbers.setdefault(key, len(numbers)) for key in keys]
    remembered.save(same=found)
    return found


def nearest_items(indices: Tensor, features: Tensor, same: Tensor) -> np.ndarray:
    """For each of all items, those that are most easily taken for it: (items, NEAREST), the nearest first.

    `features` (n, 2, hidden) are those of text and music of the items `indices` (n,). Near is whose text is close to
    the item's music and whose music to its text, by cosine; but nothing with a number of `same` (items, 2) in common.
    -1 stands where there are no more, and for an item without features.
    """
    found = np.full((len(same), NEAREST), -1, np.int32)
    text, music = F.normalize(features.float(), dim=-1).unbind(1)
    same, count = same.to(features.device)[indices], min(NEAREST, len(indices))
    for rows in spans(len(indices), ROWS):
        scores = text[rows] @ music.T + music[rows] @ text.T  # (rows, n)
        scores.masked_fill_((same[rows, None] == same[None]).any(-1), -torch.inf)
        best, places = scores.topk(count, dim=1)
        chosen = torch.where(best.isfinite(), indices[places], -1)
        found[indices[rows].cpu().numpy(), :count] = chosen.cpu().numpy()
    return found


def with_neighbours(order: np.ndarray, neighbours: np.ndarray, size: int, hard: int) -> np.ndarray:
    """`order` (items,) rearranged so that each batch of `size` holds `hard` items that are neighbours of its others.

    Each item still comes once. A batch's first items come in the old order; then each of them in turn brings the
    nearest of its `neighbours` (items, …) that is left, or, where none is, the next of the old order.
    """
    waiting, used, found = iter(order.tolist()), np.zeros(len(order), bool), []

    def following() -> int:
        return next(index for index in waiting if not used[index])

    for _ in range(len(order) // size):
        batch: list[int] = []
        for place in range(size):
            anchor = batch[(place - (size - hard)) % (size - hard)] if place >= size - hard else None
            near = [] if anchor is None else [n for n in neighbours[anchor].tolist() if n >= 0 and not used[n]]
            batch.append(near[0] if near else following())
            used[batch[-1]] = True
        found += batch
    return np.array(found, order.dtype)


# ---------- on disk ----------


def neighbours_path(weights_path: Path) -> Path:
    """Where the neighbours are kept that a run began with, so that a restart has the same."""
    return weights_path.with_name(f"{weights_path.stem}_neighbours.npz")


def load_neighbours(path: Path, same: np.ndarray) -> np.ndarray | None:
    """What `save_neighbours` has written for such items; None where there is nothing of the kind."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["neighbours"] if str(saved["about"]) == _digest(same) else None
    except Exception:  # NumPy raises errors of many kinds for what is damaged
        logger.debug("%s cannot be read", path, exc_info=True)
        return None


def save_neighbours(path: Path, same: np.ndarray, neighbours: np.ndarray) -> None:
    """Keep the `neighbours` of the items that `same_items` describes. Raises UserError where that fails."""
    with named_failures(path), atomic_write(path) as file:
        np.savez(file, about=np.array(_digest(same)), neighbours=neighbours)


def _digest(same: np.ndarray) -> str:
    return hashlib.sha256(same.tobytes()).hexdigest()
