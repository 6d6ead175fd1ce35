"""clamp3 export: ONNX files give the model's features, are its likes to nobody, and are refused below the bounds."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from unidecode import unidecode

pytest.importorskip("onnx")  # which the oldest set of libraries lacks
pytest.importorskip("onnxruntime")

from clamp3.cli.embedders import embedder_loader  # noqa: E402
from clamp3.cli.options import answers_parser  # noqa: E402
from clamp3.errors import UserError  # noqa: E402
from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.formats.abc import interleave, is_interleaved  # noqa: E402
from clamp3.models.onnx_files import FP32, INT8, ONNX_FILE  # noqa: E402
from clamp3.models.onnx_quantization import kinds_of, quantize  # noqa: E402
from clamp3.models.pretrained import load_pretrained  # noqa: E402
from clamp3.models.releases import TINY  # noqa: E402
from clamp3.tasks import exporting  # noqa: E402
from clamp3.tasks.diagnosis.samples import TEXTS, TUNES, frames, mtf, sound  # noqa: E402
from clamp3.tasks.exporting import export_model, neighbour_overlap, sequences  # noqa: E402
from conftest import CODE, ROOT, run, run_forked  # noqa: E402
from test_api import JIG, tone  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
RATE = 24_000


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> dict[str, Path]:
    """Folders of the small model, in fp32 and int8, by precision."""
    folders = {}
    for precision in (FP32, INT8):
        folders[precision] = tmp_path_factory.mktemp("onnx") / precision
        found = export_model("tiny", folders[precision], int8=precision == INT8)
        assert all(one.is_good for one in found), found
    return folders


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module", params=(FP32, INT8))
def onnx(request, exported) -> Embedder:
    return Embedder.from_pretrained(exported[request.param])


def near(found: np.ndarray, expected: np.ndarray, precision: str, least: float = 0.998) -> bool:
    """Whether features are the same in fp32, and near in int8, with `least` as cosine."""
    if precision == FP32:
        return np.allclose(found, expected, atol=1e-5)
    cosines = (found * expected).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    return bool((cosines > least).all())


def embedded(embedder: Embedder, folder: Path) -> dict[str, np.ndarray]:
    """Features of inputs of all kinds: short, empty but for one character, and of several segments."""
    long_text = " ".join([*TEXTS.values(), *(tune.description for tune in TUNES)])
    medley = exporting._medley(3)
    lengths = (1, 2, 40, 126, 300)
    (folder / "tune.abc").write_text(JIG)
    (folder / "notes.txt").write_text("An Irish tune\nin D major\nAn Irish tune")
    return {
        "text": embedder.embed_text(["x", "a reel", *TEXTS.values(), long_text]),
        "symbolic": embedder.embed_symbolic([JIG, mtf(3), medley, TUNES[0].abc]),
        "frames": embedder.embed_audio_features([frames(n, embedder.sizes.audio_hidden_size, n) for n in lengths]),
        "sound": embedder.embed_audio([sound(1, RATE, 0.4), tone(), sound(2, RATE, 11.0)], RATE),
        "files": embedder.embed_files([folder / "tune.abc", folder / "notes.txt"], normalize=True),
        **{f"state {n}": one for n, one in enumerate(embedder.embed_symbolic([JIG, medley], pooled=False))},
    }


@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_features_are_those_of_the_model(onnx, tiny, tmp_path):
    expected = embedded(tiny, tmp_path)
    for name, found in embedded(onnx, tmp_path).items():
        assert found.shape == expected[name].shape and found.dtype == np.float32, name
        if onnx.precision == FP32 or not name.startswith("state"):
            assert near(found, expected[name], onnx.precision), name


def test_features_do_not_depend_on_company(onnx):
    """But for last bits, in int8 too: each position is quantized by its own range."""
    texts = ["x", "a slow air", *TEXTS.values()]
    sounds = [sound(piece, RATE) for piece in range(3)]
    together = onnx.embed_text(texts), onnx.embed_audio(sounds, RATE)
    alone = [onnx.embed_text([text]) for text in texts], [onnx.embed_audio([one], RATE) for one in sounds]
    for found, expected in zip(together, map(np.concatenate, alone), strict=True):
        assert near(found, expected, FP32) if onnx.precision == FP32 else near(found, expected, INT8, 0.99999)


def test_products_of_bytes_are_those_of_whole_numbers(tmp_path):
    """Each position by its own largest value, each output by that of its weights: NumPy, by the documented rule."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 32)).astype(np.float32) * np.logspace(-3, 3, 5, dtype=np.float32)[:, None]
    x[1, 4] = 0
    w = rng.standard_normal((32, 16)).astype(np.float32)
    shared = (
        helper.make_node("MatMul", ["x", "w"], ["y"], "a/MatMul"),
        helper.make_node("MatMul", ["x", "w"], ["z"], "b"),
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xyz"]
    graph = helper.make_graph(shared, "two", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
    opset = helper.make_opsetid("", 20)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "whole.onnx")
    quantize(tmp_path / "whole.onnx", tmp_path / "bytes.onnx", kinds_of(tmp_path / "whole.onnx"), [])
    session = onnxruntime.InferenceSession(tmp_path / "bytes.onnx", providers=["CPUExecutionProvider"])
    largest, heaviest = np.abs(x).max(-1, keepdims=True) + 1e-30, np.abs(w).max(0)
    rounded = np.rint(127 * x / largest), np.rint(63 * w / heaviest)
    expected = (rounded[0] @ rounded[1]) * largest * heaviest / (127 * 63)
    for found in session.run(["y", "z"], {"x": x}):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)
        assert np.abs(found - x @ w).max() > 0


def test_the_report_says_what_is_in_the_folder(exported):
    for precision, folder in exported.items():
        report = json.loads((folder / "parity.json").read_text())
        assert [one["tower"] for one in report["towers"]] == ["text", "symbolic", "audio", "sound"]
        assert report["processor"] in (folder / "parity.md").read_text()
        for one in report["towers"]:
            file = folder / ("mert.onnx" if one["tower"] == "sound" else f"{one['tower']}.onnx")
            assert one["bytes_after"] == file.stat().st_size and one["items"] >= 12 and one["speed"] > 0
            assert one["cosine_min"] >= report["bounds"]["cosine"] and one["overlap"] >= report["bounds"]["overlap"]
            share = one["bytes_after"] / one["bytes_before"]
            assert 0.9 < share < 1.1 if precision == FP32 else share < 0.52, (one, share)  # MERT's convolutions stay


def test_the_overlap_of_neighbours_is_that_of_sets():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((30, 16))
    assert neighbour_overlap(first, 3 * first) == 1
    unrelated = [neighbour_overlap(first, rng.standard_normal((30, 16))) for _ in range(20)]
    assert abs(np.mean(unrelated) - 10 / 29) < 0.05


def test_inputs_that_are_compared_are_of_many_lengths(tiny):
    for modality, longest in tiny.max_lengths.items():
        lengths = [len(one) for one in sequences(tiny, modality)]
        assert len(lengths) > 20 and len(set(lengths)) > 4 and max(lengths) == lengths[-1] > longest


def test_below_the_bounds_nothing_is_put_in_place(tmp_path, monkeypatch, capsys):
    from clamp3.cli.commands import export

    monkeypatch.setitem(exporting.LEAST_COSINE, FP32, 1.1)
    monkeypatch.setattr(sys, "argv", ["clamp3 export", "tiny", str(tmp_path / "out"), "--towers", "audio"])
    assert export.main() == 1
    assert "not near enough to the weights: audio, sound" in capsys.readouterr().out and not any(tmp_path.iterdir())


def test_what_loses_most_stays_wide_until_the_bound_is_met(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.LEAST_COSINE, INT8, 0.99999)
    [found] = export_model("tiny", tmp_path / "out", int8=True, towers=["text"])
    assert found.is_good and 0 < len(found.wide) < 6 and found.bytes_after < 0.9 * found.bytes_before
    assert found.wide == json.loads((tmp_path / "out" / "parity.json").read_text())["towers"][0]["wide"]


def test_torch_is_not_imported_and_forks_say_that_they_cannot_compute(exported):
    script = f"""
import os, sys
import numpy as np
from clamp3 import Embedder
for folder in {[str(folder) for folder in exported.values()]}:
    embedder = Embedder.from_pretrained(folder)
    embedder.embed_text(["a reel"])
    embedder.embed_symbolic([{JIG!r}])
    embedder.embed_audio([np.sin(np.arange(48_000) / 20).astype(np.float32)], {RATE})
    assert not {{"torch", "transformers"}} & set(sys.modules)
    if not (child := os.fork()):
        try:
            embedder.embed_text(["a reel"])
        except ValueError as error:
            os._exit(0 if "start processes by spawn" in str(error) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=CODE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_commands_that_one_process_answers_import_no_torch(exported, tmp_path):
    """Scores, sound and texts, as queries and as collections; what is asked by weights in ONNX, or made by them."""
    folder, index, weights = tmp_path / "folder", tmp_path / "index", ["--weights", str(exported[INT8])]
    folder.mkdir()
    (folder / "jig.abc").write_text(JIG)
    (folder / "air.txt").write_text("a slow air")
    soundfile.write(folder / "tone.wav", tone(2), RATE)
    labels = tmp_path / "labels.txt"
    labels.write_text("jig\nreel\n")
    commands = [
        ["index", "build", index, folder, *weights, "--passages"],
        ["index", "search", index, "a lively jig", "--passages"],
        ["search", folder / "tone.wav", index],
        ["search", folder / "jig.abc", folder, *weights, "--threads", "1"],
        ["score", "a jig", folder, *weights],
        ["eval", folder, folder, *weights],
        ["zero-shot", folder, labels, *weights],
        ["map", folder, "--output", tmp_path / "map", *weights],
    ]
    without = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'accelerate'))); "
    without += "from clamp3.cli.console import main; main()"
    for words in commands:
        run(sys.executable, "-W", "ignore", "-c", without, *words)


def test_threads_are_as_many_as_the_command_is_told(exported):
    parser = answers_parser("Test.", "query", "a text")
    for given, expected in (("1", 1), ("3", 3)):
        args = parser.parse_args(["a jig", "folder", "--weights", str(exported[FP32]), "--threads", given])
        towers = embedder_loader(args, tell=False)()._towers
        for session in towers._sessions.values():
            assert session.open().get_session_options().intra_op_num_threads == expected


def test_a_mert_in_pytorch_has_the_threads_too(exported):
    parser, before = answers_parser("Test.", "query", "a text"), torch.get_num_threads()
    words = ["a jig", "folder", "--weights", str(exported[FP32]), "--threads", str(before + 1)]
    try:
        embedder_loader(parser.parse_args(words), tell=False)()
        assert torch.get_num_threads() == before
        embedder_loader(parser.parse_args([*words, "--mert", str(TINY / "mert")]), tell=False)()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_embedder_of_onnx_files_can_be_pickled(onnx):
    again = pickle.loads(pickle.dumps(onnx))
    assert np.array_equal(again.embed_text(["a reel"]), onnx.embed_text(["a reel"]))
    assert again.identity == onnx.identity and repr(again) == repr(onnx)


def test_they_have_an_identity_of_their_own(exported, tiny, tmp_path):
    embedders = [tiny, *map(Embedder.from_pretrained, exported.values())]
    assert len({one.identity for one in embedders}) == len({one.audio_encoder_identity for one in embedders}) == 3
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("a reel")
    words = "clamp3_embd.py", tmp_path / "in", tmp_path / "out", "--get_global"
    run_forked(*words, "--weights", exported[FP32])
    [expected] = embedders[1].embed_text(["a reel"])
    assert np.allclose(np.load(tmp_path / "out" / "notes.npy")[0], expected, atol=1e-6)
    (tmp_path / "in" / "more.txt").write_text("a jig")
    assert "do not compare" in run_forked(*words, "--variant", "tiny", check=2).stderr
    index = "clamp3_index.py", "build", tmp_path / "index", tmp_path / "in"
    run_forked(*index, "--weights", exported[INT8])
    (tmp_path / "in" / "third.txt").write_text("a march")
    assert "not compare" in run_forked(*index, "--weights", exported[FP32], check=2).stderr
    found = run_forked("clamp3_search.py", "a jig", tmp_path / "index", "--weights", exported[INT8]).stdout
    assert found.index("more.txt") < found.index("notes.txt")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda one: one.embed_text(["x"], layers="all"), 'ONNX files embed, and no more: layers="all"'),
        (lambda one: one.embed_text(["x"], pooled=False, projected=True), "projected=True"),
        (lambda one: one.explain("a reel", "a jig"), "projected=True, which explanations take"),
        (lambda one: one.save_pretrained("folder"), "copy the folder"),
        (lambda one: list(one.named_parameters()), "no names"),
        (lambda one: load_pretrained(one.weights), "which embed"),
        (lambda one: Embedder.from_pretrained(one.weights, "cuda"), "on the CPU here, not on cuda"),
        (lambda one: Embedder.from_pretrained(one.weights, precision="bf16"), "in that, not in bf16"),
        (lambda one: Embedder.from_pretrained(one.weights, revision="main"), "leave out revision='main'"),
        (lambda one: Embedder.from_pretrained(one.weights, towers=["dance"]), "no dance tower; it has: text"),
        (lambda one: Embedder.from_pretrained(one.weights, towers=["text"]).embed_symbolic([JIG]), "no symbolic"),
        (lambda one: export_model(one.weights, Path("new")), "holds ONNX files already"),
        (lambda one: export_model("tiny", one.weights), "is there already"),
        (lambda one: export_model("tiny", Path("new"), towers=["dance"]), "no dance tower"),
    ],
)
def test_what_cannot_be_done_is_said(onnx, call, reason):
    with pytest.raises(UserError, match=reason) as found:
        call(onnx)
    assert "\n" not in str(found.value) and not Path("new").exists()


def test_m3_is_not_exported(small_model, tmp_path):
    with pytest.raises(UserError, match="M3 has hidden states alone"):
        export_model(small_model.m3, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("text.onnx", lambda content: content[:-9] + b"123456789", "damaged or another file"),
        ("text.onnx", lambda content: content[:1000], "damaged or another file"),
        ("text.onnx", None, "No such file"),
        ("text/tokenizer.json", lambda content: content.replace(b"a", b"b", 1), "damaged or another file"),
        (ONNX_FILE, lambda content: content[:100], "cannot be used"),
        (ONNX_FILE, lambda content: content.replace(b'"int8"', b'"int4"'), "precision 'int4'"),
        (ONNX_FILE, lambda content: content.replace(b'"text.onnx"', b'"../text.onnx"'), "files"),
        (ONNX_FILE, lambda content: content.replace(b'"format": 2', b'"format": 3'), "a later version"),
        (ONNX_FILE, lambda content: content.replace(b'"format": 2', b'"format": 1'), "an earlier version"),
        (ONNX_FILE, lambda content: b"<html>", "a web page"),
    ],
)
def test_damaged_folders_are_refused(exported, tmp_path, file, damage, reason):
    folder = tmp_path / "copy"
    shutil.copytree(exported[INT8], folder)
    (folder / file).write_bytes(damage((folder / file).read_bytes())) if damage else (folder / file).unlink()
    with pytest.raises(UserError, match=reason) as found:
        Embedder.from_pretrained(folder).embed_text(["a reel"])
    assert str(folder) in str(found.value)


# ---------- the browser's example ----------

BROWSER = ROOT / "examples" / "browser"
REPEATS = "X:1\nM:6/8\nL:1/8\nK:D\n|:dAF DFA|ded cBA|fdf ecA:|\n|:dfa b2a|1 abc def:|2 d6|]\n"


PACKAGE = BROWSER / "node_modules" / "onnxruntime-web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_package = pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs `npm install` in examples/browser")


@needs_package
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_javascript_gives_the_features_of_python(exported, texts, tmp_path):
    tunes = [abc for abc in texts.values() if is_interleaved(abc) and unidecode(abc) == abc]
    assert len(tunes) > 3
    tunes += [TUNES[0].abc, exporting._medley(3), interleave(REPEATS)]
    refused = [JIG, mtf(1), TUNES[0].abc.replace("|", "|A|", 1), f"T:é\n{TUNES[0].abc}", "", "K:C\n"]
    paths = [tmp_path / f"{number}.abc" for number in range(len(tunes) + len(refused))]
    for path, text in zip(paths, [*tunes, *refused], strict=True):
        path.write_bytes(text.encode())
    for precision, folder in exported.items():
        command = ["node", str(BROWSER / "embed.mjs"), str(folder), *map(str, paths)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
        found = [json.loads(line) for line in lines]
        assert all("error" in one for one in found[len(tunes) :]), found[len(tunes) :]
        assert not [one for one in found[: len(tunes)] if "error" in one]
        expected = Embedder.from_pretrained(folder).embed_symbolic(tunes)
        np.testing.assert_allclose(found[: len(tunes)], expected, atol=1e-4 if precision == FP32 else 0.05)


@needs_package
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_compares_tunes_and_asks_no_server(exported):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    address = "http://page.invalid"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append((request.method, request.url)))
        page.route("**", lambda route: route.fulfill(path=BROWSER / route.request.url.removeprefix(f"{address}/")))
        page.goto(f"{address}/index.html")
        page.set_input_files("#files", [exported[INT8] / name for name in (ONNX_FILE, "symbolic.onnx")])
        sync_api.expect(page.locator("#found")).to_have_text("ready", timeout=60_000)
        page.click("#compare")
        sync_api.expect(page.locator("#found")).to_contain_text("cosine", timeout=60_000)
        shown = page.text_content("#found")
        tunes = [page.input_value(name) for name in ("#one", "#other")]
        page.fill("#one", JIG)
        page.click("#compare")
        sync_api.expect(page.locator("#found")).to_contain_text("not interleaved", timeout=60_000)
        browser.close()
    assert all(method == "GET" and url.startswith(f"{address}/") for method, url in asked)
    [[expected]] = Embedder.from_pretrained(exported[INT8]).similarity(tunes[:1], tunes[1:])
    assert abs(float(shown.split()[1]) - expected) < 0.005


def test_the_documents_figures_and_python_are_true(exported, tmp_path, monkeypatch):
    text = ROOT.joinpath("docs", "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT").symlink_to(exported[FP32])
    [block] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["features"].shape == (2, 128)
    documented = re.findall(r"^\| (\w+)[^|]* \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    report = json.loads((exported[INT8] / "parity.json").read_text())
    for (tower, items, least, mean), found in zip(documented, report["towers"], strict=True):
        assert (tower, int(items)) == (found["tower"], found["items"])
        assert abs(float(least) - found["cosine_min"]) < 2e-4 and abs(float(mean) - found["cosine_mean"]) < 2e-4


def test_the_web_server_says_that_onnx_explains_nothing(exported, tmp_path):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from clamp3.web.collection import Collection
    from clamp3.web.server import create_app

    (tmp_path / "a.txt").write_text("a slow air")
    collection = Collection(tmp_path, lambda: Embedder.from_pretrained(exported[FP32]))
    with TestClient(create_app(collection), base_url="http://127.0.0.1") as client:
        collection.wait()
        assert client.get("/healthz").json()["explain"] is False
        [found] = client.get("/search", params={"q": "an air"}).json()
        answer = client.get("/explain", params={"q": "an air", "id": found["id"]})
        assert answer.status_code == 501 and "ONNX" in answer.json()["error"]["message"]


def test_sizes_that_onnx_files_do_not_have_are_refused(exported, tiny):
    assert Embedder.from_pretrained(exported[FP32], sizes=tiny.sizes).sizes.patch_length == tiny.sizes.patch_length
    with pytest.raises(UserError, match="says its sizes itself"):
        Embedder.from_pretrained(exported[FP32], sizes=replace(tiny.sizes, patch_length=7))
