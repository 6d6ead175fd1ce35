"""Classification of real tunes by the documented commands: zero-shot in several languages, and by a linear probe."""

import json
import shutil
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from answers import answer, lines, save_features, vectors
from clamp3.cli.commands import classify as inference_cls
from clamp3.cli.commands import train_classifier as train_cls
from clamp3.cli.commands import zero_shot
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.models.releases import TINY
from clamp3.tasks import zero_shot as zero_shot_task
from clamp3.tasks.figures import draw_confusion, figures, pooled
from clamp3.tasks.labels import labels_of, read_labels, read_prompts
from clamp3.tasks.probe import (
    UNTUNED,
    WEIGHT_DECAYS,
    Probe,
    fit_probe,
    held_out_figures,
    stratified_folds,
    stratified_share,
)
from clamp3.tasks.recipe import Recipe
from conftest import BIN, run
from corpus import folk_tunes
from descriptions import KINDS, kinds_of

pytest.importorskip("music21")  # which the oldest set of libraries lacks
metrics = pytest.importorskip("sklearn.metrics")

PYTHON = BIN / "python"
DANCES = ("reel", "jig", "hornpipe", "strathspey")
OTHERS = 300  # tunes that the small model was trained on


@pytest.fixture(scope="module")
def dances():
    """Dances by name, with their kinds: the small model's held-out ones, and others."""
    held_out = set(TINY.joinpath("held_out.txt").read_text(encoding="utf-8").split())
    tunes = takewhile(lambda tune: not tune.collection.startswith("Essen"), folk_tunes())
    tunes = [tune for tune in tunes if kinds_of(tune)[0] in DANCES]
    others = [tune for tune in tunes if tune.name not in held_out]
    return [tune for tune in tunes if tune.name in held_out], others[:: len(others) // OTHERS]


@pytest.fixture(scope="module")
def features(dances, tmp_path_factory):
    """Folders "held_out" and "others" of features, in folders by kind."""
    folder = tmp_path_factory.mktemp("features")
    embedder = Embedder.from_pretrained("tiny", device="cpu")
    for name, tunes in zip(("held_out", "others"), dances, strict=True):
        rows = embedder.embed_symbolic([tune.abc for tune in tunes])
        files = [f"{name}/{kinds_of(tune)[0]}/{tune.name}.npy" for tune in tunes]
        save_features(folder, {file: row[None] for file, row in zip(files, rows, strict=True)})
    return folder


def loaded(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The features (n, hidden) in a folder, and their labels by folder."""
    paths = sorted(folder.rglob("*.npy"))
    return np.concatenate([np.load(path) for path in paths]), [path.parent.name for path in paths]


@pytest.fixture
def clouds(tmp_path):
    """Features of two classes, 20 and 10, by name; they overlap little."""
    folder = tmp_path / "clouds"
    rows = {f"a_{number}": 1.0 for number in range(20)} | {f"b_{number}": -1.0 for number in range(10)}
    noise = vectors(*rows)
    save_features(folder, {name: row + rows[name.removesuffix(".npy")] for name, row in noise.items()})
    return folder


def assert_as_scikit_learn_has_it(result, truth, predicted):
    assert result.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert result.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


# ---------- zero_shot.py ----------


def test_tunes_are_classified_by_texts_and_scored_by_folder(dances, tmp_path):
    """With one bad file, and one in a folder that names no label."""
    for tune in dances[0]:
        folder = tmp_path / "in" / kinds_of(tune)[0].upper()
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath(f"{tune.name}.abc").write_text(tune.abc, encoding="utf-8")
    (tmp_path / "in" / "REEL" / "bad.mid").write_bytes(b"no midi")
    (tmp_path / "in" / "other").mkdir()
    (tmp_path / "in" / "other" / "tune.abc").write_text(dances[0][0].abc, encoding="utf-8")
    (tmp_path / "labels.txt").write_text("\n".join(DANCES))
    command = [PYTHON, "zero_shot.py", tmp_path / "in", tmp_path / "labels.txt", "--variant", "tiny"]
    outputs = ["--json", tmp_path / "p.jsonl", "--picture", tmp_path / "deep" / "confusion.png"]
    done = run(*command, *outputs, check=1)
    predictions = lines(tmp_path / "p.jsonl")
    assert len(predictions) == len(dances[0]) + 1
    scored = [record for record in predictions if record["truth"]]
    assert all(record["truth"].upper() == Path(record["file"]).parts[0] for record in scored)
    truth, predicted = ([record[name] for record in scored] for name in ("truth", "label"))
    result = figures(truth, predicted, DANCES)
    assert result.accuracy > 0.75 and result.macro_f1 > 0.75  # measured: 0.93 and 0.92; the largest class: 0.43
    assert_as_scikit_learn_has_it(result, truth, predicted)
    assert f"{len(scored)} files scored: accuracy {result.accuracy:.4f}, macro-F1 {result.macro_f1:.4f}" in done.stdout
    assert "bad.mid" in done.stdout and "other/tune.abc  other: none of the labels" in done.stdout
    assert "features made by" in done.stdout and "tiny" in predictions[0]["weights"]
    assert (tmp_path / "deep" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    for record in predictions:
        first, second, _third = record["top"]
        assert record["margin"] == pytest.approx(first["cosine"] - second["cosine"], abs=1e-6)
        assert 1 >= first["probability"] >= second["probability"] and record["label"] == first["label"]


@pytest.mark.parametrize("language", [1, 4])
def test_labels_may_be_in_another_language(features, tmp_path, monkeypatch, capsys, language):
    """German and Chinese: some as a prompt, some as the label itself, which the CSV file then has too."""
    words = {kind: KINDS[kind][language].partition("/")[0] for kind in DANCES}
    labels = {"reel": words["reel"], "jig": "jig", "hornpipe": "hornpipe", "strathspey": "strathspey"}
    prompts = [words["reel"], *(f"{kind}: {words[kind]} | {words[kind]}" for kind in DANCES[1:])]
    (tmp_path / "labels.txt").write_text("\n".join(prompts), encoding="utf-8")
    files = sorted((features / "held_out").rglob("*.npy"))
    rows = [f"{path.relative_to(features / 'held_out').as_posix()},{labels[path.parent.name]}" for path in files]
    (tmp_path / "truth.csv").write_text("file,label\n" + "\n".join(rows), encoding="utf-8")
    command = (zero_shot, features / "held_out", tmp_path / "labels.txt", "--truth", tmp_path / "truth.csv")
    options = ("--variant", "tiny", "--device", "cpu", "--template", "{}", "--json", tmp_path / "p.jsonl")
    assert answer(monkeypatch, *command, *options) == 0
    predictions = lines(tmp_path / "p.jsonl")
    assert len(predictions) == len(files)
    accuracy = np.mean([record["truth"] == record["label"] for record in predictions])
    assert accuracy > 0.75 and f"accuracy {accuracy:.4f}" in capsys.readouterr().out  # measured: 0.90 and 0.91


def test_what_cannot_be_classified_is_said(tmp_path, monkeypatch, capsys):
    save_features(tmp_path / "in", vectors("x/a", "b", hidden=128))
    save_features(tmp_path / "narrow", vectors("a", "b"))
    labels = tmp_path / "labels.txt"
    command = (zero_shot, tmp_path / "in", labels, "--variant", "tiny", "--device", "cpu")
    for text, complaint in (
        ("reel\n", "has 1 labels"),
        ("slip jig\nreel\nSlip_Jig: x\n", ":3: Slip_Jig is there twice"),
        ("reel:\njig\n", ":1: a line must be"),
        ("", "empty file"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=complaint):
            answer(monkeypatch, *command)
    labels.write_text("reel\njig\n")
    with pytest.raises(UserError, match="a.npy has a feature of 8 numbers"):
        answer(monkeypatch, zero_shot, tmp_path / "narrow", *command[2:])
    with pytest.raises(SystemExit):
        answer(monkeypatch, *command, "--template", "music")
    capsys.readouterr()
    assert answer(monkeypatch, *command) == 0
    assert "not scored" in capsys.readouterr().out
    assert answer(monkeypatch, *command, "--picture", tmp_path / "c.png") == 1


def test_prompts_and_their_features(tmp_path):
    (tmp_path / "labels.txt").write_text("\ufeffslip_jig\n\n hornpipe :  角笛舞曲 | a {} \n", encoding="utf-8")
    prompts = read_prompts(tmp_path / "labels.txt", ("{}", "a {}, a {}"))
    assert prompts == {"slip_jig": ["slip jig", "a slip jig, a slip jig"], "hornpipe": ["角笛舞曲", "a {}"]}

    rng = np.random.default_rng(0)
    rows, texts = rng.normal(size=(5, 8)), [rng.normal(size=(count, 8)) for count in (1, 2, 3)]
    cosines, probabilities = zero_shot_task.zero_shot(rows, texts)
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in texts]
    for label, label_texts in enumerate(unit):
        mean = label_texts.mean(axis=0)
        wanted = rows @ mean / np.linalg.norm(rows, axis=1) / np.linalg.norm(mean)
        np.testing.assert_allclose(cosines[:, label], wanted, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), cosines.argmax(axis=1))
    # With one prompt a label, all of the same norm, it is the softmax of dot products, as in training.
    single = [label_texts[:1] * 3 for label_texts in unit]
    logits = rows @ np.concatenate(single).T
    np.testing.assert_allclose(zero_shot_task.zero_shot(rows, single)[1], zero_shot_task.softmax(logits), atol=1e-5)


# ---------- the probe ----------


def test_a_probe_does_as_well_as_logistic_regression(features):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    parts = [loaded(features / name) for name in ("held_out", "others")]
    rows, truth = np.concatenate([part[0] for part in parts]), parts[0][1] + parts[1][1]
    fold = stratified_folds(truth, 5)
    ours = pooled([held_out_figures(rows, truth, fold == number, Recipe())[1] for number in range(5)])
    predicted = np.array(truth)
    with threadpool_limits(1):  # its threads wait for each other on busy cores
        for number in range(5):
            chosen = fold != number
            model = make_pipeline(StandardScaler(), linear_model.LogisticRegression(max_iter=2000))
            predicted[~chosen] = model.fit(rows[chosen], np.array(truth)[chosen]).predict(rows[~chosen])
    reference = figures(truth, predicted.tolist(), DANCES)
    assert ours.accuracy > ours.majority + 0.3
    assert ours.accuracy > reference.accuracy - 0.03 and ours.macro_f1 > reference.macro_f1 - 0.04


def test_a_probe_is_trained_on_features_and_classifies_raw_files(features, dances, tmp_path):
    """The second command meets tunes that neither model has seen, and one of a class that the probe does not know."""
    probe = tmp_path / "probe.safetensors"
    options = ("--labels", "folder", "--folds", "5", "--json", tmp_path / "f.jsonl")
    done = run(PYTHON, "train_cls.py", features / "others", probe, *options)
    parts = lines(tmp_path / "f.jsonl")
    assert [record["part"] for record in parts] == [1, 2, 3, 4, 5]
    accuracies, macro_f1 = ([record[name] for record in parts] for name in ("accuracy", "macro_f1"))
    assert np.mean(accuracies) > 0.75 and np.mean(macro_f1) > 0.7
    spread = np.std(accuracies, ddof=1)
    assert f"mean of 5 parts ± standard deviation: accuracy {np.mean(accuracies):.4f} ± {spread:.4f}" in done.stdout
    assert "others: all came ready-made" in done.stdout and list(tmp_path.glob(".*")) == []

    (tmp_path / "in").mkdir()
    for tune in dances[0]:
        name = f"{kinds_of(tune)[0]}_{tune.name}.abc"
        tmp_path.joinpath("in", name).write_text(tune.abc, encoding="utf-8")
    tmp_path.joinpath("in", "polka_1.abc").write_text(dances[0][0].abc, encoding="utf-8")
    command = [PYTHON, "inference_cls.py", probe, tmp_path / "in", "--variant", "tiny"]
    done = run(*command, "--json", tmp_path / "p.jsonl")
    predictions = lines(tmp_path / "p.jsonl")
    rows, truth = loaded(features / "held_out")
    result = figures(truth, Probe.load(probe).predict(rows), DANCES)
    assert result.accuracy > 0.75 and len(predictions) == len(truth) + 1  # the largest class: 0.43
    assert f"{len(truth)} files scored: accuracy {result.accuracy:.4f}, macro-F1 {result.macro_f1:.4f}" in done.stdout
    assert "polka_1.abc  polka: none of the labels" in done.stdout
    assert all(record["probability"] == record["top"][0]["probability"] > 0.25 for record in predictions)


def test_a_probe_is_the_minimum_of_its_objective():
    """Cross-entropy summed over rows, with class weights, and half the weight decay times the squared weights."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(1)
    for kinds, balanced in (("abc", False), ("abc", True), ("ab", True)):
        truth = [
            *kinds,
            *rng.choice(list(kinds), 87, p=np.array([6, 2, 1][: len(kinds)]) / sum([6, 2, 1][: len(kinds)])),
        ]
        targets = np.searchsorted(list(kinds), truth)
        rows = rng.normal(size=(len(truth), 5)).astype(np.float32) + targets[:, None]
        probe = fit_probe(rows, truth, Recipe(weight_decay=3.0, balanced=balanced))
        inputs = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        weights = len(truth) / len(kinds) / np.bincount(targets)[targets] if balanced else np.ones(len(truth))

        def objective(flat, inputs=inputs, targets=targets, weights=weights):
            layer = flat.reshape(-1, 6)
            if len(layer) == 2:  # a single logit, which the penalty is on
                layer = np.stack([-layer[0], layer[0]]) / 2
            logits = inputs @ layer[:, :5].T + layer[:, 5]
            losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
            penalized = flat.reshape(-1, 6)[: 1 if len(layer) == 2 else None, :5]
            return (weights * losses).sum() + 1.5 * (penalized**2).sum()

        found = optimize.minimize(objective, np.zeros(len(kinds) * 6), options={"gtol": 1e-7}).x.reshape(-1, 6)
        if len(kinds) == 2:
            found = np.stack([-found[0], found[0]]) / 2
        exact = Probe(list(kinds), found[:, :5], found[:, 5], rows.mean(axis=0), rows.std(axis=0))
        np.testing.assert_allclose(probe.probabilities(rows), exact.probabilities(rows), atol=2e-3)


def test_weight_decay_is_chosen_on_the_training_rows():
    """Clear classes get a weaker penalty than noise; a class of a single row leaves nothing to choose by."""
    rng = np.random.default_rng(0)
    truth = [*"ab" * 100]
    signal = np.array([[1.0], [-1.0]] * 100) + rng.normal(size=(200, 20)) * 0.3
    noise = np.random.default_rng(1).normal(size=(200, 20))

    def chosen(rows, truth) -> float:
        weight = fit_probe(rows, truth, Recipe()).weight.tobytes()
        decays = [
            d for d in WEIGHT_DECAYS if fit_probe(rows, truth, Recipe(weight_decay=d)).weight.tobytes() == weight
        ]
        assert len(decays) == 1
        return decays[0]

    assert chosen(signal, truth) < UNTUNED < chosen(noise, truth)
    assert chosen(noise, [*"a" * 199, "b"]) == UNTUNED


def test_probes_of_earlier_versions_are_read_and_applied_without_scikit_learn(clouds, tmp_path, monkeypatch, capsys):
    """The file is as AdamW's probes were written; it is not scored, and the predictions are there all the same."""
    arrays = {"weight": np.array([[1] * 8, [-1] * 8]), "bias": np.zeros(2), "mean": np.zeros(8), "std": np.ones(8)}
    about = {"labels": ["a", "b"], "hidden": 8, "made_by": "tiny/clamp3.safetensors"}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    (tmp_path / "old.safetensors").write_bytes(safetensors.numpy.save(arrays, {"probe": json.dumps(about)}))
    for module in ("sklearn", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    command = (inference_cls, tmp_path / "old.safetensors", clouds, "--json", tmp_path / "p.jsonl")
    assert answer(monkeypatch, *command) == 0
    assert 'not scored: sklearn.metrics is not installed: pip install "clamp3[classify]"' in capsys.readouterr().out
    predictions = lines(tmp_path / "p.jsonl")
    assert np.mean([record["truth"] == record["label"] for record in predictions]) > 0.95 and len(predictions) == 30
    with pytest.raises(UserError, match=r"sklearn is not installed: pip install \"clamp3\[classify\]\""):
        answer(monkeypatch, train_cls, clouds, tmp_path / "p.safetensors")


def test_a_probe_that_is_stopped_early_says_so_in_one_line(clouds, tmp_path, monkeypatch, caplog, recwarn):
    caplog.set_level("INFO", "clamp3")
    assert answer(monkeypatch, train_cls, clouds, tmp_path / "p.safetensors", "--epochs", "1") == 0
    assert sum("still improving after 1 epochs" in message for message in caplog.messages) == 1
    assert not recwarn.list


def test_options_of_earlier_versions_are_accepted(clouds, tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    options = [(), ("--learning_rate", "0.1", "--batch_size", "8"), ("--weight_decay", "100"), ("--epochs", "1")]
    for file, words in zip(files, options, strict=True):
        assert answer(monkeypatch, train_cls, clouds, file, *words) == 0
        assert ("without effect: --learning_rate, --batch_size" in capsys.readouterr().out) == (words == options[1])
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1] and len(set(contents)) == 3


def test_the_same_seed_gives_the_same_probe(clouds, tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    printed = []
    for file, seed in zip(files, (7, 7, 8), strict=True):
        assert answer(monkeypatch, train_cls, clouds, file, "--seed", seed) == 0
        printed.append(capsys.readouterr().out.replace(str(file), ""))
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert printed[0] == printed[1]


def test_figures_are_those_of_the_files_that_the_probe_has_not_seen(clouds, tmp_path, monkeypatch, capsys):
    """With a share or a folder held out, the scored probe is written; with none, one trained on all files."""
    rows, _folders = loaded(clouds)
    names = [path.name for path in sorted(clouds.glob("*.npy"))]
    truth, missing = labels_of("name", names)
    assert not missing and truth.count("a") == 20
    probe = tmp_path / "p.safetensors"
    shutil.copytree(clouds, tmp_path / "other")
    for options, held_out in (
        (("--eval_share", "0.25"), stratified_share(truth, 0.25)),
        (("--eval_dir", tmp_path / "other"), None),
        (("--eval_share", "0"), None),
    ):
        assert answer(monkeypatch, train_cls, clouds, probe, *options, "--json", tmp_path / "f.jsonl") == 0
        training = np.ones(len(truth), bool) if held_out is None else ~held_out
        expected = fit_probe(rows[training], [truth[row] for row in np.flatnonzero(training)], Recipe())
        written = Probe.load(probe)
        np.testing.assert_array_equal(written.weight, expected.weight)
        np.testing.assert_allclose(written.mean, rows[training].mean(axis=0), atol=1e-6)
        evaluated = np.arange(len(truth)) if held_out is None else np.flatnonzero(held_out)
        records = lines(tmp_path / "f.jsonl")
        if options[-1] == "0":
            assert records == []
        else:
            result = figures([truth[row] for row in evaluated], written.predict(rows[evaluated]), ["a", "b"])
            assert [(record["files"], record["accuracy"]) for record in records] == [(len(evaluated), result.accuracy)]


def test_balanced_classes_count_alike():
    """Of two overlapping classes, one ten times the size of the other, the recall of the small one rises."""
    rng = np.random.default_rng(0)
    truth = ["large"] * 500 + ["small"] * 50
    rows = rng.normal(size=(550, 4)).astype(np.float32) + 0.7 * (np.array(truth) == "small")[:, None]
    recalls = [
        figures(truth, fit_probe(rows, truth, Recipe(balanced=balanced)).predict(rows), ["large", "small"]).recall
        for balanced in (False, True)
    ]
    assert recalls[1][1] > recalls[0][1] + 0.2 and recalls[1].min() > 0.6


def test_splits_are_stratified():
    truth = [*"a" * 50, *"b" * 7, *"c" * 4]
    fold = stratified_folds(truth, 4, seed=3)
    assert sorted(np.bincount(fold)) == [15, 15, 15, 16]
    for label, least in (("a", 12), ("b", 1), ("c", 1)):
        counts = np.bincount(fold[np.array(truth) == label], minlength=4)
        assert counts.min() == least and counts.max() <= least + 1
    assert (fold != stratified_folds(truth, 4, seed=4)).any()
    held_out = stratified_share(truth, 0.2)
    assert [held_out[np.array(truth) == label].sum() for label in "abc"] == [10, 1, 1]
    assert stratified_share(["a", "a", "b", "b"], 0.9).sum() == 2


def test_what_cannot_be_trained_or_applied_is_said(clouds, tmp_path, monkeypatch, capsys):
    probe = tmp_path / "p.safetensors"
    save_features(tmp_path, vectors("one/a_1", "one/a_2", "rare/a_1", "rare/a_2", "rare/b_1", "new/c_1", "bare/x"))
    save_features(tmp_path, vectors("wide/a_1", hidden=9))
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.csv").write_text("a_1.npy,a\na_1.npy,b\n")
    for folder, words, complaint in (
        ("one", (), "all .* are of one class, a"),
        ("rare", (), "the class b has 1 file"),
        ("clouds", ("--folds", "11"), "the class b has 10 files, too few to be in 11 parts"),
        ("clouds", ("--eval_dir", tmp_path / "new"), "of classes that no training file is of: c"),
        ("clouds", ("--eval_dir", tmp_path / "wide"), "a feature of 9 numbers"),
        ("clouds", ("--eval_dir", tmp_path / "empty"), "nothing in .*empty has a feature"),
        ("bare", (), "no file in .*bare has a label"),
        ("clouds", ("--labels", "folder"), "no file in .*clouds has a label"),
        ("clouds", ("--labels", tmp_path / "none.csv"), "none.csv cannot be read"),
        ("clouds", ("--labels", tmp_path / "twice.csv"), "twice.csv:2: a_1.npy is a in another line"),
    ):
        with pytest.raises(UserError, match=complaint):
            answer(monkeypatch, train_cls, tmp_path / folder, probe, *words)
        assert not probe.exists()
    for words in (("--folds", "1"), ("--folds", "3", "--eval_share", "0.3"), ("--eval_share", "1")):
        with pytest.raises(SystemExit):
            answer(monkeypatch, train_cls, clouds, probe, *words)

    (clouds / "c_0.npy").write_bytes(b"no feature")
    np.save(clouds / "x.npy", np.zeros((1, 8), np.float32))
    capsys.readouterr()
    assert answer(monkeypatch, train_cls, clouds, probe) == 1
    printed = capsys.readouterr().out
    assert "x.npy  it has no label" in printed and "1 files failed" in printed
    assert answer(monkeypatch, inference_cls, probe, clouds) == 1
    with pytest.raises(UserError, match="the probe takes features of 8 numbers, not of 9"):
        answer(monkeypatch, inference_cls, probe, tmp_path / "wide")
    capsys.readouterr()
    assert answer(monkeypatch, inference_cls, probe, tmp_path / "new") == 0
    assert "not scored" in capsys.readouterr().out


def test_only_whole_probes_are_read(tmp_path):
    rows = np.concatenate(list(vectors(*"abcd").values()))
    rows[:, 0] = 0.1  # without spread
    probe = fit_probe(rows, ["é", "é", "x", "x"], Recipe(), made_by="tiny/clamp3.safetensors")
    assert probe.std[0] == 1
    path = tmp_path / "p.safetensors"
    probe.save(path)
    again = Probe.load(path)
    assert again.labels == ["x", "é"] and again.made_by == "tiny/clamp3.safetensors"
    np.testing.assert_array_equal(again.probabilities(rows), probe.probabilities(rows))
    many = fit_probe(rows, ["a", "a", "b", "c"], Recipe())  # more than two classes are another branch of the solver
    many.save(path)
    np.testing.assert_array_equal(Probe.load(path).probabilities(rows), many.probabilities(rows))
    path.write_bytes(path.read_bytes()[:-8])
    for wrong in (path, tmp_path / "none", tmp_path, TINY / "clamp3.safetensors"):
        with pytest.raises(UserError, match="is not a probe"):
            Probe.load(wrong)


# ---------- figures and labels ----------


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn_and_of_a_plain_count(seed):
    """Some classes are never true, some never predicted, some neither."""
    rng = np.random.default_rng(seed)
    labels = [f"class {number}" for number in range(8)]
    truth, predicted = (rng.choice(labels[start : start + 5], size=40).tolist() for start in (0, 2))
    result = figures(truth, predicted, labels)
    assert_as_scikit_learn_has_it(result, truth, predicted)
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(truth, predicted, labels=result.labels))
    wanted = metrics.precision_recall_fscore_support(truth, predicted, labels=result.labels, zero_division=0)
    for ours, theirs in zip((result.precision, result.recall, result.f1, result.support), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs)
    for number, label in enumerate(result.labels):
        hits = sum(pair == (label, label) for pair in zip(truth, predicted, strict=True))
        assert result.precision[number] == pytest.approx(hits / max(predicted.count(label), 1))
        assert result.recall[number] == pytest.approx(hits / max(truth.count(label), 1))
        assert result.f1[number] == pytest.approx(2 * hits / (predicted.count(label) + truth.count(label)))
    assert result.majority == max(map(truth.count, labels)) / 40
    halves = [figures(truth[part], predicted[part], labels) for part in (slice(7), slice(7, None))]
    np.testing.assert_array_equal(pooled(halves).confusion, result.confusion)


def test_many_classes_are_drawn_and_what_cannot_be_is_said(tmp_path):
    labels = [f"class {number}" for number in range(22)]
    result = figures(labels, labels[1:] + labels[:1], labels)
    assert result.accuracy == 0 and result.macro_f1 == 0
    draw_confusion(result, tmp_path / "c.svg")
    assert b"<svg" in (tmp_path / "c.svg").read_bytes()
    with pytest.raises(UserError, match="c.doc cannot be drawn"):
        draw_confusion(result, tmp_path / "c.doc")
    for truth, predicted in (([], []), (["class 0"], ["another"])):
        with pytest.raises(ValueError, match="nothing to score"):
            figures(truth, predicted, labels)


def test_where_labels_stand(tmp_path):
    files = ["reel/1.abc", "x/Slip_Jig/2.abc", "3.abc", "y/z/4.abc"]
    assert labels_of("folder", files)[0] == ["reel", "x", None, "y"]
    labels, issues = labels_of("folder", files, ["Reel", "slip jig"])
    assert labels == ["Reel", "slip jig", None, None]
    assert [issue.reason for issue in issues] == ["it has no label", "y and z: none of the labels"]
    assert labels_of("name", ["d/reel_1_2.npy", "reel.npy", "_x.npy"])[0] == ["reel", None, None]
    (tmp_path / "l.csv").write_text('file,label\n"a,b.npy",slip jig\n')
    told = read_labels(tmp_path / "l.csv")
    assert labels_of(told, ["a,b.npy", "c.npy"])[0] == ["slip jig", None]
    (tmp_path / "l.csv").write_text("a.npy,\n")
    with pytest.raises(UserError, match="l.csv:1: a line must be file,label"):
        read_labels(tmp_path / "l.csv")
