"""`EmbedFiles`: a function of batches, for other people's pipelines, which run it in processes of their own."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.features.embedder import Embedder, checked_method
from clamp3.io.reports import describe_error
from clamp3.models.weight_files import fingerprint


class EmbedFiles:
    """Adds features to batches of rows, as `map` of the library `datasets` (batched) and Ray's `map_batches` want it.

    It holds settings alone until it is first called, so that each process loads the weights for itself, once. A batch
    is a mapping from the names of columns to their values, or a pandas data frame. Returned is the batch with two
    columns more; of the rows of `datasets`, which keeps the others itself, these two alone.

    A row without a feature has NaN for it, and the column `…_error` says why; for all others that is "".
    """

    def __init__(
        self,
        weights: str | Path = "saas",
        column: str = "path",
        output: str = "feature",
        method: str = "embed_files",
        normalize: bool = False,
        **options: Any,
    ):
        """`method` is the Embedder's for what `column` holds, such as "embed_text" or "embed_audio".

        `options` are those of `Embedder.from_pretrained`.
        """
        self.weights, self.column, self.output, self.method = weights, column, output, checked_method(method)
        self.normalize, self.options = normalize, options

    @cached_property
    def embedder(self) -> Embedder:
        """Loaded when it is first asked for, in the process that asks."""
        return Embedder.from_pretrained(self.weights, **self.options)

    def __getstate__(self) -> dict[str, Any]:
        """The settings, and which weights are in a file of one's own: `datasets` reuses results where these agree."""
        settings = {name: value for name, value in self.__dict__.items() if name != "embedder"}
        is_own = Path(self.weights).exists()
        return {**settings, "fingerprint": fingerprint(Path(self.weights)) if is_own else None}

    def __call__(self, batch: Any) -> Any:
        """The batch with the columns `output` (n, clamp3_hidden_size) and `…_error`."""
        embed = getattr(self.embedder, self.method)
        features, errors = embed(list(batch[self.column]), self.normalize, errors="return")
        failures = [describe_error(errors[row]) if row in errors else "" for row in range(len(features))]
        if hasattr(batch, "assign"):  # a data frame, whose cells hold a row of the features each
            return batch.assign(**{self.output: list(features), f"{self.output}_error": failures})
        added = {self.output: features, f"{self.output}_error": np.array(failures, object)}
        return {**batch, **added} if isinstance(batch, dict) else added
