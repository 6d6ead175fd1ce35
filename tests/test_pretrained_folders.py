"""Models as folders and on the hub: a file a tower, the same features; and files that are not what they are named."""

import bz2
import gzip
import http.server
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import XLMRobertaConfig, XLMRobertaModel

from clamp3.audio.mert import Mert
from clamp3.cli.commands import convert_weights as command
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.description import AUDIO_ENCODER, ENTRY, describe
from clamp3.models.m3 import M3Model
from clamp3.models.pretrained import load_pretrained
from clamp3.models.releases import RELEASES, TINY, tiny_sizes
from clamp3.models.saving import convert_weights
from clamp3.models.weight_files import read_weights
from clamp3.models.weights import start_from_text_model
from clamp3.sizes import ModelSizes
from clamp3.training.start import audio_encoder_of, find_start
from conftest import CODE, MERT_TINY, ROOT
from golden_model import golden_json, golden_model, save_checkpoint
from training_runs import make_trainer

TUNE = "K:C\n[V:1]CDEF GABc|\n"
SOUND = np.sin(np.arange(48_000) / 20).astype(np.float32)


def calls(embedder: Embedder) -> dict:
    frames = np.random.default_rng(0).standard_normal((9, embedder.sizes.audio_hidden_size)).astype(np.float32)
    return {
        "text": lambda: embedder.embed_text(["a slow air", "ein Lied"]),
        "symbolic": lambda: embedder.embed_symbolic([TUNE]),
        "audio": lambda: embedder.embed_audio_features([frames]),
    }


def assert_same_features(one: Embedder, other: Embedder, towers=("text", "symbolic", "audio")) -> None:
    for tower in towers:
        assert np.array_equal(calls(one)[tower](), calls(other)[tower]()), tower


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    """A model's folder, saved after it has been used."""
    list(map(lambda call: call(), calls(tiny).values()))
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.save_pretrained(folder)
    return folder


# ---------- round trips ----------


def test_a_saved_model_is_the_same_bit_for_bit(tiny, saved, small_model, tmp_path):
    """The small model of the package, one of a local text model and an undescribed file, and M3; also moved."""
    moved = Path(shutil.copytree(saved, tmp_path / "moved"))
    again = Embedder.from_pretrained(moved, "cpu")
    assert_same_features(again, tiny)
    assert np.array_equal(again.embed_audio([SOUND]), tiny.embed_audio([SOUND]))  # with a MERT of its own
    assert again.identity == tiny.identity and again.weights == moved
    again.save_pretrained(tmp_path / "third")
    for tower in ("text", "symbolic", "audio"):
        name = f"{tower}.safetensors"
        assert (tmp_path / "third" / name).read_bytes() == (moved / name).read_bytes()
    for path, sizes in ((small_model.clamp3, small_model.sizes), (small_model.m3, None)):
        one = Embedder.from_pretrained(path, "cpu", sizes=sizes)
        one.save_pretrained(tmp_path / path.stem)
        other = Embedder.from_pretrained(tmp_path / path.stem, "cpu")
        assert other.fingerprint == one.fingerprint
        if sizes:
            assert_same_features(one, other)
            assert Path(other.sizes.text_model_name).parent == tmp_path / path.stem
        else:
            assert np.array_equal(*(e.embed_symbolic([TUNE], pooled=False)[0] for e in (one, other)))
    in_memory = Embedder(golden_model(CLaMP3Model, small_model.sizes), small_model.sizes, "cpu")
    in_memory.save_pretrained(tmp_path / "memory")
    assert_same_features(Embedder.from_pretrained(tmp_path / "memory", "cpu"), in_memory)


def test_one_tower_is_read_alone_and_another_asked_for_is_one_line(saved, tiny, tmp_path):
    """Of a folder the other files may even be missing."""
    alone = Path(shutil.copytree(saved, tmp_path / "alone"))
    for name in ("symbolic", "audio"):
        (alone / f"{name}.safetensors").unlink()
    shutil.rmtree(alone / "mert")
    for source in (alone, TINY, saved / "text.safetensors", TINY / "clamp3.safetensors"):
        embedder = Embedder.from_pretrained(source, "cpu", towers=("text",))
        assert_same_features(embedder, tiny, ["text"])
        (tmp_path / "a.abc").write_text(TUNE)
        asked = {
            "symbolic": [lambda one: one.embed_symbolic([TUNE]), lambda one: one.embed_files([tmp_path / "a.abc"])],
            "audio": [calls(embedder)["audio"], lambda one: one.embed_audio([SOUND])],
        }
        for tower, ways in asked.items():
            for way in ways:
                with pytest.raises(UserError, match=rf"^this Embedder has no {tower} tower, .* with text alone$"):
                    way(embedder) if way.__code__.co_argcount else way()
    music = Embedder.from_pretrained(saved, "cpu", towers=["audio", "symbolic"])
    assert_same_features(music, tiny, ["audio", "symbolic"])
    with pytest.raises(UserError, match="no text tower, since it was loaded with symbolic, audio alone"):
        music.embed_text(["a slow air"])
    for towers, complaint in ((["speech"], "has no speech tower; it has: text, symb"), ("text", "must be a list")):
        with pytest.raises(UserError, match=complaint):
            Embedder.from_pretrained(saved, "cpu", towers=towers)
    with pytest.raises(UserError, match="holds CLaMP3Model's weights, and M3Model's are needed"):
        load_pretrained(saved, model_class=M3Model)
    with pytest.raises(UserError, match="is a CLaMP checkpoint, where M3's is needed"):
        load_pretrained(TINY / "clamp3.safetensors", configured=tiny_sizes(), model_class=M3Model)
    with pytest.raises(UserError, match="is no folder of a whole model: it has no symbolic.safetensors"):
        Embedder.from_pretrained(alone, "cpu")


def test_a_folder_that_was_changed_is_refused(saved, tmp_path):
    def changed(name: str, change) -> str:
        folder = tmp_path / f"changed{len(list(tmp_path.iterdir()))}"
        shutil.copytree(saved, folder)
        path = folder / name
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError) as raised:
            Embedder.from_pretrained(folder, "cpu").embed_text(["a slow air"])
        return str(raised.value)

    def flip(data: bytes) -> bytes:
        return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]

    assert "text.safetensors is damaged: its SHA-256" in changed("text.safetensors", flip)
    assert "the files in text are not what config.json says" in changed("text/tokenizer.json", flip)
    assert "it has no config.json" in changed("config.json", lambda _: None)
    for content in (b"{}", b"[]", b'{"model_type": "bert"}', b'{"towers": {"../x": {"file": "y"}}}', b"7"):
        assert "it describes no model of this library" in changed("config.json", lambda _, c=content: c)
    evil = json.loads((saved / "config.json").read_text())
    evil["towers"]["text"]["file"] = "../text.safetensors"
    assert "it describes no model" in changed("config.json", lambda _: json.dumps(evil).encode())


def test_a_folder_with_other_things_is_not_written_to(tiny, saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, TINY, tmp_path / "notes.txt"):
        before = sorted(folder.parent.rglob("*"))
        with pytest.raises(UserError, match="other things|not a folder that this has written|is a file"):
            tiny.save_pretrained(folder)
        assert sorted(folder.parent.rglob("*")) == before
    tiny.save_pretrained(saved)  # written by itself: again
    rounded = Embedder.from_pretrained("tiny", "cpu", precision="bf16")
    rounded.embed_text(["a slow air"])
    with pytest.raises(UserError, match="rounded to bf16 by now: save an Embedder in fp32"):
        rounded.save_pretrained(tmp_path / "rounded")


def test_the_card_and_the_sizes_can_be_read_by_others(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["sizes"]["PATCH_LENGTH"] == 128 and set(config["towers"]) == {"text", "symbolic", "audio"}
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: clamp3\n") and 'Embedder.from_pretrained("model")' in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    before = Path.cwd()
    os.chdir(saved.parent)
    try:
        exec(code, {})
    finally:
        os.chdir(before)


def test_training_starts_from_described_files_and_folders_and_keeps_the_listener(saved, tiny, tmp_path):
    """What is made of the small model hears as it does, in any generation and form."""
    first = tmp_path / "first.pth"
    said = describe("clamp3", tiny.sizes, **{AUDIO_ENCODER: audio_encoder_of("tiny")})
    weights = {name: tensor.clone() for name, tensor in read_weights(TINY / "clamp3.safetensors").items()}
    torch.save({"model": weights, ENTRY: said}, first)
    for start, listener in ((str(saved), str(saved / "mert")), (str(first), "tiny")):
        found = find_start(start, "CLAMP3", ModelSizes(logit_scale=3.0), tmp_path)
        assert found.sizes.patch_length == 128 and found.sizes.logit_scale == 3.0
        model = CLaMP3Model(found.sizes)
        assert start in found.load(model)
        wanted = {name: tensor for name, tensor in weights.items() if ".pooler." not in name}
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in wanted.items())
        assert audio_encoder_of(start) == listener
    embedder = Embedder.from_pretrained(first, "cpu")
    assert embedder.audio_encoder_name == TINY / "mert"
    assert np.array_equal(embedder.embed_audio([SOUND]), tiny.embed_audio([SOUND]))


# ---------- convert weights ----------


def test_a_release_is_converted_without_optimizer_state(small_model, tmp_path, monkeypatch, capsys):
    """A full checkpoint, as training writes it, in all precisions; judged by the tensors themselves."""
    shapes = golden_json("model.json")["state_dict_shapes"]
    state = {"state": {0: {"exp_avg": torch.ones(3_000_000)}}, "param_groups": []}
    path = small_model.folder / "weights_full_.pth"
    save_checkpoint(path, shapes, optimizer=state)
    sizes = tmp_path / "sizes"
    Embedder.from_pretrained(path, "cpu", sizes=small_model.sizes).save_pretrained(sizes)  # which describes them
    source = read_weights(path)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        out = tmp_path / precision
        monkeypatch.setattr(sys, "argv", ["convert weights", str(sizes), str(out), "--precision", precision])
        assert command.main() == 0
        written = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
        assert written.keys() == source.keys()
        assert all(torch.equal(tensor, source[name].to(dtype)) for name, tensor in written.items())
    assert ("rounded by" in capsys.readouterr().out) and sum(f.stat().st_size for f in out.rglob("*")) < 3_000_000 * 4
    some = convert_weights(sizes, tmp_path / "some", "bf16", ["text"])
    assert [tower.file for tower in some] == ["text.safetensors"] and some[0].largest_error > 0
    found = load_pretrained(tmp_path / "some")
    # Converted in two goes, towers go on comparing; with others they do not.
    one, two, other = (load_pretrained(tmp_path / name) for name in ("some", "bf16", "fp32"))
    fingerprints = [Embedder(f.model, f.sizes, "cpu", weights=f.path).fingerprint for f in (one, two, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2] and list(found.model.towers) == ["text"]


# ---------- the hub ----------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as creating a model, committing small files to it and downloading them takes."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]] = {}  # by revision and name
    requests: list[str] = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if not (asked := re.fullmatch(r"/me/model/resolve/([^/]+)/(.+)", self.path.split("?")[0])):
            return self.reply(404, {"error": "not here"})
        revision, name = asked.groups()
        there = self.files.get(revision) or next((f for r, f in self.files.items() if commit(r) == revision), None)
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self.reply(401, {"error": "who are you?"})
        Hub.requests.append(f"{self.command} {name}")
        if there is None or name not in there:
            return self.reply(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
        key = revision if revision in self.files else next(r for r in self.files if commit(r) == revision)
        etag = '"' + f"{abs(hash(there[name])):x}" + '"'
        self.reply(200, there[name], {"ETag": etag, "X-Repo-Commit": commit(key)})

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        Hub.requests.append(f"POST {self.path}")
        if self.path == "/api/repos/create":
            return self.reply(200, {"url": f"http://{self.headers['Host']}/me/model", "id": "me/model"})
        if "/branch/" in self.path or self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            named = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            return self.reply(200, {"files": [{**f, "shouldIgnore": False, "oid": None} for f in named]})
        import base64

        revision = self.path.rpartition("/")[2].split("?")[0]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files.setdefault(revision, {})[line["value"]["path"]] = content
        url = f"http://{self.headers['Host']}/me/model/commit/{commit(revision)}"
        self.reply(200, {"success": True, "commitOid": commit(revision), "commitUrl": url, "hookOutput": ""})

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, code: int, content, headers=()) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def commit(revision: str) -> str:
    return f"{revision.encode().hex():0<40}"[:40]


@pytest.mark.parametrize("weights", ["saas", "tiny", "folder"])
def test_what_is_not_on_the_hub_has_no_revisions(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UserError, match=f"{weights} has no revisions.*leave out revision='v1'"):
        Embedder.from_pretrained(weights, "cpu", revision="v1")


ON_THE_HUB = """
import sys
import numpy as np
from clamp3 import Embedder
from clamp3.errors import UserError

tiny = Embedder.from_pretrained("tiny", "cpu")
print(tiny.push_to_hub("me/model", token="hf_secret"))
print(tiny.push_to_hub("me/model", token="hf_secret", revision="half", precision="fp16"))
text = Embedder.from_pretrained("me/model", "cpu", towers=("text",), token="hf_secret")
same = np.array_equal(text.embed_text(["a slow air"]), tiny.embed_text(["a slow air"]))
print("text alone:", same, text.identity == tiny.identity)
whole = Embedder.from_pretrained("me/model", "cpu", token="hf_secret", revision="half")
tune, sound = "K:C\\n[V:1]CDEF GABc|\\n", np.sin(np.arange(48_000) / 20).astype(np.float32)
same = [
    np.array_equal(whole.embed_symbolic([tune]), tiny.embed_symbolic([tune])),
    np.array_equal(whole.embed_audio([sound]), tiny.embed_audio([sound])),
]
print("whole:", same, whole.weights.parent.name == "snapshots")
for name, options in (("me/model", {"revision": "none"}), ("me/nothing", {}), ("sander-wood/clamp3", {})):
    try:
        Embedder.from_pretrained(name, "cpu", token="hf_secret", **options)
    except UserError as error:
        print(str(error).splitlines()[0])
"""
AGAIN = """
from clamp3 import Embedder
print(Embedder.from_pretrained("me/model", "cpu", towers=("text",)).embed_text(["a slow air"]).shape)
"""


def test_a_model_goes_to_the_hub_and_is_downloaded_tower_by_tower(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**os.environ, "PYTHONPATH": str(CODE), "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def python(code: str) -> list[str]:
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        said = python(ON_THE_HUB)
        downloads = [request for request in Hub.requests if request.startswith("GET")]
        Hub.requests.clear()
        assert python(AGAIN) == ["(1, 128)"] and Hub.requests == []  # without a request
        server.shutdown()
    assert said[:2] == [f"{env['HF_ENDPOINT']}/me/model"] * 2
    assert said[2:4] == ["text alone: True True", "whole: [True, True] True"]
    assert "no model me/model@none: there is no such folder or file here" in said[4]
    assert "no model me/nothing" in said[5] and "sander-wood/clamp3 holds released files: give saas or c2" in said[6]
    first = downloads[: downloads.index("GET text.safetensors") + 1]
    assert not {"GET symbolic.safetensors", "GET audio.safetensors"} & set(first)
    assert "GET symbolic.safetensors" in downloads and "GET mert/model.safetensors" in downloads


# ---------- files that are not what their names say ----------


def packed(kind: str) -> bytes:
    """A file of text, packed."""
    content = b"some weights or other " * 100
    if kind in ("gz", "bz2", "xz"):
        return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](content)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", content)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO(b""))
    return file.getvalue()


OTHERS = {
    "a web page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "an XML text": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a Git LFS pointer, which only names the file of 1,234 bytes": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
    ),
    "empty": b"",
    "a text": b'{"error": "Repository not found"}',
    "gzip-compressed data": packed("gz"),
    "bzip2-compressed data": packed("bz2"),
    "xz-compressed data": packed("xz"),
    "a tar archive": packed("tar"),
    "a ZIP archive of other files (readme.txt)": packed("zip"),
    "cut short": None,
}


@pytest.fixture(scope="module")
def text_models(small_model, tmp_path_factory) -> dict[str, Path]:
    """A text model's folder in either format."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text_models")
    config = XLMRobertaConfig(**golden_json("model.json")["dims"]["text"])
    XLMRobertaModel(config).save_pretrained(folder / "model.safetensors")
    shutil.copytree(folder / "model.safetensors", folder / "pytorch_model.bin")
    weights = read_weights(folder / "model.safetensors" / "model.safetensors")
    (folder / "pytorch_model.bin" / "model.safetensors").unlink()
    torch.save({k: v.clone() for k, v in weights.items()}, folder / "pytorch_model.bin" / "pytorch_model.bin")
    return {path.name: path for path in folder.iterdir()}


def test_every_kind_of_wrong_file_is_told_wherever_it_is_met(saved, small_model, text_models, tmp_path):
    """By its first bytes and its size, with what to do; what PyTorch says of it is never passed on."""
    model = golden_model(CLaMP3Model, small_model.sizes)
    other_mert = Path(shutil.copytree(MERT_TINY, tmp_path / "mert"))
    tensors = load_file(other_mert / "model.safetensors")
    torch.save({k: v.clone() for k, v in tensors.items()}, other_mert / "pytorch_model.bin")
    (other_mert / "model.safetensors").unlink()
    release = RELEASES["c2"].file_name

    def embed(path: Path, *calls) -> None:
        Embedder.from_pretrained(path, "cpu").embed_text(["a slow air"])

    def start(folder: Path) -> None:
        start_from_text_model(model, str(folder))

    def build(folder: Path) -> None:
        CLaMP3Model(replace(small_model.sizes, text_model_name=str(folder)))

    ways = [  # a whole folder or file, the file in it that is replaced, and what reads it
        (small_model.clamp3, None, "mine.pth", embed),
        (small_model.clamp3, None, release, embed),
        (TINY / "clamp3.safetensors", None, "mine.safetensors", embed),
        (saved, "text.safetensors", None, embed),
        (saved, "config.json", None, embed),
        (text_models["model.safetensors"], "model.safetensors", None, start),
        (text_models["pytorch_model.bin"], "pytorch_model.bin", None, start),
        (text_models["model.safetensors"], "config.json", None, build),
        (MERT_TINY, "model.safetensors", None, lambda folder: Mert.from_pretrained(folder, "cpu")),
        (other_mert, "pytorch_model.bin", None, lambda folder: Mert.from_pretrained(folder, "cpu")),
        (MERT_TINY, "config.json", None, lambda folder: Mert.from_pretrained(folder, "cpu")),
    ]
    for number, (whole, name, file_name, read) in enumerate(ways):
        place = tmp_path / str(number)
        place.mkdir()
        if name:
            shutil.copytree(whole, place / "m")
        path = place / "m" / name if name else place / file_name
        content = (whole / name if name else whole).read_bytes()
        for kind, other in OTHERS.items():
            path.write_bytes(content[: len(content) // 2] if other is None else other)
            with pytest.raises(UserError) as raised:
                read(place / "m" if name else path)
            said = str(raised.value)
            if path.suffix == ".json" and kind in ("a text", "cut short"):
                kind = "it describes no|JSON|no configuration"
            assert re.search(kind if "|" in kind else re.escape(kind), said), (path, kind, said)
            assert path.name in said and "weights_only" not in said and "Weights only" not in said
            assert "download it again" in said or "|" in kind, (path, said)
            assert (f"get:  https://huggingface.co/sander-wood/clamp3/resolve/main/{release}" in said) == (
                file_name == release
            )


def test_a_wrong_tokenizer_is_told(tmp_path):
    for kind, other in OTHERS.items():
        folder = tmp_path / kind.replace("/", "_")
        shutil.copytree(TINY / "text", folder)
        path = folder / "tokenizer.json"
        path.write_bytes(path.read_bytes()[:5000] if other is None else other)
        embedder = Embedder.from_pretrained(TINY / "clamp3.safetensors", "cpu", sizes=replace_text(folder))
        with pytest.raises(UserError, match=r"no tokenizer for") as raised:
            embedder.embed_text(["a slow air"])
        if kind not in ("a text", "cut short"):  # which JSON's reader tells, or the library
            assert kind in str(raised.value) and "download it again" in str(raised.value), str(raised.value)


def replace_text(folder: Path):
    return replace(tiny_sizes(), text_model_name=str(folder))


def test_of_a_file_in_the_hubs_cache_it_is_said_where_it_came_from(tmp_path):
    snapshot = tmp_path / "models--m-a-p--MERT-v1-95M" / "snapshots" / ("0" * 40)
    blob = tmp_path / "models--m-a-p--MERT-v1-95M" / "blobs" / "abc"
    shutil.copytree(MERT_TINY, snapshot)
    blob.parent.mkdir()
    blob.write_bytes(OTHERS["a web page"])
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    with pytest.raises(UserError, match="it is a web page; delete it and download it again") as raised:
        Mert.from_pretrained(snapshot, "cpu")
    url = f"https://huggingface.co/m-a-p/MERT-v1-95M/resolve/{'0' * 40}/model.safetensors"
    assert str(blob) in str(raised.value) and str(raised.value).endswith(f"get:  {url}")


def test_the_documentation_runs_as_it_stands(small_model, training_data, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    make_trainer("symbolic", small_model.folder, training_data.folder, tmp_path, epochs=1).fit()
    (tmp_path / "weights_clamp3.pth").rename(tmp_path / "weights_mine.pth")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert_same_features(names["again"], names["embedder"])
    [commands] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        words = line.replace(" saas ", " tiny ").split()  # in place of 2.6 GB
        assert words[:3] == ["clamp3", "convert", "weights"]
        monkeypatch.setattr(sys, "argv", words[2:])
        assert command.main() == 0
    assert sorted(path.name for path in Path("text_tower").iterdir()) == [
        *("README.md", "config.json", "text", "text.safetensors")
    ]
