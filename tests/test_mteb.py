"""MTEB's own evaluation of small tasks of real tunes: its scores equal those of the library on the same pairs."""

import io
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from clamp3.cli.commands import mteb as command
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.search.metrics import evaluate
from conftest import BIN, ROOT, run

PYTHON = BIN / "python"
PATHS = os.pathsep.join(str(ROOT / name) for name in ("code", "tests", "examples"))
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": PATHS}


@pytest.fixture(scope="module")
def mteb():
    pytest.importorskip("mteb", reason="needs MTEB: make test-mteb")
    return pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def tasks(mteb):
    import mteb_tasks

    return mteb_tasks


@pytest.fixture(scope="module")
def model(mteb):
    from clamp3.tasks.mteb_encoder import MtebEncoder

    return MtebEncoder(Embedder.from_pretrained("tiny", device="cpu"))


@pytest.fixture
def encode(model, tasks):
    """`model.encode` of a data set's columns, in batches of three, as tasks call it."""
    from datasets import Dataset
    from mteb._create_dataloaders import _custom_collate_fn
    from torch.utils.data import DataLoader

    model.failures, model.repairs = [], []

    def encode(**columns) -> np.ndarray:
        dataset = columns.get("dataset") or Dataset.from_dict(columns)
        loader = DataLoader(dataset, 3, collate_fn=_custom_collate_fn)
        metadata = tasks.TunesRetrieval.metadata
        return model.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", batch_size=3)

    return encode


def scores(result) -> dict:
    (task,) = result.task_results
    (found,) = task.scores["test"]
    return found


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def expected_sounds(model, tasks) -> np.ndarray:
    """Features of the sound files of `pairs`, each by itself."""
    samples = [soundfile.read(io.BytesIO(data), dtype="float32") for data in tasks.pairs()[1]]
    return np.concatenate([model.model.embed_audio([sound], rate) for sound, rate in samples])


# ---------- tasks ----------


def test_retrieval_scores_are_those_of_the_library(mteb, model, tasks, tmp_path):
    """The data set holds sound files, which are read without torchcodec."""
    found = scores(mteb.evaluate(model, tasks.TunesRetrieval(), cache=mteb.ResultCache(tmp_path)))
    texts = model.model.embed_text(tasks.pairs()[0])
    relevant = [[number] for number in range(tasks.PAIRS)]
    wanted = evaluate(texts, expected_sounds(model, tasks), relevant)
    assert found["mrr_at_1000"] == pytest.approx(wanted["MRR"].value, abs=1e-4)
    assert found["recall_at_1"] == pytest.approx(wanted["Hit@1"].value, abs=1e-4)
    assert found["recall_at_10"] == pytest.approx(wanted["Hit@10"].value, abs=1e-4)
    assert found["main_score"] == found["ndcg_at_10"] == pytest.approx(wanted["nDCG@10"].value, abs=1e-4)
    assert not model.failures and wanted["MRR"].value > 0.3  # chance: 0.21
    (meta,) = tmp_path.rglob("model_meta.json")
    assert meta.parent.name == model.mteb_model_meta.revision and meta.with_name("TunesRetrieval.json").is_file()
    assert json.loads(meta.read_text())["embed_dim"] == model.model.sizes.clamp3_hidden_size


def test_classification_scores_are_those_of_a_regression_over_the_library_s_features(mteb, model, tasks):
    from sklearn.linear_model import LogisticRegression

    found = scores(mteb.evaluate(model, tasks.TunesInstrument(), cache=None))
    features = unit(
        np.concatenate([model.model.embed_audio([sound.T], rate) for sound, rate, _ in tasks.by_instrument()])
    )
    labels = np.array([label for *_, label in tasks.by_instrument()])
    split = len(tasks.INSTRUMENTS) * tasks.TRAINING
    learned = LogisticRegression(max_iter=100).fit(features[:split], labels[:split])
    assert found["accuracy"] == pytest.approx(learned.score(features[split:], labels[split:]))
    assert len(found["scores_per_experiment"]) == 2


# ---------- encode ----------


def test_sounds_of_any_rate_shape_and_form_are_what_embed_audio_makes_of_them(model, tasks, encode):
    rng = np.random.default_rng(0)
    sounds = [(rng.normal(size=shape).astype(np.float32), rate) for shape, rate in SHAPES]
    wanted = unit(np.concatenate([model.model.embed_audio([sound.T], rate) for sound, rate in sounds]))
    listed = [{"array": sound, "sampling_rate": rate} for sound, rate in sounds]
    decoders = [Decoder(np.atleast_2d(sound), rate) for sound, rate in sounds]
    for form in (listed, decoders):
        found = encode(dataset=[{"audio": item} for item in form])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not model.failures


SHAPES = [((60_000,), 24_000), ((2, 90_000), 44_100), ((1, 20_000), 8_000), ((2, 30_001), 16_000)]


class Decoder:
    """What is used of torchcodec's AudioDecoder."""

    def __init__(self, array: np.ndarray, rate: int):
        self.samples = SimpleNamespace(data=torch.from_numpy(array), sample_rate=rate)

    def get_all_samples(self) -> SimpleNamespace:
        return self.samples


def test_an_item_of_text_and_sound_is_the_sum_of_both(model, tasks, encode):
    texts, files = (values[:4] for values in tasks.pairs())
    sounds = [{"bytes": data, "path": None} for data in files]
    both = encode(text=texts, audio=sounds)
    np.testing.assert_allclose(both, encode(text=texts) + encode(audio=sounds), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encode(text=texts), axis=1), 1, atol=1e-6)


def test_no_items_have_no_features_and_other_modalities_are_refused(model, encode):
    assert encode(text=[]).shape == (0, model.model.sizes.clamp3_hidden_size)
    with pytest.raises(ValueError, match="reads text and audio; TunesRetrieval gives image, label"):
        encode(image=[1, 2], label=[0, 1])


def test_inputs_without_a_feature_are_zeros_and_are_counted(model, tasks, encode, tmp_path):
    data = tasks.pairs()[1][0]
    (tmp_path / "a.wav").write_bytes(data)
    sounds = [
        {"bytes": data, "path": None},
        {"bytes": b"RIFF", "path": None},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"bytes": None, "path": str(tmp_path / "none.wav")},
    ]
    with pytest.warns(UserWarning, match="2 of 4 inputs have no feature and count as zeros, such as TunesRetrieval"):
        found = encode(audio=sounds)
    assert not found[[1, 3]].any() and np.array_equal(found[0], found[2]) and found[0].any()
    nothing = [{"array": np.zeros((2, 0), np.float32), "sampling_rate": 8000}]
    nan = [{"array": np.full(9000, np.nan, np.float32), "sampling_rate": 8000}]
    with pytest.warns(UserWarning, match="2 of 2"):
        assert not encode(dataset=[{"audio": item} for item in nothing + nan]).any()
    with pytest.warns(UserWarning, match="1 of 3"):
        assert not encode(text=["a reel", " \n ", "a jig"])[1].any()
    assert [issue.file.rpartition(", ")[2] for issue in model.failures] == [
        *("audio 2", "audio 4", "audio 1", "audio 2", "text 2"),
    ]
    short = [{"array": np.ones(4000, np.float32), "sampling_rate": 24_000}]
    assert encode(dataset=[{"audio": item} for item in short]).any() and "repeated" in model.repairs[-1].reason


def test_the_description_of_the_model_is_that_of_its_weights(mteb, model, small_model, tmp_path):
    from clamp3.models.releases import CLAMP3_FILE
    from clamp3.tasks.mteb_encoder import model_meta, model_name

    meta = model.mteb_model_meta
    assert meta.name == "clamp3/tiny" and meta.modalities == ["audio", "text"]
    assert meta.n_embedding_parameters < meta.n_parameters and "deu-Latn" in meta.languages
    assert meta.experiment_kwargs is None and model.similarity(np.eye(2), np.eye(2) * 3).tolist() == [[1, 0], [0, 1]]
    assert model_name(tmp_path / CLAMP3_FILE.format("saas")) == "sander-wood/clamp3-saas"
    changed = tmp_path / "mine.pth"
    checkpoint = torch.load(small_model.clamp3)
    checkpoint["model"]["text_proj.bias"] += 1
    torch.save(checkpoint, changed)
    found = []
    for path, options in ((small_model.clamp3, {}), (changed, {"precision": "bf16", "mert": "folder"})):
        embedder = Embedder.from_pretrained(small_model.clamp3, sizes=small_model.sizes, device="cpu", **options)
        embedder.weights = path
        found.append(model_meta(embedder))
    assert found[0].revision != found[1].revision and found[1].name == "clamp3/mine"
    assert found[1].experiment_kwargs == {"precision": "bf16", "mert": "folder"}
    assert found[0].n_parameters == found[1].n_parameters


# ---------- mteb_eval.py ----------


def test_the_command_prints_scores_and_writes_results_of_mteb(tasks, model, tmp_path):
    driver = "import runpy, mteb_tasks; mteb_tasks.register(); runpy.run_path('mteb_eval.py', run_name='__main__')"
    words = ("TunesRetrieval", "TunesInstrument", "--variant", "tiny", "--device", "cpu", "--output", tmp_path)
    done = run(PYTHON, "-c", driver, *words, env=ENV)
    meta = model.mteb_model_meta
    lines = [line.split() for line in done.stdout.splitlines()]
    [model_line] = [line for line in lines if line and line[0] == "clamp3/tiny:"]
    assert model_line[-1] == meta.revision and "code/clamp3/tiny" in done.stdout
    folder = tmp_path / "results" / "clamp3__tiny" / meta.revision
    table = {line[0]: line for line in lines}
    for name, measure in (("TunesRetrieval", "ndcg_at_10"), ("TunesInstrument", "accuracy")):
        (written,) = json.loads((folder / f"{name}.json").read_text())["scores"]["test"]
        assert table[name][1:] == [measure, f"{written['main_score']:.4f}"]


def answer(monkeypatch, *words) -> int:
    """The exit code of the command in this process."""
    monkeypatch.setattr("sys.argv", ["mteb_eval.py", *map(str, words)])
    return command.main()


def test_the_command_lists_tasks_and_refuses_others(mteb, monkeypatch, capsys):
    assert answer(monkeypatch, "--list") == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    audio_only = {task.metadata.name for task in mteb.get_benchmark("MAEB(v1, audio-only)")}
    assert audio_only | {"ClothoT2ARetrieval", "RavdessZeroshot"} <= listed and not {"STS12", "OxfordPets"} & listed
    for name, complaint in (("GTZANgenre", "Did you mean: 'GTZANGenre'"), ("OxfordPets", "OxfordPets has image")):
        with pytest.raises(UserError, match=complaint):
            answer(monkeypatch, name, "--variant", "tiny")
    for words in ((), ("GTZANGenre", "--list")):
        with pytest.raises(SystemExit):
            answer(monkeypatch, *words)


def test_tasks_that_fail_are_named_and_the_others_go_on(mteb, tasks, monkeypatch, capsys, tmp_path):
    tasks.register()
    benchmark = mteb.Benchmark(name="Tunes", tasks=mteb.get_tasks(["TunesLost", "TunesInstrument"]))
    monkeypatch.setitem(sys.modules["mteb.benchmarks.get_benchmark"]._build_registry(), "Tunes", benchmark)
    assert answer(monkeypatch, "Tunes", "--variant", "tiny", "--device", "cpu", "--output", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "TunesInstrument  accuracy" in printed and "failed tasks:\n  TunesLost  the data are lost" in printed


def test_without_mteb_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "clamp3.tasks.mteb_encoder", raising=False)
    with pytest.raises(UserError, match="pip install 'mteb>=2.26,<3'"):
        answer(monkeypatch, "--list")
