"""Audio: files -> waveforms -> windows -> MERT features, and extract_mert.py as users run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from clamp3.audio.mert import RENAMED, Mert, build_hubert
from clamp3.audio.mert_layers import Convolution, SpectralPosition
from clamp3.audio.windows import WINDOW, Window, batches, windows
from clamp3.errors import RepairWarning, UserError
from clamp3.features.manifest import MANIFEST_FILE
from clamp3.formats.audio import SAMPLING_RATE, read_audio, resampled
from conftest import BIN, CODE, ROOT, run, run_forked
from golden_model import GOLDEN
from synthesizer import render

TINY = GOLDEN / "mert_tiny"
SCRIPT = "preprocessing/audio/extract_mert.py"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}


def wave(seconds: float, seed: int) -> np.ndarray:
    """The waveforms of the golden values."""
    rng = np.random.default_rng(seed)
    n = int(seconds * SAMPLING_RATE)
    t = np.arange(n) / SAMPLING_RATE
    partials = zip(rng.uniform(60, 4000, 6), rng.uniform(0, 6, 6), rng.uniform(0.02, 0.2, 6), strict=True)
    x = sum(np.sin(2 * np.pi * f * t + p) * a for f, p, a in partials)
    return (x + 0.01 * rng.standard_normal(n)).astype("float32")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least, over all vectors."""
    return ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min()


def features(mert: Mert, *waveforms: np.ndarray) -> list[np.ndarray]:
    """In input order."""
    found = dict(mert.extract_layers(map(windows, waveforms)))
    return [found[index] for index in range(len(waveforms))]


@pytest.fixture(scope="module")
def mert() -> Mert:
    return Mert.from_pretrained(TINY, "cpu")


@pytest.fixture(scope="module")
def chorales() -> list[np.ndarray]:
    """12 s of each of three chorales, (samples, 2) at 44.1 kHz."""
    from corpus import scores

    return [render(midi, 12, 44_100) for _, midi in scores(3)]


# ---------- the network ----------


@pytest.mark.golden
def test_features_are_the_recorded_ones(mert):
    recorded = np.load(GOLDEN / "mert.npz")
    names = sorted({name.rpartition(".")[0] for name in recorded})
    waveforms = [wave(float(seconds), int(seed)) for seconds, seed in (name.split("_") for name in names)]
    for name, found in zip(names, features(mert, *waveforms), strict=True):
        np.testing.assert_allclose(found, recorded[f"{name}.layers"], atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(found.mean(0, keepdims=True), recorded[f"{name}.mean"], atol=2e-5, rtol=1e-4)
        assert found.dtype == np.float32


@pytest.mark.golden
def test_the_network_is_transformers_hubert():
    """On sound whose first layer's variance is far below the sound's own: a bass note under a filter for treble."""
    model = build_hubert(TINY).eval()
    t = np.arange(WINDOW) / SAMPLING_RATE
    sound = np.sin(2 * np.pi * 30 * t) + 1e-4 * np.random.default_rng(0).standard_normal(WINDOW)
    (cut,) = windows(sound.astype(np.float32))
    with torch.inference_mode():
        states = model.double()(torch.from_numpy(cut).double()[None], output_hidden_states=True).hidden_states
    expected = torch.stack([state.mean(1)[0] for state in states]).numpy()
    found = Mert(build_hubert(TINY), "cpu").forward(cut[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("length", [3, 6, 40, 41, 42, 43])
def test_convolutions_by_products_are_convolutions(length):
    generator = torch.Generator().manual_seed(length)
    sound, weight = (torch.randn(shape, generator=generator) for shape in ((length, 24), (16, 24, 3)))
    expected = torch.nn.functional.conv1d(sound.t()[None], weight, stride=2)[0].t()
    torch.testing.assert_close(Convolution(weight, stride=2)(sound), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("kernel", [128, 31])
@pytest.mark.parametrize("frames", [1, 75, 374, 375])
def test_positions_by_spectra_are_a_convolution(kernel, frames):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=4)
    sound = torch.randn(3, frames, 32)
    expected = torch.nn.functional.gelu(conv(sound.mT)[..., :frames]).mT
    found = SpectralPosition(conv, frames=375)(sound)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_both_namings_of_weight_norm_load(tmp_path, mert, file):
    weights = load_file(TINY / "model.safetensors")
    assert sum(name.endswith(tuple(RENAMED)) for name in weights) == 2
    for old, new in RENAMED.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    shutil.copy(TINY / "config.json", tmp_path)
    (save_file if file == "model.safetensors" else torch.save)(weights, tmp_path / file)
    x = wave(2, 0)
    assert np.array_equal(*features(Mert.from_pretrained(tmp_path, "cpu"), x), *features(mert, x))


@pytest.mark.golden
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_a_single_tensor_amiss_is_named(tmp_path, damage):
    weights = load_file(TINY / "model.safetensors")
    name = "encoder.pos_conv_embed.conv.weight_g"
    if damage == "missing":
        del weights[name]
        name = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    elif damage == "unexpected":
        name = "encoder.layers.2.final_layer_norm.bias"
        weights[name] = torch.zeros(64)
    else:
        name = "encoder.layers.1.attention.k_proj.bias"
        weights[name] = torch.zeros(65)
    shutil.copy(TINY / "config.json", tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{damage}: {name}"):
        build_hubert(tmp_path)


def test_other_networks_and_broken_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="has no model.safetensors and no pytorch_model.bin"):
        build_hubert(tmp_path)
    shutil.copy(TINY / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="config.json cannot be read"):
        build_hubert(tmp_path)
    config = json.loads((TINY / "config.json").read_text())
    for key, value in {"sample_rate": 16000, "do_stable_layer_norm": True, "feature_extractor_cqt": True}.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=f"{key} = {value}"):
            build_hubert(tmp_path)
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes()[:-999])
    with pytest.raises(UserError, match="cannot be read"):
        build_hubert(tmp_path)


def test_the_hubs_cache_is_used_without_a_network(tmp_path):
    """A cache as the hub's client lays it out: first without weights, then with those of the older format alone."""
    snapshot = tmp_path / "models--m-a-p--MERT-v1-95M" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    shutil.copy(TINY / "config.json", snapshot)
    torch.save(load_file(TINY / "model.safetensors"), tmp_path / "weights")
    script = (
        "import shutil, sys; from clamp3.audio.mert import RELEASED, UserError, find_mert\n"
        "try: find_mert(RELEASED)\nexcept UserError as error: print(error)\n"
        "shutil.move(*sys.argv[1:]); print(find_mert(RELEASED))"
    )
    command = [sys.executable, "-c", script, tmp_path / "weights", snapshot / "pytorch_model.bin"]
    *complaint, found = run(*command, env={**OFFLINE, "HF_HUB_CACHE": str(tmp_path)}, cwd=CODE).stdout.splitlines()
    assert "no model m-a-p/MERT-v1-95M" in complaint[0] and "get:  config.json and" in complaint[-2]
    assert found == str(snapshot)


@pytest.mark.golden
def test_results_do_not_depend_on_the_batch(mert):
    waveforms = [wave(seconds, seed) for seed, seconds in enumerate((0.3, 12.5, 5, 1, 26, 12.5, 7.5, 31.2, 3.7))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        alone = [features(mert, waveform)[0] for waveform in waveforms]
        for batch_seconds in (5, 20, 1000):
            together = features(Mert(build_hubert(TINY), "cpu", batch_seconds=batch_seconds), *waveforms)
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-6)
    assert [feature.shape[1] for feature in alone] == [1, 3, 1, 1, 6, 3, 2, 7, 1]


def test_batches_hold_windows_of_one_length_and_keep_few_waiting():
    lengths = [5, 2, 5, 5, 2, 3, 5, *range(6, 10), 5]
    items = [Window(0, position, np.zeros(length)) for position, length in enumerate(lengths)]
    taken = []

    def source():
        for item in items:
            taken.append(item)
            yield item

    given = 0
    for batch in batches(source(), 10):
        assert len({len(item.samples) for item in batch}) == 1
        assert len(batch) == 1 or sum(len(item.samples) for item in batch) <= 10
        given += sum(len(item.samples) for item in batch)
        assert sum(len(item.samples) for item in taken) - given <= 4 * 10
    assert given == sum(lengths)


def test_bf16_is_near_and_odd_precisions_are_refused(mert):
    x = wave(11, 1)
    found = features(Mert(build_hubert(TINY), "cpu", "bf16"), x)[0]
    assert found.dtype == np.float32 and 0.999 < cosine(found, features(mert, x)[0]) < 1 - 1e-7
    with pytest.raises(UserError, match="precision must be one of"):
        Mert(build_hubert(TINY), "cpu", "int8")


# ---------- waveforms and windows ----------


def test_windows_are_normalized_by_the_whole_track():
    x = np.concatenate([wave(5, 1) * 0.1, wave(5, 2), wave(1.5, 3) + 0.3])
    cut = list(windows(x))
    assert [len(window) for window in cut] == [WINDOW, WINDOW, 36_000]
    whole = np.concatenate(cut)
    assert abs(whole.mean()) < 1e-6 and abs(whole.std() - 1) < 1e-5 and cut[0].std() < 0.2
    assert [len(window) for window in windows(x[: -36_000 + 23_999])] == [WINDOW, WINDOW]


def test_under_a_second_is_one_window_repeated(mert):
    x = wave(0.3, 1)
    with pytest.warns(RepairWarning, match=r"0\.30 s of sound, repeated up to 1 s"):
        (window,) = windows(x)
    assert len(window) == SAMPLING_RATE and np.array_equal(window[:7200], window[7200:14400])
    with pytest.warns(RepairWarning):
        assert features(mert, x[:1])[0].shape == (3, 1, 64)


@pytest.mark.parametrize("value", [0.0, 0.1, -1.0])
def test_silence_and_constants_have_finite_features(mert, value):
    found = features(mert, np.full(7 * SAMPLING_RATE, value, np.float32))[0]
    assert found.shape == (3, 2, 64) and np.isfinite(found).all()
    mixed = np.concatenate([np.full(WINDOW, value, np.float32), wave(5, 0)])
    assert np.isfinite(features(mert, mixed)[0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, bad):
    x = wave(6, 0)
    x[100_000] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        windows(x)
    soundfile.write(tmp_path / "x.wav", x, SAMPLING_RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_audio(tmp_path / "x.wav")


def windowed_sinc(x: np.ndarray, rate: int, taps: int = 400) -> np.ndarray:
    """x (samples,) at `rate` -> at 24 kHz, by the textbook; passes 0.95 of what both rates can hold."""
    cutoff = 0.475 * min(rate, SAMPLING_RATE) / rate * 2  # of the input's Nyquist frequency
    times = np.arange(int(np.ceil(len(x) * SAMPLING_RATE / rate))) * rate / SAMPLING_RATE  # in input samples
    padded = np.pad(x.astype(np.float64), taps)
    out = np.empty(len(times))
    for start in range(0, len(times), 4096):
        centres = times[start : start + 4096, None]
        places = np.floor(centres).astype(int) + np.arange(-taps + 1, taps + 1)
        distance = (places - centres) / taps
        window = 0.42 + 0.5 * np.cos(np.pi * distance) + 0.08 * np.cos(2 * np.pi * distance)
        kernel = cutoff * np.sinc(cutoff * (places - centres)) * window
        out[start : start + 4096] = (padded[places + taps] * kernel).sum(1)
    return out.astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_leaves_features_as_a_windowed_sinc_does(mert, chorales, rate):
    sound = chorales[0][: int(1.5 * rate), 0]  # at another rate the music is another, but music
    ours, reference = resampled([sound[:, None]], rate), windowed_sinc(sound, rate)
    assert abs(len(ours) - 1.5 * SAMPLING_RATE) <= 1
    assert cosine(features(mert, ours)[0], features(mert, reference[: len(ours)])[0]) >= 0.9999
    pieces = np.split(sound[:, None], [1, 777, 9_000])
    np.testing.assert_allclose(resampled(pieces, rate), ours, atol=1e-6)


@pytest.mark.parametrize("rate", [0, -1, 12, 10**9])
def test_absurd_sampling_rates_are_refused(rate):
    with pytest.raises(ValueError, match="sampling rate is said to be"):
        resampled([np.zeros((5, 1), np.float32)], rate)


# ---------- the command ----------


@pytest.fixture
def folder(tmp_path, chorales):
    """Music in a folder tree: the names that shells trip over, and damaged files; and why each of those fails."""
    music = tmp_path / "in"
    for index, name in enumerate(("a.wav", "rock/it's $HOME.mp3", "rock/二胡 “独奏”.FLAC", "rock/deep/a & b.ogg")):
        path = music / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, chorales[index % 3], 44_100)
    soundfile.write(music / "short.wav", chorales[0][20_000:30_000], 44_100)
    cut = (music / "a.wav").read_bytes()
    (music / "cut.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(music / "nan.wav", np.full(48_000, np.nan), 24_000, subtype="FLOAT")
    bad = {"empty.mp3": (b"", "empty file"), "text.wav": (b"a text", "be decoded"), "head.wav": (cut[:30], "")}
    for name, (content, _) in bad.items():
        (music / name).write_bytes(content)
    (music / "notes.txt").write_text("not taken")
    return music, {**{name: why for name, (_, why) in bad.items()}, "nan.wav": "NaN"}


def test_a_folder_in_two_processes(mert, folder, tmp_path):
    music, bad = folder
    command = (
        BIN / "torchrun",
        "--nproc_per_node",
        2,
        SCRIPT,
        "--input_path",
        music,
        "--output_path",
        tmp_path / "out",
    )
    options = ("--model_path", TINY, "--device", "cpu", "--mean_features")
    done = run(*command, *options, env=OFFLINE, cwd=ROOT, check=1)
    assert "6 written" in done.stdout and "4 failed" in done.stdout and "1 .txt" in done.stdout
    reasons = remarks(tmp_path / "out" / "failures.jsonl", music)
    assert reasons.keys() == bad.keys() and all(why in reasons[name] for name, why in bad.items())
    mended = remarks(tmp_path / "out" / "warnings.jsonl", music)
    assert mended.keys() == {"short.wav", "cut.wav"} and "cut short" in mended["cut.wav"]
    found = {path.relative_to(tmp_path / "out"): np.load(path) for path in (tmp_path / "out").rglob("*.npy")}
    assert len(found) == 6
    for name, feature in found.items():
        (path,) = [path for path in music.rglob("*") if path.relative_to(music).with_suffix(".npy") == name]
        assert feature.dtype == np.float32 and feature.shape[::2] == (1, 64)
        if path.stem != "short":
            expected = features(mert, read_audio(path, note=lambda _: None))[0].mean(0, keepdims=True)
            np.testing.assert_allclose(feature, expected, atol=2e-5, rtol=1e-4)


def remarks(path, folder):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["file"].removeprefix(f"{folder}/"): line["reason"] for line in lines}


def test_a_killed_run_is_taken_up(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(30):
        soundfile.write(tmp_path / "in" / f"{index}.wav", wave(11, index % 3), SAMPLING_RATE)
    command = [SCRIPT, "--input_path", tmp_path / "in", "--output_path", tmp_path / "out"]
    command += ["--model_path", TINY, "--device", "cpu", "--batch_seconds", "5", "--precision", "bf16"]
    words = [sys.executable, *map(str, command)]
    process = subprocess.Popen(words, env=OFFLINE, cwd=ROOT, stderr=subprocess.PIPE)
    while not (tmp_path / "out").exists() or len(os.listdir(tmp_path / "out")) < 6:  # the manifest is one
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = list((tmp_path / "out").glob("*.npy"))
    assert 4 <= len(done) < 30 and all(np.load(path).shape == (3, 3, 64) for path in done)
    printed = run_forked(*command, env=OFFLINE, cwd=ROOT).stdout
    assert f"{30 - len(done)} written" in printed and f"{len(done)} already there" in printed
    assert sorted(os.listdir(tmp_path / "out")) == sorted([MANIFEST_FILE, *(f"{index}.npy" for index in range(30))])


def test_help_needs_no_libraries_and_wrong_options_end_with_a_line(tmp_path):
    blocked = f"import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; runpy.run_path({SCRIPT!r}, "
    shown = run(sys.executable, "-c", blocked + "run_name='__main__')", cwd=ROOT).stdout
    assert "--input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M" in shown and "--precision" in shown
    options = ("--input_path", tmp_path, "--output_path", tmp_path / "out", "--device", "cpu")
    soundfile.write(tmp_path / "x.wav", wave(2, 0), SAMPLING_RATE)
    for more, complaint in (
        (("--model_path", tmp_path), "has no model.safetensors"),
        (("--model_path", "nobody/nothing"), "error: no model nobody/nothing"),
        (("--batch_seconds", "0"), "invalid positive value"),
    ):
        done = run_forked(SCRIPT, *options, *more, env=OFFLINE, cwd=ROOT, check=2)
        assert complaint in done.stderr and "Traceback" not in done.stderr
