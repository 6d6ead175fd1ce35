"""MIDI -> MTF."""

import base64

import pytest

from clamp3.convert.midi import midi_to_mtf
from golden_model import golden_json

# A file of one track: a tempo, then a note whose end lies 96 ticks after its start.
HEADER = b"MThd\0\0\0\6\0\0\0\1\0\x60"
TRACK = b"\0\xff\x51\3\7\xa1\x20\0\x90\x3c\x40\x60\x80\x3c\0\0\xff\x2f\0"
MIDI = HEADER + b"MTrk" + len(TRACK).to_bytes(4, "big") + TRACK


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_json("mtf.json"), ids=lambda case: case["name"])
def test_texts_are_the_originals(case):
    midi = base64.b64decode(case["midi_base64"])
    assert midi_to_mtf(midi) == case["mtf"]
    assert midi_to_mtf(midi, m3_compatible=True) == case["mtf_m3_compatible"]


def test_a_path_and_its_bytes_give_one_text(tmp_path):
    path = tmp_path / "note.mid"
    path.write_bytes(MIDI)
    expected = "ticks_per_beat 96\nset_tempo 500000 0\nnote_on 0 0 60 64\nnote_off 96 0 60 0\nend_of_track 0"
    assert midi_to_mtf(path) == midi_to_mtf(MIDI) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b"X:1\nK:C\nCDEF|\n", b"RIFF....WAVEfmt ", MIDI[:-8], MIDI[:9], MIDI.replace(b"\x3c\x40", b"\x3c\xc0")],
    ids=["empty", "abc", "wave", "cut short", "cut in the header", "damaged"],
)
def test_what_is_not_midi_is_refused(data):
    with pytest.raises(ValueError, match="empty file|not a whole MIDI file"):
        midi_to_mtf(data)


def test_tracks_without_a_common_time_are_refused():
    with pytest.raises(ValueError, match="type 2"):
        midi_to_mtf(MIDI.replace(HEADER, b"MThd\0\0\0\6\0\2\0\1\0\x60"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.mid"):
        midi_to_mtf(tmp_path / "none.mid")
