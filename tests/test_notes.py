"""The notes of ABC tunes, on small cases by hand and on the whole corpus."""

import numpy as np
import pytest

from clamp3.formats.midi import midi_to_mtf, mtf_to_midi
from notes import INSTRUMENTS, contour, read_melody, to_mtf, to_sound

HEAD = "L:1/8\nM:4/4\nK:D\nV:1 treble\n"


def notes(music: str, head: str = HEAD) -> list[tuple[float, float, int]]:
    return [(round(note.start, 3), round(note.length, 3), note.pitch) for note in read_melody(head + music).notes]


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("[V:1]F2 c'|", [(0, 1, 66), (1, 0.5, 85)]),  # the key's F sharp and C sharp
        ("[V:1]=F F|F|", [(0, 0.5, 65), (0.5, 0.5, 65), (1, 0.5, 66)]),  # an accidental holds up to the barline
        ("[V:1]A>B|", [(0, 0.75, 69), (0.75, 0.25, 71)]),
        ("[V:1]A<B|", [(0, 0.25, 69), (0.25, 0.75, 71)]),
        ("[V:1](3ABA D|", [(0, 0.333, 69), (0.333, 0.333, 71), (0.667, 0.333, 69), (1, 0.5, 62)]),
        ("[V:1]A2-|\n[V:1]A z3/2 D,/|", [(0, 1.5, 69), (2.25, 0.25, 50)]),
        ('[V:1][DA]2 {g}!trill!"D7"D|', [(0, 1, 62), (0, 1, 69), (1, 0.5, 62)]),
        ("[V:1][K:C]F [1 A|[V:1]:|]", [(0, 0.5, 65), (0.5, 0.5, 69)]),
    ],
)
def test_small_cases(music, expected):
    assert notes(music) == expected


def test_signatures():
    melody = read_melody("M:C|\nL:1/8\nK:Ador\nV:1\n[V:1]A|")
    assert melody.metre == (2, 2) and melody.fifths == 1
    assert read_melody("M:none\nL:1/8\nK:none\nV:1\n[V:1]A|").metre is None


def test_copies_share_their_contour():
    tune, copy = "[V:1]D2 FA d2|", "[V:1]F AcF' z|"
    assert contour(read_melody(HEAD + tune)) == contour(read_melody(HEAD.replace("K:D", "K:G") + "[V:1]GBdg|"))
    assert contour(read_melody(HEAD + tune)) != contour(read_melody(HEAD + copy))


def test_the_corpus_reads_as_midi_that_comes_back(corpus_tunes):
    for tune in corpus_tunes[::100]:
        melody = read_melody(tune.abc)
        assert melody.notes, tune.name
        assert all(0 < note.length < 40 for note in melody.notes), tune.name
        mtf = to_mtf(melody)
        assert midi_to_mtf(mtf_to_midi(mtf), m3_compatible=True) == mtf


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_sound_has_the_pitch_of_its_note(instrument):
    rate = 24_000
    sound = to_sound(read_melody(HEAD + "[V:1]A4|"), 10, rate, instrument)
    assert sound.dtype == np.float32 and len(sound) == rate  # two beats at 120 to the minute
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.fft.rfftfreq(len(sound), 1 / rate)[spectrum.argmax()] == pytest.approx(440, abs=1)
