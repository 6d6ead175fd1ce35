from collections.abc import Sequence

import numpy as np

from clamp3.search.ranking import normalized


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows (n, classes) of logits as probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def zero_shot(
    features: np.ndarray, prompts: Sequence[np.ndarray], logit_scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """How alike each row and each label are, and how probable that makes the label: two arrays (n, labels).

    `prompts` are each label's text features (prompts, hidden); cosines are with the mean of the normalised ones.
    Training compares dot products of features as they are. So the softmax takes the cosines times the lengths, of the
    row's feature and of a prompt's on average, and `logit_scale`: it is meaningless for features of length one.
    """
    means = normalized(np.stack([normalized(rows).mean(axis=0) for rows in prompts]))  # (labels, hidden)
    cosines = normalized(features) @ means.T
    length = np.linalg.norm(np.concatenate(prompts), axis=1).mean()
    lengths = np.linalg.norm(features, axis=1, keepdims=True) * length
    return cosines, softmax(logit_scale * lengths * cosines)
