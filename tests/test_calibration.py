"""Corrections of the shared space: each does what its formula says, and mends what it is made for."""

import numpy as np
import pytest

from clamp3.search import index as index_module
from clamp3.search.calibration import METHODS, NEIGHBOURS, SHARPNESS, Space, calibrated, whitening
from clamp3.search.index import Index
from clamp3.search.metrics import evaluate_both
from clamp3.search.ranking import normalized, ranks_of_pairs
from test_passages import HIDDEN, assert_found, entry, made
from test_passages import add as add_passages

SIZE, WIDTH = 200, 16


def cones(seed: int = 0, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose sides lie in different cones, with some references that are everyone's neighbours."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((SIZE, WIDTH))
    queries, references = (shared + noise * rng.standard_normal((SIZE, WIDTH)) for _ in range(2))
    queries, references = normalized(queries + 4 * rng.standard_normal(WIDTH)), references + rng.standard_normal(WIDTH)
    references[:10] += 6 * queries.mean(axis=0)
    return queries, normalized(references)


def order(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.argsort(-(normalized(queries) @ normalized(references).T), axis=1, kind="stable")


@pytest.mark.parametrize("method", METHODS)
def test_each_ranks_as_its_formula_says(method):
    queries, references = cones()
    cosines = queries.astype(np.float64) @ references.T
    if method == "csls":
        cosines = 2 * cosines - np.sort(cosines, axis=0)[-NEIGHBOURS:].mean(axis=0)
    elif method == "querybank":
        cosines = np.exp(SHARPNESS * cosines) / np.exp(SHARPNESS * cosines).sum(axis=0)
    elif method != "none":
        sides = [side - side.mean(axis=0) for side in (queries, references)]
        matrix = whitening(references) if method == "whiten" else np.eye(WIDTH)
        first, second = (side @ matrix for side in sides)
        cosines = first @ second.T / np.linalg.norm(second, axis=1)
    expected = np.argsort(-cosines, axis=1, kind="stable")
    assert np.mean(order(*calibrated(queries, references, method)) == expected) > 0.999


@pytest.mark.parametrize("method", METHODS[1:])
def test_each_finds_more_where_sides_lie_apart_and_some_are_everyones_neighbours(method):
    queries, references = cones()
    before, after = (np.mean(ranks_of_pairs(*calibrated(queries, references, how)) == 1) for how in ("none", method))
    assert after > before + (0 if method == "csls" else 0.1)
    pairs = [[number] for number in range(SIZE)]
    figures = evaluate_both(queries, references, pairs, method)
    assert figures["query_to_reference"]["Hit@1"].value == pytest.approx(after)
    assert figures["reference_to_query"]["Hit@1"].value == pytest.approx(
        np.mean(ranks_of_pairs(*calibrated(references, queries, method)) == 1)
    )


@pytest.mark.parametrize("method", METHODS[1:])
def test_nothing_depends_on_which_items_belong_together(method):
    queries, references = cones()
    shuffled = np.random.default_rng(1).permutation(SIZE)
    ours, theirs = (calibrated(queries, some, method) for some in (references, references[shuffled]))
    np.testing.assert_allclose(ours[1][shuffled], theirs[1], atol=1e-4)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 11])
def test_few_items_and_odd_ones_rank_without_an_error(method, count):
    queries, references = cones()
    references[0] = 0
    for ours in (calibrated(queries[:1], references[:count], method), calibrated(queries, references[:count], method)):
        assert all(np.isfinite(side).all() for side in ours)
    space = Space.of(references[:count], ["text"] * count, method)
    assert np.isfinite(space.references(references[:count], ["text"] * count, "audio")).all()
    assert np.isfinite(space.queries(queries, "audio")).all()


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_index_ranks_by_it_and_so_do_passages(tmp_path, monkeypatch, method):
    """As a plain computation over everything, of one modality, does; and within the closest of many."""
    index, chance = Index.create(tmp_path / "index"), np.random.default_rng(3)
    features = chance.standard_normal((60, HIDDEN)).astype(np.float32) + 1
    some = {f"{n}": made(3, n) for n in range(60)}
    with index.writing():
        add_passages(index, some)
        index.add([entry(f"{n}") for n in range(60)], features, {entry(n).path: found for n, found in some.items()})
    query = chance.standard_normal(HIDDEN).astype(np.float32)
    space = Space.of(features, ["symbolic"] * 60, method)
    sides = space.queries(query[None], "symbolic"), space.references(features, ["symbolic"] * 60, "symbolic")
    expected = order(*sides)[0][:10]
    found = index.search(query, 10, calibrate=method, own="symbolic")
    assert [int(hit[1].path.stem) for hit in found] == expected.tolist()
    everything = np.stack([passage.feature for passages in some.values() for passage in passages])
    space = Space.of(everything, ["symbolic"] * 180, method)
    best = order(space.queries(query[None], "symbolic"), space.references(everything, ["symbolic"] * 180, "symbolic"))
    hits = index.search(query, 5, passages=True, calibrate=method, own="symbolic")
    (first, *_), (_, of, span) = best[0], hits[0]
    assert (int(of.path.stem), span.first) == (first // 3, 4 * (first % 3) + 1)
    monkeypatch.setattr("clamp3.search.passages.POOL", 8)
    monkeypatch.setattr(index_module, "SAMPLE", 50)
    assert len(index.search(query, 20, passages=True, calibrate=method)) == 8
    assert_found(index, some)
