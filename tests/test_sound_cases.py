"""Sound files as they come from pipes, killed recorders and damaged disks, against what FFmpeg's own command gives."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clamp3.formats.audio import read_audio, sound_blocks

CASES = Path(__file__).parent / "cases" / "sound"
# Seconds of sound, and what of it the remark says; None: no remark.
EXPECTED = {
    "piped_lame_V4.mp3": (7.34, None),  # with the encoder's delay, which only a tag could tell
    "cbr_noxing.mp3": (7.34, None),
    "vbr.mp3": (7.30, None),
    "chained.ogg": (14.60, None),
    "piped_ffmpeg.flac": (7.30, None),
    "truth.flac": (7.30, None),
    "dataFFFFFFFF.wav": (1.50, None),
    "data0.wav": (1.50, "its header was never completed"),
    "corrupt_mid.mp3": (7.18, "cut short or damaged"),
    "trunc.w64": (0.75, "50 % of the file is missing"),
}
needs_ffmpeg = pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="FFmpeg's command is the judge: apt install ffmpeg"
)


def by_blocks(path: Path) -> np.ndarray:
    """(samples, channels) at the file's own rate, as the block reader gives them."""
    with open(path, "rb") as file:
        return np.concatenate([block for _, block in sound_blocks(file, lambda _: None)])


def by_ffmpeg(path: Path, channels: int) -> np.ndarray:
    command = ["ffmpeg", "-v", "quiet", "-i", path, "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True).stdout, "<f4").reshape(-1, channels)


@pytest.mark.parametrize("name", EXPECTED)
def test_all_that_players_play_comes_in_and_what_is_missing_is_said(name, capfd):
    seconds, remark = EXPECTED[name]
    remarks: list[str] = []
    waveform = read_audio(CASES / name, note=remarks.append)
    assert len(waveform) / 24_000 == pytest.approx(seconds, abs=0.03)
    assert len(remarks) == bool(remark) and (not remark or remark in remarks[0])
    assert np.array_equal(waveform, read_audio((CASES / name).read_bytes(), note=lambda _: None))
    assert capfd.readouterr() == ("", "")


@needs_ffmpeg
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"corrupt_mid.mp3", "chained.ogg"}))  # see below
def test_samples_are_ffmpegs(name):
    found, expected = by_blocks(CASES / name), by_ffmpeg(CASES / name, 2)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_links_of_a_chain_are_the_sound_itself_twice():
    """FFmpeg's command keeps 128 samples of the second link that its header says to leave out."""
    found, (truth, _) = by_blocks(CASES / "chained.ogg"), soundfile.read(CASES / "truth.flac", dtype="float32")
    assert len(found) == 2 * len(truth)
    for link in (found[: len(truth)], found[len(truth) :]):
        assert np.corrcoef(link[:, 0], truth[:, 0])[0, 1] > 0.99


FORMATS = {
    **{f"wav-{kind}": ["-f", "wav", "-c:a", kind] for kind in ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le")},
    **{f"wav-{kind}": ["-f", "wav", "-c:a", kind] for kind in ("pcm_f32le", "pcm_f64le", "pcm_alaw", "adpcm_ms")},
    **{kind: ["-f", kind] for kind in ("flac", "aiff", "au", "caf", "w64", "ogg", "mp3", "mp2", "ac3", "wv", "tta")},
    "m4a": ["-f", "ipod"],
    "alac": ["-f", "mov", "-c:a", "alac"],
    "opus": ["-f", "opus", "-ar", "48000"],
    "mka": ["-f", "matroska", "-c:a", "flac"],
    "webm": ["-f", "webm", "-ar", "48000"],
    "wma": ["-f", "asf", "-c:a", "wmav2"],
    "avi": ["-f", "avi", "-c:a", "pcm_s16le"],
}


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded_as_ffmpeg_does_and_gets_no_remark(tmp_path, kind, channels):
    time = np.arange(44_100 * 2) / 44_100
    sound = np.stack([0.3 * np.sin(2 * np.pi * (220 + 110 * number) * time) for number in range(channels)], axis=1)
    soundfile.write(tmp_path / "source.wav", sound, 44_100)
    path = tmp_path / f"sound.{kind.split('-')[0]}"
    made = subprocess.run(["ffmpeg", "-v", "quiet", "-i", tmp_path / "source.wav", *FORMATS[kind], path])
    if made.returncode:
        pytest.skip(f"this FFmpeg writes no {kind}")
    found, expected = by_blocks(path), by_ffmpeg(path, channels)
    assert len(found) == len(expected) > 80_000
    np.testing.assert_allclose(found, expected, atol=1e-4)
    remarks: list[str] = []
    read_audio(path, note=remarks.append)
    assert not remarks


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["mp3", "flac", "ogg", "wav-pcm_s16le", "mka", "au", "aiff", "caf"])
def test_a_file_cut_in_half_gives_its_half_and_a_remark(tmp_path, kind):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "source.wav", 0.1 * rng.standard_normal((44_100 * 3, 2)), 44_100)
    path = tmp_path / f"sound.{kind.split('-')[0]}"
    subprocess.run(["ffmpeg", "-v", "quiet", "-i", tmp_path / "source.wav", *FORMATS[kind], path], check=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    remarks: list[str] = []
    waveform = read_audio(path, note=remarks.append)
    assert 1.0 < len(waveform) / 24_000 < 2.0 and len(remarks) == 1, remarks
