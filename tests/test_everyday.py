"""What a collection needs every day: several queries, diverse answers, filters, files like one, duplicates."""

import re
from pathlib import Path

import numpy as np
import pytest

from answers import save_features, vectors
from clamp3.errors import UserError
from clamp3.search.combining import combined_query, diverse
from clamp3.search.filters import File, Filter
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from clamp3.search.ranking import normalized

HIDDEN = 8


# ---------- several queries, diverse answers ----------


def unit(count: int, seed: int) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(count, HIDDEN)))


def test_several_queries_rank_by_the_sum_of_their_cosines():
    queries, files = unit(5, 0), unit(200, 1)
    one = combined_query(3 * queries[0], queries[1:3], queries[3:], weight=0.25)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    cosines = files @ queries.T
    wanted = cosines[:, :3].sum(axis=1) - 0.25 * cosines[:, 3:].sum(axis=1)
    assert np.argsort(-(files @ one)).tolist() == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(combined_query(queries[0]), queries[0], atol=1e-6)
    with pytest.raises(UserError, match="cancel each other out"):
        combined_query(queries[0], [], [2 * queries[0]], weight=1)
    with pytest.raises(UserError, match="different widths"):
        combined_query(queries[0], [np.ones(HIDDEN + 1)])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_diverse_answers_are_those_of_the_definition(share):
    """Against a plain loop over the definition of maximal marginal relevance."""
    files, query = unit(40, 2), unit(1, 3)[0]
    cosines = files @ query
    chosen: list[int] = []
    for _ in range(12):
        left = [index for index in range(40) if index not in chosen]
        worth = [
            (1 - share) * cosines[i] - share * max(files[i] @ files[j] for j in chosen) if chosen else cosines[i]
            for i in left
        ]
        chosen.append(left[int(np.argmax(worth))])
    assert diverse(cosines, files, 12, share).tolist() == chosen
    assert sorted(diverse(cosines, files, 100, share).tolist()) == list(range(40))
    with pytest.raises(ValueError, match="from 0 to 1"):
        diverse(cosines, files, 3, 1.5)


# ---------- filters ----------

FILES = [
    File(Path("/a.abc"), "symbolic", "1", {"collection": "Essen", "year": "1850"}),
    File(Path("/b.MID"), "symbolic", "2", {"collection": "O'Neill's", "year": "1903.0"}),
    File(Path("/c.mtf"), "symbolic", "3", {"collection": "Essen", "year": "unknown", "a=b": "yes"}),
    File(Path("/d.mxl"), "symbolic", "4", {}),
    File(Path("/e.wav"), "audio", "5", {"collection": "", "year": 1850}),
    File(Path("/f.txt"), "text", "6", {"collection": "愛 = <3"}),
    File(Path("/g.npy"), "feature", "7", {}),
    File(Path("/h.npy"), "audio", "8", {}),
]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "abcdefgh"),
        ({"kind": "score"}, "ad"),
        ({"kind": "midi"}, "bc"),
        ({"kind": "audio"}, "eh"),
        ({"kind": "text"}, "f"),
        ({"modality": "symbolic", "kind": "text"}, ""),
        ({"where": ["collection=Essen"]}, "ac"),
        ({"where": [" collection = Essen "]}, "ac"),
        ({"where": ["collection!=Essen"]}, "bdefgh"),
        ({"where": ["collection="]}, "degh"),
        ({"where": ["collection!="]}, "abcf"),
        ({"where": ["collection=愛 = <3"]}, "f"),
        ({"where": ["year=1850"]}, "ae"),
        ({"where": ["year=1903"]}, "b"),
        ({"where": ["year<1900"]}, "ae"),
        ({"where": ["year>=1903"]}, "b"),
        ({"where": ["year=unknown"]}, "c"),
        ({"where": ["a=b=yes"]}, "c"),
        ({"where": ["collection=Essen", "year<=1850"]}, "a"),
        ({"but": frozenset("138")}, "bdefg"),
    ],
)
def test_filters_let_through_what_they_say(options, found):
    options = {name: tuple(value) if name == "where" else value for name, value in options.items()}
    passed = Filter(**options).passed(FILES)
    assert "".join(file.path.stem for file, passes in zip(FILES, passed, strict=True) if passes) == found


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("colection=Essen", "in a column colection; columns: a=b, collection, year"),
        ("Essen", "is no condition"),
        ("=Essen", "is no condition"),
        ("year<old", "year< takes a number, not old"),
        ("year>", "year> takes a number, not nothing"),
        ("year<nan", "takes a number"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(condition, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Filter(where=(condition,)).passed(FILES)


def test_an_index_finds_what_the_filter_and_the_share_of_diversity_say(tmp_path):
    """As a plain computation over its features does."""
    features = vectors(*(f"{number:02}" for number in range(60)), hidden=HIDDEN)
    save_features(tmp_path / "in", features)
    index = Index.create(tmp_path / "index")
    known = {tmp_path / "in" / name: {"number": str(number)} for number, name in enumerate(features)}
    update_index(index, tmp_path / "in", lambda: pytest.fail("nothing is to be embedded"), metadata=known)
    rows, query = normalized(np.concatenate(list(features.values()))), unit(1, 4)[0]
    only = Filter(where=("number>=20",))
    found = [int(entry.path.stem) for _, entry in index.search(query, 9, only=only, diversity=0.4)]
    cosines = rows[20:] @ query
    assert found == (20 + diverse(cosines, rows[20:], 9, 0.4)).tolist()
    hashes = frozenset(entry.hash for entry in index.entries("row < 50"))
    assert {int(entry.path.stem) for _, entry in index.search(query, 60, only=Filter(but=hashes))} == {*range(50, 60)}
    with pytest.raises(ValueError, match="without calibration"):
        index.search(query, diversity=0.5, calibrate="centre")
    index.close()
