"""The Embedder's methods in other people's programs: bad items among good ones, kinds told by type, similarities."""

import io
from inspect import signature
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
import torch

from clamp3 import Embedder, top_k
from clamp3.errors import RepairWarning
from clamp3.formats.midi import mtf_to_midi

JIG = "X:1\nL:1/8\nM:6/8\nK:D\n|: dAF DFA | ded cBA | dcd efg | fdf ecA :|\n"
REEL = "X:1\nL:1/8\nM:4/4\nK:G\n|: GABd g2 fg | agfe d2 BA | GABd gfga | b2 a2 g4 :|\n"
MTF = "ticks_per_beat 480\nnote_on 0 0 60 80\nnote_off 480 0 60 80\n"
XML = (
    b'<score-partwise><part-list><score-part id="P1"><part-name/></score-part></part-list><part id="P1"><measure '
    b'number="1"><attributes><divisions>1</divisions></attributes><note><pitch><step>C</step><octave>4</octave>'
    b"</pitch><duration>4</duration></note></measure></part></score-partwise>"
)


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder.from_pretrained("tiny", "cpu")


def tone(seconds: float = 3.0) -> np.ndarray:
    return np.sin(np.arange(int(24_000 * seconds)) / 20).astype(np.float32)


def cases(tiny: Embedder, folder: Path) -> dict[str, tuple[list, int, list]]:
    """For each method: items, the place of the bad one, and the good ones."""
    (folder / "jig.abc").write_text(JIG)
    (folder / "bad.abc").write_text("K:C\n")
    (folder / "text.txt").write_text("a jig")
    frames = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    midi = mtf_to_midi(MTF)
    return {
        "embed_text": (["a jig", "", "a reel"], 1, ["a jig", "a reel"]),
        "embed_symbolic": ([JIG, REEL, "K:C\n"], 2, [JIG, REEL]),
        "embed_audio_features": ([frames[:0], frames], 0, [frames]),
        "embed_midi": ([midi, b"no midi", midi], 1, [midi, midi]),
        "embed_musicxml": ([XML, b"<score-partwise>"], 1, [XML]),
        "embed_audio": ([tone(), b"no sound"], 1, [tone()]),
        "embed_files": (
            [folder / n for n in ("jig.abc", "bad.abc", "text.txt")],
            1,
            [folder / "jig.abc", folder / "text.txt"],
        ),
        "embed_any": (["a jig", "", JIG, folder / "text.txt"], 1, ["a jig", JIG, folder / "text.txt"]),
    }


METHODS = ["embed_text", "embed_symbolic", "embed_audio_features", "embed_midi", "embed_musicxml", "embed_audio"]


@pytest.mark.parametrize("method", [*METHODS, "embed_files", "embed_any"])
@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_a_bad_item_does_not_cost_the_others(tiny, tmp_path, method):
    items, bad, good = cases(tiny, tmp_path)[method]
    embed = getattr(tiny, method)
    expected = embed(good)
    name = str(items[bad]) if isinstance(items[bad], Path) else f"item {bad}"
    with pytest.raises(ValueError, match=name):
        embed(items)
    with pytest.warns(RepairWarning, match=f"left out, {name}: "):
        np.testing.assert_allclose(embed(items, errors="skip"), expected, atol=1e-6)
    features, errors = embed(items, errors="return")
    assert list(errors) == [bad] and isinstance(errors[bad], Exception) and np.isnan(features[bad]).all()
    np.testing.assert_allclose(np.delete(features, bad, axis=0), expected, atol=1e-6)
    states, _ = embed(items, pooled=False, errors="return")
    assert states[bad] is None and sum(one is not None for one in states) == len(good)
    assert [one.shape for one in embed(items, pooled=False, errors="skip")] == [
        one.shape for one in embed(good, pooled=False)
    ]


def test_wrong_options_are_refused(tiny):
    with pytest.raises(ValueError, match='errors must be "raise", "skip" or "return"'):
        tiny.embed_text(["a"], errors="ignore")
    with pytest.raises(ValueError, match="batch_tokens must be 1 or more, not 0"):
        Embedder.from_pretrained("tiny", batch_tokens=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_tokens": -3}, "batch_tokens must be 1 or more, not -3"),
        ({"batch_tokens": 2.5}, "batch_tokens must be a whole number, not 2.5"),
        ({"batch_tokens": "64"}, "batch_tokens must be a whole number, not '64'"),
        ({"batch_tokens": True}, "batch_tokens must be a whole number, not True"),
        ({"workers": -1}, "workers must be 0 or more, not -1"),
        ({"workers": 1.5}, "workers must be a whole number, not 1.5"),
        ({"k": 0}, "k must be 1 or more, not 0"),
        ({"k": "all"}, "k must be a whole number, not 'all'"),
    ],
)
def test_counts_are_checked(tiny, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        if "batch_tokens" in options:
            Embedder.from_pretrained("tiny", **options)
        elif "workers" in options:
            tiny.embed_files([], **options)
        else:
            tiny.top_k(["a"], ["b"], **options)
    assert Embedder.from_pretrained("tiny", batch_tokens=np.int64(64)).batch_tokens == 64


EVERY_METHOD = [*METHODS, "embed_files", "embed_any"]
COMPARING = ["similarity", "scores", "top_k"]


@pytest.mark.parametrize("method", [*EVERY_METHOD, *COMPARING])
def test_one_item_in_place_of_a_list_is_refused(tiny, method):
    midi = mido.MidiFile(file=io.BytesIO(mtf_to_midi(MTF)))
    singles = ["a jig", b"MThd", bytearray(b"MThd"), Path("a.mid"), midi, io.BytesIO(b"MThd"), {"array": [0.0]}]
    for item in (*singles, (tone(), 24_000), tone(), torch.zeros(3), None, 7):
        named = rf"give a list of items, {method}\(\[item\]\), not one {type(item).__name__}"
        with pytest.raises(ValueError, match=named):
            getattr(tiny, method)(item, *([["a reel"]] if method in COMPARING else ()))
        if method in COMPARING:
            with pytest.raises(ValueError, match=named):
                getattr(tiny, method)(["a reel"], item)


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("wrong", [None, 7, ["a"], {}, object()], ids=lambda item: type(item).__name__)
@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_an_item_of_a_wrong_type_is_named_and_costs_no_other(tiny, tmp_path, method, wrong):
    items, bad, good = cases(tiny, tmp_path)[method]
    items = [*items[:bad], wrong, *items[bad + 1 :]]
    embed = getattr(tiny, method)
    with pytest.raises(ValueError, match=f"^item {bad}: ") as raised:
        embed(items)
    if method not in ("embed_audio_features", "embed_audio", "embed_midi", "embed_musicxml"):
        assert type(wrong).__name__ in str(raised.value) or method == "embed_any" and isinstance(wrong, list | dict)
    features, errors = embed(items, errors="return")
    assert list(errors) == [bad]
    np.testing.assert_allclose(np.delete(features, bad, axis=0), embed(good), atol=1e-6)


def test_errors_tell_queries_from_references(tiny):
    for method in COMPARING:
        with pytest.raises(ValueError, match="^query 1: empty"):
            getattr(tiny, method)(["a", ""], ["b", "c"])
        with pytest.raises(ValueError, match="^reference 0: a|^reference 0: .*NoneType"):
            getattr(tiny, method)(["a", "b"], [None, "c"])


@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_rows_of_sound_as_datasets_has_them(tiny):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 24_000, format="WAV", subtype="FLOAT")
    rows = [{"array": tone(), "sampling_rate": 24_000}, {"bytes": buffer.getvalue(), "path": None}]
    expected = tiny.embed_audio([tone()] * 2)
    np.testing.assert_allclose(tiny.embed_audio(rows), expected, atol=1e-4)
    np.testing.assert_allclose(tiny.embed_any(rows), expected, atol=1e-4)
    with pytest.raises(ValueError, match="item 0: sound in a dict has an array and a sampling_rate"):
        tiny.embed_audio([{"array": tone()}])


def test_an_unreadable_file_object_is_named(tiny):
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError("the disk is gone")

    with pytest.raises((OSError, ValueError), match="item 0: "):
        tiny.embed_audio([Broken()])


def test_all_methods_take_the_same_options():
    for method in EVERY_METHOD:
        parameters = signature(getattr(Embedder, method)).parameters
        assert parameters["errors"].default == "raise" and parameters["progress"].default is False
        assert parameters["layers"].default == "last" and parameters["projected"].default is False


def test_a_bar_counts_the_items(tiny, capsys):
    tiny.embed_text(["a", "b", "c"], progress=True)
    assert "3/3" in capsys.readouterr().err
    tiny.embed_text(["a"])
    assert not capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_kinds_are_told_by_type(tiny, tmp_path):
    (tmp_path / "jig.abc").write_text(JIG)
    midi = mtf_to_midi(MTF)
    utf_16 = b"\xff\xfe" + XML.decode().encode("utf-16-le")
    items = [midi, "a jig", tone(), MTF, JIG, (tone(), 24_000), XML, utf_16, tmp_path / "jig.abc"]
    expected = [
        *(tiny.embed_midi([midi]), tiny.embed_text(["a jig"]), tiny.embed_audio([tone()]), tiny.embed_symbolic([MTF])),
        *(tiny.embed_symbolic([JIG]), tiny.embed_audio([tone()]), tiny.embed_musicxml([XML])),
        *(tiny.embed_musicxml([XML]), tiny.embed_symbolic([JIG])),
    ]
    np.testing.assert_allclose(tiny.embed_any(items), np.concatenate(expected), atol=1e-5)
    texts = ["K: is a letter", "A tune in C|D major", "X: the unknown"]
    np.testing.assert_allclose(tiny.embed_any(texts), tiny.embed_text(texts), atol=1e-6)


@pytest.mark.filterwarnings("ignore::clamp3.errors.RepairWarning")
def test_similarities_are_cosines(tiny):
    texts, music = ["Irish jig in D major", "reel"], [JIG, REEL, tone()]
    a, b = (
        embed / np.linalg.norm(embed, axis=1, keepdims=True)
        for embed in (tiny.embed_any(texts), tiny.embed_any(music))
    )
    np.testing.assert_allclose(tiny.similarity(texts, music), a @ b.T, atol=1e-6)
    np.testing.assert_allclose(tiny.similarity(tiny.embed_text(texts), music), a @ b.T, atol=1e-6)
    np.testing.assert_allclose(tiny.scores(texts, music[:2]), np.diag(a @ b.T), atol=1e-6)
    for found, expected in zip(tiny.top_k(texts, music, k=2), top_k(a, b, 2), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    ready = tiny.embed_any(music)
    tensor = torch.from_numpy(ready)
    for rows in (ready, list(ready), tuple(ready), tensor, list(tensor), list(tensor.bfloat16().requires_grad_())):
        np.testing.assert_allclose(tiny.similarity(texts, rows), a @ b.T, atol=1e-2)  # of bfloat16
        np.testing.assert_array_equal(tiny.top_k(texts, rows, k=1)[0], tiny.top_k(texts, music, k=1)[0])
    np.testing.assert_array_equal(tiny.similarity(texts, list(ready)), tiny.similarity(texts, ready))
    for other in ([np.ones(768, np.float32)], list(tensor[:, :64])):
        with pytest.raises(ValueError, match=r"features must be \(n, 128\)"):
            tiny.similarity(texts, other)
    with pytest.raises(ValueError, match="2 queries and 3 references do not make pairs"):
        tiny.scores(texts, music)
    with pytest.raises(ValueError, match=r"features must be \(n, 128\)"):
        tiny.similarity(np.zeros((2, 3), np.float32), texts)
