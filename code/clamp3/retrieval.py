"""The former name of `clamp3.search.ranking` and `clamp3.search.metrics`, for code that imports it."""

__all__ = [
    *("evaluate", "evaluate_both", "frechet_distance", "group_similarity", "metrics", "normalized", "pair_scores"),
    *("positions", "ranks_of_pairs", "top_k"),
]
