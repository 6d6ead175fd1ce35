"""Search in LanceDB and Qdrant, which an index was exported to, answers as the search of the index does."""

import contextlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from answers import answer, lines
from clamp3 import Embedder
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.io.files import content_hash
from clamp3.search import engines
from clamp3.search.answering import Question, search_engine, search_index
from clamp3.search.engines import engine_at, open_engine
from clamp3.search.exporting import export
from clamp3.search.filters import Filter
from clamp3.search.index import Entry, Index
from qdrant_server import KEY, qdrant_server

KINDS = {".abc": "symbolic", ".mid": "symbolic", ".txt": "text", ".mp3": "audio", ".npy": "feature"}
PACKAGES = {"qdrant": "qdrant_client", "lance": "lancedb"}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory, embedder):
    """Four hundred random features of files of all kinds; a.npy is there with a copy."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    features = rng.normal(size=(400, 128)).astype(np.float32)
    features[1] = features[0]
    np.save(folder / "a.npy", features[:1])
    shutil.copy(folder / "a.npy", folder / "copy.npy")
    entries = [
        Entry(path.resolve(), "feature", content_hash(path), path.stat().st_size, 0)
        for path in (folder / "a.npy", folder / "copy.npy")
    ]
    for number, kind in enumerate(list(KINDS) * 80):
        metadata = {"year": str(1500 + number), "title": f"愛 {number % 7}"} if number > 40 else {}
        name = "\udcff'" if number == 50 else str(number)
        entries.append(Entry(folder / f"{name}{kind}", KINDS[kind], "", 1, 0, {**metadata, "n": str(number)}))
    index = Index.create(folder / "index")
    with index.writing():
        index.record(identity=embedder.identity, fingerprint=embedder.fingerprint, weights=str(embedder.weights))
        index.add(entries[:400], features)
    yield index
    index.close()


@pytest.fixture(scope="module", params=PACKAGES)
def place(request, index, tmp_path_factory):
    pytest.importorskip(PACKAGES[request.param])
    folder = str(tmp_path_factory.mktemp("out") / "music")
    export(index, folder, request.param, "music")
    assert engine_at(folder) == request.param
    return folder


def query_file(folder: Path, seed: int = 0) -> str:
    np.save(folder / "query.npy", np.random.default_rng(seed).normal(size=(1, 128)).astype(np.float32))
    return str(folder / "query.npy")


def assert_same(engine, index: Index, question: Question, load_embedder) -> list[dict]:
    """But for the order of copies, whose cosines are equal."""
    ours, theirs = (
        search(of, question, load_embedder) for search, of in ((search_index, index), (search_engine, engine))
    )
    np.testing.assert_allclose(*([record.pop("cosine") for record in found] for found in (theirs, ours)), atol=1e-5)
    for record in (*ours, *theirs):
        record["file"] = record["file"].replace("\udcff", "\\xff").replace("copy", "a")
    assert theirs == ours
    return theirs


def never():
    raise AssertionError("nothing is to be embedded")


# With how many files pass them.
FILTERS = [
    ({}, 10),
    ({"modality": "audio"}, 10),
    ({"kind": "midi"}, 10),
    ({"kind": "score", "where": ("year<1600",)}, 10),
    ({"kind": "text", "modality": "audio"}, 0),
    ({"where": ("title=愛 3", "year>=1700")}, 10),
    ({"where": ("n=397",)}, 1),
    ({"where": ("n=399",)}, 0),
    ({"where": ("title!=愛 3", "n<4")}, 4),
]


def test_answers_are_those_of_the_index(place, index, tmp_path):
    with contextlib.closing(open_engine(place, "music")) as engine:
        assert len(engine) == 400 == len(index)
        for seed, (only, count) in enumerate(FILTERS):
            question = Question(query_file(tmp_path, seed), only=Filter(**only))
            assert len(assert_same(engine, index, question, never)) == count
            assert_same(engine, index, replace(question, diversity=0.4), never)
        every = replace(question, only=Filter(), k=1000)
        assert len(assert_same(engine, index, every, never)) == 400
        with pytest.raises(UserError, match="no file has metadata in a column yaer; columns: n, title, year"):
            search_engine(engine, replace(question, only=Filter(where=("yaer=1",))), never)
        with pytest.raises(UserError, match="--calibrate needs an index of our own"):
            search_engine(engine, replace(question, calibrate="centre"), never)


def test_a_file_and_its_copies_are_left_out(place, index, tmp_path):
    query = str(index.folder.parent / "a.npy")
    with contextlib.closing(open_engine(place, "music")) as engine:
        found = assert_same(engine, index, Question(query, not_itself=True, k=3), never)
        assert not {Path(record["file"]).name for record in found} & {"a.npy", "copy.npy"}
        assert_same(engine, index, Question(query, also=(query_file(tmp_path),), not_itself=True), never)
        with pytest.raises(UserError, match="this query is a text"):
            search_engine(engine, Question("a jig", not_itself=True), never)


def test_texts_ask_by_the_weights_of_the_rows_alone(place, index, embedder, tmp_path, monkeypatch):
    with contextlib.closing(open_engine(place, "music")) as engine:
        question = Question("a jig", also=("a reel",), without=(query_file(tmp_path),))
        assert_same(engine, index, question, lambda: embedder)
        monkeypatch.setattr(embedder, "fingerprint", "another")
        with pytest.raises(UserError, match=r"music holds features made by .*\(another\): these do not compare"):
            search_engine(engine, question, lambda: embedder)
        np.save(tmp_path / "narrow.npy", np.ones((1, 8), np.float32))
        with pytest.raises(UserError, match="has 8 numbers, each of (table|collection) music in .* has 128"):
            search_engine(engine, Question(str(tmp_path / "narrow.npy")), never)


def test_the_command_takes_both_orders_and_says_the_same(place, index, tmp_path, monkeypatch, capsys):
    """Without --variant, for it asks by the weights that the rows were made by."""
    found = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for words, out in zip((("a jig", index.folder), ("a jig", place), (place, "a jig")), found, strict=True):
        name = () if index.folder in words else ("--name", "music")
        assert answer(monkeypatch, clamp3_index, "search", *words, *name, "--json", out, "--exact", "--top_k", 5) == 0
    first, *others = ([(record["file"], round(record["cosine"], 4)) for record in lines(path)] for path in found)
    assert len(first) == 5 and others == [first, first]
    assert "tiny/clamp3.safetensors" in capsys.readouterr().out
    refused = {
        ("--passages",): "has no passages, which are not exported",
        ("--per_file", 1): "has no passages, which are not exported",
        ("--calibrate", "csls"): "--calibrate needs an index of our own",
        ("--name", "nothing"): "has no (table|collection) nothing, there is music: give the name .* by --name$",
    }
    for options, message in refused.items():
        name = () if "--name" in options else ("--name", "music")
        with pytest.raises(UserError, match=message):
            answer(monkeypatch, clamp3_index, "search", "a jig", place, *name, *options)
    with pytest.raises(UserError, match="are indexes; if the first is the query, a text, say so by --text"):
        answer(monkeypatch, clamp3_index, "search", place, index.folder)


def test_approximate_search_of_lance_takes_its_index_and_gives_true_cosines(index, tmp_path, monkeypatch):
    lancedb = pytest.importorskip("lancedb")
    place, question = str(tmp_path / "lance"), Question(query_file(tmp_path))
    export(index, place, "lance")
    with pytest.raises(UserError, match="has no index for approximate search"):
        search_engine(open_engine(place), question, never, approximate=True)
    with monkeypatch.context() as patched:
        patched.setattr(engines, "LARGE", 100)  # as of many rows without such an index, which are all looked at
        assert_same(open_engine(place), index, question, never)
    quantized = lancedb.index.IvfPq(distance_type="cosine", num_partitions=2, num_sub_vectors=8)
    lancedb.connect(place).open_table("clamp3").create_index("feature", config=quantized)
    cosines = {record["file"]: record["cosine"] for record in search_index(index, replace(question, k=400), never)}
    for options in ({"approximate": True}, {}):
        monkeypatch.setattr(engines, "LARGE", 100)
        found = search_engine(open_engine(place), question, never, **options)
        np.testing.assert_allclose(
            [row["cosine"] for row in found], [cosines[row["file"]] for row in found], atol=1e-5
        )
    assert_same(open_engine(place), index, replace(question, only=Filter(where=("n<300",))), never)


def test_a_server_by_its_address(index, embedder, tmp_path, monkeypatch, capsys):
    """That of tests/qdrant_server.py, which stands in for Qdrant's own."""
    pytest.importorskip("qdrant_client")
    with qdrant_server() as address:
        with pytest.raises(
            UserError, match=rf"{address} cannot be written: .*401.*; .*QDRANT_API_KEY has to hold a key"
        ):
            export(index, address, "qdrant")
        with pytest.raises(UserError, match=rf"{address} cannot be read: .*401.*; .*QDRANT_API_KEY has to hold a key"):
            open_engine(address)
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        command = ("export", index.folder, address, "--to", "qdrant", "--name", "music")
        assert answer(monkeypatch, clamp3_index, *command) == 0
        with pytest.raises(UserError, match=f"{address} has no collection clamp3, there is music: give the name"):
            answer(monkeypatch, clamp3_index, "search", "a jig", address)
        assert answer(monkeypatch, clamp3_index, "search", address, "a jig", "--name", "music") == 0
        assert KEY not in capsys.readouterr().out
        with contextlib.closing(open_engine(address, "music", KEY)) as engine:
            assert_same(engine, index, Question("a jig"), lambda: embedder)
            only = Filter("audio", where=("title=愛 3",))
            assert_same(engine, index, Question(query_file(tmp_path), diversity=0.5, only=only), never)


def test_what_cannot_be_reached_is_said_in_a_line(index, tmp_path, monkeypatch):
    pytest.importorskip("qdrant_client")
    pytest.importorskip("lancedb")
    with pytest.raises(UserError) as raised:
        answer(monkeypatch, clamp3_index, "search", "a jig", "http://127.0.0.1:9")
    assert str(raised.value) == (
        "http://127.0.0.1:9 cannot be read: [Errno 111] Connection refused; is a Qdrant server running there?"
    )
    for module, place in (("lancedb", tmp_path / "db"), ("qdrant_client", "https://somewhere")):
        (tmp_path / "db" / "music.lance").mkdir(parents=True, exist_ok=True)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            install = module.replace("_", "-")
            with pytest.raises(UserError, match=f"{place}: {install} is not installed: pip install {install}$"):
                open_engine(str(place), "music")
    with pytest.raises(UserError, match="db has no table clamp3"):
        open_engine(str(tmp_path / "db"))
    for place in (tmp_path / "db", "http://127.0.0.1:9"):
        with pytest.raises(
            UserError, match=f"clamp3_index.py search QUERY {place} searches what an index was exported to"
        ):
            answer(monkeypatch, clamp3_search, "a jig", place)
    with pytest.raises(UserError, match="there is no index in nowhere"):
        answer(monkeypatch, clamp3_index, "search", "a jig", "nowhere")


def test_rows_of_others_are_refused(tmp_path):
    client_type = pytest.importorskip("qdrant_client").QdrantClient
    lancedb = pytest.importorskip("lancedb")
    from qdrant_client import models

    with contextlib.closing(client_type(path=str(tmp_path / "qdrant"))) as client:
        size = models.VectorParams(size=4, distance=models.Distance.COSINE)
        client.create_collection("others", size)
        client.upsert("others", [models.PointStruct(id=1, vector=[1, 2, 3, 4], payload={"text": "x"})])
        client.create_collection("far", models.VectorParams(size=4, distance=models.Distance.EUCLID))
        client.create_collection("empty", size)
    lancedb.connect(str(tmp_path / "lance")).create_table("others", [{"vector": [1.0, 2.0], "text": "x"}])
    row = {"file": "a", "modality": "text", "metadata": "{}", "feature": np.ones(4, np.float32)}
    mixed = [{**row, "fingerprint": fingerprint} for fingerprint in "fg"]
    arrow = pytest.importorskip("pyarrow")
    texts = [(name, arrow.string()) for name in ("file", "modality", "metadata", "fingerprint")]
    schema = arrow.schema([*texts, ("feature", arrow.list_(arrow.float32(), 4))])
    lancedb.connect(str(tmp_path / "lance")).create_table("loose", mixed)
    lancedb.connect(str(tmp_path / "lance")).create_table("mixed", mixed, schema=schema)
    np.save(tmp_path / "query.npy", np.ones((1, 4), np.float32))
    with pytest.raises(UserError, match="table mixed in .* mixes features of several models: f, g"):
        search_engine(open_engine(str(tmp_path / "lance"), "mixed"), Question(str(tmp_path / "query.npy")), never)
    for place, name in (("qdrant", "others"), ("qdrant", "far"), ("lance", "others"), ("lance", "loose")):
        with pytest.raises(UserError, match=f"{name} in .* does not hold what clamp3_index.py export writes"):
            open_engine(str(tmp_path / place), name)
    with contextlib.closing(open_engine(str(tmp_path / "qdrant"), "empty")) as engine:
        with pytest.raises(UserError, match="collection empty in .* is empty"):
            search_engine(engine, Question("x"), never)


def test_only_addresses_and_folders_of_engines_are_taken_for_them(tmp_path):
    for word in ("a jig", "http://a song", "x" * 5000, "nul\0", str(tmp_path), "ftp://host", ""):
        assert engine_at(word) is None
    assert engine_at("https://host:6333") == "qdrant" and engine_at("s3://bucket/db") == "lance"
