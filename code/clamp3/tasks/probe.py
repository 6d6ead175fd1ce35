"""A linear probe: a classifier trained on features (n, hidden) and a label for each row, and how to evaluate it."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import UserError
from clamp3.io.files import atomic_write, parse_json
from clamp3.tasks.extras import needs_classify
from clamp3.tasks.figures import Figures, figures
from clamp3.tasks.recipe import Recipe
from clamp3.tasks.zero_shot import softmax

logger = logging.getLogger(__name__)

CONSTANT = 1e-6  # a standard deviation this small, relative to the mean, is rounding error
WEIGHT_DECAYS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
UNTUNED = 10.0  # the weight decay where there are too few rows to cross-validate it
INNER_FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A linear layer over standardized features."""

    labels: list[str]
    weight: np.ndarray  # (classes, hidden)
    bias: np.ndarray  # (classes,)
    mean: np.ndarray  # (hidden,) of the training features
    std: np.ndarray  # (hidden,) of the training features; 1 where they are constant
    made_by: str = ""  # the weights that made the training features, if known

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities: (n, hidden) -> (n, classes). Raises ValueError for features of another width."""
        if features.shape[1:] != self.mean.shape:
            raise ValueError(f"the probe takes features of {self.mean.size} numbers, not of {features.shape[-1]}")
        return softmax((features - self.mean) / self.std @ self.weight.T + self.bias)

    def predict(self, features: np.ndarray) -> list[str]:
        """The most probable label of each row."""
        return [self.labels[index] for index in self.probabilities(features).argmax(axis=1)]

    def save(self, path: Path) -> None:
        """Write a safetensors file of the arrays by name, with labels, hidden and made_by in its metadata "probe".

        That is a single JSON entry because safetensors writes several in no fixed order, and the same probe is to give
        the same bytes. Raises UserError where `path` cannot be written.
        """
        from safetensors.numpy import save

        # safetensors writes the memory as it lies, and scikit-learn's coefficients lie in Fortran order
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("weight", "bias", "mean", "std")}
        about = {"labels": self.labels, "hidden": self.mean.size, "made_by": self.made_by}
        try:
            with atomic_write(path) as file:
                file.write(save(arrays, {"probe": json.dumps(about)}))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Read a probe that `save` wrote. Raises UserError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in ("weight", "bias", "mean", "std")}
                about = parse_json(file.metadata()["probe"])
            labels, made_by = about["labels"], about["made_by"]
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a probe that train_cls.py wrote: {error}") from None
        if not arrays["weight"].shape == (len(labels), arrays["mean"].size):
            raise UserError(f"{path}: {len(labels)} labels do not fit weights {arrays['weight'].shape}")
        return cls(labels, **arrays, made_by=made_by)


def fit_probe(features: np.ndarray, labels: Sequence[str], recipe: Recipe, made_by: str = "") -> Probe:
    """A probe of features (n, hidden) and their labels: logistic regression over standardized features.

    The same features, recipe and seed give the same probe. Raises UserError where all rows are of one class, and where
    scikit-learn is missing.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UserError(f"all {len(labels)} files are of one class, {classes[0]}; to tell classes apart, it takes two")
    mean, std = (part.astype(np.float32) for part in (features.mean(0, np.float64), features.std(0, np.float64)))
    std[std <= CONSTANT * np.abs(mean)] = 1
    weight, bias = _fit_regression((features - mean) / std, np.searchsorted(classes, labels), recipe)
    return Probe(classes, weight, bias, mean, std, made_by)


def _fit_regression(inputs: np.ndarray, targets: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, hidden) and bias (classes,) of a logistic regression of inputs (n, hidden) on targets (n,)."""
    with needs_classify():
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

    def regression(weight_decay: float) -> "LogisticRegression":
        C = 1 / weight_decay if weight_decay else np.inf
        return LogisticRegression(C=C, max_iter=recipe.epochs, class_weight="balanced" if recipe.balanced else None)

    inputs = inputs.astype(np.float64)
    with threadpool_limits(1, "blas"):  # so that the same seed gives the same bytes on any number of cores
        weight_decay = recipe.weight_decay
        if weight_decay is None:
            weight_decay = _cross_validated(regression, inputs, targets, recipe)
        model = regression(weight_decay).fit(inputs, targets)
    if max(model.n_iter_) >= recipe.epochs:
        logger.info("the probe was still improving after %d epochs; more may make it better", recipe.epochs)
    weight, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(bias) == 1:  # of two classes, scikit-learn has the logit of the second: the difference of two
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _cross_validated(
    regression: Callable[[float], Any], inputs: np.ndarray, targets: np.ndarray, recipe: Recipe
) -> float:
    """The one of WEIGHT_DECAYS with the least log loss in stratified folds; UNTUNED where a class has a single row."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.utils.class_weight import compute_sample_weight

    folds = min(INNER_FOLDS, int(np.bincount(targets).min()))
    if folds < 2:
        return UNTUNED
    splits = StratifiedKFold(folds, shuffle=True, random_state=recipe.seed)
    sample_weight = compute_sample_weight("balanced" if recipe.balanced else None, targets)

    def loss(weight_decay: float) -> float:
        model = regression(weight_decay)
        probabilities = cross_val_predict(model, inputs, targets, cv=splits, method="predict_proba")  # (n, classes)
        return log_loss(targets, probabilities, sample_weight=sample_weight)

    return min(WEIGHT_DECAYS, key=loss)


def held_out_figures(
    features: np.ndarray, labels: Sequence[str], held_out: np.ndarray, recipe: Recipe, made_by: str = ""
) -> tuple[Probe, Figures]:
    """A probe of the rows that are not `held_out` (n,) bool, and its figures on those that are.

    Raises UserError where a class has held-out rows alone.
    """
    training, test = (np.asarray(labels)[rows].tolist() for rows in (~held_out, held_out))
    probe = fit_probe(features[~held_out], training, recipe, made_by)
    if unknown := sorted(set(test).difference(probe.labels)):
        raise UserError(f"files held out are of classes that no training file is of: {', '.join(unknown)}")
    return probe, figures(test, probe.predict(features[held_out]), probe.labels)


# ---------- splits ----------


def stratified_folds(labels: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """The 0-based fold (n,) in which each row is held out; counts of a class differ by at most one between folds.

    Raises UserError for a class with fewer rows than folds.
    """
    with needs_classify():
        from sklearn.model_selection import StratifiedKFold

    _check_counts(labels, folds)
    fold = np.zeros(len(labels), np.int64)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_training, rows) in enumerate(splits.split(fold, labels)):
        fold[rows] = number
    return fold


def stratified_share(labels: Sequence[str], share: float, seed: int = 0) -> np.ndarray:
    """Which rows (n,) bool are held out: this share of each class, but at least one row and not all.

    Classes are split one by one, because scikit-learn's stratified split may leave a rare class out of either part.
    Raises UserError for a class of one row.
    """
    with needs_classify():
        from sklearn.model_selection import train_test_split

    _check_counts(labels, 2)
    held_out = np.zeros(len(labels), bool)
    for label in sorted(set(labels)):
        rows = np.flatnonzero(np.asarray(labels) == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held_out[train_test_split(rows, test_size=count, random_state=seed)[1]] = True
    return held_out


def _check_counts(labels: Sequence[str], parts: int) -> None:
    """Raise UserError for a class with fewer rows than parts."""
    for label, count in sorted(Counter(labels).items()):
        if count < parts:
            files = "file" if count == 1 else "files"
            raise UserError(f"the class {label} has {count} {files}, too few to be in {parts} parts")
