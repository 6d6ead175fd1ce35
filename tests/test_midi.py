"""MIDI <-> MTF: the original's text, what mido reads, the way back, damaged files, and the scripts."""

import base64
import io
import itertools
import os
import re
import sys
import warnings
from pathlib import Path

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corpus
from clamp3.errors import RepairWarning
from clamp3.formats.midi import KEY_DATA, TEXT_KINDS, midi_to_mtf, mtf_to_midi
from conftest import ROOT, run
from golden_model import golden_json

GOLDEN = golden_json("mtf.json")
# A file of one track: a tempo, then a note whose end lies 96 ticks after its start.
HEADER = b"MThd\0\0\0\6\0\0\0\1\0\x60"
TEMPO, NOTE_ON, NOTE_OFF, END = b"\0\xff\x51\3\7\xa1\x20", b"\0\x90\x3c\x40", b"\x60\x80\x3c\0", b"\0\xff\x2f\0"
MTF = "ticks_per_beat 96\nset_tempo 500000 0\nnote_on 0 0 60 64\nnote_off 96 0 60 0\nend_of_track 0"


def chunk(name, data):
    return name + len(data).to_bytes(4, "big") + data


def track(*messages):
    return chunk(b"MTrk", b"".join(messages))


TRACK = track(TEMPO, NOTE_ON, NOTE_OFF, END)
MIDI = HEADER + TRACK


def plain_loop(data, m3_compatible=False, clip=False):
    """The MTF of a MIDI file by mido, message by message, as the original makes it."""
    midi = mido.MidiFile(file=io.BytesIO(data), clip=clip)
    lines = [f"ticks_per_beat {midi.ticks_per_beat}"]
    for message in midi.merged_track:
        if not (m3_compatible and message.type in TEXT_KINDS):
            lines.append(" ".join(map(str, message.dict().values())).encode("unicode_escape").decode())
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def no_repairs():
    """A file that is whole gives no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepairWarning)
        yield


# ---------- the text of undamaged files, and the way back ----------


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_texts_are_the_originals_and_come_back_from_midi(case):
    midi = base64.b64decode(case["midi_base64"])
    assert midi_to_mtf(midi) == case["mtf"]
    assert midi_to_mtf(midi, m3_compatible=True) == case["mtf_m3_compatible"]
    for text in (case["mtf"], case["mtf_m3_compatible"]):
        assert midi_to_mtf(mtf_to_midi(text)) == plain_loop(mtf_to_midi(text)) == text


@pytest.fixture(scope="module")
def scores():
    return [data for _, data in itertools.islice(corpus.scores(12), 12)]


def test_scores_are_read_as_mido_reads_them(scores):
    for data in scores:
        for m3_compatible in (False, True):
            text = midi_to_mtf(data, m3_compatible)
            assert text == plain_loop(data, m3_compatible)
            assert midi_to_mtf(mtf_to_midi(text)) == text


def test_bytes_paths_and_objects_of_mido_give_one_text(tmp_path):
    path = tmp_path / "note.mid"
    path.write_bytes(MIDI)
    assert midi_to_mtf(path) == midi_to_mtf(str(path)) == midi_to_mtf(MIDI) == midi_to_mtf(mido.MidiFile(path)) == MTF
    path.with_suffix(".mtf").write_bytes(MTF.replace("\n", "\r\n").encode())
    assert mtf_to_midi(path.with_suffix(".mtf")) == mtf_to_midi(MTF) == mtf_to_midi(MTF + "\n")
    midi = mido.MidiFile(path)
    midi.tracks[0][1].time = 0.5
    with pytest.raises(ValueError, match="time must be int"):
        midi_to_mtf(midi)


CHANNEL, DATA, BYTE = st.sampled_from([0, 0, 0, 9, 15]), st.integers(0, 127), st.integers(0, 255)
MESSAGES = {
    **dict.fromkeys(("note_on", "note_off"), {"channel": CHANNEL, "note": DATA, "velocity": DATA}),
    "polytouch": {"channel": CHANNEL, "note": DATA, "value": DATA},
    "control_change": {"channel": CHANNEL, "control": DATA, "value": DATA},
    "program_change": {"channel": CHANNEL, "program": DATA},
    "aftertouch": {"channel": CHANNEL, "value": DATA},
    "pitchwheel": {"channel": CHANNEL, "pitch": st.integers(-8192, 8191)},
    "sysex": {"data": st.lists(DATA, max_size=200)},
    "quarter_frame": {"frame_type": st.integers(0, 7), "frame_value": st.integers(0, 15)},
    "songpos": {"pos": st.integers(0, 16383)},
    "song_select": {"song": DATA},
}
TEXT = st.text(st.characters(max_codepoint=255), max_size=200)
NAMED = ("track_name", "instrument_name", "device_name")
METAS = {
    **{name: {"name" if name in NAMED else "text": TEXT} for name in TEXT_KINDS},
    "sequence_number": {"number": st.integers(0, 65535)},
    "channel_prefix": {"channel": BYTE},
    "midi_port": {"port": BYTE},
    "end_of_track": {},
    "set_tempo": {"tempo": st.integers(0, 2**24 - 1)},
    "smpte_offset": {
        "frame_rate": st.sampled_from([24, 25, 29.97, 30]),
        "hours": st.integers(0, 31),
        "minutes": st.integers(0, 59),
        "seconds": st.integers(0, 59),
        "frames": BYTE,
        "sub_frames": st.integers(0, 99),
    },
    "time_signature": {
        "numerator": BYTE,
        "denominator": st.integers(0, 16).map(lambda power: 2**power),
        "clocks_per_click": BYTE,
        "notated_32nd_notes_per_beat": BYTE,
    },
    "key_signature": {"key": st.sampled_from(sorted(KEY_DATA))},
    "sequencer_specific": {"data": st.lists(BYTE, max_size=200).map(tuple)},
}
TIME = st.integers(0, 1000) | st.integers(0, 2**22)
UNKNOWN = st.builds(mido.UnknownMetaMessage, st.sampled_from([0x08, 0x4B, 0xF0]), st.lists(BYTE, max_size=9), TIME)


def messages(message_type, kinds):
    return st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.builds(message_type, st.just(kind), time=TIME, **kinds[kind])
    )


KNOWN = messages(mido.Message, MESSAGES) | messages(mido.MetaMessage, METAS)


def files(message):
    """MIDI files written by mido, which uses running status."""

    def write(tracks, ticks_per_beat):
        buffer = io.BytesIO()
        midi = mido.MidiFile(type=1, ticks_per_beat=ticks_per_beat)
        midi.tracks = [mido.MidiTrack(track) for track in tracks]
        midi.save(file=buffer)
        return buffer.getvalue()

    tracks = st.lists(st.lists(message, max_size=30), min_size=1, max_size=4)
    return st.builds(write, tracks, st.integers(-32768, 32767))


@given(files(KNOWN | UNKNOWN), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_file_is_read_as_mido_reads_it(data, m3_compatible):
    assert midi_to_mtf(data, m3_compatible) == plain_loop(data, m3_compatible)


@given(files(KNOWN), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_from_midi(data, m3_compatible):
    text = midi_to_mtf(data, m3_compatible)
    assert midi_to_mtf(mtf_to_midi(text)) == plain_loop(mtf_to_midi(text)) == text


def test_system_messages_come_back_too():
    kinds = ("tune_request", "clock", "start", "continue", "stop", "active_sensing")
    text = "\n".join(["ticks_per_beat 96", *(f"{kind} {time}" for time, kind in enumerate(kinds)), "end_of_track 0"])
    assert midi_to_mtf(mtf_to_midi(text)) == plain_loop(mtf_to_midi(text)) == text


def test_unknown_meta_messages_come_back_but_for_their_times():
    text = "ticks_per_beat 96\nnote_on 5 0 60 64\nunknown_meta 75 (1, 200) 96\nnote_off 4 0 60 0\nend_of_track 0"
    back = midi_to_mtf(mtf_to_midi(text))
    assert back == text.replace("200) 96", "200) 0").replace("note_off 4", "note_off 100")
    assert back == plain_loop(mtf_to_midi(text))


@pytest.mark.parametrize(
    "line, number, said",
    [
        ("\nclock 0", 2, "there is no message type ''"),
        ("note_up 0 0 60 64", 2, "there is no message type 'note_up'"),
        ("note_on 0 0 60", 2, "'0 0 60' should be 4 numbers"),
        ("note_on 0 0 60 128", 2, "'128' is not a number from 0 to 127"),
        ("note_on 0 16 60 64", 2, "'16' is not a number from 0 to 15"),
        ("note_on -1 0 60 64", 2, "'-1' is not a number from 0 to 268435455"),
        ("note_on 0.5 0 60 64", 2, "'0.5' is not a number"),
        (f"note_on {'9' * 5000} 0 60 64", 2, "is not a number"),
        ("pitchwheel 0 0 8192", 2, "'8192' is not a number from -8192 to 8191"),
        ("sysex 0 [1, 128]", 2, r"'\[1, 128\]' is not a list of numbers from 0 to 127"),
        ("sysex 0 (1, 2)", 2, "is not a list of numbers"),
        ("sequencer_specific (1, 300) 0", 2, r"is not a tuple of numbers from 0 to 255"),
        ("time_signature 4 3 24 8 0", 2, "3 is not a power of 2"),
        ("key_signature H 0", 2, "'H' is not a key"),
        ("smpte_offset 26 1 2 3 4 5 0", 2, "'26' is not a frame rate"),
        (r"text \q 0", 2, "is not Latin-1 in Python's escapes"),
        (r"text \u66f2 0", 2, "is not Latin-1 in Python's escapes"),
        ("text 曲 0", 2, "is not Latin-1 in Python's escapes"),
        ("end_of_track 0\nnote_on 0 0 60 64", 2, "end_of_track before the last line"),
        ("note_on 0 0 60 64\nset_tempo 16777216 0", 3, "'16777216' is not a number from 0 to 16777215"),
    ],
)
def test_lines_that_are_no_mtf_are_named(line, number, said):
    with pytest.raises(ValueError, match=f"^line {number}: .*{said}"):
        mtf_to_midi(f"ticks_per_beat 96\n{line}")


@pytest.mark.parametrize("text", ["", "X:1", "ticks_per_beat", "ticks_per_beat 99999"])
def test_text_without_mtfs_first_line_is_refused(text):
    with pytest.raises(ValueError, match="^line 1: "):
        mtf_to_midi(text)


# ---------- what is refused, and what is read though it is damaged ----------


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "empty file"),
        (b"X:1\nK:C\nCDEF|\n", "not a MIDI file"),
        (b"RIFF....WAVEfmt ", "not a MIDI file"),
        (MIDI[:9], "not a MIDI file"),
        (MIDI[:14], "without a track"),
        (MIDI[:25], "no message in it can be read"),
        (MIDI.replace(HEADER, b"MThd\0\0\0\6\0\2\0\1\0\x60"), "type 2"),
    ],
)
def test_what_holds_no_midi_is_refused(data, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        with pytest.raises(ValueError, match=said):
            midi_to_mtf(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.mid"):
        midi_to_mtf(tmp_path / "none.mid")


RIFF = b"RIFF" + (len(MIDI) + 32).to_bytes(4, "little") + b"RMIDdata" + len(MIDI).to_bytes(4, "little") + MIDI
LONG_HEADER = b"MThd\0\0\0\x08\0\0\0\1\0\x60\0\0"


@pytest.mark.parametrize(
    "data, said",
    [
        (RIFF + b"LIST\4\0\0\0INFO", "taken out of a RIFF file"),
        (b"\0" * 128 + MIDI, "bytes before the header are skipped"),
        (HEADER + chunk(b"XFIH", b"abc") + TRACK, "bytes that belong to no track are skipped"),
        (MIDI + b"\0\0junk", "bytes that belong to no track are skipped"),
        (MIDI.replace(b"MThd\0\0\0\6", b"MThd\0\0\7\6"), "the header is not as long as it says"),
        (MIDI.replace(HEADER, HEADER[:10] + b"\0\3\0\x60"), "the header says 3 tracks, there are 1"),
        (MIDI.replace(HEADER, HEADER[:10] + b"\0\0\0\x60"), "the header says 0 tracks, there are 1"),
        (HEADER + b"MTrk\0\0\0\x0a" + TRACK[8:], "a track is not as long as it says"),
        (HEADER + b"MTrk\0\0\0\xff" + TRACK[8:], "a track is not as long as it says"),
        (HEADER + b"MTrk\0\0\0\x0a" + TRACK[8:] + b"junk", "a track is not as long as it says"),
        (MIDI[: -len(END)], "a track breaks off"),
        (MIDI[:-1], "a track breaks off"),
        (HEADER + track(TEMPO, NOTE_ON, NOTE_OFF, b"\0\x90\x40"), "a track breaks off"),
        (HEADER + track(TEMPO, NOTE_ON, NOTE_OFF, b"\x81\x82\x83\x84\x05\x90\x40\x40", END), "a track breaks off"),
        (HEADER + track(TEMPO, NOTE_ON, NOTE_OFF, b"\0\xff\x01\x70abc"), "a track breaks off"),
        (HEADER + track(b"\0\x40\x50", TEMPO, NOTE_ON, NOTE_OFF, END), "data bytes without a status are skipped"),
        (HEADER + track(TEMPO, b"\0\xf4", NOTE_ON, NOTE_OFF, END), "status bytes that MIDI does not have are skipped"),
        *(
            (HEADER + track(b"\0\xff", meta, TEMPO, NOTE_ON, NOTE_OFF, END), "meta messages that are too short")
            for meta in (
                b"\x51\2\7\xa1",  # a tempo
                b"\x58\3\4\2\x18",  # a time signature
                b"\x59\2\x0c\0",  # a key of twelve sharps
                b"\x59\2\0\7",  # the seventh mode
                b"\x59\0",
                b"\x54\5\x80\0\0\0\0",  # a frame rate
                b"\x00\1\1",  # a sequence number
                b"\x20\0",  # a channel prefix
            )
        ),
    ],
)
def test_damage_that_leaves_the_music_whole(data, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert midi_to_mtf(data) == MTF
    assert said in (messages := [str(warning.message)[: len(said)] for warning in caught])
    assert len(set(messages)) == len(messages) <= 2
    with pytest.raises(RepairWarning):  # as an error, which --strict makes of it
        midi_to_mtf(data)


def test_a_header_longer_than_usual_is_no_damage():
    assert midi_to_mtf(LONG_HEADER + TRACK) == plain_loop(LONG_HEADER + TRACK) == MTF


def test_data_bytes_over_127_are_read_as_mido_reads_them_if_told_so():
    data = HEADER + track(NOTE_ON, b"\0\x90\xbc\x40\0\xf0\3\x7e\x90\xf7\0\xe0\x81\x82", NOTE_OFF, END)
    with pytest.warns(RepairWarning, match=r"over 127 are read as 127 \(3 times\)"):
        assert midi_to_mtf(data) == plain_loop(data, clip=True)


def test_running_status_goes_on_after_meta_and_system_messages():
    running = b"\0\x3c\0"
    for whole in ([NOTE_ON, TEMPO, running], [b"\0\xf0\2\1\xf7", NOTE_ON, running]):
        data = HEADER + track(*whole, END)
        assert midi_to_mtf(data) == plain_loop(data)
    with pytest.warns(RepairWarning, match="running status after a system message"):
        text = midi_to_mtf(HEADER + track(NOTE_ON, b"\0\xf0\2\1\xf7", running, b"\0\xf8", running, END))
    notes = ["note_on 0 0 60 64", "sysex 0 [1]", "note_on 0 0 60 0", "clock 0", "note_on 0 0 60 0"]
    assert text.split("\n")[1:-1] == notes


def test_a_damaged_track_leaves_the_others_whole():
    broken = track(NOTE_ON, b"\x81\x82\x83\x84\x05\x90\x40\x40", END)
    data = HEADER[:8] + b"\0\1\0\2\0\x60" + broken + TRACK
    with pytest.warns(RepairWarning, match="a track breaks off"):
        assert midi_to_mtf(data) == MTF.replace("\nset_tempo", "\nnote_on 0 0 60 64\nset_tempo")


@given(st.sampled_from(GOLDEN), st.data())
@settings(max_examples=100, deadline=None)
def test_any_damage_is_read_or_refused_and_what_is_read_comes_back(case, data):
    damaged = bytearray(base64.b64decode(case["midi_base64"]))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    start, end = (data.draw(st.just(0) | st.integers(0, len(damaged))) for _ in range(2))
    del damaged[start:end]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        try:
            text = midi_to_mtf(bytes(damaged))
        except ValueError:
            return
    if "unknown_meta" not in text and max(map(int, re.findall("[0-9]+", text))) < 2**28:  # no time is too long
        assert midi_to_mtf(mtf_to_midi(text)) == text


# ---------- the scripts ----------


def script(name, *arguments, check=0):
    return run(sys.executable, ROOT / "preprocessing" / "midi" / f"batch_{name}.py", *arguments, cwd="/", check=check)


def test_scores_go_to_mtf_and_back_by_the_documented_commands(tmp_path, scores):
    source, texts, back = (tmp_path / name for name in ("midi", "mtf", "back"))
    (source / "sub").mkdir(parents=True)
    for number, data in enumerate(scores):
        name = f"sub/{number}.MIDI" if number % 2 else f"{number}.mid"
        (source / name).write_bytes(data)
    assert "12 written" in script("midi2mtf", source, texts, "--m3_compatible").stdout
    for number, data in enumerate(scores):
        path = texts / "sub" / f"{number}.mtf" if number % 2 else texts / f"{number}.mtf"
        assert path.read_text() == plain_loop(data, m3_compatible=True)
    assert "12 already there" in script("midi2mtf", source, texts, "--m3_compatible").stdout

    assert "12 written" in script("mtf2midi", texts, back).stdout
    assert plain_loop((back / "sub" / "7.mid").read_bytes()) == (texts / "sub" / "7.mtf").read_text()
    (texts / "bad.mtf").write_text("ticks_per_beat 96\nnote_on 0 0 60")
    failed = script("mtf2midi", texts, back, check=1)
    assert "bad.mtf" in failed.stdout and "line 2: '0 0 60' should be 4 numbers" in failed.stdout


def test_strict_refuses_what_is_read_with_a_warning_otherwise(tmp_path):
    source, texts = tmp_path / "midi", tmp_path / "mtf"
    source.mkdir()
    (source / "whole.mid").write_bytes(MIDI)
    (source / "cut.mid").write_bytes(MIDI[:-1])
    assert "cut.mid  a track breaks off" in script("midi2mtf", source, texts, "--strict", check=1).stdout
    assert sorted(os.listdir(texts)) == ["failures.jsonl", "whole.mtf"]


# ---------- what players and mido read ----------

CASES = Path(__file__).parent / "cases" / "midi"
FOUR_NOTES = [f"note_{kind} {time} 0 {key} {force}" for key in (60, 62, 64, 65) for kind, time, force in
              (("on", 0, 80), ("off", 240, 64))]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "before", "said"),
    [
        ("after_eot_garbage.mid", [], "behind the end of a track"),
        ("rmi_list_before_400.rmi", ["set_tempo 500000 0"], "out of a RIFF file"),
        ("realtime_inside_msg.mid", ["note_on 0 0 60 80"], "real-time bytes inside a message"),
        ("vlq5.mid", ["note_on 16 0 60 80", "note_off 96 0 60 0"], None),
    ],
)
def test_public_kinds_of_odd_files(name, before, said):
    remarks = []
    text = midi_to_mtf(CASES / name, note=remarks.append)
    assert text.split("\n")[1:-1] == [*before, *FOUR_NOTES]
    assert len(remarks) == (said is not None) and all(said in remark for remark in remarks)


def test_numbers_are_padded_to_any_length_as_mido_reads_them():
    for zeros in range(1, 8):
        data = HEADER + track(b"\x80" * zeros + NOTE_ON, b"\x80" * zeros + NOTE_OFF, END)
        assert midi_to_mtf(data) == plain_loop(data)


@pytest.mark.parametrize("byte", range(0xF8, 0x100))
@pytest.mark.parametrize("place", [2, 3])
def test_real_time_bytes_within_a_message_leave_it_whole(byte, place):
    whole = HEADER + track(TEMPO, NOTE_ON, NOTE_OFF, END)
    split_message = NOTE_ON[:place] + bytes((byte,)) * 2 + NOTE_ON[place:]
    with pytest.warns(RepairWarning, match="real-time bytes inside"):
        assert midi_to_mtf(HEADER + track(TEMPO, split_message, NOTE_OFF, END)) == plain_loop(whole)


@pytest.mark.parametrize("byte", range(0xF8, 0xFF))
def test_real_time_bytes_between_a_time_and_its_message_leave_it_whole(byte):
    whole = HEADER + track(TEMPO, NOTE_ON, NOTE_OFF, END)
    data = HEADER + track(TEMPO, NOTE_ON[:1] + bytes((byte,)) + NOTE_ON[1:], NOTE_OFF, END)
    with pytest.warns(RepairWarning, match="real-time bytes before"):
        assert midi_to_mtf(data) == plain_loop(whole)


def test_a_value_that_is_too_large_is_still_one():
    data = HEADER + track(TEMPO, NOTE_ON[:-1] + b"\xff", NOTE_OFF, END)
    with pytest.warns(RepairWarning, match="over 127 are read as 127"):
        assert midi_to_mtf(data) == plain_loop(data, clip=True)


@pytest.mark.parametrize("lead", [200, 400, 70_000])
def test_midi_is_found_behind_any_lead(lead):
    riff = b"RIFF\0\0\0\0RMIDLIST" + lead.to_bytes(4, "little") + b"\0" * lead
    whole = riff + b"data" + len(MIDI).to_bytes(4, "little") + MIDI
    for data in (b"\0" * lead + MIDI, whole, riff + b"data\0\0\0\0" + MIDI):
        with pytest.warns(RepairWarning, match="RIFF|before the header"):
            assert midi_to_mtf(data) == MTF
