"""A folder that is too big for one go: features in files of a thousand, and what was done is not done again.

embed_folder(Embedder.from_pretrained("saas"), "music", "features")
"""

from pathlib import Path

import numpy as np


def embed_folder(embedder, folder, output, size=1000):
    """Write `output`/00000000.npz, …: paths, features (n, hidden) and errors. The folder must stay as it is."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    Path(output).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(paths), size):
        done, part = Path(output, f"{start:08}.npz"), Path(output, "part.npz")
        if not done.exists():
            chunk = paths[start : start + size]
            features, errors = embedder.embed_files(chunk, normalize=True, errors="return", progress=True)
            reasons = [str(errors.get(place, "")) for place in range(len(chunk))]
            np.savez(part, paths=[str(path) for path in chunk], features=features, errors=reasons)
            part.replace(done)
