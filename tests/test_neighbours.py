"""The Embedder in other people's programs: pickled, in processes, and in scikit-learn, datasets and others."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from clamp3 import Embedder, UserError
from clamp3.features.batched import EmbedFiles
from test_api import JIG, tone

TEXTS = ["Irish jig in D major", "a slow air", "reel", "march in G major", "a polka", "waltz"]
pytestmark = pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    for name, content in (("jig.abc", JIG), ("bad.abc", "K:C\n"), ("text.txt", "a jig")):
        folder.joinpath(name).write_text(content)
    return [str(folder / name) for name in ("jig.abc", "bad.abc", "text.txt")]


# ---------- pickles and processes ----------


@pytest.mark.parametrize(("precision", "used"), [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", True)])
def test_an_embedder_is_pickled_in_every_precision(precision, used):
    embedder = Embedder.from_pretrained("tiny", "cpu", precision)
    items = ["a jig", JIG, tone()]
    before = embedder.embed_any(items) if used else None
    copy = pickle.loads(pickle.dumps(embedder))
    expected = before if used else embedder.embed_any(items)
    assert np.array_equal(copy.embed_any(items), expected)
    assert copy.fingerprint == embedder.fingerprint and copy.identity == embedder.identity
    assert copy.weights == embedder.weights and copy.precision == precision
    assert np.array_equal(pickle.loads(pickle.dumps(copy)).embed_any(items), expected)


def test_a_pickle_needs_no_file_and_other_text_models_have_theirs(tmp_path, small_model):
    from transformers import DistilBertConfig, DistilBertModel

    from clamp3.features.towers import lower_precision

    tower = DistilBertModel(DistilBertConfig(vocab_size=10, dim=64, n_heads=1, n_layers=1, hidden_dim=128)).eval()
    lower_precision(tower, torch.bfloat16)
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        own, other = (one(ids).last_hidden_state for one in (tower, pickle.loads(pickle.dumps(tower))))
    assert own.equal(other)
    gone = tmp_path / "weights.pth"
    gone.write_bytes(small_model.clamp3.read_bytes())
    embedder = Embedder.from_pretrained(gone, "cpu", sizes=small_model.sizes)
    pickled = pickle.dumps(embedder)
    expected = embedder.embed_text(["a reel"])
    gone.unlink()
    assert np.array_equal(pickle.loads(pickled).embed_text(["a reel"]), expected)


def test_new_processes_take_embedders_and_settings(tiny, files):
    """Those of multiprocessing that start by spawn, which import this module anew, run by concurrent.futures."""
    lower = Embedder.from_pretrained("tiny", "cpu", "bf16")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        found = [executor.submit(embedder.embed_text, TEXTS) for embedder in (tiny, lower)]
        batch = executor.submit(EmbedFiles("tiny", device="cpu"), {"path": files}).result()
    for embedder, one in zip((tiny, lower), found, strict=True):
        np.testing.assert_allclose(one.result(), embedder.embed_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(batch["feature"][[0, 2]], tiny.embed_files([files[0], files[2]]), atol=1e-5)


def use_in_fork(embedder: Embedder) -> tuple[list[str], np.ndarray]:
    torch.set_num_threads(2)
    messages = []
    for use in (lambda: embedder.embed_text(TEXTS), lambda: Embedder.from_pretrained("tiny", "cpu")):
        try:
            use()
        except UserError as error:
            messages.append(str(error))
    torch.set_num_threads(1)
    return messages, embedder.embed_text(TEXTS)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks here")
def test_a_fork_that_would_wait_for_ever_says_so(tiny):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        messages, found = pool.apply_async(use_in_fork, (tiny,)).get(timeout=60)
    assert len(messages) == 2 and all("start processes by spawn" in message for message in messages)
    np.testing.assert_allclose(found, tiny.embed_text(TEXTS), atol=1e-5)


# ---------- EmbedFiles, in datasets and Ray ----------


def test_batches_get_features_and_reasons(tiny, files):
    embed = EmbedFiles("tiny", device="cpu", normalize=True)
    assert len(pickle.dumps(embed)) < 1000
    batch = embed({"path": files, "id": [1, 2, 3]})
    assert set(batch) == {"path", "id", "feature", "feature_error"} and batch["id"] == [1, 2, 3]
    good = tiny.embed_files([files[0], files[2]], normalize=True)
    np.testing.assert_allclose(batch["feature"][[0, 2]], good, atol=1e-6)
    assert np.isnan(batch["feature"][1]).all() and list(batch["feature_error"])[::2] == ["", ""]
    assert "no notes" in batch["feature_error"][1] and len(pickle.dumps(embed)) < 1000  # with the weights loaded
    with pytest.raises(ValueError, match="an Embedder has no method embed_anything"):
        EmbedFiles("tiny", method="embed_anything")


def test_other_weights_under_the_same_name_are_other_settings(tmp_path):
    path = tmp_path / "mine.safetensors"
    pickles = []
    for value in (0.0, 1.0):
        save_file({"weight": np.full(3, value, np.float32)}, path)
        pickles.append(pickle.dumps(EmbedFiles(path)))
    assert pickles[0] != pickles[1]


def test_datasets_map(tiny, files):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"path": files, "id": [1, 2, 3]})
    mapped = rows.map(EmbedFiles("tiny", device="cpu"), batched=True, batch_size=2)
    assert mapped.column_names == ["path", "id", "feature", "feature_error"]
    features = np.array(mapped["feature"], np.float32)
    np.testing.assert_allclose(features[[0, 2]], tiny.embed_files([files[0], files[2]]), atol=1e-5)
    assert np.isnan(features[1]).all() and "no notes" in mapped["feature_error"][1]
    sounds = datasets.Dataset.from_dict({"sound": [{"array": tone(), "sampling_rate": 24_000}] * 2})
    heard = sounds.map(EmbedFiles("tiny", "sound", method="embed_audio", device="cpu"), batched=True)
    np.testing.assert_allclose(np.array(heard["feature"]), tiny.embed_audio([tone()] * 2), atol=1e-5)


def test_ray_map_batches(tiny, files):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", object_store_memory=80_000_000)
    try:
        rows = ray.data.from_items([{"path": path, "id": number} for number, path in enumerate(files)])
        settings = {"weights": "tiny", "device": "cpu"}
        mapped = rows.map_batches(
            EmbedFiles, fn_constructor_kwargs=settings, batch_size=2, compute=ray.data.ActorPoolStrategy(size=1)
        )
        found = sorted(mapped.take_all(), key=lambda row: row["id"])
    finally:
        ray.shutdown()
    for row, expected in zip(found[::2], tiny.embed_files([files[0], files[2]]), strict=True):
        np.testing.assert_allclose(row["feature"], expected, atol=1e-5)
    assert np.isnan(found[1]["feature"]).all() and "no notes" in found[1]["feature_error"]


def test_pandas_frames_get_columns(tiny, files):
    pandas = pytest.importorskip("pandas")
    frame = EmbedFiles("tiny", device="cpu")(pandas.DataFrame({"path": files}))
    assert list(frame.columns) == ["path", "feature", "feature_error"]
    np.testing.assert_allclose(frame["feature"][0], tiny.embed_files(files[:1])[0], atol=1e-5)
    with pytest.raises(ValueError, match="not one DataFrame"):
        tiny.embed_files(frame)
    texts = pandas.Series(TEXTS)
    np.testing.assert_allclose(tiny.embed_text(texts), tiny.embed_text(TEXTS), atol=1e-6)
    np.testing.assert_allclose(tiny.embed_text(texts.to_numpy()), tiny.embed_text(TEXTS), atol=1e-6)


# ---------- scikit-learn ----------


def test_scikit_learn_pipelines(tiny):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from clamp3.features.sklearn_transformer import Clamp3Transformer

    step = Clamp3Transformer("tiny", device="cpu")
    with pytest.raises(NotFittedError):
        step.transform(TEXTS)
    features = step.fit_transform(TEXTS)
    np.testing.assert_allclose(features, tiny.embed_text(TEXTS, normalize=True), atol=1e-6)
    assert step.get_feature_names_out().shape == (128,) and step.get_feature_names_out()[-1] == "clamp3_127"
    copy = clone(step)
    assert copy.get_params() == step.get_params() and not hasattr(copy, "embedder_")
    np.testing.assert_allclose(pickle.loads(pickle.dumps(step)).transform(TEXTS), features, atol=1e-6)
    with pytest.raises(ValueError, match="item 1: a str is needed"):
        Clamp3Transformer("tiny", method="embed_text").fit(TEXTS).transform(["a", 2])
    pipeline = make_pipeline(copy, LogisticRegression()).fit(TEXTS, [0, 1, 0, 1, 0, 1])
    assert set(pipeline.predict(TEXTS)) <= {0, 1}
    pandas = pytest.importorskip("pandas")
    frame = step.set_output(transform="pandas").transform(pandas.Series(TEXTS))
    assert list(frame.columns) == list(step.get_feature_names_out())


SKLEARN_CHECKS = (  # those that need no numbers for data, which `check_estimator` passes over too
    *("estimator_cloneable", "estimator_tags_renamed", "valid_tag_types", "estimator_repr"),
    *("no_attributes_set_in_init", "parameters_default_constructible", "get_params_invariance", "set_params"),
    *("do_not_raise_errors_in_init_or_set_params", "mixin_order"),
)


def test_scikit_learns_own_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    from clamp3.features.sklearn_transformer import Clamp3Transformer

    step = Clamp3Transformer("tiny", device="cpu")
    for name in SKLEARN_CHECKS:
        getattr(checks, f"check_{name}")("Clamp3Transformer", step)


# ---------- sentence-transformers ----------


@pytest.fixture(scope="module")
def sentences():
    module = pytest.importorskip("sentence_transformers")
    from clamp3.features.sentence_module import Clamp3Module

    return module.SentenceTransformer(modules=[Clamp3Module("tiny")], device="cpu")


def test_sentence_transformers_encodes_texts_music_and_sound(tiny, sentences):
    np.testing.assert_allclose(sentences.encode(TEXTS, batch_size=4), tiny.embed_text(TEXTS), atol=1e-5)
    np.testing.assert_allclose(sentences.encode(JIG), tiny.embed_symbolic([JIG])[0], atol=1e-5)
    sounds = [tone(), {"array": tone(), "sampling_rate": 24_000}]
    np.testing.assert_allclose(sentences.encode([*sounds, "a jig"])[:2], tiny.embed_audio([tone()] * 2), atol=1e-5)
    unit = sentences.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    np.testing.assert_allclose(sentences.similarity(unit, unit), tiny.similarity(TEXTS, TEXTS), atol=1e-5)
    assert sentences.get_embedding_dimension() == 128
    sentences.train()
    with pytest.raises(UserError, match="cannot be trained"):
        sentences(sentences.preprocess(TEXTS))
    sentences.eval()


def test_sentence_transformers_saves_loads_and_starts_processes(sentences, tmp_path):
    from sentence_transformers import SentenceTransformer

    expected = sentences.encode([*TEXTS, JIG])
    sentences.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(loaded.encode([*TEXTS, JIG]), expected, atol=1e-6)
    np.testing.assert_allclose(loaded.encode([tone()]), sentences.encode([tone()]), atol=1e-6)
    assert str(loaded[0].embedder.audio_encoder_name).startswith(str(tmp_path))
