"""The Embedder's methods in other people's programs: bad items among good ones, kinds told by type, similarities."""

from inspect import signature
from pathlib import Path

import numpy as np
import pytest

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
    if method != "embed_any":
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


def test_all_methods_take_the_same_options():
    for method in [*METHODS, "embed_files", "embed_any"]:
        parameters = signature(getattr(Embedder, method)).parameters
        assert parameters["errors"].default == "raise" and parameters["progress"].default is False


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
    with pytest.raises(ValueError, match="2 queries and 3 references do not make pairs"):
        tiny.scores(texts, music)
    with pytest.raises(ValueError, match=r"features must be \(n, 128\)"):
        tiny.similarity(np.zeros((2, 3), np.float32), texts)
