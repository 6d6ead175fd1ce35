"""Zero-shot classification: labels ranked by the cosine between features and the mean of the labels' prompts."""

from collections.abc import Sequence

import numpy as np

from clamp3.search.ranking import normalized


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (n, classes) -> probabilities (n, classes)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def zero_shot(
    features: np.ndarray, prompts: Sequence[np.ndarray], logit_scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and probabilities of each label for each row of features: two arrays (n, labels).

    `prompts` holds the text features (prompts, hidden) of each label; cosines are with the mean of its normalized
    prompts. The model is trained on dot products of unnormalized features, so the softmax is over the cosine times the
    norm of the row, the average norm of the prompts and `logit_scale`: normalized features give no meaningful
    probabilities.
    """
    means = normalized(np.stack([normalized(rows).mean(axis=0) for rows in prompts]))  # (labels, hidden)
    cosines = normalized(features) @ means.T
    prompt_norm = np.linalg.norm(np.concatenate(prompts), axis=1).mean()
    norms = np.linalg.norm(features, axis=1, keepdims=True)  # (n, 1)
    return cosines, softmax(logit_scale * norms * prompt_norm * cosines)
