"""Music in a FAISS index, searched by text. (code/clamp3_index.py keeps an index of a folder up to date.)

embedder = Embedder.from_pretrained("saas")
print(search(embedder, *build(embedder, paths), "a slow air"))
"""

import faiss


def build(embedder, paths):
    """An index of the features, and the paths of its rows: those that can be read."""
    features, errors = embedder.embed_files(paths, normalize=True, errors="return")
    good = [place for place in range(len(paths)) if place not in errors]
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features[good])
    return index, [paths[place] for place in good]


def search(embedder, index, paths, text, k=10):
    """(path, cosine) of the nearest pieces, best first."""
    cosines, rows = index.search(embedder.embed_text([text], normalize=True), min(k, len(paths)))
    return [(str(paths[row]), float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True)]
