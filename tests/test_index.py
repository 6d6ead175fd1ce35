"""The index on disk: it says what a plain computation says, whatever was added, changed, removed or interrupted."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from filelock import FileLock

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import index as clamp3_index
from clamp3.cli.commands import search as clamp3_search
from clamp3.errors import UserError
from clamp3.features.cache import FeatureCache
from clamp3.features.embedder import Embedder
from clamp3.io.files import content_hash
from clamp3.io.reports import describe_error
from clamp3.search import indexing
from clamp3.search.index import Entry, Index
from clamp3.search.indexing import update_index
from clamp3.search.ranking import normalized, top_k
from conftest import BIN, CODE, run, run_forked
from corpus import folk_tunes
from index_processes import build, failures, forked

PYTHON = BIN / "python"
HIDDEN = 8


def no_embedder():
    raise AssertionError("nothing here is to be embedded")


def update(index: Index, folder: Path, **options):
    return update_index(index, folder, no_embedder, **options)


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index")
    yield index
    index.close()


def found(index: Index, query: np.ndarray, k: int = 10, **options) -> list[tuple[str, float]]:
    return [(entry.path.name, cosine) for cosine, entry in index.search(query, k, **options)]


def expected(features: dict[str, np.ndarray], query: np.ndarray, k: int = 10) -> list[tuple[str, float]]:
    indices, cosines = top_k(query[None], np.concatenate(list(features.values())), k)
    return [(list(features)[index], cosine) for index, cosine in zip(indices[0], cosines[0], strict=True)]


def assert_found(index: Index, features: dict[str, np.ndarray], query: np.ndarray, **options) -> None:
    ours, theirs = (dict(result) for result in (found(index, query, **options), expected(features, query)))
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-5)


def test_after_any_changes_it_finds_what_a_plain_computation_finds(tmp_path, index):
    """Two hundred files come, change, move and go; rows are cleared away on the way."""
    rng, folder, there = np.random.default_rng(0), tmp_path / "in", {}
    highest = 0
    for turn in range(25):
        new = vectors(*(f"{turn}-{number}" for number in range(8)), seed=turn, hidden=HIDDEN)
        changed = {name: -array for name, array in there.items() if rng.random() < 0.1}
        there |= new | changed
        save_features(folder, new | changed)
        for name in [name for name in there if rng.random() < 0.08]:
            (folder / name).unlink()
            del there[name]
        changes = update(index, folder)
        assert changes.added == len((new | changed).keys() & there.keys())
        gone = [entry.path for entry in index.entries() if not entry.path.exists()]
        assert changes.missing == len(gone)
        with index.writing():
            index.remove(gone)
            index.compact()
        highest = max(highest, index.rows - len(index))
        assert len(index) == len(there) == len(list(index.entries()))
        assert_found(index, there, rng.normal(size=HIDDEN).astype(np.float32))
    assert highest > 10 and index.meta["features"] != "features-1.f32"  # rows were cleared away
    assert sorted(path.name for path in index.folder.glob("*.f32")) == [index.meta["features"]]
    again = Index(index.folder)
    assert_found(again, there, rng.normal(size=HIDDEN).astype(np.float32))


def test_only_new_and_changed_files_are_looked_into(tmp_path, index, monkeypatch):
    folder = tmp_path / "in"
    save_features(folder, vectors("a", "b", "deep/c"))
    assert update(index, folder).added == 3
    looked_into = []
    monkeypatch.setattr(
        indexing, "content_hash", lambda path: looked_into.append(path.name) or str(path.stat().st_mtime_ns)
    )
    assert update(index, folder).unchanged == 3 and looked_into == []
    save_features(folder, {"b.npy": np.ones((1, HIDDEN), np.float32)})
    changes = update(index, folder)
    assert (changes.added, changes.unchanged) == (1, 2) and looked_into == ["b.npy"]
    assert found(index, np.ones(HIDDEN, np.float32), 1) == [("b.npy", pytest.approx(1))]
    shutil.rmtree(folder / "deep")
    assert update(index, folder).missing == 1 and len(index) == 3


def test_files_that_cannot_be_read_are_named_and_leave_the_index(tmp_path, index):
    folder = tmp_path / "in"
    save_features(folder, vectors("a", "b"))
    update(index, folder)
    (folder / "a.npy").write_bytes(b"no array")
    np.save(folder / "nan.npy", np.full((1, HIDDEN), np.nan, np.float32))
    (folder / "notes.doc").write_text("x")
    changes = update(index, folder)
    assert {Path(remark.file).name for remark in changes.failures} == {"a.npy", "nan.npy"} and changes.ignored == 1
    assert [entry.path.name for entry in index.entries()] == ["b.npy"]


def test_names_of_all_kinds_and_what_is_known_of_files(tmp_path, index):
    names = ["愛 & $x 'q'", 'a"b', "no. 5", os.fsdecode(b"caf\xe9")]
    save_features(tmp_path / "in", vectors(*names))
    table = tmp_path / "known.csv"
    table.write_text("file,title,region\n愛 & $x 'q'.npy,Love,China\n", encoding="utf-8")
    metadata = indexing.read_metadata(table, tmp_path / "in")
    update(index, tmp_path / "in", metadata=metadata)
    by_name = {entry.path.name: entry.metadata for entry in index.entries()}
    assert by_name.keys() == {f"{name}.npy" for name in names}
    assert by_name["愛 & $x 'q'.npy"] == {"title": "Love", "region": "China"} and by_name["no. 5.npy"] == {}
    update(index, tmp_path / "in")
    assert sum(bool(entry.metadata) for entry in index.entries()) == 1  # kept where nothing is said
    table.write_text("file,title\nno. 5.npy,Fifth\n")
    assert update(index, tmp_path / "in", metadata=indexing.read_metadata(table, tmp_path / "in")).unchanged == 4
    assert sum(bool(entry.metadata) for entry in index.entries()) == 2
    table.write_text("name,title\nx,y\n")
    with pytest.raises(UserError, match='one of them "file"'):
        indexing.read_metadata(table, tmp_path)
    table.write_text("file,title\nx\n")
    with pytest.raises(UserError, match="csv:2: a line must have"):
        indexing.read_metadata(table, tmp_path)


def raising(error: Exception, names: set[str], real: Callable) -> Callable:
    """`real`, but for paths of these names, for which it raises `error`."""

    def called(path, *arguments, **options):
        if isinstance(path, str | Path) and Path(path).name in names:
            raise error
        return real(path, *arguments, **options)

    return called


@pytest.mark.parametrize("when", ["content_hash", "ready_feature", "stat", "listing"])
def test_a_moments_error_deletes_no_entry(tmp_path, index, monkeypatch, when):
    """Of the disk, of memory or of permissions; once it is over, the files are taken up again."""
    folder, there = tmp_path / "in", vectors("a", "b", "deep/c")
    save_features(folder, there)
    update(index, folder)
    changed = {"a.npy": -there["a.npy"], "deep/c.npy": -there["deep/c.npy"]}
    save_features(folder, changed)
    error = OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        if when == "stat":
            patch.setattr(os, "stat", raising(error, {"c.npy"}, os.stat))
            patch.setattr(Path, "stat", raising(error, {"c.npy"}, Path.stat))
        elif when == "listing":
            patch.setattr(os, "scandir", raising(error, {"deep"}, os.scandir))
        else:
            patch.setattr(indexing, when, raising(error, {"a.npy", "c.npy"}, getattr(indexing, when)))
        changes = update(index, folder, forget_missing=True)
        assert changes.failures and not changes.bad and (changes.missing, changes.forgotten) == (0, 0)
        assert all("Input/output error" in issue.reason for issue in changes.failures)
        assert len(index) == 3 and not indexing.is_gone(folder / "deep" / "c.npy")
    update(index, folder)
    there = {Path(name).name: feature for name, feature in (there | changed).items()}
    assert_found(index, there, np.ones(HIDDEN, np.float32))


def test_what_a_worker_could_not_read_stays_and_what_it_read_leaves(tmp_path):
    """Workers give reasons, not errors."""
    changes = indexing.Changes()
    changes.fail(Path("a.abc"), describe_error(OSError(5, "Input/output error")), ValueError())
    changes.fail(Path("b.abc"), "the file ends too early", ValueError())
    changes.fail(Path("c.abc"), "MemoryError", MemoryError())
    assert len(changes.failures) == 3 and changes.bad == [Path("b.abc")]


def test_moved_files_keep_their_entries(tmp_path, index):
    """By content, within a folder and out of it; a copy is another entry."""
    folder, other, there = tmp_path / "in", tmp_path / "other", vectors(*"abcdef")
    save_features(folder, there)
    update(index, folder, metadata={(folder / "a.npy").resolve(): {"title": "A"}})
    rows = {entry.path.name: entry.row for entry in index.entries()}
    other.mkdir()
    (folder / "a.npy").rename(folder / "moved.npy")
    (folder / "b.npy").rename(other / "moved too.npy")
    shutil.copy(folder / "c.npy", folder / "copy.npy")
    (folder / "d.npy").rename(folder / "e.npy")  # in place of another
    changes = update(index, folder, forget_missing=True)
    assert (changes.moved, changes.added, changes.forgotten) == (1, 3, 2)
    there = {"moved.npy": there["a.npy"], "c.npy": there["c.npy"], "f.npy": there["f.npy"]} | {
        "copy.npy": there["c.npy"],
        "e.npy": there["d.npy"],
    }
    found_rows = {entry.path.name: entry.row for entry in index.entries()}
    assert found_rows.keys() == there.keys() and found_rows["moved.npy"] == rows["a.npy"]
    assert [entry.metadata for entry in index.entries() if entry.path.name == "moved.npy"] == [{"title": "A"}]
    (folder / "f.npy").rename(other / "f.npy")
    changes = update(index, other)
    assert (changes.moved, changes.added) == (1, 2) and len(index) == 6
    assert {entry.path.name for entry in index.entries() if entry.path.parent == other.resolve()} == {
        "f.npy",
        "moved too.npy",
    }


def test_files_that_are_gone_leave_the_index_unless_all_are(tmp_path, index):
    folder = tmp_path / "in"
    save_features(folder, vectors("a", "b", "c"))
    update(index, folder)
    (folder / "a.npy").unlink()
    assert update(index, folder).missing == 1 and len(index) == 3
    assert update(index, folder, forget_missing=True).forgotten == 1 and len(index) == 2
    shutil.rmtree(folder)
    folder.mkdir()  # as a disk that is not mounted
    changes = update(index, folder, forget_missing=True)
    assert (changes.missing, changes.forgotten) == (2, 0) and len(index) == 2


def test_what_is_no_index_or_of_another_time_is_refused(tmp_path, index):
    with pytest.raises(UserError, match="no index in .*nowhere; clamp3_index.py build"):
        Index(tmp_path / "nowhere")
    save_features(tmp_path / "in", vectors("a"))
    with pytest.raises(UserError, match="is there and is no index"):
        Index.create(tmp_path / "in")
    index.database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="later version"):
        Index(index.folder)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "index.sqlite").write_bytes(b"no database" * 200)
    with pytest.raises(UserError, match="damaged.*cannot be read"):
        Index(tmp_path / "damaged")


def test_features_that_do_not_compare_are_refused(tmp_path, index, monkeypatch):
    save_features(tmp_path / "in", vectors("a", "b"))
    update(index, tmp_path / "in")
    save_features(tmp_path / "wide", vectors("c", hidden=9))
    with pytest.raises(UserError, match="made by ready-made features such as .*a.npy, not by ready-made .*c.npy"):
        update(index, tmp_path / "wide")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("A slow air")

    class Maker:
        identity, weights = "an identity", "weights.pth"

    with pytest.raises(UserError, match="made by ready-made features .*, not by weights.pth"):
        update_index(index, tmp_path / "raw", Maker)
    with pytest.raises(UserError, match="has 9 numbers, each of .*index has 8"):
        index.search(np.ones(9, np.float32))
    with pytest.raises(UserError, match="is empty"):
        answer(monkeypatch, clamp3_index, "build", tmp_path / "new", tmp_path / "in")
        answer(monkeypatch, clamp3_index, "remove", tmp_path / "new", tmp_path / "in")
        answer(monkeypatch, clamp3_search, tmp_path / "in" / "a.npy", tmp_path / "new")


# ---------- interrupted, and at once ----------


def test_a_killed_write_leaves_what_was_there_and_is_taken_up(tmp_path, index, monkeypatch):
    """At any of the steps between the first byte and the last."""
    folder, there = tmp_path / "in", vectors(*"abcdefghijklmnopqrstuvwxyz")
    save_features(folder, there)
    monkeypatch.setattr(indexing, "TRANSACTION", 4)
    for step in ("fsync", "replace"):
        for when in range(1, 8, 2):
            with monkeypatch.context() as patch:
                patch.setattr(os, step, killed_at(when, getattr(os, step)))
                try:
                    update(index, folder)
                    with index.writing():
                        index._clear()
                except KeyboardInterrupt:
                    pass
            with open(index.folder / index.meta.get("features", "features-1.f32"), "ab") as file:
                file.write(b"half a row")  # as a process does that is killed at writing
            index.close()
            index.__init__(index.folder)
            assert {entry.path.name for entry in index.entries()} <= there.keys()
            for name in (entry.path.name for entry in index.entries()):
                assert found(index, there[name][0], 1) == [(name, pytest.approx(1))]
    update(index, folder)
    assert_found(index, there, np.ones(HIDDEN, np.float32))


def killed_at(when: int, real: Callable) -> Callable:
    """`real`, but for its call number `when`, which ends the run."""
    calls = []

    def called(*arguments):
        calls.append(arguments)
        if len(calls) == when:
            raise KeyboardInterrupt
        return real(*arguments)

    return called


def test_what_killed_processes_were_writing_is_removed(tmp_path, index):
    """In a new folder too, which is then free for an index."""
    (tmp_path / "new").mkdir()
    for folder in (index.folder, tmp_path / "new"):
        (folder / f".{'0' * 16}.partial").write_bytes(b"half")
    Index.create(tmp_path / "new").close()
    with index.writing():
        pass
    assert not list(tmp_path.rglob("*.partial"))


def test_folders_that_are_left_of_making_an_index_are_taken_over_and_others_are_not(tmp_path):
    for name in ("write.lock", f".{'0' * 16}.partial", ".DS_Store", "Thumbs.db"):
        (tmp_path / "left").mkdir(exist_ok=True)
        (tmp_path / "left" / name).touch()
    Index.create(tmp_path / "left").close()
    Index.create(tmp_path / "left").close()  # another process may have made it meanwhile
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tune.abc").touch()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="is there and is no index"):
            Index.create(folder)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["tune.abc"]


def test_an_index_that_cannot_be_written_is_a_sentence(tmp_path, index, monkeypatch):
    (tmp_path / "file").touch()
    save_features(tmp_path / "in", vectors("a", "b"))
    for folder in (tmp_path / "file" / "index", Path("/proc/index"), Path("/proc/self/fd/index")):
        with pytest.raises(UserError, match=f"{folder.parent}.* cannot be read or written|{folder.parent}.*no index"):
            answer(monkeypatch, clamp3_index, "build", folder, tmp_path / "in")
    full = OSError(28, "No space left on device")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read or written: No space"):
            patch.setattr(os, name, Mock(side_effect=full))
            Index.create(tmp_path / "full") if name == "replace" else update(index, tmp_path / "in")
    assert len(index) == 0 and update(index, tmp_path / "in").added == 2


def test_two_builds_at_once_lose_nothing(tmp_path):
    """Of the same index, which is not there when they start; six times."""
    for part in "xy":
        save_features(tmp_path / part, vectors(*(f"{part}{number}" for number in range(5))))
    for turn in range(6):
        folder = tmp_path / f"index {turn}"
        builders = [forked(lambda part=part, folder=folder: build(folder, tmp_path / part)) for part in "xy"]
        assert failures(builders) == 0
        assert len(list(Index(folder).entries())) == 10


def test_opening_an_index_while_it_is_compacted_finds_all_files(tmp_path, index):
    """The name of the features is read, then they are replaced and removed, then they would be opened."""
    there = vectors(*"abcdefghij")
    save_features(tmp_path / "in", there)
    update(index, tmp_path / "in")

    index.close()
    stop = time.monotonic() + 1.5

    def compact() -> None:
        writer = Index(index.folder)
        while time.monotonic() < stop:
            with writer.writing():
                writer._clear()
                writer.compact()

    child = forked(compact)
    looks = 0
    while time.monotonic() < stop:
        assert_found(Index(index.folder), there, np.ones(HIDDEN, np.float32))
        looks += 1
    assert failures([child]) == 0 and looks
    assert_found(Index(index.folder), there, np.ones(HIDDEN, np.float32))


def test_new_files_are_hashed_before_and_after_they_are_embedded(tmp_path, index, monkeypatch):
    hashed = []

    def noting(path):
        hashed.append(path.name)
        return content_hash(path)

    for module in ("clamp3.search.indexing", "clamp3.features.cache"):
        monkeypatch.setattr(f"{module}.content_hash", noting)
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("A slow air")
    embedder = Embedder.from_pretrained("tiny", device="cpu")
    for _ in range(2):
        update_index(index, tmp_path / "in", lambda: embedder, FeatureCache(10))
    assert hashed == ["a.txt", "a.txt"] and len(index) == 1


def test_an_open_index_follows_what_others_change(tmp_path, index):
    there = vectors(*"abcdefghij")
    save_features(tmp_path / "in", there)
    update(index, tmp_path / "in")
    other = Index(index.folder)
    with other.writing():
        other.remove([entry.path for entry in other.entries() if entry.path.stem in "abcdef"])
        assert {name for name, _ in found(index, np.ones(HIDDEN, np.float32))} == {f"{name}.npy" for name in "ghij"}
        other.compact()  # rows get other numbers, in another file
        assert other.meta["features"] == "features-2.f32"
    assert_found(index, {f"{name}.npy": there[f"{name}.npy"] for name in "ghij"}, np.ones(HIDDEN, np.float32))


def test_waiting_for_another_writer_is_logged_and_not_printed(tmp_path, index, caplog, capsys):
    save_features(tmp_path / "in", vectors("a"))
    caplog.set_level("INFO", "clamp3")
    held = threading.Event()

    def hold() -> None:
        with FileLock(index.folder / "write.lock"):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    assert update(index, tmp_path / "in").added == 1
    assert caplog.messages == [f"another process is writing to {index.folder}; waiting for it"]
    assert capsys.readouterr() == ("", "")


def test_two_processes_add_at_once_and_a_third_reads(tmp_path):
    names = {part: [f"{part}{number}" for number in range(300)] for part in "xy"}
    there = {}
    for part, seed in (("x", 1), ("y", 2)):
        features = vectors(*names[part], seed=seed)
        save_features(tmp_path / part, features)
        there |= features
    Index.create(tmp_path / "index").close()
    script = (
        "import sys; from pathlib import Path; from clamp3.search import indexing; "
        "from clamp3.search.index import Index; "
        "indexing.TRANSACTION = 10; indexing.update_index(Index(Path(sys.argv[1])), Path(sys.argv[2]), None)"
    )
    env = {**os.environ, "PYTHONPATH": str(CODE)}
    writers = [
        subprocess.Popen([PYTHON, "-c", script, tmp_path / "index", tmp_path / part], env=env, stdout=subprocess.PIPE)
        for part in "xy"
    ]
    looks = 0
    while any(writer.poll() is None for writer in writers):
        reader = Index(tmp_path / "index")
        if len(reader):
            (name, cosine), *_ = found(reader, np.ones(HIDDEN, np.float32))
            assert cosine == pytest.approx(float(normalized(there[name])[0].sum()) / np.sqrt(HIDDEN), abs=1e-5)
            looks += 1
        reader.close()
    assert [writer.returncode for writer in writers] == [0, 0] and looks
    index = Index(tmp_path / "index")
    assert len(index) == 600
    assert_found(index, dict(sorted(there.items())) | {}, np.ones(HIDDEN, np.float32))


# ---------- large ones ----------


def clustered(count: int, hidden: int, seed: int = 0) -> np.ndarray:
    """Rows (count, hidden) of length one, in a hundred clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((100, hidden))
    rows = centres[rng.integers(100, size=count)] + 0.7 * rng.standard_normal((count, hidden))
    return normalized(rows)


def test_large_ones_are_searched_in_part_or_whole(tmp_path, index, monkeypatch):
    """Of 60,000 rows, with some removed and some that have come since; from the files, as a new process opens them."""
    pytest.importorskip("faiss").omp_set_num_threads(1)  # on busy cores its threads wait for each other
    rows = clustered(60_000, 64)
    entries = [Entry(Path(f"/{number}"), "audio" if number % 4 else "text", "", 0, 0) for number in range(len(rows))]
    with index.writing():
        index.add(entries[:54_000], rows[:54_000])
        index.compact(approximate=True)
        index.add(entries[54_000:], rows[54_000:])
        index.remove(entry.path for entry in entries[::10])
    index = Index(index.folder)
    assert len(index) == 54_000 and index.meta["nearest_rows"] == 54_000
    left = np.ones(len(rows), bool)
    left[::10] = False
    texts = left & (np.arange(len(rows)) % 4 == 0)
    monkeypatch.setattr("clamp3.search.index.LARGE", 50_000)
    shared, queries = [], clustered(15, 64, seed=1)
    for query in queries:
        for modality, allowed in ((None, left), ("text", texts)):
            scores = np.where(allowed, rows @ query, -1)
            best = [str(number) for number in np.argsort(-scores, kind="stable")[:10]]
            assert [name for name, _ in found(index, query, approximate=False, modality=modality)] == best
            some = {name for name, _ in found(index, query, approximate=True, modality=modality)}
            shared.append(len(some & {*best}))
    assert np.mean(shared) >= 9.5
    assert found(index, rows[54_001], 1, approximate=True) == [("54001", pytest.approx(1))]
    with index.writing():
        index.remove(entry.path for entry in entries[: len(entries) // 2])
        index.compact()
    assert index.rows == len(index) == 27_000 == index.meta["nearest_rows"]
    assert found(index, rows[54_001], 1, approximate=True) == [("54001", pytest.approx(1))]


def test_without_faiss_it_is_exact_or_says_what_is_missing(tmp_path, index, monkeypatch):
    save_features(tmp_path / "in", vectors("a", "b"))
    update(index, tmp_path / "in")
    with pytest.raises(UserError, match="not prepared for approximate search"):
        index.search(np.ones(HIDDEN, np.float32), approximate=True)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        update(index, tmp_path / "in", approximate=True)
    assert len(found(index, np.ones(HIDDEN, np.float32))) == 2


# ---------- the command ----------


@pytest.fixture(scope="module")
def tunes(tmp_path_factory) -> Path:
    """Sixty folk tunes in ABC, and a text."""
    folder = tmp_path_factory.mktemp("tunes")
    for number, tune in enumerate(islice(folk_tunes(), 0, 6000, 100)):
        (folder / f"{number}.abc").write_text(tune.abc, encoding="utf-8")
    (folder / "words.txt").write_text("Irish reel")
    return folder


def test_the_command_builds_searches_and_forgets(tunes, small_model, tmp_path, monkeypatch, capsys):
    """By the documented words, with the small model; other weights are refused."""
    folder = shutil.copytree(tunes, tmp_path / "in")
    (folder / "bad.mid").write_bytes(b"no midi")
    (folder / "known.csv").write_text("file,title\n7.abc,The seventh\n")
    tiny = ("--variant", "tiny")
    index = tmp_path / "index"
    done = run(PYTHON, "clamp3_index.py", "build", index, folder, "--metadata", folder / "known.csv", *tiny, check=1)
    assert "61 files added, 0 unchanged, 1 failed, 1 of other kinds" in done.stdout and "bad.mid" in done.stdout
    assert "tiny/clamp3.safetensors" in done.stdout
    done = run_forked(
        "clamp3_index.py", "search", index, folder / "7.abc", "--top_k", "3", *tiny, "--json", tmp_path / "found.jsonl"
    )
    used, _names, best, *_ = done.stdout.splitlines()
    assert used.startswith("weights: ") and best.split()[:2] == ["1", "1.0000"] and "The seventh" in best
    record = lines(tmp_path / "found.jsonl")[0]
    assert record["file"] == str(folder / "7.abc") and record["metadata"] == {"title": "The seventh"}
    assert record["weights"].endswith("clamp3.safetensors") and record["query"] == str(folder / "7.abc")

    # The rest in this process: an index as a folder of references, changes, and what is in it.
    (folder / "7.abc").rename(folder / "seven.abc")
    assert answer(monkeypatch, clamp3_index, "add", index, folder, *tiny) == 1
    printed = capsys.readouterr().out
    assert "1 files added (1 of them known by content)" in printed and "1 files have moved" in printed
    (folder / "3.abc").rename(tmp_path / "3.abc")
    assert answer(monkeypatch, clamp3_index, "remove", index, "--missing") == 0
    assert "1 files removed" in capsys.readouterr().out
    (tmp_path / "3.abc").rename(folder / "3.abc")
    assert answer(monkeypatch, clamp3_index, "add", index, folder, *tiny) == 1
    assert "1 files added, 60 unchanged" in capsys.readouterr().out
    assert answer(monkeypatch, clamp3_search, "Irish reel", index, *tiny) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["1", "1.0000", str(folder / "words.txt"), "-"] or "words.txt" in printed[2]
    assert answer(monkeypatch, clamp3_index, "search", index, "Irish reel", "--modality", "symbolic", *tiny) == 0
    assert "words.txt" not in capsys.readouterr().out
    assert answer(monkeypatch, clamp3_index, "info", index, "--list", "--json", tmp_path / "info.jsonl") == 0
    summary, *files = lines(tmp_path / "info.jsonl")
    assert (summary["files"], summary["symbolic"], summary["text"]) == (61, 60, 1) and len(files) == 61
    assert summary["weights"].endswith("clamp3.safetensors")
    assert answer(monkeypatch, clamp3_index, "remove", index, folder) == 0
    with pytest.raises(UserError, match="nothing in .*index is one of these"):
        answer(monkeypatch, clamp3_index, "remove", index, folder)

    refused = run_forked("clamp3_index.py", "add", index, folder, env=small_model.environment(), check=2)
    assert "do not compare" in refused.stderr and "weights_clamp3_small.pth" in refused.stderr
    assert run_forked("clamp3_index.py", "search", tmp_path, "Irish reel", check=2).stderr.startswith(
        "error: there is no index in"
    )


def test_info_ends_quietly_where_its_reader_has_seen_enough(tmp_path, index):
    with index.writing():
        entries = [Entry(Path(f"/{number:0100}"), "text", "", 0, 0) for number in range(3000)]
        index.add(entries, np.ones((3000, HIDDEN), np.float32))
    script = f'"{PYTHON}" clamp3_index.py info "{index.folder}" --list | head -1'
    done = subprocess.run(script, shell=True, cwd=CODE, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("index") and done.stderr == ""


def test_raw_sound_of_another_listener_is_refused(tmp_path, index):
    from clamp3.search.indexing import check_or_record_model

    check_or_record_model(index, "one", "a mert", key="mert")
    check_or_record_model(index, "one", "a mert, elsewhere", key="mert")
    with pytest.raises(UserError, match="made by a mert, not by another"):
        check_or_record_model(index, "two", "another", key="mert")


def test_a_database_of_an_index_can_be_read_with_plain_sqlite(tmp_path, index):
    save_features(tmp_path / "in", vectors("a", "b"))
    update(index, tmp_path / "in")
    with sqlite3.connect(index.folder / "index.sqlite") as database:
        ((path, metadata),) = database.execute("SELECT path, metadata FROM entries WHERE row = 1")
    assert path.endswith(b"b.npy") and json.loads(metadata) == {}
    raw = np.fromfile(index.folder / "features-1.f32", "<f4").reshape(2, HIDDEN)
    np.testing.assert_allclose(raw, normalized(np.concatenate(list(vectors("a", "b").values()))), atol=1e-6)
