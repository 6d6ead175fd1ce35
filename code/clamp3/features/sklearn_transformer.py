"""CLaMP 3's features as a step of scikit-learn's pipelines (an optional package: the extra `classify`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from clamp3.features.embedder import Embedder, checked_method


class Clamp3Transformer(TransformerMixin, BaseEstimator):
    """Lists of items -> features (n, clamp3_hidden_size), as in `make_pipeline(Clamp3Transformer(), SVC())`.

    Items are what the Embedder's `method` takes: of any kind, told by their types, with the default `embed_any`, which
    takes strings for texts and `Path`s for files. `fit` learns nothing; it loads the weights, once for all calls. A
    fitted transformer can be pickled, weights and all.
    """

    def __init__(
        self,
        weights: str | Path = "saas",
        *,
        method: str = "embed_any",
        normalize: bool = True,
        device: str | None = None,
        precision: str = "fp32",
        mert: str | Path | None = None,
    ):
        self.weights = weights
        self.method = method
        self.normalize = normalize
        self.device = device
        self.precision = precision
        self.mert = mert

    def fit(self, X: Iterable[Any], y: Any = None) -> "Clamp3Transformer":
        """Load the weights. Raises ValueError and UserError as `Embedder.from_pretrained`."""
        checked_method(self.method)
        self.embedder_ = Embedder.from_pretrained(self.weights, self.device, self.precision, mert=self.mert)
        self._n_features_out = self.embedder_.sizes.clamp3_hidden_size
        return self

    def transform(self, X: Iterable[Any]) -> np.ndarray:
        """Features (n, clamp3_hidden_size). Raises ValueError, with its place, for an item that has none."""
        check_is_fitted(self)
        return getattr(self.embedder_, self.method)(X, self.normalize)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """clamp3_0, clamp3_1, …"""
        check_is_fitted(self)
        return np.array([f"clamp3_{number}" for number in range(self._n_features_out)], object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True  # of shapes: the items are no numbers
        tags.requires_fit = True
        return tags
