"""M3's features as a baseline for another task: the mean of its last layer over a piece, and a linear classifier.

accuracy(Embedder.from_pretrained("m3"), pieces, ["jig", "reel", …])
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def accuracy(m3, pieces, labels):
    """The mean accuracy of five folds."""
    features = np.stack([layers[-1] for layers in m3.embed_symbolic(pieces, layers="all")])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return cross_val_score(classifier, features, labels, cv=5).mean()
