"""The cache of features: what it spares, what it must not confuse, and that it never costs a run."""

import json
import shutil
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from answers import lines
from clamp3.errors import UserError
from clamp3.features.cache import CACHE_FILE, CachedFeature, FeatureCache, embed_files_once
from clamp3.features.embedder import Embedder
from clamp3.features.reading import READING_VERSION
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.search.index import Index
from clamp3.search.indexing import update_index
from conftest import MERT_TINY, run_forked
from golden_model import golden_json


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    return FeatureCache(100)


@pytest.fixture(scope="module")
def embedder(small_model, tmp_path_factory):
    return new_embedder(small_model, tmp_path_factory.mktemp("weights"))


def new_embedder(small_model, folder, seed=0, **options) -> Embedder:
    sizes = replace(small_model.sizes, audio_hidden_size=64)
    torch.manual_seed(seed)
    model = CLaMP3Model(sizes)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    embedder = Embedder(model, sizes, mert=MERT_TINY, **options)
    embedder.weights = folder / "weights.pth"
    return embedder


@pytest.fixture
def files(tmp_path):
    """A text, MTF, and a sound so short that it is mended."""
    import soundfile

    paths = [tmp_path / name for name in ("a.txt", "b.mtf", "c.wav")]
    paths[0].write_text("A slow air")
    paths[1].write_text(golden_json("mtf.json")[0]["mtf"])
    soundfile.write(paths[2], np.sin(np.arange(8000) / 9) * 0.3, 24_000)
    return paths


def embedded(embedder, paths, cache) -> tuple[dict[str, np.ndarray], list[str]]:
    """Features by name; and which files went through the towers."""
    through = []
    embed_items = embedder.embed_items

    def noting(items):
        for item, feature in embed_items(items):
            through.append(item)
            yield item, feature

    embedder.embed_items = noting
    try:
        found = {
            paths[item.index].name: (feature, item.repairs)
            for item, feature in embed_files_once(embedder, paths, cache)
        }
    finally:
        del embedder.embed_items
    return found, sorted(paths[item.index].name for item in through)


def test_what_was_embedded_once_is_not_again_and_warnings_stay(embedder, files, cache):
    first, through = embedded(embedder, files, cache)
    assert through == ["a.txt", "b.mtf", "c.wav"]
    again, through = embedded(embedder, files, cache)
    assert through == []
    for name, (feature, repairs) in first.items():
        np.testing.assert_array_equal(again[name][0], feature)
        assert again[name][1] == repairs
    assert "repeated up to 1 s" in again["c.wav"][1][0]
    np.testing.assert_array_equal(first["a.txt"][0], embedder.embed_text(["A slow air"])[0])


def test_renamed_files_are_known_and_changed_ones_are_not(embedder, files, cache):
    embedded(embedder, files, cache)
    renamed = files[0].rename(files[0].with_name("renamed.txt"))
    files[1].write_text(golden_json("mtf.json")[1]["mtf"])
    found, through = embedded(embedder, [renamed, files[1]], cache)
    assert through == ["b.mtf"]
    np.testing.assert_allclose(found["b.mtf"][0], embedder.embed_symbolic([files[1].read_text()])[0], atol=2e-5)
    assert embedded(embedder, [renamed.rename(renamed.with_suffix(".mtf"))], cache)[1] == ["renamed.mtf"]


def test_other_weights_precision_and_listener_are_not_confused(small_model, embedder, files, cache, tmp_path):
    first, _ = embedded(embedder, files, cache)
    other = new_embedder(small_model, tmp_path, seed=1)
    found, through = embedded(other, files, cache)
    assert len(through) == 3 and not np.allclose(found["a.txt"][0], first["a.txt"][0], atol=1e-3)
    low = Embedder(other._model, other.sizes, precision="bf16", mert=MERT_TINY)
    low.weights = other.weights
    assert len(embedded(low, files, cache)[1]) == 3
    mert = shutil.copytree(MERT_TINY, tmp_path / "mert")
    config = json.loads((mert / "config.json").read_text())
    (mert / "config.json").write_text(json.dumps({**config, "note": "another"}))
    other_ears = Embedder(embedder._model, embedder.sizes, mert=mert)
    other_ears.weights = embedder.weights
    assert embedded(other_ears, files, cache)[1] == ["c.wav"]
    # The same weights under another name are the same.
    copy = tmp_path / "copy.pth"
    copy.write_bytes(embedder.weights.read_bytes())
    same = Embedder(embedder._model, embedder.sizes, mert=MERT_TINY)
    same.weights = copy
    assert embedded(same, files, cache)[1] == []


def test_another_version_of_what_reads_files_is_another_maker(embedder, files, cache, monkeypatch, tmp_path):
    """Of cached features, and of an index."""
    embedded(embedder, files[:2], cache)
    index = Index.create(tmp_path / "index")
    update_index(index, files[0], lambda: embedder)
    monkeypatch.setattr("clamp3.features.embedder.READING_VERSION", READING_VERSION + 1)
    later = Embedder(embedder._model, embedder.sizes, mert=MERT_TINY)
    later.weights = embedder.weights
    assert embedded(later, files[:2], cache)[1] == ["a.txt", "b.mtf"]
    with pytest.raises(UserError, match="do not compare"):
        update_index(index, files[1], lambda: later)


def test_failures_are_not_kept(embedder, tmp_path, cache):
    (tmp_path / "empty.txt").write_text("")
    for _ in range(2):
        ((item, feature),) = embed_files_once(embedder, [tmp_path / "empty.txt"], cache)
        assert feature is None and "empty" in str(item.error)


def test_a_cache_that_cannot_be_used_costs_no_run(embedder, files, cache, tmp_path, monkeypatch):
    embedded(embedder, files, cache)
    cache.path.write_bytes(b"this is no database, " * 100)
    assert len(embedded(embedder, files, cache)[1]) == 3  # and the damaged file is gone
    assert embedded(embedder, files, cache)[1] == []
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "file"))
    assert len(embedded(embedder, files, FeatureCache(100))[1]) == 3


def test_the_least_recently_used_go_first_and_the_size_is_bounded(cache):
    rng = np.random.default_rng(0)
    features = {
        bytes([n, m]) * 16: CachedFeature(rng.standard_normal(768, np.float32), [])
        for n in range(4)
        for m in range(250)
    }
    small, keys = FeatureCache(1), list(features)
    for start in range(0, 1000, 50):
        small.put({key: features[key] for key in keys[start : start + 50]})
        assert keys[0] in small.get(keys[:1])  # used all the time
    kept = small.get(keys)
    assert 100 < len(kept) < 400 and set(keys[-50:]) <= kept.keys()
    assert small.path.stat().st_size < 1.4e6
    np.testing.assert_array_equal(kept[keys[-1]].feature, features[keys[-1]].feature)


def test_many_write_at_once(cache):
    def write(number: int) -> None:
        for turn in range(10):
            key = bytes([number, turn])
            cache.put({key: CachedFeature(np.full(8, number, np.float32), [])})
            assert cache.get([key])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sqlite3.connect(cache.path) as database:
        assert database.execute("SELECT COUNT(*) FROM features").fetchone() == (60,)


def test_the_commands_share_it_and_can_do_without(small_model, tmp_path):
    """The second command takes from the cache what the first has put there, which the test has made wrong."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("A slow air")
    (folder / "b.txt").write_text("A lively reel")
    env = {**small_model.environment(), "CLAMP3_CACHE": str(tmp_path / "cache")}
    embd = ("clamp3_embd.py", folder)
    run_forked(*embd, tmp_path / "none", "--get_global", "--no_cache", env=env)
    assert not (tmp_path / "cache").exists()
    run_forked(*embd, tmp_path / "one", "--get_global", env=env)
    with sqlite3.connect(tmp_path / "cache" / CACHE_FILE) as database:
        ((dimensions,),) = database.execute("SELECT DISTINCT LENGTH(feature) / 4 FROM features")
        database.execute("UPDATE features SET feature = ?", (np.ones(dimensions, "<f4").tobytes(),))
    command = ("clamp3_search.py", folder / "a.txt", folder, "--json")
    run_forked(*command, tmp_path / "wrong.jsonl", env=env)
    run_forked(*command, tmp_path / "right.jsonl", "--no_cache", env=env)
    assert [round(record["cosine"], 4) for record in lines(tmp_path / "wrong.jsonl")] == [1, 1]
    first, second = lines(tmp_path / "right.jsonl")
    assert first["file"] == "a.txt" and second["cosine"] < 0.9999
    assert first["weights"].endswith("weights_clamp3_small.pth")
