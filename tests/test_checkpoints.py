"""Weights: strict loading, memory mapping, and downloads from a server on this machine that speaks the hub's HTTP."""

import fcntl
import hashlib
import http.server
import os
import pickle
import pty
import re
import struct
import subprocess
import termios
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.clamp3 import CLaMP3Model
from clamp3.models.m3 import M3Model
from clamp3.models.releases import M3_CONFIGURED_NAME, RELEASES
from clamp3.models.weights import build_model, check_weights, read_checkpoint, start_from_m3
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
    """As much of the hub as a download needs: HEAD and ranged GET of one file; an answer may break off."""

    content = b""
    break_after: int | None = None
    requests: list[tuple[str, str, str | None]] = []

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        asked = self.headers.get("Range")
        if "/resolve/" not in self.path:
            return self.send_error(404)  # the hub's client has questions of its own
        Hub.requests.append((self.command, self.path, asked))
        start = int(re.match(r"bytes=(\d+)-", asked).group(1)) if asked and send_body else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(Hub.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(Hub.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(Hub.content) - 1}/{len(Hub.content)}")
        self.end_headers()
        if send_body:
            stop = len(Hub.content) if Hub.break_after is None else start + Hub.break_after
            self.wfile.write(Hub.content[start:stop])
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(small_model):
    """The small model served as if it were the released SAAS file; yields the server's address."""
    Hub.content, Hub.break_after, Hub.requests = small_model.clamp3.read_bytes(), None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def download(small_model, tmp_path, texts):
    """A function that runs an extraction whose weights are not there yet; returns the finished process."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tune.abc").write_text(texts["tune_0"])
    path = tmp_path / RELEASES["saas"].file_name
    command = [BIN / "python", "extract_clamp3.py", tmp_path / "in", tmp_path / "out", "--get_global"]

    def start(endpoint: str, offline: str = "0", launcher=(), check=0, **options):
        env = small_model.environment(CLAMP3_WEIGHTS_PATH=str(path))
        env.update(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path / "hf"))
        return run(*launcher, *command[bool(launcher) :], env=env, check=check, **options)

    start.path = path
    return start


def test_missing_weights_are_downloaded_with_a_progress_bar(hub, download, small_model):
    screen, terminal = pty.openpty()  # the hub's client shows its bar on a terminal alone
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = download(hub, stderr=terminal)
    shown = os.read(screen, 100_000).decode()
    os.close(screen)
    os.close(terminal)
    assert download.path.read_bytes() == small_model.clamp3.read_bytes()
    assert "downloading weights_clamp3_saas" in done.stdout and "100%" in shown
    paths = {path for _, path, _ in Hub.requests}
    assert paths == {f"/sander-wood/clamp3/resolve/main/{RELEASES['saas'].file_name}"}
    assert not list(download.path.parent.glob("*.incomplete"))


@pytest.mark.golden
def test_a_download_goes_on_where_it_was_killed(hub, download, small_model):
    half = len(Hub.content) // 2
    digest = hashlib.sha256(Hub.content).hexdigest()
    partial = download.path.with_name(f"{download.path.name}.{digest[:16]}.incomplete")
    partial.write_bytes(Hub.content[:half])
    download(hub)
    assert [asked for command, _, asked in Hub.requests if command == "GET"] == [f"bytes={half}-"]
    assert download.path.read_bytes() == small_model.clamp3.read_bytes()


def test_a_broken_connection_is_taken_up_again(hub, download, tmp_path):
    large = tmp_path / "large.pth"  # the hub's client keeps what has come in steps of 10 MB
    save_checkpoint(large, SHAPES, optimizer={"state": {0: {"exp_avg": torch.ones(8_000_000)}}, "param_groups": []})
    Hub.content = large.read_bytes()
    Hub.break_after = 25_000_000
    download(hub)
    asked = [asked for command, _, asked in Hub.requests if command == "GET"]
    assert asked[0] is None and len(asked) == 2 and int(asked[1].removeprefix("bytes=").rstrip("-")) >= 20_000_000
    assert download.path.read_bytes() == Hub.content


def test_a_damaged_download_is_not_used(hub, download):
    digest = hashlib.sha256(Hub.content).hexdigest()
    partial = download.path.with_name(f"{download.path.name}.{digest[:16]}.incomplete")
    partial.write_bytes(b"x" * 1000)
    done = download(hub, check=2)
    assert "SHA-256 differs" in done.stderr and not download.path.exists() and not partial.exists()


def test_two_processes_download_once(hub, download):
    download(hub, launcher=(BIN / "torchrun", "--nproc_per_node", "2"))
    assert len([command for command, _, _ in Hub.requests if command == "GET"]) == 1


def test_offline_the_error_says_what_to_put_where(download):
    endpoint = "http://127.0.0.1:9"
    for offline in ("0", "1"):
        done = download(endpoint, offline, check=2)
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
    assert np.load(tmp_path / "out" / "a.npy").shape == (1, 4, 128)

    Hub.requests.clear()
    (tmp_path / M3_CONFIGURED_NAME).rename(tmp_path / RELEASES["m3"].file_name)
    run_forked("extract_m3.py", tmp_path / "in", tmp_path / "again", env=env)
    assert Hub.requests == [] and (tmp_path / "again" / "a.npy").exists()


def test_building_a_model_initialises_nothing(small_model, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were initialised in vain")

    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *a, **k: self if self.is_meta else refuse())
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **k: self if self.is_meta else refuse())
    build_model(CLaMP3Model, small_model.sizes, small_model.clamp3)


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
