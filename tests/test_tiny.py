"""The small model that comes with the code loads by its name, keeps what its card promises, and serves commands."""

import json

import numpy as np
import pytest

import train_tiny
from clamp3.features.embedder import Embedder
from clamp3.models.releases import TINY
from clamp3.search.metrics import metrics
from clamp3.search.ranking import ranks_of_pairs
from conftest import run_forked
from descriptions import full_description
from notes import contour, read_melody, to_mtf, to_sound

TUNES = 200  # of the held-out ones: every fifth


@pytest.fixture(scope="module")
def everything(corpus_tunes):
    return {tune.name: tune for tune in corpus_tunes}


@pytest.fixture(scope="module")
def held_out(everything):
    return [everything[name] for name in TINY.joinpath("held_out.txt").read_text(encoding="utf-8").split()]


@pytest.fixture(scope="module")
def tiny():
    return Embedder.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def features(tiny, held_out):
    tunes = held_out[::5][:TUNES]
    return {
        "text": tiny.embed_text([full_description(tune) for tune in tunes]),
        "abc": tiny.embed_symbolic([tune.abc for tune in tunes]),
        "mtf": tiny.embed_symbolic([to_mtf(read_melody(tune.abc)) for tune in tunes]),
    }


def test_what_is_shipped_is_small():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 24e6


@pytest.mark.slow
def test_the_held_out_tunes_are_those_of_the_recipe_and_have_no_copies_in_training(everything, held_out):
    tunes = list(everything.values())
    melodies = [read_melody(tune.abc) for tune in tunes]
    training, validation, test = train_tiny.held_out(melodies, np.random.default_rng(train_tiny.SEED))
    assert [tunes[index].name for index in test] == [tune.name for tune in held_out] and len(test) == 1024
    contours = [{contour(melodies[index]) for index in part} for part in (training, validation, test)]
    assert not contours[0] & contours[2] and not contours[1] & contours[2]


@pytest.mark.parametrize(
    ("query", "reference", "mrr", "hit_10"), [("text", "abc", 0.5, 0.9), ("abc", "mtf", 0.3, 0.6)]
)
def test_pairs_find_each_other(features, query, reference, mrr, hit_10):
    found = metrics(ranks_of_pairs(features[query], features[reference]))  # chance among 200: 0.03 and 0.05
    assert found["MRR"] > mrr and found["Hit@10"] > hit_10


def test_a_short_query_finds_its_kind_in_any_language(tiny, held_out):
    tunes = held_out[::5][:TUNES]
    music = tiny.embed_symbolic([tune.abc for tune in tunes], normalize=True)
    chinese = np.array([tune.region.startswith("China") for tune in tunes])
    for query in ("Chinese folk song", "chinesisches Volkslied", "中国民歌"):
        best = np.argsort(-(music @ tiny.embed_text([query], normalize=True)[0]))[:10]
        assert chinese[best].mean() >= 0.8, query


def test_sound_goes_all_the_way(tiny, held_out):
    melody = read_melody(held_out[0].abc)
    features = tiny.embed_audio([to_sound(melody, 12, 24_000, "fiddle")])
    assert features.shape == (1, tiny.sizes.clamp3_hidden_size) and np.isfinite(features).all()


def test_the_commands_take_it(tmp_path, tiny, held_out):
    (tmp_path / "in").mkdir()
    tune = held_out[0]
    tmp_path.joinpath("in", "tune.abc").write_text(tune.abc, encoding="utf-8")
    for script, options, expected in (
        ("extract_clamp3.py", ["--get_global"], tiny.embed_symbolic([tune.abc])),
        ("extract_m3.py", [], None),
    ):
        out = tmp_path / script
        run_forked(script, "--variant", "tiny", tmp_path / "in", out, *options, "--device", "cpu")
        feature = np.load(out / "tune.npy")
        if expected is None:
            assert feature.ndim == 3 and feature.shape[-1] == tiny.sizes.m3_hidden_size
        else:
            np.testing.assert_allclose(feature, expected, atol=1e-5)


def test_the_card_has_the_figures():
    figures = json.loads(TINY.joinpath("figures.json").read_text(encoding="utf-8"))
    card = TINY.joinpath("README.md").read_text(encoding="utf-8")
    for pair, found in figures["pairs"].items():
        assert f"| {pair} | {found['MRR']:.3f} |" in card
