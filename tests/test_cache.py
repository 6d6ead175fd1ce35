"""The cache of features: what it spares, what it must not confuse, and that it never costs a run."""

import contextlib
import json
import os
import resource
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


# ---------- damage ----------


def features_by_key(count: int, seed: int = 0, width: int = 768) -> dict[bytes, CachedFeature]:
    """Features under random keys; one in eight with a remark that is longer than a page of the database."""
    rng = np.random.default_rng(seed)
    return {
        rng.bytes(32): CachedFeature(rng.standard_normal(width, np.float32), ["mended " * 700] * (n % 8 == 0))
        for n in range(count)
    }


def assert_right_or_missing(found, features) -> int:
    """How many there are."""
    for key, cached in found.items():
        assert np.array_equal(cached.feature, features[key].feature) and cached.repairs == features[key].repairs
    return len(found)


PAGE = 4096


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A database after one of many accidents."""
    data, pages = bytearray(content), len(content) // PAGE
    kind = rng.integers(9)
    first, second = (PAGE * int(page) for page in rng.integers(pages, size=2))
    if kind == 0:  # bits that have flipped anywhere
        for place in rng.integers(len(data), size=rng.integers(1, 40)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # bytes in the header and the schema
        for place in rng.integers(PAGE, size=rng.integers(1, 20)):
            data[place] = int(rng.integers(256))
    elif kind == 2:
        data[first : first + PAGE] = bytes(PAGE)
    elif kind == 3:
        data[first : first + PAGE] = rng.bytes(PAGE)
    elif kind == 4:
        data[first : first + PAGE] = content[second : second + PAGE]
    elif kind == 5:  # cell pointers and cells
        start = first + int(rng.integers(100))
        data[start : start + 8] = rng.bytes(8)
    elif kind == 6:
        del data[int(rng.integers(len(data))) :]
    elif kind == 7:
        data[first : first + PAGE], data[second : second + PAGE] = (
            data[second : second + PAGE],
            data[first : first + PAGE],
        )
    else:
        start = int(rng.integers(len(data)))
        length = int(rng.integers(1, 3000))
        data[start : start + length] = rng.bytes(length)
    return bytes(data)


def test_damaged_databases_give_right_features_or_none(cache):
    """And take new ones afterwards."""
    features, others = features_by_key(40), features_by_key(5, seed=1)
    cache.put(features)
    whole = cache.path.read_bytes()
    found = recovered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        for path in cache.path.parent.iterdir():
            path.unlink()
        cache.path.write_bytes(damaged(whole, rng))
        if seed % 10 == 0:
            cache.path.with_name(f"{CACHE_FILE}-journal").write_bytes(rng.bytes(2000))
        fresh = FeatureCache(100)
        found += assert_right_or_missing(fresh.get(list(features)), features)
        fresh.put(others)
        recovered += assert_right_or_missing(fresh.get(list(others)), others) == 5
        assert_right_or_missing(fresh.get(list(features)), features)
    assert 300 * 40 * 0.2 < found < 300 * 40 * 0.9 and recovered > 290


@pytest.mark.parametrize(
    "change",
    [
        "feature = zeroblob(LENGTH(feature))",
        "feature = substr(feature, 1, 400), width = 100",
        "feature = (SELECT feature FROM features ORDER BY key LIMIT 1), width = 768",
        "repairs = CAST('[\"another\"]' AS BLOB)",
        "feature = 7",
        "feature = NULL, repairs = NULL",
        "width = 'wide'",
        "checksum = zeroblob(16)",
        "checksum = 0",
    ],
)
def test_rows_that_were_changed_are_no_rows(cache, change):
    features = features_by_key(3)
    cache.put(features)
    last = max(features)
    with sqlite3.connect(cache.path) as database:
        if "NULL" in change:
            database.execute("PRAGMA writable_schema = ON")
            database.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
            database.commit()
            database.execute("PRAGMA writable_schema = RESET")
        database.execute(f"UPDATE features SET {change} WHERE key = ?", (last,))
    found = cache.get(list(features))
    assert last not in found
    assert_right_or_missing(found, features)
    cache.put(features)
    assert assert_right_or_missing(cache.get(list(features)), features) == 3


def test_features_that_are_not_finite_or_of_another_width_are_made_again(embedder, files, cache):
    embedded(embedder, files, cache)
    with sqlite3.connect(cache.path) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM features")]
    for odd in (np.full(64, np.nan, np.float32), np.ones(65, np.float32)):
        cache.put({key: CachedFeature(odd, []) for key in keys})
        found, through = embedded(embedder, files, cache)
        assert len(through) == 3 and all(np.isfinite(feature).all() for feature, _ in found.values())
        assert embedded(embedder, files, cache)[1] == []


FORMER_SCHEMA = """
    CREATE TABLE IF NOT EXISTS features (
        key BLOB PRIMARY KEY, feature BLOB NOT NULL, repairs TEXT NOT NULL, used REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_use ON features (used);
"""


def test_features_of_earlier_versions_have_no_checksums_and_are_made_again(cache, caplog):
    features = features_by_key(3)
    cache.path.parent.mkdir()
    with sqlite3.connect(cache.path) as database:
        database.executescript(FORMER_SCHEMA)
        rows = [(key, cached.feature.tobytes(), json.dumps(cached.repairs), 0.0) for key, cached in features.items()]
        database.executemany("INSERT INTO features VALUES (?, ?, ?, ?)", rows)
    assert cache.get(list(features)) == {}
    cache.put(features)
    assert assert_right_or_missing(cache.get(list(features)), features) == 3 and not caplog.records


# ---------- a cache that cannot be used ----------


def assert_passed_over(cache, caplog, reason: str) -> None:
    """Nothing is found or raised, at once, and one remark says why."""
    features = features_by_key(3)
    for _ in range(3):
        assert cache.get(list(features)) == {}
        cache.put(features)
    [record] = caplog.records
    assert reason in record.getMessage() and record.levelname == "WARNING"
    caplog.clear()


def test_another_applications_database_is_left_alone(cache, caplog):
    cache.path.parent.mkdir()
    with sqlite3.connect(cache.path) as database:
        database.execute("CREATE TABLE features (id INTEGER, mine TEXT)")
        database.execute("INSERT INTO features VALUES (1, 'dear')")
    before = cache.path.read_bytes()
    assert_passed_over(cache, caplog, "another application's")
    assert cache.path.read_bytes() == before


def test_a_locked_database_is_waited_for_once(cache, caplog, monkeypatch):
    monkeypatch.setattr("clamp3.features.cache.LOCK_TIMEOUT", 0.2)
    cache.put(features_by_key(5, seed=1))
    with contextlib.closing(sqlite3.connect(cache.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        assert_passed_over(cache, caplog, "locked")
        assert time.monotonic() - begin < 2
    assert len(FeatureCache(100).get(list(features_by_key(5, seed=1)))) == 5


@pytest.mark.parametrize("place", ["a folder", "a file in place of the folder", "a link that leads nowhere"])
def test_places_where_no_database_can_be(cache, caplog, place):
    if place == "a folder":
        cache.path.mkdir(parents=True)
    elif place == "a link that leads nowhere":
        cache.path.parent.symlink_to(cache.path.parent / "nowhere" / "at all")
    else:
        cache.path.parent.write_text("in the way")
    assert_passed_over(cache, caplog, "cannot be used")


@pytest.mark.parametrize("limit", ["a full disk", "no files may be opened"])
def test_a_moments_failure_loses_nothing(cache, caplog, limit):
    """Of what the system does when there is no more: a real limit of this process."""
    features = features_by_key(40)
    cache.put(features)
    size = cache.path.stat().st_size
    kind, most = (resource.RLIMIT_FSIZE, size) if limit == "a full disk" else (resource.RLIMIT_NOFILE, 3)
    before = resource.getrlimit(kind)
    unlucky = FeatureCache(100)
    resource.setrlimit(kind, (most, before[1]))
    try:
        unlucky.put(features_by_key(200, seed=1))
        found = unlucky.get(list(features))
    finally:
        resource.setrlimit(kind, before)
    assert_right_or_missing(found, features)
    assert [record.getMessage() for record in caplog.records if "cannot be used" in record.getMessage()]
    assert assert_right_or_missing(cache.get(list(features)), features) == 40
    assert [path.name for path in cache.path.parent.iterdir()] == [CACHE_FILE]


def test_a_read_only_cache_still_answers(cache):
    features = features_by_key(3)
    cache.put(features)
    # For root no permissions count, but a database that says so in its header is read-only for all.
    content = bytearray(cache.path.read_bytes())
    content[18] = 9  # the version that a writer has to know
    cache.path.write_bytes(content)
    assert assert_right_or_missing(cache.get(list(features)), features) == 3


@pytest.mark.parametrize("deleted", ["file", "folder"])
def test_a_cache_deleted_in_use_starts_again(cache, deleted):
    """By threads that go on reading and writing meanwhile."""
    features = features_by_key(8, width=16)
    stop = threading.Event()

    def use() -> None:
        own = FeatureCache(100)
        while not stop.is_set():
            own._resting_until = 0.0
            own.put(features)
            assert_right_or_missing(own.get(list(features)), features)

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(use) for _ in range(3)]
        for _ in range(20):
            time.sleep(0.01)
            with contextlib.suppress(OSError):
                cache.path.unlink() if deleted == "file" else shutil.rmtree(cache.path.parent)
        stop.set()
        for one in running:
            one.result()
    again = FeatureCache(100)
    again.put(features)
    assert assert_right_or_missing(again.get(list(features)), features) == 8


def test_processes_share_it(cache):
    """Forked ones, each with keys of its own and common ones."""
    common = features_by_key(10)
    children = []
    for number in range(4):
        if not (child := os.fork()):
            try:
                own = features_by_key(10, seed=2 + number)
                for _ in range(10):
                    cache.put(common | own)
                    assert assert_right_or_missing(cache.get([*common, *own]), common | own) == 20
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    everything = common | {k: v for number in range(4) for k, v in features_by_key(10, seed=2 + number).items()}
    assert assert_right_or_missing(cache.get(list(everything)), everything) == 50


# ---------- what changes meanwhile ----------


def test_a_file_that_changes_while_it_is_embedded_is_not_kept(embedder, files, cache):
    """Its feature would be found under the content that it had before."""
    read_raw = embedder.read_raw
    first, second = "A slow air", "A lively reel"

    def reading(paths):
        files[0].write_text(second)
        return read_raw(paths)

    embedder.read_raw = reading
    try:
        embedded(embedder, files[:1], cache)
    finally:
        del embedder.read_raw
    files[0].write_text(first)
    found, through = embedded(embedder, files[:1], cache)
    assert through == ["a.txt"]
    np.testing.assert_allclose(found["a.txt"][0], embedder.embed_text([first])[0], atol=2e-5)


def test_another_tokenizer_is_another_maker_of_texts_alone(small_model, embedder, files, cache, tmp_path):
    embedded(embedder, files, cache)
    folder = shutil.copytree(small_model.folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.pth"))
    sizes = replace(embedder.sizes, text_model_name=str(folder))
    assert embedded(Embedder(embedder._model, sizes, mert=MERT_TINY, weights=embedder.weights), files, cache)[1] == []
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    other = Embedder(embedder._model, sizes, mert=MERT_TINY, weights=embedder.weights)
    assert embedded(other, files, cache)[1] == ["a.txt"]


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


def test_the_commands_share_it_and_can_do_without(small_model, tmp_path, monkeypatch):
    """The second command takes from the cache what the first has put there, in whose place the test has put others."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("A slow air")
    (folder / "b.txt").write_text("A lively reel")
    env = {**small_model.environment(), "CLAMP3_CACHE": str(tmp_path / "cache")}
    embd = ("clamp3_embd.py", folder)
    run_forked(*embd, tmp_path / "none", "--get_global", "--no_cache", env=env)
    assert not list((tmp_path / "cache").glob("*.sqlite*"))
    run_forked(*embd, tmp_path / "one", "--get_global", env=env)
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    with sqlite3.connect(tmp_path / "cache" / CACHE_FILE) as database:
        kept = database.execute("SELECT key, width FROM features").fetchall()
    FeatureCache(100).put({key: CachedFeature(np.ones(width, np.float32), []) for key, width in kept})
    command = ("clamp3_search.py", folder / "a.txt", folder, "--json")
    run_forked(*command, tmp_path / "wrong.jsonl", env=env)
    run_forked(*command, tmp_path / "right.jsonl", "--no_cache", env=env)
    assert [round(record["cosine"], 4) for record in lines(tmp_path / "wrong.jsonl")] == [1, 1]
    first, second = lines(tmp_path / "right.jsonl")
    assert first["file"] == "a.txt" and second["cosine"] < 0.9999
    assert first["weights"].endswith("weights_clamp3_small.pth")
