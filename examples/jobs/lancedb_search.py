"""Music in LanceDB, searched by text.

embedder = Embedder.from_pretrained("saas")
print(search(embedder, build(embedder, paths, "music.lancedb"), "a slow air"))
"""

import lancedb


def build(embedder, paths, folder):
    """A table of the paths that can be read, with their features."""
    features, errors = embedder.embed_files(paths, normalize=True, errors="return")
    good = [place for place in range(len(paths)) if place not in errors]
    rows = [{"path": str(paths[place]), "vector": features[place]} for place in good]
    return lancedb.connect(folder).create_table("music", rows, mode="overwrite")


def search(embedder, table, text, k=10):
    """(path, cosine) of the nearest pieces, best first."""
    [query] = embedder.embed_text([text], normalize=True)
    rows = table.search(query).distance_type("cosine").limit(k).to_list()
    return [(row["path"], 1 - row["_distance"]) for row in rows]
