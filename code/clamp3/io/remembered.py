"""Arrays that are remembered in the user's cache folder, for as long as what they say is true."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from clamp3.io.files import atomic_write, user_cache

logger = logging.getLogger("clamp3")


class Remembered:
    """Arrays about something in a certain state. They come back whole and for that state, or not at all."""

    def __init__(self, kind: str, which: Sequence[object], state: Sequence[object]):
        """`kind` names the folder in the cache; `which` says what the arrays are about, and `state` when they hold.

        Both are written as JSON. Of each thing, the arrays of one state are kept.
        """
        self.about = json.dumps([*which, *state])
        self.path = user_cache() / kind / f"{hashlib.sha256(json.dumps(which).encode()).hexdigest()[:32]}.npz"

    def load(self, *names: str) -> list[np.ndarray] | None:
        """The arrays of those names; None where they are not remembered of that state."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:  # a ZIP file, whose checksums tell of damage
                if str(saved["about"]) == self.about:
                    found = [saved[name] for name in names]
                    return found if all(isinstance(one, np.ndarray) for one in found) else None
        except Exception:  # NumPy raises errors of many kinds for what is damaged
            logger.debug("%s cannot be read", self.path, exc_info=True)
        return None

    def save(self, **arrays: np.ndarray) -> None:
        """Remember `arrays`; where that is not possible, they will be made again the next time."""
        everything: dict[str, Any] = {"about": np.array(self.about), **arrays}
        try:
            with atomic_write(self.path) as file:
                np.savez(file, **everything)
        except OSError as error:
            logger.info("%s cannot be written: %s", self.path, error)
