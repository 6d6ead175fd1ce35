"""Two sets of features compared on the same items, what chance would reach, and distances between groups."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines, save_features
from clamp3.cli.commands import eval as clamp3_eval
from clamp3.cli.commands import score as clamp3_score
from clamp3.errors import UserError
from clamp3.search.comparison import chance, common_items, differences
from clamp3.search.metrics import Measured, evaluate, frechet_distance, frechet_infinity, measure
from conftest import run_forked

WIDTH = 16


def noisy(base: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return (base + noise * np.random.default_rng(seed).normal(size=base.shape)).astype(np.float32)


def save_rows(folder: Path, features: np.ndarray, skipped: tuple[int, ...] = (), extension: str = "") -> Path:
    """Row i as item i, in two folders; names have extensions of their own before .npy where that is asked for."""
    named = {f"{'ab'[i % 2]}/{i:02}{extension}.npy": row[None] for i, row in enumerate(features) if i not in skipped}
    save_features(folder, named)
    return folder


@pytest.fixture
def sets(tmp_path) -> dict[str, Path]:
    """Features of the same 60 items by two models of different widths: a good one, and a bad one without two items."""
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=(60, WIDTH)), rng.normal(size=(60, WIDTH + 4))
    return {
        "queries": save_rows(tmp_path / "good" / "q", good.astype(np.float32)),
        "references": save_rows(tmp_path / "good" / "r", noisy(good, 1.0, 1)),
        "other_queries": save_rows(tmp_path / "bad" / "q", bad.astype(np.float32), skipped=(3,)),
        "other_references": save_rows(tmp_path / "bad" / "r", noisy(bad, 3.0, 2), skipped=(4,)),
    }


# ---------- chance ----------


@pytest.mark.parametrize(("total", "counts"), [(6, [1]), (5, [1, 2, 4]), (3, [3]), (1, [1]), (7, [2, 2])])
def test_chance_is_the_mean_over_all_rankings(total, counts):
    """Of one query after the other, over each way to rank the references."""
    found = {"MRR": [], "Hit@1": [], "nDCG@10": [], "ranks": []}
    for count in counts:
        rankings = list(itertools.permutations(range(total)))
        own = np.array([sorted(ranking.index(item) + 1 for item in range(count)) for ranking in rankings])
        ideal = sum(1 / np.log2(place + 1) for place in range(1, count + 1))
        found["MRR"].append(np.mean(1 / own[:, 0]))
        found["Hit@1"].append(np.mean(own[:, 0] == 1))
        found["nDCG@10"].append(np.mean((1 / np.log2(own + 1)).sum(axis=1)) / ideal)
        found["ranks"] += list(own[:, 0])
    measured = Measured(np.ones(len(counts)), {}, counts, total)
    by_chance = chance(measured)
    for name in ("MRR", "Hit@1", "nDCG@10"):
        assert by_chance[name] == pytest.approx(np.mean(found[name])), name
    assert by_chance["median rank"] == np.median(found["ranks"]) and by_chance["Hit@10"] == 1


def test_random_features_reach_chance():
    rng = np.random.default_rng(3)
    relevant = [[index] if index % 3 else [index, index + 1] for index in range(800)]
    measured = measure(rng.normal(size=(800, 64)), rng.normal(size=(900, 64)), relevant)
    by_chance = chance(measured)
    for name, values in measured.values.items():
        assert values.mean() == pytest.approx(by_chance[name], abs=3 * values.std() / 800**0.5 + 1e-4), name
    assert np.median(measured.ranks) == pytest.approx(by_chance["median rank"], rel=0.1)


# ---------- differences ----------


def test_the_paired_bootstrap_is_that_of_scipy():
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    base = np.random.default_rng(0).normal(size=(150, WIDTH))
    first, other = (
        measure(base, noisy(base, noise, seed), np.arange(150)[:, None]) for noise, seed in ((2, 1), (3, 2))
    )
    found = differences(first, other)
    for name in ("MRR", "nDCG@10"):
        sides = first.values[name], other.values[name]
        said = bootstrap(
            sides,
            lambda a, b, axis: (a - b).mean(axis=axis),
            paired=True,
            method="percentile",
            n_resamples=4000,
            rng=0,
        )
        one, width = found[name], said.confidence_interval.high - said.confidence_interval.low
        assert one.difference == pytest.approx((sides[0] - sides[1]).mean())
        assert [one.low, one.high] == pytest.approx(list(said.confidence_interval), abs=0.1 * width)
        # Unpaired, the interval is another one.
        assert one.sure == pytest.approx(np.mean(said.bootstrap_distribution > 0), abs=0.03) and one.better == "first"
    assert found["median rank"].better == "first" and found["median rank"].difference < 0
    back = differences(other, first)
    assert {name: (one.better, one.sure) for name, one in back.items()} == {
        name: (one.better and "other", one.sure) for name, one in found.items()
    }
    assert all(
        (one.better, one.sure, one.low, one.high) == (None, None, 0, 0) for one in differences(first, first).values()
    )


def test_items_are_the_same_by_name_or_without_the_extension():
    first = ["a.abc", "b.npy", "c.abc", "d.mid", "d.abc", "x/e.abc"]
    other = ["b.npy", "a.npy", "c.mid", "c.txt", "d.npy", "e.abc"]
    pairs, only_first, only_other = common_items(first, other)
    assert pairs == [(0, 1), (1, 0)]
    assert only_first == first[2:] and only_other == other[2:]


def test_two_sets_are_compared_on_what_both_have(sets, tmp_path, monkeypatch, capsys):
    words = [*list(sets.values())[:2], "--compare", *list(sets.values())[2:]]
    picture, target = tmp_path / "pictures" / "ranks.png", tmp_path / "c.jsonl"
    assert answer(monkeypatch, clamp3_eval, *words, "--by_folder", "--picture", picture, "--json", target) == 0
    printed, records = capsys.readouterr().out, lines(target)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [record["folder"] for record in records] == [None, None, "a", "a", "b", "b"]
    forth, back = records[:2]
    assert forth["queries"] == forth["references"] == 59 and forth["direction"] == "query_to_reference"
    # The plain computation, over the items that all four folders have as queries and as references.
    names = {of: sorted(path.relative_to(folder) for path in folder.rglob("*.npy")) for of, folder in sets.items()}
    queries = [name for name in names["queries"] if name in names["other_queries"]]
    references = [name for name in names["references"] if name in names["other_references"]]
    asking = [name for name in queries if name in references]
    relevant = [[references.index(name)] for name in asking]
    for which, (source, candidates) in {
        "first": ("queries", "references"),
        "other": ("other_queries", "other_references"),
    }.items():
        rows = (
            np.concatenate([np.load(sets[of] / name) for name in chosen])
            for of, chosen in ((source, asking), (candidates, references))
        )
        for measure_name, estimate in evaluate(*rows, relevant).items():
            assert forth[measure_name][which] == pytest.approx(estimate.value)
    assert all(record["MRR"]["better"] == "first" and record["MRR"]["sure"] > 0.99 for record in records)
    assert forth["MRR"]["low"] > 0 > forth["median rank"]["high"] and forth["chance"]["Hit@1"] == pytest.approx(1 / 59)
    assert back["other"]["other_queries"] == str(sets["other_queries"])
    for name in (sets["queries"] / "b" / "03.npy", sets["references"] / "a" / "04.npy"):
        assert f"{name}  the other has no such file" in printed
    assert "sure" in printed and "chance" in printed and "under 20 queries" not in printed


def test_one_other_folder_and_pairs_from_a_csv_file(sets, tmp_path, monkeypatch, capsys):
    folders = sets["queries"], sets["references"]
    both = sets["other_queries"].parent
    table = tmp_path / "pairs.csv"
    table.write_text("".join(f"{'ab'[i % 2]}/{i:02}.npy,{'ab'[i % 2]}/{i:02}.npy\n" for i in range(9)))
    assert answer(monkeypatch, clamp3_eval, *folders, "--compare", both, "--pairs", table) == 0
    printed = capsys.readouterr().out
    assert f"other: {both / 'q'} -> {both / 'r'}" in printed and "query_to_reference, 7 queries" in printed
    assert "under 20 queries" in printed
    # Other references for the same queries.
    clearer = save_rows(
        tmp_path / "clearer", np.stack([np.load(path)[0] for path in sorted(folders[0].rglob("*.npy"))])
    )
    shutil.rmtree(clearer / "a")
    assert answer(monkeypatch, clamp3_eval, *folders, "--compare", clearer, "--json", tmp_path / "c.jsonl") == 0
    assert f"other: {folders[0]} -> {clearer}" in capsys.readouterr().out
    assert lines(tmp_path / "c.jsonl")[0]["references"] == 30
    save_features(tmp_path / "nothing", {"z.npy": np.ones((1, WIDTH), np.float32)})
    with pytest.raises(UserError, match="nothing to compare: no file of"):
        answer(monkeypatch, clamp3_eval, *folders, "--compare", tmp_path / "nothing")
    with pytest.raises(UserError, match="features of different models"):
        answer(monkeypatch, clamp3_eval, *folders, "--compare", folders[0], sets["other_references"])
    with pytest.raises(SystemExit):
        answer(monkeypatch, clamp3_eval, "--compare", both, both, both, "--", *folders)


def test_pictures_and_chance_of_one_set(sets, tmp_path, monkeypatch, capsys):
    save_features(sets["queries"], {"a/$x^{$.npy": np.ones((1, WIDTH), np.float32)})
    words = (sets["queries"], sets["references"], "--picture")
    assert answer(monkeypatch, clamp3_eval, *words, tmp_path / "r.svg", "--json", tmp_path / "e.jsonl") == 0
    assert "chance" in capsys.readouterr().out and b"<svg" in tmp_path.joinpath("r.svg").read_bytes()
    assert lines(tmp_path / "e.jsonl")[0]["chance"]["median rank"] == 30.5
    with pytest.raises(UserError, match="cannot be drawn"):
        answer(monkeypatch, clamp3_eval, *words, tmp_path / "r.nothing", "--json", tmp_path / "other.jsonl")
    assert len(lines(tmp_path / "other.jsonl")) == 2  # what was measured is saved all the same
    with pytest.raises(UserError, match="one text has no right answers"):
        answer(monkeypatch, clamp3_eval, "a lively reel", sets["references"])


# ---------- distances of groups ----------


def test_the_frechet_distance_is_that_of_scipys_square_root_and_never_below_zero():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    rng = np.random.default_rng(0)
    for rows in (200, 20, 2):  # more and fewer than numbers in a row
        first, second = rng.normal(size=(rows, 30)), rng.normal(size=(rows + 5, 30)) * 2 + 1
        covariances = [np.cov(side, rowvar=False) for side in (first, second)]
        root = sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(30))
        offset = first.mean(axis=0) - second.mean(axis=0)
        wanted = offset @ offset + np.trace(covariances[0] + covariances[1] - 2 * root.real)
        assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-4)
        assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
        for scale in (1e-6, 1.0, 1e4):
            same = frechet_distance(first * scale, first[::-1] * scale)
            assert 0 <= same < 1e-6 * scale**2 * 30


def test_the_extrapolated_distance_is_nearer_to_that_of_the_distributions():
    """Normal distributions without covariance: |m|² + Σ (s1 - s2)²."""
    rng, scales = np.random.default_rng(1), np.linspace(0.5, 2, WIDTH)
    reference, truth = rng.normal(size=(3000, WIDTH)), WIDTH * 0.09 + np.square(scales - 1).sum()
    plain, extrapolated = [], []
    for seed in range(24):
        sample = 0.3 + scales * rng.normal(size=(200, WIDTH))
        plain.append(frechet_distance(sample, reference))
        found = frechet_infinity(sample, reference, seed)
        assert found.sizes[0] == 50 and found.sizes[-1] == 200 and found.r2 <= 1
        extrapolated.append(found.value)
    assert found == frechet_infinity(sample, reference, seed)
    assert np.mean(plain) > truth * 1.08
    assert np.mean(extrapolated) == pytest.approx(truth, rel=0.05)
    below = frechet_infinity(reference[:200], reference)  # a part of it
    assert below.value == max(below.intercept, 0)
    assert frechet_infinity(sample[:19], reference) is None


def test_groups_are_warned_of_when_they_are_small(sets, tmp_path, monkeypatch, capsys):
    words = (sets["queries"], sets["references"], "--group", "--frechet", "--json", tmp_path / "g.jsonl")
    assert answer(monkeypatch, clamp3_score, *words) == 0
    (record,) = lines(tmp_path / "g.jsonl")
    assert record["frechet_distance"] > record["frechet_infinity"] >= 0 and 0 < record["r2"] <= 1
    assert len(record["remarks"]) == 1 and record["remarks"][0] in capsys.readouterr().out
    for path in sorted(sets["references"].rglob("*.npy"))[WIDTH:]:
        path.unlink()
    assert answer(monkeypatch, clamp3_score, *words) == 0
    assert f"{sets['references']} has 16 files and features have 16 numbers" in capsys.readouterr().out
    for path in sorted(sets["queries"].rglob("*.npy"))[3:]:
        path.unlink()
    assert answer(monkeypatch, clamp3_score, *words) == 0
    (record,) = lines(tmp_path / "g.jsonl")
    assert "frechet_infinity" not in record and "not extrapolated" in capsys.readouterr().out
    assert len(record["remarks"]) == 3


# ---------- one text, one file ----------


def test_one_file_is_scored_with_each_of_a_folder(sets, tmp_path, monkeypatch, capsys):
    query = sets["queries"] / "a" / "00.npy"
    assert answer(monkeypatch, clamp3_score, query, sets["references"], "--json", tmp_path / "s.jsonl") == 0
    found, printed = lines(tmp_path / "s.jsonl"), capsys.readouterr().out
    assert found[0]["reference"] == "a/00.npy" and len(found) == 60
    own = np.load(query)[0]
    cosines = [one["cosine"] for one in found]
    for one in found:
        other = np.load(sets["references"] / one["reference"])[0]
        assert one["cosine"] == pytest.approx(own @ other / np.linalg.norm(own) / np.linalg.norm(other), abs=1e-5)
    assert cosines == sorted(cosines, reverse=True)
    assert f"mean of 60 files: cosine {np.mean(cosines):.4f}" in printed
    with pytest.raises(UserError, match="no file 5.mid; a search takes a text of this name by --text"):  # not this one
        answer(monkeypatch, clamp3_score, "5.mid", sets["references"])
    with pytest.raises(UserError, match="there is no file or folder texts/queries"):
        answer(monkeypatch, clamp3_score, "texts/queries", sets["references"])


def test_one_text_is_scored_with_each_file_of_a_folder(tmp_path):
    for name, text in (("reel.txt", "an Irish reel"), ("deep/march.txt", "a slow march")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    words = ("an Irish reel", tmp_path / "in", "--variant", "tiny", "--json", tmp_path / "s.jsonl")
    printed = run_forked("clamp3_score.py", *words).stdout
    assert '"an Irish reel", a text, for there is no such file or folder' in printed
    first, second = lines(tmp_path / "s.jsonl")
    assert first["reference"] == "reel.txt" and second["cosine"] < first["cosine"] == pytest.approx(1, abs=1e-5)
    assert first["query"] == "an Irish reel" and first["weights"].endswith("clamp3.safetensors")
