"""What each layer of a tower knows: the similarity of pieces in each of them, and how it goes with a label.

print(separation(Embedder.from_pretrained("saas"), pieces, rhythms))
"""

import numpy as np


def separation(embedder, pieces, labels):
    """For each layer (layers + 1,): how much nearer pieces of one label are than others, in cosines."""
    layers = np.stack(embedder.embed_any(pieces, layers="all"), axis=1)  # (layers + 1, pieces, hidden)
    layers = layers - layers.mean(axis=1, keepdims=True)
    layers = layers / np.linalg.norm(layers, axis=2, keepdims=True)
    cosines = layers @ layers.transpose(0, 2, 1)  # (layers + 1, pieces, pieces)
    alike = np.equal.outer(labels, labels)
    others = ~np.eye(len(labels), dtype=bool)
    return cosines[:, alike & others].mean(axis=1) - cosines[:, ~alike].mean(axis=1)
