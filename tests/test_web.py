"""The web server over HTTP: what it answers, what it refuses, and that it shows no file but the collection's."""

import asyncio
import base64
import contextlib
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "multipart", "httpx", "mido"):
    pytest.importorskip(package)

import httpx  # noqa: E402
import mido  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from captioners import make_blip  # noqa: E402
from clamp3.cli.commands.web import serve  # noqa: E402
from clamp3.features.cache import FeatureCache  # noqa: E402
from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.formats.abc import interleave, read_abc  # noqa: E402
from clamp3.formats.captions import caption_of  # noqa: E402
from clamp3.formats.midi import midi_to_mtf  # noqa: E402
from clamp3.formats.musicxml import musicxml_to_abc  # noqa: E402
from clamp3.inputs.passages import bars_of, spelled  # noqa: E402
from clamp3.search.collection import load_collection  # noqa: E402
from clamp3.search.combining import combined_query  # noqa: E402
from clamp3.search.index import Index  # noqa: E402
from clamp3.search.indexing import update_index  # noqa: E402
from clamp3.web.batching import Batcher  # noqa: E402
from clamp3.web.collection import DEMO, Collection, NotReady, id_of  # noqa: E402
from clamp3.web.protection import Limits  # noqa: E402
from clamp3.web.server import STATIC, create_app  # noqa: E402
from clamp3.web.views import laid_out, notes_view, on_lines, view  # noqa: E402
from conftest import CODE, ROOT, run_forked  # noqa: E402
from web_files import HOSTILE, SECRET, make_folder  # noqa: E402

QUERY = "a lively Irish reel"
LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("web"))


def opened(collection: Collection, **options) -> TestClient:
    return TestClient(create_app(collection, **options), base_url=LOCAL)


def wait_for(client: TestClient) -> dict:
    for _ in range(600):
        if (now := client.get("/healthz").json())["state"] in ("ready", "failed"):
            return now
        time.sleep(0.05)
    raise AssertionError(now)


@pytest.fixture(scope="module")
def client(embedder, music):
    with opened(Collection(music, lambda: embedder, FeatureCache(10)), limits=Limits(upload_megabytes=2)) as client:
        assert wait_for(client)["state"] == "ready"
        yield client


@pytest.fixture(scope="module")
def ids(client):
    """The ids of the folder's files by their names."""
    records = client.get("/search", params={"q": QUERY, "top_k": 200}).json()
    return {record["file"]: record["id"] for record in records}


# ---------- search ----------


def test_a_text_finds_what_the_command_finds(client, embedder, music):
    records = client.get("/search", params={"q": QUERY, "top_k": 200}).json()
    known = load_collection(music, lambda: embedder)
    (query,) = embedder.embed_text([QUERY], normalize=True)
    cosines = dict(zip(known.files, known.features @ query / np.linalg.norm(known.features, axis=1), strict=True))
    assert {record["file"] for record in records} == cosines.keys()
    assert [record["rank"] for record in records] == list(range(1, len(cosines) + 1))
    for record in records:
        assert record["cosine"] == pytest.approx(cosines[record["file"]], abs=1e-5)
        below = sum(cosine < cosines[record["file"]] - 1e-5 for cosine in cosines.values())
        assert record["percentile"] == round(100 * below / (len(cosines) - 1), 1)
        assert record["query"] == QUERY and record["metadata"] == {}
    assert records[0]["percentile"] == 100


def test_who_asks_is_heard_and_answered_at_once(monkeypatch):
    """Without TCP_NODELAY a client waits some 40 ms for the second half of each answer."""
    import uvicorn

    found = []

    async def serve_one(_server, sockets):
        async def accept(_reader, writer):
            found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with socket.create_connection(sockets[0].getsockname(), timeout=10):  # answered as soon as the address is told
            pass
        async with await asyncio.start_server(accept, sock=sockets[0]):
            reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
            await reader.read()
            writer.close()

    monkeypatch.setattr(uvicorn.Server, "serve", serve_one)
    assert serve(None, "127.0.0.1", 0, None) == 0 and found and all(found)


def test_search_by_kind_number_and_likeness(client, ids):
    sounds = client.get("/search", params={"q": QUERY, "modality": "audio"}).json()
    assert {Path(record["file"]).suffix for record in sounds} == {".mp3", ".aiff"}
    assert len(client.get("/search", params={"q": QUERY, "top_k": 3}).json()) == 3
    like = client.get("/search", params={"like": ids[HOSTILE], "top_k": 4}).json()
    assert len(like) == 4 and HOSTILE not in {record["file"] for record in like}
    assert like[0]["query"] == HOSTILE and like[0]["cosine"] > 0.5


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({}, 422, "either q"),
        ({"q": "a", "like": "b"}, 422, "either q"),
        ({"q": " "}, 422, "empty"),
        ({"q": "a" * 30_000}, 422, "20000"),
        ({"q": "a", "top_k": 0}, 422, "top_k"),
        ({"q": "a", "modality": "smell"}, 422, "modality"),
        ({"like": "b"}, 404, "no such file"),
    ],
)
def test_what_cannot_be_searched_is_said(client, parameters, status, said):
    answer = client.get("/search", params=parameters)
    assert answer.status_code == status and said in answer.json()["error"]["message"]


def test_an_index_is_searched_with_its_metadata(embedder, music, tmp_path):
    index, tunes = Index.create(tmp_path / "index"), sorted(music.glob("*.abc"))
    update_index(index, music, lambda: embedder, FeatureCache(10), metadata={tunes[0].resolve(): {"year": "1903"}})
    index.close()
    with opened(Collection(tmp_path / "index", lambda: embedder)) as client:
        wait_for(client)
        records = client.get("/search", params={"q": QUERY, "top_k": 200}).json()
        described = [record for record in records if record["metadata"]]
        assert [record["file"] for record in described] == [str(tunes[0].resolve())]
        assert described[0]["metadata"] == {"year": "1903"}
        assert client.get(f"/files/{described[0]['id']}").json()["kind"] == "score"


def test_several_queries_at_once(client, embedder, music, ids):
    first, second = sorted(name for name in ids if name.endswith(".musicxml"))
    asked = {"q": QUERY, "also": ids[first], "without": ids[second], "top_k": 200}
    found = client.get("/search", params=asked).json()
    text, *others = embedder.embed_any([QUERY, music / first, music / second], normalize=True)
    query = combined_query(text, [others[0]], [others[1]])
    files = [music / record["file"] for record in found]
    np.testing.assert_allclose(
        [record["cosine"] for record in found], embedder.embed_any(files, normalize=True) @ query, atol=1e-4
    )
    assert not {first, second} & {record["file"] for record in found} and len(found) == len(ids) - 2
    assert found[0]["also"] == [first] and found[0]["without"] == [second] and found[0]["query"] == QUERY
    same = client.get("/search", params={"like": ids[first], "without": ids[first]}).json()
    assert same and first not in {record["file"] for record in same}
    sent = {"file": (second, (music / second).read_bytes())}
    by_file = client.post("/search", files=sent, data={"also": [ids[first]], "kind": "audio"}).json()
    assert {record["kind"] for record in by_file} == {"audio"} and by_file[0]["also"] == [first]


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({"also": "b"}, 404, "no such file"),
        ({"kind": "smell"}, 422, "kind"),
        ({"where": "year<1900"}, 422, "no file has metadata"),
        ({"passages": "true"}, 422, "no passages"),
        ({"without": ["b"] * 21}, 422, "without"),
    ],
)
def test_terms_that_cannot_be_met_are_said(client, parameters, status, said):
    answer = client.get("/search", params={"q": QUERY, **parameters})
    assert answer.status_code == status and said in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def described(embedder, music, tmp_path_factory):
    """An index with passages and metadata, served."""
    folder = tmp_path_factory.mktemp("described") / "index"
    index, tunes = (
        Index.create(folder),
        sorted(path.resolve() for path in music.glob("*.abc") if not path.is_symlink()),
    )
    metadata = {path: {"year": str(1800 + 10 * place), "<b>": HOSTILE} for place, path in enumerate(tunes)}
    update_index(index, music, lambda: embedder, metadata=metadata, passages=True)
    index.close()
    with opened(Collection(folder, lambda: embedder)) as client:
        assert wait_for(client)["passages"]["state"] == "ready"
        yield client


def test_files_are_filtered_by_kind_and_metadata(described):
    facts = described.get("/collection").json()
    assert facts["columns"]["<b>"] == [HOSTILE] and facts["columns"]["year"][:2] == ["1800", "1810"]
    assert facts["kinds"]["midi"] == 2 and facts["passages"] == "ready"
    every = described.get("/search", params={"q": QUERY, "top_k": 200}).json()
    assert all(record["file"].startswith(facts["folder"]) for record in every) and facts["folder"].endswith("music/")

    def found(**terms):
        return described.get("/search", params={"q": QUERY, "top_k": 200, **terms}).json()

    for kind in ("score", "midi", "audio", "text"):
        assert {record["kind"] for record in found(kind=kind)} == {kind}
        assert len(found(kind=kind)) == facts["kinds"][kind]
    assert {record["metadata"]["year"] for record in found(where=["year<1830", "year>1800"])} == {"1810", "1820"}
    assert len(found(where=f"<b>={HOSTILE}")) == len(facts["columns"]["year"])
    assert found(where=["year<1830"], kind="audio") == []
    told = described.get("/search", params={"q": QUERY, "where": "colour=red"})
    assert told.status_code == 422 and "columns: <b>, year" in told.json()["error"]["message"]


def test_what_an_index_gets_while_it_is_served_can_be_asked_for(embedder, music, tmp_path):
    folder, tune = tmp_path / "index", next(music.glob("*.abc")).resolve()
    with contextlib.closing(Index.create(folder)) as index:
        update_index(index, tune, lambda: embedder)
        with opened(Collection(folder, lambda: embedder)) as client:
            wait_for(client)
            asked = {"q": QUERY, "where": "year=1903", "passages": True}
            assert "no passages" in client.get("/search", params=asked).json()["error"]["message"]
            update_index(index, tune, lambda: embedder, metadata={tune: {"year": "1903"}}, passages=True)
            (record,) = client.get("/search", params=asked).json()
            assert record["passage"]["bars"] and record["metadata"] == {"year": "1903"}


def test_the_closest_passage_of_each_file_is_told(described, embedder, music):
    (query,) = embedder.embed_text([QUERY], normalize=True)
    records = described.get("/search", params={"q": QUERY, "top_k": 200}).json()
    ranked = described.get("/search", params={"q": QUERY, "top_k": 200, "passages": True}).json()
    assert {record["file"] for record in ranked} == {record["file"] for record in records}
    assert "percentile" not in ranked[0] and ranked == sorted(ranked, key=lambda record: -record["cosine"])
    best = {record["file"]: record for record in ranked}
    for record in records[::5]:
        made = embedder.passages(record["file"])
        cosines = [float(one.feature @ query / np.linalg.norm(one.feature)) for one in made]
        assert best[record["file"]]["cosine"] == pytest.approx(max(cosines), abs=0.005)
        told = [one.span.as_json() for one, cosine in zip(made, cosines, strict=True) if cosine > max(cosines) - 0.01]
        assert record["passage"] in told and best[record["file"]]["passage"] in told


def test_a_folder_gets_its_passages_while_it_is_searched(embedder, music):
    go_on = threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(embedder, name)

        def read_raw(self, paths):
            assert not threading.current_thread().name.startswith("passages") or go_on.wait(20)
            return embedder.read_raw(paths)

    with opened(Collection(music, Slow, FeatureCache(10), passages=True)) as client:
        wait_for(client)
        asked = {"q": QUERY, "modality": "symbolic"}
        assert "passage" not in client.get("/search", params=asked).json()[0]
        early = client.get("/search", params={**asked, "passages": True})
        assert early.status_code == 422 and "still being made" in early.json()["error"]["message"]
        go_on.set()
        for _ in range(600):
            if (now := client.get("/healthz").json()["passages"])["state"] != "making":
                break
            time.sleep(0.05)
        assert now["state"] == "ready" and now["done"] == now["total"] > 10
        assert client.get("/search", params=asked).json()[0]["passage"]["bars"][0] >= 1


def test_a_collection_of_other_weights_or_of_nothing_says_so(embedder, small_model, tmp_path, music):
    other = Embedder.from_pretrained(small_model.clamp3, "cpu", sizes=small_model.sizes)
    index = Index.create(tmp_path / "index")
    update_index(index, next(music.glob("*.mid")), lambda: other)
    index.close()
    (tmp_path / "empty").mkdir()
    for folder, said in (("index", "do not compare"), ("empty", "nothing in")):
        with opened(Collection(tmp_path / folder, lambda: embedder)) as client:
            now = wait_for(client)
            assert now["state"] == "failed" and said in now["reason"]
            answer = client.get("/search", params={"q": QUERY})
            assert answer.status_code == 503 and said in answer.json()["error"]["message"]


def test_progress_is_told_while_a_folder_is_read(embedder, music):
    go_on, seen = threading.Event(), []

    def slow():
        go_on.wait(20)
        return embedder

    with opened(Collection(music, slow, FeatureCache(10))) as client:
        assert client.get("/healthz").json()["state"] == "loading"
        answer = client.get("/search", params={"q": QUERY})
        assert answer.status_code == 503 and "still being read" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "2"
        go_on.set()
        now = wait_for(client)
        assert now["done"] == now["total"] > 10
        seen = [failure["file"] for failure in now["failures"]]
    assert [Path(file).name for file in seen] == ["broken.mid"]


def test_the_end_does_not_wait_until_a_folder_is_read(embedder, music):
    """An embedder that stops at its first file, as a large recording would."""
    go_on, stopped = threading.Event(), threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(embedder, name)

        def embed_items(self, items):
            stopped.set()
            go_on.wait(20)
            return embedder.embed_items(items)

    collection = Collection(music, Slow)
    collection.start()
    assert stopped.wait(20)
    begin = time.monotonic()
    collection.close()
    assert time.monotonic() - begin < 1
    go_on.set()
    with pytest.raises(NotReady, match="the server ends|no such file|cannot be"):
        collection.wait()


# ---------- what is shown of files ----------


def test_each_kind_of_file_is_shown(client, ids, music):
    kinds = {".abc": "score", ".musicxml": "score", ".mid": "notes", ".txt": "text", ".mp3": "sound", ".aiff": "sound"}
    for name, identity in ids.items():
        if name == "link_out.txt":
            continue
        shown = client.get(f"/files/{identity}").json()
        assert shown["kind"] == kinds[Path(name).suffix], shown
        assert shown["file"] == name
        if shown["kind"] == "score":
            on_two = client.get(f"/files/{identity}", params={"bars": 2}).json()["abc"]
            assert on_two.count("|") >= shown["abc"].count("|") and len(on_two.splitlines()) > 8
            assert shown["abc"].startswith("X:1\n") and re.search("^T:", shown["abc"], re.MULTILINE)
            assert max(map(len, shown["abc"].splitlines())) < 300
        raw = client.get(f"/files/{identity}/raw")
        assert raw.content == (music / name).read_bytes()
        assert raw.headers["content-type"] == "application/octet-stream"
        assert raw.headers["content-disposition"].startswith("attachment") and "sandbox" in str(raw.headers)


def test_recordings_are_played_from_any_second(client, ids):
    original = client.get(
        f"/files/{next(ids[name] for name in ids if name.endswith('.mp3'))}/sound", headers={"Range": "bytes=100-199"}
    )
    assert (original.status_code, original.headers["content-type"], len(original.content)) == (206, "audio/mpeg", 100)
    converted = client.get(f"/files/{ids['deep/tone.aiff']}/sound")
    assert converted.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(converted.content)) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768
        rate = sound.getframerate()
    assert len(samples) == pytest.approx(3 * rate, abs=rate / 100)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples) == pytest.approx(440, abs=1)
    assert client.get(f"/files/{ids[HOSTILE]}/sound").status_code == 404


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.mid")), ids=lambda path: path.stem)
def test_the_notes_of_midi_are_those_that_mido_plays(path):
    now, sounding, expected = 0.0, {}, []
    for message in mido.MidiFile(path):
        now += message.time
        if message.type == "note_on" and message.velocity:
            sounding[message.note] = [now, 0, message.note, message.velocity]
            expected.append(sounding[message.note])
        elif message.type in ("note_on", "note_off"):
            sounding[message.note][1] = now - sounding[message.note][0]
    np.testing.assert_allclose(notes_view(midi_to_mtf(path))["notes"], expected, atol=1e-3)


def test_a_change_of_tempo_drums_and_frames_a_second():
    changing = "ticks_per_beat 100\nset_tempo 1000000 0\nnote_on 0 0 60 90\nset_tempo 500000 100\n"
    changing += "note_off 100 0 60 0\nnote_on 0 9 40 90\nnote_on 0 0 62 90\nend_of_track 100"
    shown = notes_view(changing)
    assert shown["notes"] == [[0, 1.5, 60, 90], [1.5, 0.5, 62, 90]] and "drums" in shown["remarks"][1]
    frames = f"ticks_per_beat {-25 * 256 + 40}\nnote_on 0 0 60 90\nnote_off 1000 0 60 0\nend_of_track 0"
    assert notes_view(frames)["notes"] == [[0, 1, 60, 90]]
    for empty in ("ticks_per_beat 100\nend_of_track 0", "X:1"):
        with pytest.raises(ValueError):
            notes_view(empty)


def test_scores_are_set_on_lines_and_keep_every_bar():
    """The lines that are shown hold what the model reads."""
    chorale = "X:1\nT:Two\nL:1/4\nM:4/4\nK:G\nV:1\nG A B c|d4|e2 f2|g4|G4|]\nV:2 bass\nG,4|B,4|C2 D2|G,4|G,,4|]\n"
    scores = [musicxml_to_abc(path) for path in sorted(DEMO.glob("*.musicxml"))[:3]]
    for abc in (chorale, *scores, *(read_abc(path) for path in sorted(DEMO.glob("*.abc"))[:5])):
        shown, interleaved = on_lines(abc), interleave(abc)
        bars = re.findall(r"\[V:(\S+?)\](.*?)(?=\[V:|$)", interleaved, re.MULTILINE)
        joined: dict[str, str] = {}
        for voice, bar in bars:
            joined[voice] = joined.get(voice, "") + bar
        found: dict[str, str] = {}
        for voice, line in re.findall(r"^\[V:(\S+?)\](.*)$", shown, re.MULTILINE):
            found[voice] = found.get(voice, "") + line
        assert {voice: line.replace(" ", "") for voice, line in found.items()} == {
            voice: line.replace(" ", "") for voice, line in joined.items()
        }
        assert [line for line in shown.splitlines() if line[:2] in ("L:", "M:", "K:", "V:")] == [
            line for line in interleaved.splitlines() if line[:2] in ("L:", "M:", "K:", "V:")
        ]
    assert len(re.findall("^\\[V:1\\]", on_lines(chorale, 1), re.MULTILINE)) == 5
    assert "T:Two\n" in on_lines(chorale) and on_lines(chorale).count("[V:2]") == 2


def test_the_bars_that_are_marked_are_those_that_the_model_counts(embedder):
    """Each place in the engraved ABC holds the bar that the model's patches hold."""
    two = "X:1\nT:\U0001f3bb duo\nL:1/4\nK:G\nV:1\nG A B c|d4|e2 f2|g4|]\nw: o o o o\nV:2 bass\nG,4|B,4|C2 D2|G,4|]\n"
    texts = [two, *(read_abc(path) for path in DEMO.glob("*.abc")), *map(musicxml_to_abc, DEMO.glob("*.musicxml"))]
    for abc in texts:
        shown, places = laid_out(abc)
        patches = spelled(embedder.encode_symbolic(abc))
        bars: dict[int, str] = {}
        for patch, number in zip(patches, bars_of(patches), strict=True):
            bars[number] = bars.get(number, "") + patch
        assert len(places) == max(bars)
        units = shown.encode("utf-16-le")
        for number, place in enumerate(places, 1):
            said = "".join(units[2 * begin : 2 * end].decode("utf-16-le") for begin, end in place)
            said = re.sub(r"\s|(?<=[|:])[0-9]$", "", said)  # the number of an ending is a patch of the next bar
            assert said == re.sub(r"\s|\[V:[^]]*\]|(?<=[|:])[0-9]$", "", bars[number])


def test_a_song_whose_bars_are_told_is_shown_without_lyrics_and_says_so(tmp_path):
    song = tmp_path / "song.abc"
    song.write_text("X:1\nT:Song\nL:1/4\nM:4/4\nK:C\nC D E F|G4|]\nw: one two three four five\n")
    plain, numbered = view(song), view(song, is_numbered=True)
    assert "w: one" in plain["abc"] and "places" not in plain and not plain["remarks"]
    assert "one" not in numbered["abc"] and len(numbered["places"]) == 2
    assert numbered["remarks"] == ["shown without its lyrics, so that its bars are known"]


@pytest.mark.parametrize("path", sorted(DEMO.glob("*.mid"))[:3], ids=lambda path: path.stem)
def test_the_bars_of_midi_begin_where_mido_counts_them(path):
    file = mido.MidiFile(path)
    signature = next(message for track in file.tracks for message in track if message.type == "time_signature")
    tempos = [message.tempo for track in file.tracks for message in track if message.type == "set_tempo"]
    assert len(set(tempos)) <= 1
    length = file.ticks_per_beat * 4 * signature.numerator / signature.denominator
    second = mido.tick2second(length, file.ticks_per_beat, tempos[0] if tempos else 500_000)
    bars = notes_view(midi_to_mtf(path))["bars"]
    np.testing.assert_allclose(np.diff(bars), second, atol=1e-3)
    assert bars[0] == 0 and bars[-2] < file.length <= bars[-1] + 1e-3


def test_the_bars_of_midi_follow_its_metre_and_tempo():
    lines = "ticks_per_beat 100\ntime_signature 3 4 24 8 0\nnote_on 0 0 60 90\ntime_signature 2 4 24 8 600\n"
    lines += "set_tempo 1000000 0\nnote_off 400 0 60 0\nend_of_track 0"
    assert notes_view(lines)["bars"] == [0, 1.5, 3, 5, 7]


# ---------- safety ----------


@pytest.mark.parametrize("view", ["", "/raw", "/sound"])
@pytest.mark.parametrize(
    "name",
    [
        *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "..%5csecret.txt", "....//secret.txt"),
        *("{folder}/secret.txt", "%2f{folder}%2fsecret.txt", "file:%2f%2f{folder}/secret.txt", "link_out.txt", "%00"),
        *("..;/secret.txt", "{secret}", "{link}"),
    ],
)
def test_no_file_but_the_collections_is_served(client, ids, music, name, view):
    link = ids["link_out.txt"]  # it can be found, for the folder holds it, but not seen
    name = name.format(folder=music.parent, secret=id_of(music.parent / "secret.txt"), link=link)
    answer = client.get(f"{LOCAL}/files/{name}{view}")
    assert answer.status_code == 404 and SECRET not in answer.text


@pytest.mark.parametrize(
    "name", ["../server.py", "..%2fserver.py", "%2e%2e/server.py", "//etc/passwd", "%2fetc/passwd"]
)
def test_no_file_but_the_pages_is_static(client, name):
    assert client.get(f"{LOCAL}/static/{name}").status_code == 404


def test_links_within_the_collection_are_shown_and_those_made_later_are_not(embedder, tmp_path):
    music = make_folder(tmp_path)
    with opened(Collection(music, lambda: embedder, FeatureCache(10))) as client:
        wait_for(client)
        records = client.get("/search", params={"q": QUERY, "top_k": 200}).json()
        ids = {record["file"]: record["id"] for record in records}
        assert client.get(f"/files/{ids['link_in.abc']}").json()["kind"] == "score"
        (music / HOSTILE).unlink()
        (music / HOSTILE).symlink_to(tmp_path / "secret.txt")
        answer = client.get(f"/files/{ids[HOSTILE]}/raw")
        assert answer.status_code == 404 and "outside of the collection" in answer.text
        (music / HOSTILE).unlink()
        assert "no longer there" in client.get(f"/files/{ids[HOSTILE]}/raw").text


def test_every_answer_has_a_policy_and_no_other_page_may_read_it(client, ids):
    for address in ("/", "/docs", "/static/app.js", "/search?q=jig", "/nothing", f"/files/{ids[HOSTILE]}/raw"):
        answer = client.get(address, headers={"Origin": "http://evil.example"})
        assert "default-src 'none'" in answer.headers["content-security-policy"], address
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = client.get("/").headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe-eval" not in policy


def test_pages_name_nothing_elsewhere_and_hold_no_scripts():
    for path in (*STATIC.glob("*.html"), *(path for path in STATIC.glob("*.js") if not path.name.startswith("abcjs"))):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)// .*", "", text), path
        assert "innerHTML" not in text and not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|style=", text), path


def test_requests_of_other_pages_and_names_are_refused(client):
    foreign = client.post("/v1/embeddings", json={"input": "a"}, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    own = client.post("/v1/embeddings", json={"input": "a"}, headers={"Origin": LOCAL})
    assert own.status_code == 200
    rebound = client.get("/search?q=jig", headers={"Host": "evil.example"})
    assert rebound.status_code == 421
    for host in ("localhost:8000", "[::1]:80", "127.0.0.1"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_a_token_is_asked_for(embedder, music):
    with opened(Collection(music, lambda: embedder, FeatureCache(10)), token="s3cret") as client:
        for address in (
            "/",
            "/healthz",
            "/search?q=jig",
            "/static/app.js",
            "/?token=wrong",
            "/search?q=a&token=s3cret",
        ):
            assert client.get(address).status_code == 401, address
        header = {"Authorization": "Bearer s3cret"}
        assert client.get("/healthz", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/healthz", headers={**header, "Host": "music.example"}).status_code == 200


def test_a_browser_keeps_the_token_in_a_cookie_that_no_script_reads(embedder, music):
    with opened(Collection(music, lambda: embedder, FeatureCache(10)), token="s3cret") as client:
        answer = client.get("/?token=s3cret", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "HttpOnly" in answer.headers["set-cookie"] and "samesite=strict" in answer.headers["set-cookie"].lower()
        assert client.get("/healthz").status_code == 200


# ---------- uploads ----------


def upload(client, path: Path, name: str | None = None, **fields):
    return client.post("/search", files={"file": (name or path.name, path.read_bytes())}, data=fields)


@pytest.mark.parametrize("extension", [".abc", ".musicxml", ".mid", ".mp3", ".txt", ".aiff"])
def test_an_upload_finds_its_own_file(client, music, extension):
    path = next(
        path for path in sorted(music.rglob(f"*{extension}")) if path.name not in ("broken.mid", "link_out.txt")
    )
    records = upload(client, path, top_k=2).json()
    assert records[0]["cosine"] > 0.9999 and len(records) == 2
    assert Path(records[0]["file"]).suffix == extension and records[0]["query"] == path.name
    only = upload(client, path, modality="text").json()
    assert {record["modality"] for record in only} == {"text"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.mid", b"MThd and nothing", "broken.mid: "),
        ("broken.mp3", b"\0" * 1000, "broken.mp3: "),
        ("empty.abc", b"", "empty.abc: "),
        ("half.musicxml", b"<score-partwise><part>", "half.musicxml: "),
        ("program.exe", b"MZ", "program.exe: nothing here reads .exe"),
        ("photo.JPG", b"\xff\xd8", "photo.JPG: pictures are not read"),
        ("none", b"a", "none: nothing here reads files without an extension"),
        ("object.npy", b"\x93NUMPY\x01\x00", "object.npy: "),
    ],
)
def test_a_bad_upload_is_refused_with_the_reason(client, name, content, said):
    answer = client.post("/search", files={"file": (name, content)})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 422 and message.startswith(said)
    assert "/tmp" not in message and "Traceback" not in message


def test_pictures_are_searched_by_their_words_where_that_is_asked_for(client, embedder, music, tmp_path):
    images = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    images.fromarray(pixels).save(tmp_path / "fiddler.JPG", format="jpeg")
    refused = upload(client, tmp_path / "fiddler.JPG")
    assert refused.status_code == 422 and "--captioner" in refused.json()["error"]["message"]
    (tmp_path / "blip").mkdir()
    captioner = str(make_blip(tmp_path / "blip"))
    with opened(Collection(music, lambda: embedder, FeatureCache(10), passages=False), captioner=captioner) as able:
        wait_for(able)
        records = upload(able, tmp_path / "fiddler.JPG", top_k=3).json()
        caption = records[0]["caption"]
        assert caption == caption_of(tmp_path / "fiddler.JPG", captioner) and records[0]["query"] == "fiddler.JPG"
        by_text = able.get("/search", params={"q": caption, "top_k": 3}).json()
        assert [record["id"] for record in records] == [record["id"] for record in by_text]
        files = {"file": ("fiddler.JPG", (tmp_path / "fiddler.JPG").read_bytes())}
        why = able.post("/explain", files=files, data={"id": records[0]["id"]}).json()
        assert why["caption"] == caption and why["cosine"] == pytest.approx(records[0]["cosine"], abs=1e-4)
        broken = able.post("/search", files={"file": ("broken.png", b"PNG")})
        message = broken.json()["error"]["message"]
        assert broken.status_code == 422 and message.startswith("broken.png: the picture cannot be read")
        assert "/tmp" not in message


def test_uploads_are_never_written_under_their_names(client, music, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {path for path in music.parent.rglob("*")}
    for name in ("../evil.abc", "/tmp/evil.abc", "..\\evil.abc", f"{music}/evil.abc"):
        records = upload(client, next(music.glob("*.abc")), name).json()
        assert records[0]["query"] == "evil.abc"
    assert {path for path in music.parent.rglob("*")} == before
    assert not list(tmp_path.rglob("*evil*")) and not Path("/tmp/evil.abc").exists()


def test_uploads_are_bounded_in_size_and_time(client, embedder, music):
    large = client.post("/search", files={"file": ("a.txt", b"a" * 3_000_000)})
    assert large.status_code == 413 and "2 MB" in large.json()["error"]["message"]

    def endless():
        for _ in range(300):
            yield b"a" * 10_000

    chunked = client.post("/search", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert chunked.status_code == 413
    with opened(Collection(music, lambda: embedder, FeatureCache(10)), limits=Limits(work_seconds=0.001)) as hasty:
        wait_for(hasty)
        answer = upload(hasty, next(music.glob("*.mp3")))
        assert answer.status_code == 503 and "longer than" in answer.json()["error"]["message"]


def test_an_upload_that_does_not_come_is_given_up(embedder, music):
    app = create_app(Collection(music, lambda: embedder, FeatureCache(10)), limits=Limits(upload_seconds=0.1))
    sent = []

    async def receive():
        await asyncio.sleep(5)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": headers}
    asyncio.run(app({**scope, "raw_path": b"/search", "root_path": "", "scheme": "http"}, receive, send))
    assert sent[0]["status"] == 408


# ---------- REST ----------


def test_embeddings_have_the_form_that_clients_know(client, embedder):
    texts = ["a slow air", "ein Tanz", "爱尔兰舞曲"]
    answer = client.post("/v1/embeddings", json={"model": "clamp3", "input": texts, "user": "x"}).json()
    assert answer["object"] == "list" and [one["index"] for one in answer["data"]] == [0, 1, 2]
    expected = embedder.embed_text(texts, normalize=True)
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], expected, atol=1e-5)
    tokens = sum(len(embedder.encode_text(text)) for text in texts)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    coded = client.post("/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}).json()
    data = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(data, expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        *(({"input": []}, 422), ({"input": ["a", " "]}, 422), ({"input": 3}, 422), ({}, 422)),
        *(
            ({"input": ["a"] * 300}, 422),
            ({"input": "a", "model": "gpt"}, 404),
            ({"input": "a", "dimensions": 3}, 422),
        ),
    ],
)
def test_bad_requests_for_embeddings_are_refused(client, request_, status):
    answer = client.post("/v1/embeddings", json=request_)
    assert answer.status_code == status and answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent, status", [('{"input": ["a", "\\ud800"]}', 422), ('{"input": "a", "model": "\\ud800"}', 404)]
)
def test_halves_of_characters_are_refused_with_the_reason(client, sent, status):
    answer = client.post("/v1/embeddings", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and r"\ud800" in answer.json()["error"]["message"]


def test_files_are_embedded_as_the_command_does(client, embedder, music):
    names = [next(music.glob(pattern)) for pattern in ("*.abc", "*.txt")] + [music / "broken.mid"]
    records = client.post("/embed", files=[("files", (path.name, path.read_bytes())) for path in names]).json()
    expected = embedder.embed_files(names[:2])
    np.testing.assert_allclose([record["embedding"] for record in records[:2]], expected, atol=1e-4)
    assert [record["modality"] for record in records[:2]] == ["symbolic", "text"]
    assert records[2]["file"] == "broken.mid" and records[2]["error"]


def explained(client, identity, top_k=2000, **asked):
    answer = client.get("/explain", params={**asked, "id": identity, "top_k": top_k})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_explanations_are_those_of_the_library(client, embedder, music, ids):
    told = explained(client, ids[HOSTILE], q=QUERY)
    found = embedder.explain(QUERY, music / HOSTILE)
    assert told["file"] == HOSTILE and told["cosine"] == pytest.approx(found.cosine, abs=1e-5)
    for side in ("query", "item"):
        expected = sorted((one.share for one in getattr(found, side) if one.unit), reverse=True)
        assert [one["share"] for one in told[side]] == pytest.approx(expected, abs=1e-5)
    assert {one["text"] for one in told["query"]} == set(QUERY.split())
    assert [len(explained(client, ids[HOSTILE], q=QUERY, top_k=3)[side]) for side in ("query", "item")] == [3, 3]
    sent = {"file": ("tune.abc", (music / HOSTILE).read_bytes())}
    by_file = client.post("/explain", files=sent, data={"id": ids["deep/tone.aiff"]}).json()
    assert by_file["query"][0]["unit"] == "bars" and by_file["item"][0]["unit"] == "seconds"
    broken = client.post("/explain", files={"file": ("a.mid", b"MThd")}, data={"id": ids[HOSTILE]})
    assert broken.status_code == 422 and broken.json()["error"]["message"].startswith("a.mid: ")


def test_explanations_of_several_queries_add_up_to_what_the_search_found(client, ids):
    names = sorted(name for name in ids if name.endswith((".abc", ".musicxml")) and not name.startswith("link"))
    asked = {"q": QUERY, "also": ids[names[0]], "without": ids[names[1]]}
    first = client.get("/search", params={**asked, "top_k": 1, "kind": "score"}).json()[0]
    told = explained(client, first["id"], **asked)
    assert told["cosine"] == pytest.approx(first["cosine"], abs=1e-4)
    assert {one["of"] for one in told["query"]} == {None, *names[:2]}
    alone = [explained(client, first["id"], **one) for one in ({"q": QUERY}, {"like": asked["also"]})]
    assert told["item"] != alone[0]["item"] and {len(one["item"]) for one in (told, *alone)} == {len(told["item"])}


def test_nothing_is_explained_of_files_that_are_not_shown(client, ids):
    secret = ids["link_out.txt"]
    for asked in ({"id": secret}, {"id": ids[HOSTILE], "also": secret}, {"id": ids[HOSTILE], "without": secret}):
        answer = client.get("/explain", params={"q": QUERY, **asked})
        assert answer.status_code == 404 and "secret" not in answer.text
    assert client.get("/explain", params={"like": secret, "id": ids[HOSTILE]}).status_code == 404
    assert client.get("/explain", params={"q": QUERY, "like": secret, "id": ids[HOSTILE]}).status_code == 422


def test_a_file_that_cannot_be_opened_any_more_is_not_explained_with_the_reason(client, ids, embedder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(embedder, "explain", refuse)
    answer = client.get("/explain", params={"q": QUERY, "id": ids[HOSTILE]})
    assert answer.status_code == 422 and "Permission denied" in answer.json()["error"]["message"]


def test_why_a_file_is_not_explained_does_not_tell_where_it_lies(client, ids, music, embedder, monkeypatch):
    def refuse(_, path):
        raise ValueError(f"{path} is damaged")

    monkeypatch.setattr(embedder, "explain", refuse)
    answer = client.get("/explain", params={"q": QUERY, "id": ids[HOSTILE]})
    assert answer.status_code == 422 and answer.json()["error"]["message"] == f"{HOSTILE} is damaged"


def test_no_score_is_converted_to_find_that_it_is_no_recording(client, ids, monkeypatch):
    monkeypatch.setattr("clamp3.web.server.view", None)
    name = next(name for name in ids if name.endswith(".musicxml"))
    answer = client.get(f"/files/{ids[name]}/sound")
    assert answer.status_code == 404 and answer.json()["error"]["message"] == "this file is no recording"


def test_queries_that_cancel_each_other_out_are_refused(client, ids):
    asked = {"like": ids[HOSTILE], "without": [ids[HOSTILE]] * 2}
    for answer in (client.get("/search", params=asked), client.get("/explain", params={**asked, "id": ids[HOSTILE]})):
        assert answer.status_code == 422 and "cancel each other out" in answer.json()["error"]["message"]


def test_openapi_describes_what_programs_may_ask(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/search", "/embed", "/explain", "/healthz", "/v1/embeddings"} <= paths.keys()


def test_requests_that_wait_share_a_batch():
    begun, go_on, batches = threading.Event(), threading.Event(), []

    def work(items):
        batches.append(list(items))
        begun.set()
        go_on.wait(10)
        return [ValueError("odd") if item % 2 else item * 10 for item in items]

    async def ask():
        batcher = Batcher(work, "test", most=64)
        first = asyncio.create_task(batcher(0))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(batcher(number)) for number in range(1, 100)]
        await asyncio.sleep(0.05)
        go_on.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        await asyncio.to_thread(batcher.close)
        return results

    results = asyncio.run(ask())
    assert [len(batch) for batch in batches] == [1, 64, 35]
    assert results[:3:2] == [0, 20] and all(isinstance(result, ValueError) for result in results[1::2])


# ---------- the command ----------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "give it a --token"),
        (["--token", "a b"], "a token is made of"),
        (["/nowhere", "--variant", "tiny"], "no folder or index /nowhere"),
        (["--host", "127.0.0.1", "--port", "99999"], "port 99999"),
    ],
)
def test_the_command_says_what_it_cannot_do(arguments, said):
    done = run_forked(CODE / "clamp3_web.py", *arguments, check=2)
    assert said in done.stderr


def test_the_commands_of_the_documentation_run(tmp_path):
    """The server as its first block starts it, on a free port; then the others against it."""
    document = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)```", document, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    start, *others = [line for block in commands for line in block.splitlines()]
    assert start == "python code/clamp3_web.py" and all(line.startswith("curl ") for line in others)
    server = [sys.executable, "-u", *start.split()[1:], "--port", "0", "--threads", "1"]
    with subprocess.Popen(server, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+/", process.stdout.readline())[0]
            while httpx.get(f"{address}healthz").json()["state"] != "ready":
                time.sleep(0.1)
            for line in others if shutil.which("curl") else ():
                words = shlex.split(line.replace("http://127.0.0.1:8000/", address))
                done = subprocess.run([*words, "-sf"], cwd=ROOT, capture_output=True, text=True, check=True)
                assert "cosine" in done.stdout or "embedding" in done.stdout
            answer: dict = {}
            exec(python.replace("http://127.0.0.1:8000/", address), answer)
            assert [len(one["embedding"]) for one in answer["answer"]["data"]] == [128, 128]
        finally:
            process.terminate()
        assert process.wait(20) == 143


def test_names_that_are_not_utf8_are_found_and_saved(embedder, tmp_path):
    content = sorted(DEMO.glob("*.abc"))[0].read_bytes()
    for name in (b"caf\xe9.abc", b"m\xfcde.abc"):
        try:
            Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(content if b"caf" in name else b"no music")
        except OSError:
            pytest.skip("this file system has no such names")
    with opened(Collection(tmp_path, lambda: embedder)) as client:
        assert [issue["file"] for issue in wait_for(client)["failures"]] == [rf"{tmp_path}/m\xfcde.abc"]
        [found] = client.get("/search", params={"q": QUERY}).json()
        assert found["file"] == r"caf\xe9.abc"
        assert client.get(f"/files/{found['id']}").json()["file"] == found["file"]
        assert client.get(f"/files/{found['id']}/raw").content == content
        Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.abc")).write_bytes(b"no music")
        refused = client.get("/explain", params={"q": QUERY, "id": found["id"]})
        assert refused.status_code == 422 and r"caf\udce9" in refused.json()["error"]["message"]


def test_a_column_that_has_left_the_index_is_refused_with_the_reason(embedder, tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("one", "other"):
        folder.joinpath(f"{name}.txt").write_text(f"{name} slow air")
    one = folder.resolve() / "one.txt"
    with contextlib.closing(Index.create(tmp_path / "index")) as index:
        update_index(index, folder, lambda: embedder, metadata={one: {"year": 1850}})
        with opened(Collection(tmp_path / "index", lambda: embedder)) as client:
            wait_for(client)
            asked = {"q": QUERY, "where": "year=1850"}
            assert len(client.get("/search", params=asked).json()) == 1
            index.remove([one])
            answer = client.get("/search", params=asked)
    assert answer.status_code == 422 and "column year" in answer.json()["error"]["message"]
