"""Features as columns of a pandas table, with its other columns kept.

table = with_features(Embedder.from_pretrained("saas"), pandas.read_csv("music.csv"))
"""

import pandas


def with_features(embedder, table, column="path"):
    """`table` with a column `error`, and columns clamp3_0, …, which are empty where there is an error."""
    features, errors = embedder.embed_files(table[column], normalize=True, errors="return")
    names = [f"clamp3_{number}" for number in range(features.shape[1])]
    reasons = [str(errors[place]) if place in errors else None for place in range(len(table))]
    added = pandas.DataFrame(features, index=table.index, columns=names)
    return pandas.concat([table.assign(error=reasons), added], axis=1)
