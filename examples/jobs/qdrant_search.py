"""Music in Qdrant, searched by text.

embedder, client = Embedder.from_pretrained("saas"), QdrantClient(url="…")
build(embedder, client, paths)
print(search(embedder, client, "a slow air"))
"""

from qdrant_client.models import Distance, PointStruct, VectorParams


def build(embedder, client, paths):
    """A collection "music" of the paths that can be read, with their features."""
    features, errors = embedder.embed_files(paths, errors="return")
    client.create_collection("music", VectorParams(size=features.shape[1], distance=Distance.COSINE))
    good = [place for place in range(len(paths)) if place not in errors]
    points = [PointStruct(id=n, vector=features[n].tolist(), payload={"path": str(paths[n])}) for n in good]
    client.upsert("music", points)


def search(embedder, client, text, k=10):
    """(path, cosine) of the nearest pieces, best first."""
    [query] = embedder.embed_text([text])
    return [(p.payload["path"], p.score) for p in client.query_points("music", query.tolist(), limit=k).points]
