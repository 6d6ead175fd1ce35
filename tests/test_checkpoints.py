"""Weights: strict loading, memory mapping, and downloads from a server on this machine that speaks the hub's HTTP."""

import contextlib
import fcntl
import hashlib
import http.server
import os
import pickle
import pty
import re
import shutil
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.hub import download_file
from clamp3.models.m3 import M3Model
from clamp3.models.releases import M3_CONFIGURED_NAME, RELEASES, ensure_weights, find_weights
from clamp3.models.weights import build_model, build_with_weights, check_weights, read_checkpoint, start_from_m3
from conftest import BIN, CODE, run, run_forked
from golden_model import formula_weights, golden_json, golden_model, save_checkpoint

SHAPES = golden_json("model.json")["state_dict_shapes"]


@pytest.fixture
def edited(tmp_path, small_model):
    """A function that saves the small model's weights after an edit."""

    def save(edit) -> Path:
        weights = formula_weights(SHAPES)
        edit(weights)
        torch.save({"model": weights}, tmp_path / "edited.pth")
        return tmp_path / "edited.pth"

    return save


def test_weights_arrive_unchanged_and_mapped(small_model):
    model = build_model(CLaMP3Model, small_model.sizes, small_model.clamp3)
    expected = golden_model(CLaMP3Model, small_model.sizes).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not any(buffer.is_meta for buffer in model.buffers()) and not model.training
    m3 = build_model(M3Model, small_model.sizes, small_model.m3).decoder.base
    assert m3.lm_head.weight is m3.transformer.wte.weight


@pytest.mark.golden
def test_buffers_that_old_versions_stored_are_ignored(small_model, edited):
    def add(weights):
        weights["text_model.embeddings.position_ids"] = torch.arange(64)[None]
        weights["audio_model.embeddings.token_type_ids"] = torch.zeros(1, 16, dtype=torch.long)

    build_model(CLaMP3Model, small_model.sizes, edited(add))


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda w: w.pop("text_proj.bias"), r"missing: text_proj\.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), r"unexpected: extra"),
        (
            lambda w: w.update({"audio_proj.bias": torch.zeros(3)}),
            r"other sizes(.|\n)*misshapen: audio_proj\.bias is \(3,\), expected \(96,\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_loading_is_strict_and_names_the_tensor(small_model, edited, edit, complaint):
    path = edited(edit)
    with pytest.raises(UserError, match=complaint) as raised:
        build_model(CLaMP3Model, small_model.sizes, path)
    assert str(path) in str(raised.value)


def test_a_checkpoint_of_another_model_is_named_as_such(small_model, edited):
    with pytest.raises(UserError, match="it is an M3 checkpoint, where CLaMP 3's"):
        build_model(CLaMP3Model, small_model.sizes, small_model.m3)
    with pytest.raises(UserError, match="it is a CLaMP checkpoint, where M3's"):
        build_model(M3Model, small_model.sizes, small_model.clamp3)
    without_audio = edited(lambda w: [w.pop(name) for name in list(w) if name.startswith("audio")])
    with pytest.raises(UserError, match="without audio"):
        build_model(CLaMP3Model, small_model.sizes, without_audio)
    deeper = {**formula_weights(SHAPES), "audio_model.encoder.layer.2.output.dense.bias": torch.zeros(128)}
    with pytest.raises(UserError, match="another number of layers"):
        check_weights(golden_model(CLaMP3Model, small_model.sizes), deeper, Path("deeper.pth"))


class Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


def test_files_that_are_no_whole_checkpoints_are_refused(small_model, tmp_path, capsys):
    whole = small_model.clamp3.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": {}, "code": Malicious()}, tmp_path / "code.pth")
    for name in ("cut", "empty", "page", "pickle", "code"):
        with pytest.raises(UserError, match=rf"{name}\.pth cannot be read as a PyTorch checkpoint"):
            read_checkpoint(tmp_path / f"{name}.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no model weights"):
        build_model(CLaMP3Model, small_model.sizes, tmp_path / "none.pth")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.golden
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty; delete it and download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:50\nsize 25\n", "it is a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html></html>", "it is a web page"),
        (b"\n <html>404</html>", "it is a web page"),
        (b'{"error":"Repository not found"}', "it is a text, such as a server's error message"),
        (b"Entry not found", "it is a text"),
        (b"PK\x03\x04" + bytes(1000), "it is cut short"),
        (bytes(range(256)) * 10, "it is cut short"),
    ],
)
@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors", RELEASES["saas"].file_name])
def test_files_that_are_no_weights_are_told_by_their_start_and_size(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    if name == "mine.safetensors" and content[:2] == bytes(range(2)):
        complaint = "it is damaged"
    with pytest.raises(UserError, match=complaint) as raised:
        read_checkpoint(path)
    assert "delete it and download it again" in str(raised.value) and "weights_only" not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.golden
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "old.pth", RELEASES["saas"].file_name])
def test_whole_files_cut_short_are_told_as_such(tmp_path, small_model, name, share):
    weights, whole = formula_weights(SHAPES), tmp_path / f"whole.{name.rpartition('.')[2]}"
    if name == "cut.safetensors":
        save_file(weights, whole)
    else:
        torch.save({"model": weights}, whole, _use_new_zipfile_serialization=name != "old.pth")
    content = whole.read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="it is (cut short|damaged).*delete it and download it again") as raised:
        read_checkpoint(path)
    assert "cut short" in str(raised.value)


@pytest.mark.golden
def test_code_in_a_file_is_named_and_torchs_advice_is_not_passed_on(tmp_path):
    torch.save({"model": {}, "code": Malicious()}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"objects other than tensors \(\S*print\), which are refused") as raised:
        read_checkpoint(tmp_path / "code.pth")
    assert "weights_only" not in str(raised.value) and "add_safe_globals" not in str(raised.value)


@pytest.mark.golden
def test_checkpoints_may_hold_optimizer_state_and_numpy_losses(tmp_path, small_model):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    path = tmp_path / "full.pth"
    save_checkpoint(path, SHAPES, optimizer=optimizer.state_dict(), lr_sched={"last_epoch": 3}, loss=np.float64(0.25))
    assert read_checkpoint(path)["loss"] == 0.25
    build_model(CLaMP3Model, small_model.sizes, path)
    torch.save({"model": formula_weights(SHAPES)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    build_model(CLaMP3Model, small_model.sizes, tmp_path / "old.pth")


def test_training_starts_the_symbolic_tower_from_m3(small_model):
    model = golden_model(CLaMP3Model, small_model.sizes)
    start_from_m3(model, small_model.m3)
    expected = formula_weights(golden_json("model.json")["m3_state_dict_shapes"])
    for name, tensor in model.symbolic_model.state_dict().items():
        assert torch.equal(tensor, expected[f"encoder.{name}"])


def test_from_pretrained_takes_a_file_or_names_what_there_is(small_model):
    embedder = Embedder.from_pretrained(small_model.clamp3, sizes=small_model.sizes)
    assert embedder.embed_text(["a reel"]).shape == (1, 96)
    with pytest.raises(UserError, match="give saas, c2, m3, tiny, or the path"):
        Embedder.from_pretrained("sass")


# ---------- downloads ----------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: HEAD and ranged GET of one file; an answer may break off or hang."""

    content = b""
    announced: str | None = None  # the SHA-256 that the hub says the file has, where that is another
    break_after: int | None = None
    hang_after: int | None = None
    requests: list[tuple[str, str, str | None]] = []
    tokens: set[str | None] = set()
    stuck = threading.Event()

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        asked = self.headers.get("Range")
        if "/resolve/" not in self.path:
            return self.send_error(404)  # the hub's client has questions of its own
        Hub.requests.append((self.command, self.path, asked))
        Hub.tokens.add(self.headers.get("Authorization"))
        start = int(re.match(r"bytes=(\d+)-", asked).group(1)) if asked and send_body else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{Hub.announced or hashlib.sha256(Hub.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(Hub.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(Hub.content) - 1}/{len(Hub.content)}")
        self.end_headers()
        if send_body:
            limit = Hub.hang_after if Hub.break_after is None else Hub.break_after
            stop = len(Hub.content) if limit is None else start + limit
            with contextlib.suppress(ConnectionError):
                self.wfile.write(Hub.content[start:stop])
                self.wfile.flush()
            if Hub.hang_after is not None:
                Hub.stuck.set()
                time.sleep(3)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(small_model):
    """The small model served as if it were a released file; yields the server's address."""
    Hub.content, Hub.announced = small_model.clamp3.read_bytes(), None
    Hub.break_after, Hub.hang_after, Hub.requests, Hub.tokens = None, None, [], set()
    Hub.stuck.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def download(small_model, tmp_path, texts):
    """A function that runs an extraction whose weights are not there yet; returns the finished process."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tune.abc").write_text(texts["tune_0"])
    command = [BIN / "python", "extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--get_global"]

    def environment(endpoint: str, offline: str = "0", variant: str = "c2") -> dict[str, str]:
        start.path = tmp_path / RELEASES[variant].file_name
        env = small_model.environment(CLAMP3_WEIGHTS_PATH=str(start.path))
        return env | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "hf")}

    def start(endpoint, offline="0", launcher=(), check=0, variant="c2", extra=None, **options):
        env = environment(endpoint, offline, variant) | (extra or {})
        return run(*launcher, *command[bool(launcher) :], env=env, check=check, **options)

    start.environment, start.command = environment, command
    start.cache = tmp_path / "hf" / "hub" / "models--sander-wood--clamp3"
    return start


def downloaded(cache: Path) -> Path:
    [path] = cache.glob("snapshots/*/*")
    return path


@pytest.mark.golden
def test_missing_weights_are_downloaded_into_the_hubs_cache_with_a_progress_bar(hub, download, small_model):
    screen, terminal = pty.openpty()  # the hub's client shows its bar on a terminal alone
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = download(hub, stderr=terminal)
    shown = os.read(screen, 100_000).decode()
    os.close(screen)
    os.close(terminal)
    assert downloaded(download.cache).read_bytes() == small_model.clamp3.read_bytes()
    assert "downloading weights_clamp3_c2" in done.stdout and "100%" in shown
    paths = {path for _, path, _ in Hub.requests}
    assert paths == {f"/sander-wood/clamp3/resolve/main/{RELEASES['c2'].file_name}"}
    assert not download.path.exists() and not list(download.cache.rglob("*.incomplete"))


@pytest.mark.golden
def test_what_is_there_is_used_without_a_request(hub, download, tmp_path):
    download(hub)
    for offline in ("0", "1"):
        Hub.requests.clear()
        shutil.rmtree(tmp_path / "out")
        download(hub, offline)
        assert Hub.requests == [] and (tmp_path / "out" / "tune.npy").exists()


def test_the_order_in_which_weights_are_looked_for(tmp_path, monkeypatch):
    """The configured path, beside it the released name, the hub's cache, and what earlier versions downloaded."""
    from huggingface_hub import constants

    release = RELEASES["m3"]
    configured = tmp_path / "code" / M3_CONFIGURED_NAME
    cached = tmp_path / "hub" / "models--sander-wood--clamp2" / "snapshots" / ("0" * 40) / release.file_name
    places = [configured, configured.with_name(release.file_name), cached, tmp_path / "own" / release.file_name]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"weights")
    (cached.parents[2] / "refs").mkdir()
    (cached.parents[2] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CLAMP3_CACHE", str(tmp_path / "own"))
    for place in places:
        assert ensure_weights(configured) == place
        place.unlink()
    assert find_weights(configured) is None


@pytest.mark.golden
def test_tokens_and_proxies_are_the_clients(hub, download):
    """By a proxy that answers in place of a server whose name nobody knows."""
    extra = {"HF_TOKEN": "hf_secret", "HTTP_PROXY": hub, "http_proxy": hub, "NO_PROXY": "", "no_proxy": ""}
    download("http://hub.invalid", extra=extra)
    assert {path.partition("/sander-wood")[0] for _, path, _ in Hub.requests} == {"http://hub.invalid"}
    assert Hub.tokens == {"Bearer hf_secret"}


def resumes_after_a_kill() -> bool:
    import inspect

    from huggingface_hub import file_download

    return "uuid" not in inspect.getsource(file_download._download_to_tmp_and_move)


@pytest.mark.golden
@pytest.mark.skipif(not resumes_after_a_kill(), reason="this version of the hub's client starts anew after a kill")
def test_a_download_goes_on_where_it_was_killed(hub, download, tmp_path):
    large = large_checkpoint(tmp_path)
    Hub.content, Hub.hang_after = large.read_bytes(), 25_000_000
    with subprocess.Popen(
        [str(word) for word in download.command], env=download.environment(hub), cwd=CODE, stdout=subprocess.DEVNULL
    ) as process:
        assert Hub.stuck.wait(60)
        deadline = time.time() + 10
        while not any(p.stat().st_size >= 20_000_000 for p in download.cache.rglob("*.incomplete")):
            assert time.time() < deadline
            time.sleep(0.05)
        process.kill()
    Hub.hang_after = None
    Hub.requests.clear()
    download(hub)
    [asked] = [asked for command, _, asked in Hub.requests if command == "GET"]
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 20_000_000
    assert downloaded(download.cache).read_bytes() == Hub.content


def large_checkpoint(folder: Path) -> Path:
    """32 MB and more: the hub's client keeps what has come in steps of 10 MB."""
    path = folder / "large.pth"
    save_checkpoint(path, SHAPES, optimizer={"state": {0: {"exp_avg": torch.ones(8_000_000)}}, "param_groups": []})
    return path


@pytest.mark.golden
def test_a_broken_connection_is_taken_up_again(hub, download, tmp_path):
    Hub.content = large_checkpoint(tmp_path).read_bytes()
    Hub.break_after = 25_000_000
    download(hub)
    asked = [asked for command, _, asked in Hub.requests if command == "GET"]
    assert asked[0] is None and len(asked) == 2 and int(asked[1].removeprefix("bytes=").rstrip("-")) >= 20_000_000
    assert downloaded(download.cache).read_bytes() == Hub.content


@pytest.mark.golden
def test_a_damaged_download_is_not_used(hub, download):
    Hub.announced = hashlib.sha256(b"the released file").hexdigest()
    done = download(hub, check=2)
    assert "SHA-256 differs" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in download.cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    Hub.announced = None
    download(hub)  # the next try does it


@pytest.mark.golden
def test_another_file_than_the_known_release_is_not_used(hub, download):
    done = download(hub, check=2, variant="saas")
    assert f"it has {len(Hub.content):,} bytes, and the released file has 2,571,027,658" in done.stderr
    assert not list(download.cache.glob("snapshots/*/*"))


@pytest.mark.golden
def test_the_known_sha256_is_checked(hub, download, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(path))
    for known, is_right in ((hashlib.sha256(Hub.content).hexdigest(), True), ("0" * 64, False)):
        path = tmp_path / "file.pth"
        path.write_bytes(Hub.content)
        if is_right:
            assert download_file("a/b", path.name, len(Hub.content), known) == path
        else:
            with pytest.raises(OSError, match="SHA-256 differs.*was removed"):
                download_file("a/b", path.name, len(Hub.content), known)
    assert not path.exists()


@pytest.mark.golden
def test_two_processes_download_once(hub, download):
    download(hub, launcher=(BIN / "torchrun", "--nproc_per_node", "2"))
    assert len([command for command, _, _ in Hub.requests if command == "GET"]) == 1


@pytest.mark.golden
def test_offline_the_error_says_what_to_put_where(download):
    endpoint = "http://127.0.0.1:9"
    for offline in ("0", "1"):
        done = download(endpoint, offline, check=2, variant="saas")
        assert f"no weights at {download.path}" in done.stderr and f"put:  {download.path}" in done.stderr
        assert f"get:  {endpoint}/sander-wood/clamp3/resolve/main/weights_clamp3_saas" in done.stderr
        assert "Traceback" not in done.stderr
        assert ("the file of the variant c2 is there" in done.stderr) == (offline == "1")
        download.path.with_name(RELEASES["c2"].file_name).write_bytes(b"")


def test_weights_of_other_sizes_are_not_looked_for_on_the_hub(small_model, tmp_path):
    (tmp_path / "a.abc").write_text("K:C\nC4|\n")
    env = small_model.environment(CLAMP3_WEIGHTS_PATH="mine.pth")
    done = run_forked("extract_clamp3.py", tmp_path, tmp_path / "out", env=env, check=2)
    assert "no weights at" in done.stderr and "no released file has that name" in done.stderr


def test_m3_is_downloaded_for_its_configured_name_or_found_under_its_own(hub, small_model, tmp_path):
    Hub.content = small_model.m3.read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.abc").write_text("K:C\nC4|\n")
    env = small_model.environment(M3_WEIGHTS_PATH=str(tmp_path / M3_CONFIGURED_NAME))
    env.update(HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"))
    run(BIN / "python", "extract_m3.py", tmp_path / "in", tmp_path / "out", env=env)
    assert {path for _, path, _ in Hub.requests} == {f"/sander-wood/clamp2/resolve/main/{RELEASES['m3'].file_name}"}
    assert np.load(tmp_path / "out" / "a.npy").shape == (1, 5, 128)  # K: and V: lines, a bar, and both ends

    Hub.requests.clear()
    shutil.rmtree(tmp_path / "hf")
    (tmp_path / RELEASES["m3"].file_name).write_bytes(Hub.content)
    run_forked("extract_m3.py", tmp_path / "in", tmp_path / "again", env=env)
    assert Hub.requests == [] and (tmp_path / "again" / "a.npy").exists()


# ---------- building ----------


def test_building_a_model_initialises_nothing(small_model, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were initialised in vain")

    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *a, **k: self if self.is_meta else refuse())
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **k: self if self.is_meta else refuse())
    build_model(CLaMP3Model, small_model.sizes, small_model.clamp3)


def in_threads(call: Callable[[int], object], count: int = 4) -> list:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@pytest.mark.golden
def test_models_are_built_in_threads_and_leave_the_process_as_it_was(tmp_path):
    """On the meta device, of which each thread has its own; numpy scalars have a list of what is safe changed."""
    before = (torch.nn.Module.register_parameter, torch.nn.Module.register_buffer, torch.empty)
    safe = torch.serialization.get_safe_globals()
    save_checkpoint(tmp_path / "m.pth", SHAPES, loss=np.float64(0.25))
    for _ in range(4):
        embedders = in_threads(lambda _: Embedder.from_pretrained("tiny", device="cpu"))
        losses = in_threads(lambda _: read_checkpoint(tmp_path / "m.pth")["loss"])
        features = [embedder.embed_symbolic(["K:C\nCDEF GABc|\n"]) for embedder in embedders]
        features_of_text = in_threads(lambda index, made=embedders: made[index].embed_text(["a slow air"]))
        for feature in features[1:]:
            assert np.array_equal(feature, features[0])
        for feature in features_of_text[1:]:
            assert np.array_equal(feature, features_of_text[0])
        assert losses == [0.25] * 4
        parts = [part for one in embedders for part in (*one._model.parameters(), *one._model.buffers())]
        assert not any(part.is_meta for part in parts)
    assert before == (torch.nn.Module.register_parameter, torch.nn.Module.register_buffer, torch.empty)
    assert set(safe) == set(torch.serialization.get_safe_globals())
    assert not torch.nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_share_an_embedder_from_its_first_use_on(precision):
    tune, sound = "K:C\nCDEF GABc|\n", np.sin(np.arange(48_000) / 20).astype(np.float32)
    texts = [f"a {word} air in {key}" for word in ("slow", "lively") for key in "ABCDEFG"]

    def use(embedder: Embedder) -> list[np.ndarray]:
        return [embedder.embed_text(texts), embedder.embed_symbolic([tune]), embedder.embed_audio([sound])]

    expected = use(Embedder.from_pretrained("tiny", device="cpu", precision=precision))
    shared = Embedder.from_pretrained("tiny", device="cpu", precision=precision)
    for found in in_threads(lambda _: use(shared)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_values_that_no_checkpoint_holds_are_made_all_the_same(tmp_path):
    """A buffer that is made empty and filled, and is not saved."""

    class Rotary(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("frequencies", torch.empty(3).fill_(5.0), persistent=False)

    weights = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    built = build_with_weights(Rotary, weights, tmp_path / "x.pth")
    assert built.frequencies.tolist() == [5.0] * 3 and torch.equal(built.weight, weights["weight"])


def test_weights_in_half_precision_are_taken(small_model, tmp_path):
    torch.save({"model": {k: v.half() for k, v in formula_weights(SHAPES).items()}}, tmp_path / "half.pth")
    model = build_model(CLaMP3Model, small_model.sizes, tmp_path / "half.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_memory_mapping_reads_only_what_is_used(small_model, tmp_path):
    """A checkpoint with 200 MB of optimizer state must not need the memory for it.

    By the process's own peak: what getrusage tells starts from that of the process that started it.
    """
    path = tmp_path / "big.pth"
    save_checkpoint(path, SHAPES, optimizer={"state": {0: {"exp_avg": torch.ones(50_000_000)}}, "param_groups": []})
    script = (
        "import re, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom clamp3 import Embedder\nfrom clamp3.sizes import ModelSizes\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "sizes = ModelSizes(**eval(sys.argv[3]))\n"
        "Embedder.from_pretrained(Path(sys.argv[4]), sizes=sizes).embed_symbolic(['K:C\\nC4|\\n'])\n"
        "before = peak()\n"
        "Embedder.from_pretrained(Path(sys.argv[2]), sizes=sizes).embed_symbolic(['K:C\\nC4|\\n'])\n"
        "print(peak() - before)"
    )
    grown = subprocess.run(
        [BIN / "python", "-c", script, CODE, path, repr(asdict(small_model.sizes)), small_model.clamp3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(grown) < 50_000  # KiB
