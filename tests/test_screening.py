"""Ranks that a few numbers of each feature tell for most pairs are those of whole products, whatever the features."""

import numpy as np
import pytest

from clamp3.search import ranking, screening
from clamp3.search.ranking import TIE, normalized, positions, ranks_of_pairs


def low_rank(rng, count, hidden=48):
    music = rng.standard_normal((count, 6)) @ rng.standard_normal((6, hidden)) + 0.01 * rng.standard_normal(hidden)
    return music + rng.standard_normal(music.shape), music


def isotropic(rng, count, hidden=48):
    return rng.standard_normal((count, hidden)), rng.standard_normal((count, hidden))


def equal(rng, count):
    same = np.tile(rng.standard_normal((1, 48)), (count, 1))
    return same * rng.uniform(1, 9, (count, 1)), same


def copies(rng, count):
    """Seven features, each many times."""
    chosen = rng.integers(7, size=count)
    music = rng.standard_normal((7, 48))
    return (music + rng.standard_normal((7, 48)))[chosen], music[chosen]


def whole_numbers(rng, count):
    """Many cosines are equal."""
    return rng.integers(-1, 2, (count, 48)), rng.integers(-1, 2, (count, 48))


def broken(rng, count):
    """Zeros, NaN and infinity on both sides."""
    queries, references = low_rank(rng, count)
    for side in (queries, references):
        side[::11], side[5::13], side[7::17] = 0, np.nan, np.inf
    return queries, references


def narrow(rng, count):
    """No wider than what is looked at first."""
    return low_rank(rng, count, hidden=3)


def alone(rng, count):
    return low_rank(rng, 1)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces that the sets below do not fill evenly."""
    for name, value in {"ROWS": 50, "TOGETHER": 8, "ALONE": 8 * 17 * 29, "GATHERED": 48 * 5}.items():
        monkeypatch.setattr(screening, name, value)
    monkeypatch.setattr(ranking, "ROWS", 50)


def screened(monkeypatch, width):
    """From now on, ranks are found by looking at so many numbers first; None: whatever costs least."""
    monkeypatch.setattr(screening, "LARGE", 0)
    if width:
        monkeypatch.setattr(screening, "costs", lambda *_: {width: 0.0})


@pytest.mark.parametrize("width", [1, 4, 16, None])
@pytest.mark.parametrize(
    "kind", [low_rank, isotropic, equal, copies, whole_numbers, broken, narrow, alone], ids=lambda kind: kind.__name__
)
def test_ranks_are_those_of_whole_products(small_pieces, monkeypatch, kind, width):
    queries, references = kind(np.random.default_rng(0), 230)
    wanted = ranks_of_pairs(queries, references)
    one, other = (normalized(side).astype(np.float64) for side in (queries, references))
    cosines = one @ other.T
    ahead = cosines >= cosines.diagonal()[:, None] - TIE
    assert np.array_equal(wanted, (ahead & ~np.eye(len(one), dtype=bool)).sum(axis=1) + 1)
    screened(monkeypatch, width)
    assert np.array_equal(ranks_of_pairs(queries, references), wanted)


def test_ranks_of_several_relevant_references(small_pieces, monkeypatch):
    rng = np.random.default_rng(1)
    queries, references = low_rank(rng, 150)
    relevant = [rng.choice(150, size=rng.integers(1, 13), replace=False).tolist() for _ in queries]
    wanted = positions(queries, references, relevant)
    screened(monkeypatch, 4)
    assert np.array_equal(positions(queries, references, relevant), wanted)


def test_the_first_look_is_chosen_by_the_features():
    """Few numbers where they hold nearly all, and none where they say nothing."""
    rng = np.random.default_rng(2)
    for kind, expected in ((low_rank, True), (isotropic, False)):
        queries, references = map(normalized, kind(rng, 600, 768))
        least = np.einsum("nh,nh->n", queries, references) - np.float32(TIE)
        paid = screening.costs(queries, references, least, screening.principal(references))
        assert (min(paid, key=paid.__getitem__) < 768) == expected


def test_remainders_bound_what_the_other_numbers_add():
    queries, references = map(normalized, isotropic(np.random.default_rng(3), 90))
    basis = screening.principal(references)
    for width in (1, 7, 48):
        level = screening.Level.of(queries, references, basis[:, :width])
        wrong = np.abs(level.queries @ level.references.T - queries @ references.T)
        assert (wrong <= np.outer(level.query_rests, level.reference_rests)).all()
