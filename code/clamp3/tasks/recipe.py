"""How a linear probe is trained; apart from the training, so that a command can show the defaults at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Logistic regression by L-BFGS over all training features at once: held-out data have no say in it."""

    epochs: int = 1000  # passes over the training features, at most; it mostly converges within a few dozen
    weight_decay: float | None = None  # strength of the L2 penalty; None: cross-validated on the training features
    balanced: bool = False  # weigh rows so that all classes count alike, whatever their sizes
    seed: int = 0  # of the folds in which weight_decay is cross-validated
