"""How far generated music is from real music: the Fréchet distance of their features, for scores, MIDI and sound.

    frechet_distance(Embedder.from_pretrained("saas"), generated, real)
Take more pieces of each than features are wide: with fewer, the covariances are poor, and the distance is too large.
"""

import numpy as np


def frechet_distance(embedder, generated, real):
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), of means and covariances (Heusel et al. 2017; Kilgour et al. 2019)."""
    sides = [embedder.embed_any(items).astype(np.float64) for items in (generated, real)]
    (mean_1, cov_1), (mean_2, cov_2) = ((side.mean(axis=0), np.cov(side, rowvar=False)) for side in sides)
    roots = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).real.clip(0))  # of a product of covariances: none is negative
    return float(np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * roots.sum())
