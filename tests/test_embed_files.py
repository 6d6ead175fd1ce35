"""Raw files of any kind through the library: the same features as by the commands' steps, one after the other."""

import base64
import io
from dataclasses import replace
from itertools import islice

import mido
import numpy as np
import pytest
import soundfile
import torch

import converters
from clamp3.audio.mert import Mert
from clamp3.audio.windows import windows
from clamp3.errors import RepairWarning
from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, read_raw
from clamp3.formats.abc import interleave, read_abc
from clamp3.formats.audio import read_audio
from clamp3.formats.midi import midi_to_mtf
from clamp3.formats.musicxml import musicxml_to_abc
from clamp3.io.workers import Processes
from clamp3.models.clamp3 import CLaMP3Model
from conftest import MERT_TINY
from golden_model import golden_json

corpus = pytest.importorskip("music21").corpus  # which the oldest set of libraries lacks
from corpus import folk_tunes  # noqa: E402


def new_embedder(small_model) -> Embedder:
    """Random weights, and an audio tower that takes what the small MERT gives."""
    sizes = replace(small_model.sizes, audio_hidden_size=64)
    torch.manual_seed(0)
    return Embedder(CLaMP3Model(sizes), sizes, mert=MERT_TINY)


@pytest.fixture(scope="module")
def embedder(small_model):
    return new_embedder(small_model)


@pytest.fixture(scope="module")
def files(tmp_path_factory, embedder):
    """One file of each kind, in capitals too."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("a.MXL", "b.abc", "c.mid", "d.mtf", "e.txt", "f.npy", "g.wav", "h.flac")}
    paths["a.MXL"].write_bytes(corpus.getWork("bach/bwv404").read_bytes())
    paths["b.abc"].write_text("X:1\nT:A scale\nM:4/4\nL:1/8\nK:G\nGABc defg|gfed cBAG|]\n")
    paths["c.mid"].write_bytes(base64.b64decode(golden_json("mtf.json")[0]["midi_base64"]))
    paths["d.mtf"].write_text(midi_to_mtf(paths["c.mid"], m3_compatible=True))
    paths["e.txt"].write_text("A slow air\nfrom Ireland")
    np.save(paths["f.npy"], np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32))
    times = np.arange(44_100 * 7) / 44_100
    chord = np.stack([np.sin(2 * np.pi * pitch * times) for pitch in (220, 277)], axis=1) * 0.3
    soundfile.write(paths["g.wav"], chord, 44_100)
    soundfile.write(paths["h.flac"], chord[: 44_100 * 3], 44_100)
    return paths


def test_files_of_all_kinds_are_embedded_in_one_call_and_in_order(embedder, files):
    paths = list(files.values())
    found = embedder.embed_files(paths)
    sounds = (windows(read_audio(files[name])) for name in ("g.wav", "h.flac"))
    mert = dict(embedder.audio_encoder.extract_layers(sounds))
    expected = [
        embedder.embed_symbolic([interleave(musicxml_to_abc(files["a.MXL"]))]),
        embedder.embed_symbolic([interleave(read_abc(files["b.abc"]))]),
        embedder.embed_symbolic([midi_to_mtf(files["c.mid"], m3_compatible=True)]),
        embedder.embed_symbolic([files["d.mtf"].read_text()]),
        embedder.embed_text(["A slow air\nfrom Ireland"]),
        embedder.embed_audio_features([np.load(files["f.npy"])]),
        embedder.embed_audio_features([mert[0].mean(axis=0)]),
        embedder.embed_audio_features([mert[1].mean(axis=0)]),
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-5, rtol=1e-4)
    reversed_order = embedder.embed_files(paths[::-1], normalize=True)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(reversed_order[::-1], found / norms, atol=2e-5, rtol=1e-4)
    assert len({feature.tobytes() for feature in found}) == 7  # c.mid and d.mtf are the same piece


def test_hidden_states_of_files(embedder, files):
    states = embedder.embed_files([files["e.txt"], files["g.wav"]], pooled=False)
    assert states[0].shape[1] == 64 and states[1].shape == (2 + 2, 64)  # 7 s are two windows


def test_scores_midi_and_sound_come_as_paths_bytes_and_objects(embedder, files):
    score, midi, sound = files["a.MXL"], files["c.mid"], files["g.wav"]
    by_path, by_bytes = embedder.embed_musicxml([str(score), score.read_bytes()])
    np.testing.assert_allclose(by_bytes, by_path, atol=1e-6)  # sums may differ by their place in a batch
    np.testing.assert_allclose(embedder.embed_files([score])[0], by_path, atol=1e-6)
    objects = [midi, midi.read_bytes(), mido.MidiFile(file=io.BytesIO(midi.read_bytes()))]
    features = embedder.embed_midi(objects)
    np.testing.assert_allclose(features[1:], features[[0, 0]], atol=1e-6)
    samples, rate = soundfile.read(sound, dtype="float32")
    from_path, from_samples = embedder.embed_audio([sound]), embedder.embed_audio([samples], sampling_rate=rate)
    np.testing.assert_allclose(from_path, from_samples, atol=2e-5, rtol=1e-4)
    mono = embedder.embed_audio([samples.mean(axis=1)], sampling_rate=rate)
    np.testing.assert_allclose(from_path, mono, atol=2e-4, rtol=1e-3)


def test_sound_comes_in_any_layout(embedder, files):
    """soundfile's (samples, channels), librosa's and torchaudio's (channels, samples), with its rate, as a stream."""
    samples, rate = soundfile.read(files["g.wav"], dtype="float32")
    expected = embedder.embed_audio([samples], sampling_rate=rate)
    layouts = [samples.T, torch.from_numpy(samples.T.copy()), torch.from_numpy(samples)]
    found = embedder.embed_audio([*layouts, (samples, rate), (samples.T, rate)], sampling_rate=rate)
    np.testing.assert_allclose(found, expected.repeat(5, axis=0), atol=1e-5)
    with open(files["g.wav"], "rb") as stream:
        of_files = embedder.embed_audio([files["g.wav"].read_bytes(), stream, str(files["g.wav"])])
    np.testing.assert_allclose(of_files, expected.repeat(3, axis=0), atol=2e-5, rtol=1e-4)
    mono = samples.mean(axis=1)
    for layout in (mono[:, None], mono[None]):
        np.testing.assert_allclose(embedder.embed_audio([layout], rate), embedder.embed_audio([mono], rate), atol=1e-5)


@pytest.mark.parametrize("shape", [(), (2, 2, 24_000), (500, 24_000)])
def test_arrays_that_are_no_sound_are_refused(embedder, shape):
    with pytest.raises(ValueError, match="samples"):
        embedder.embed_audio([np.zeros(shape, np.float32)])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.doc", b"x", "a.doc: nothing here reads .doc"),
        ("a.mid", b"no midi", "a.mid: "),
        ("a.xml", b"<html/>", "a.xml: "),
        ("a.wav", b"no sound", "a.wav: cannot be decoded"),
        ("book.abc", b"X:1\nK:C\nC4|\nX:2\nK:C\nD4|\n", "book.abc: holds 2 tunes"),
    ],
)
def test_errors_name_the_file(embedder, files, tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        embedder.embed_files([files["e.txt"], tmp_path / name])
    with pytest.raises(OSError, match="missing.txt"):
        embedder.embed_files([tmp_path / "missing.txt"])


def test_repairs_are_warnings_that_name_their_file(embedder, files, tmp_path):
    """Among other files too, which a thread reads meanwhile."""
    sounds = [tmp_path / f"{number}.wav" for number in range(3)]
    for path in sounds:
        soundfile.write(path, np.ones(4000) * 0.1, 24_000)
    with pytest.warns(RepairWarning) as caught:
        embedder.embed_files([sounds[0], files["e.txt"], *sounds[1:], files["b.abc"]])
    said = {str(warning.message) for warning in caught}
    assert len(caught) == 3 and said == {f"{path}: 0.17 s of sound, repeated up to 1 s" for path in sounds}


def test_no_more_is_read_than_fits_into_two_chunks(small_model):
    """However many files there are, and of whatever modalities; those with an error go through."""
    small = Embedder(CLaMP3Model(small_model.sizes), small_model.sizes, batch_tokens=8)
    taken = []

    def items():
        for index in range(200):
            taken.append(index)
            if index % 50 == 7:
                yield Item(index, "text", error=ValueError("bad"))
            else:
                modality = ("text", "symbolic")[index % 2]
                text = "a reel" if modality == "text" else "M:4/4\nK:C\nC4|\n"
                yield Item(index, modality, getattr(small, f"encode_{modality}")(text))

    lead, found = 0, {}
    for item, feature in small.embed_items(items()):
        found[item.index] = feature
        lead = max(lead, len(taken) - len(found))
    assert sorted(found) == list(range(200)) and lead < 120
    assert [index for index in found if found[index] is None] == [7, 57, 107, 157]


def test_the_network_that_listens_is_loaded_with_the_first_sound_alone(small_model, files, monkeypatch):
    loaded = []
    real = Mert.from_pretrained
    monkeypatch.setattr(Mert, "from_pretrained", lambda *args: loaded.append(args[0]) or real(*args))
    embedder = new_embedder(small_model)
    embedder.embed_files([files["b.abc"], files["e.txt"]])
    assert not loaded
    embedder.embed_audio([files["h.flac"]])
    embedder.embed_files([files["h.flac"]])
    assert loaded == [MERT_TINY]


def test_many_scores_are_converted_in_processes_and_one_that_hangs_holds_up_nothing(embedder, tmp_path, monkeypatch):
    """The commands' way. Two of the files end or hold up their converter, and one is damaged."""
    texts = [tune.abc for tune in islice(folk_tunes(), 32)]
    contents = {f"{number}.abc": text for number, text in enumerate(texts)}
    contents |= {"kill.abc": "kill", "sleep.abc": "sleep 60", "bad.abc": "no tune", "words.txt": "A slow air"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr("clamp3.features.reading.read_file", converters.read_or_obey)
    paths = [tmp_path / name for name in contents]
    items = {paths[item.index].name: item for item in read_raw(embedder, paths, processes=Processes(2, time_limit=6))}
    assert items.keys() == contents.keys()
    errors = {name: str(item.error) for name, item in items.items() if item.error is not None}
    assert errors.keys() == {"kill.abc", "sleep.abc", "bad.abc"}
    assert "exit code -9" in errors["kill.abc"] and "takes longer than 6 s" in errors["sleep.abc"]
    expected = [embedder.encode_symbolic(text) for text in texts] + [embedder.encode_text("A slow air")]
    for name, sequence in zip([*map(str, range(32)), "words"], expected, strict=True):
        found = items[f"{name}.abc" if name != "words" else "words.txt"].content
        np.testing.assert_array_equal(found, sequence)
