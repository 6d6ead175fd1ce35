"""How a linear probe is trained; apart from the training, so that a command can show the defaults at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A fixed number of epochs of AdamW: no held-out data have a say in where it ends."""

    epochs: int = 50
    learning_rate: float = 1e-2  # at the first step; it falls to 0 in a straight line
    weight_decay: float = 1.0
    batch_size: int = 64
    balanced: bool = False  # classes count alike in the loss, whatever their sizes
    seed: int = 0
