"""Ranking and retrieval metrics against plain computations that hold the whole similarity matrix."""

import tracemalloc

import numpy as np
import pytest

from clamp3.search import metrics as search_metrics
from clamp3.search import ranking
from clamp3.search.metrics import evaluate, frechet_distance, group_similarity, metrics, pair_scores, reverse
from clamp3.search.ranking import normalized, positions, ranks_of_pairs, top_k


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that the sets below do not fill evenly."""
    monkeypatch.setattr(ranking, "QUERIES", 7)
    monkeypatch.setattr(ranking, "REFERENCES", 5)


def features(count, seed=0, hidden=16):
    return np.random.default_rng(seed).standard_normal((count, hidden)) + 0.5


def plain_cosines(queries, references):
    queries, references = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, references))
    return queries @ references.T


def plain_rankings(queries, references, relevant):
    """For each query, whether the reference at each rank is relevant; irrelevant ones first where they tie."""
    lists = []
    for row, indices in zip(plain_cosines(queries, references).round(6), relevant, strict=True):
        ranking = sorted(range(len(references)), key=lambda index: (-row[index], index in indices))
        lists.append([index in indices for index in ranking])
    return lists


@pytest.mark.parametrize("k", [1, 4, 5, 11, 23, 40])
def test_the_closest_are_those_of_a_whole_sort(small_blocks, k):
    queries, references = features(16), features(23, seed=1)
    indices, cosines = top_k(queries, references, k)
    wanted = plain_cosines(queries, references)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices, order) and indices.shape == (16, min(k, 23))
    np.testing.assert_allclose(cosines, np.take_along_axis(wanted, order, axis=1), atol=1e-6)


def test_equal_references_come_in_their_order(small_blocks):
    references = np.array([[0, 1], [1, 0], [1, 1], [2, 0], [0, 0], [-1, 0], [3, 0], [0, 2]])
    indices, cosines = top_k(np.array([[1, 0]]), references, 8)
    assert indices.tolist() == [[1, 3, 6, 2, 0, 4, 7, 5]]
    np.testing.assert_allclose(cosines[0], [1, 1, 1, 0.5**0.5, 0, 0, 0, -1], atol=1e-6)


def test_ranks_of_several_relevant_references(small_blocks):
    queries, references = features(30), features(23, seed=1)
    rng = np.random.default_rng(2)
    relevant = [rng.choice(23, size=rng.integers(1, 13), replace=False).tolist() for _ in queries]
    references[5] = references[4]  # duplicates, relevant and irrelevant
    references[20] = references[4] * 3
    found = positions(queries, references, relevant)
    assert found.shape == (30, 10)
    for row, order in zip(found, plain_rankings(queries, references, relevant), strict=True):
        wanted = [rank for rank, is_relevant in enumerate(order, 1) if is_relevant][:10]
        assert row.tolist() == wanted + [0] * (10 - len(wanted))


def test_ties_count_against_us(small_blocks):
    """All references alike: the relevant one ranks last, whatever the rounding."""
    same = np.tile(features(1), (23, 1)) * np.arange(1, 24)[:, None]
    assert ranks_of_pairs(same, same).tolist() == [23] * 23
    zeros = np.zeros((4, 16))
    assert ranks_of_pairs(zeros, features(4)).tolist() == [4] * 4
    assert ranks_of_pairs(features(4), zeros).tolist() == [4] * 4
    broken = features(4) * np.array([[1], [np.nan], [np.inf], [1]])
    assert ranks_of_pairs(broken, features(4))[1:3].tolist() == [4, 4]
    # Other relevant references do not compete.
    assert positions(same[:1], same[:3], [[0, 2]]).tolist() == [[2, 3]]


def test_figures_are_those_of_a_plain_computation(small_blocks):
    queries, references = features(40), features(130, seed=1)
    references[:40] += queries * 0.6
    relevant = [[index, (index * 3) % 130] if index % 2 else [index] for index in range(40)]
    ranks, gains = [], []
    for order, indices in zip(plain_rankings(queries, references, relevant), relevant, strict=True):
        ranks.append(order.index(True) + 1)
        ideal = sum(1 / np.log2(place + 1) for place in range(1, len(set(indices)) + 1))
        gains.append(sum(1 / np.log2(place + 1) for place, good in enumerate(order[:10], 1) if good) / ideal)
    found = evaluate(queries, references, relevant)
    wanted = {
        "MRR": np.mean([1 / rank for rank in ranks]),
        **{f"Hit@{k}": np.mean([rank <= k for rank in ranks]) for k in (1, 10, 100)},
        "nDCG@10": np.mean(gains),
        "median rank": np.median(ranks),
    }
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(wanted)
    assert metrics(ranks) == pytest.approx({name: wanted[name] for name in ("MRR", "Hit@1", "Hit@10", "Hit@100")})
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found.values())
    # Of a mean, the bootstrap's interval is about two standard errors to each side.
    error = np.std([1 / rank for rank in ranks]) / 40**0.5
    assert found["MRR"].high - found["MRR"].low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert evaluate(queries, references, relevant) == found


def test_few_files():
    assert evaluate(features(1), features(1, seed=1), [[0]])["MRR"].value == 1
    with pytest.raises(ValueError, match="no queries"):
        evaluate(np.zeros((0, 16)), features(3), [])
    with pytest.raises(ValueError, match="each query needs a relevant reference"):
        evaluate(features(2), features(3), [[0], []])
    assert ranks_of_pairs(np.zeros((0, 16)), np.zeros((0, 16))).shape == (0,)
    assert [found.shape for found in top_k(features(3), np.zeros((0, 16)), 10)] == [(3, 0), (3, 0)]
    assert np.array_equal(normalized(np.zeros((2, 3))), np.zeros((2, 3)))


def test_the_other_direction():
    assert reverse([[0, 2], [2], []], 4) == [[0], [], [0, 1], []]


def test_memory_does_not_grow_with_the_product_of_the_sets():
    """10,000 x 10,000 cosines are 400 MB; the features 0.3 MB."""
    queries = features(10_000, hidden=8).astype(np.float32)
    relevant = np.arange(10_000)[:, None]
    tracemalloc.start()
    ranks = positions(queries, queries, relevant)
    indices, _ = top_k(queries[:2000], queries, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6 and ranks.max() == 1 and np.array_equal(indices[:, 0], np.arange(2000))


def test_scores_and_their_percentiles(monkeypatch):
    queries, references = features(12), features(9, seed=1)
    pairs = np.array([(index, index % 9) for index in range(12)])
    cosines, percentiles = pair_scores(queries, references, pairs)
    wanted = plain_cosines(queries, references)
    np.testing.assert_allclose(cosines, wanted[tuple(pairs.T)], atol=1e-6)
    mask = np.ones(wanted.shape, bool)
    mask[tuple(pairs.T)] = False
    np.testing.assert_allclose(
        percentiles, [(wanted[mask] < cosine).mean() * 100 for cosine in wanted[tuple(pairs.T)]]
    )
    assert np.isnan(pair_scores(queries[:1], references[:1], [(0, 0)])[1]).all()
    # Ties count against us.
    assert pair_scores(queries[:1], np.tile(queries[:1], (3, 1)), [(0, 0)])[1] == 0

    monkeypatch.setattr(search_metrics, "MOST_MISMATCHED", 30)  # three queries: 0, 5 and 11
    sampled = mask.copy()
    sampled[[index for index in range(12) if index not in (0, 5, 11)]] = False
    _, percentiles = pair_scores(queries, references, pairs)
    below = [(wanted[sampled] < cosine).mean() * 100 for cosine in wanted[tuple(pairs.T)]]
    np.testing.assert_allclose(percentiles, below)


def test_group_similarity_is_that_of_the_means():
    first, second = features(5), features(8, seed=1)
    a, b = first.mean(axis=0), second.mean(axis=0)
    assert group_similarity(first, second) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_frechet_distance():
    """Of sets whose distributions are known, with fewer rows than numbers in a row too."""
    first = features(40)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + 2) == pytest.approx(16 * 4)
    covariances = np.cov(first, rowvar=False), np.cov(second := features(30, seed=1) * 2, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    offset = first.mean(axis=0) - second.mean(axis=0)
    wanted = offset @ offset + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert frechet_distance(first, second) == pytest.approx(wanted)
    few = features(5)
    assert frechet_distance(few, few * 3) == pytest.approx(
        4 * (np.trace(np.cov(few, rowvar=False)) + few.mean(axis=0) @ few.mean(axis=0)), rel=1e-6
    )
    with pytest.raises(ValueError, match="two features or more"):
        frechet_distance(few[:1], few)


def test_figures_equal_scikit_learns():
    """Its label ranking average precision is the reciprocal rank where a query has one relevant reference."""
    metrics_of = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    references, queries = rng.normal(size=(300, 16)), rng.normal(size=(60, 16))
    cosines = metrics_of.pairwise.cosine_similarity(queries, references)
    _, best = top_k(queries, references, 5)
    np.testing.assert_allclose(best, np.sort(cosines, axis=1)[:, :-6:-1], atol=1e-5)

    one = [[index] for index in rng.integers(300, size=60)]
    several = [sorted(rng.choice(300, rng.integers(1, 5), replace=False)) for _ in range(60)]
    for relevant in (one, several):
        relevance = np.zeros((60, 300))
        for row, indices in zip(relevance, relevant, strict=True):
            row[indices] = 1
        found = evaluate(queries, references, relevant)
        assert found["nDCG@10"].value == pytest.approx(metrics_of.ndcg_score(relevance, cosines, k=10), abs=1e-6)
    precision = metrics_of.label_ranking_average_precision_score(np.eye(300)[np.ravel(one)], cosines)
    assert evaluate(queries, references, one)["MRR"].value == pytest.approx(precision, abs=1e-6)
