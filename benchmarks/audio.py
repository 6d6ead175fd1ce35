"""MERT features of sound: how fast, how much memory a long file takes, and what silence before a clip changes.

    python benchmarks/audio.py                 all of it, at MERT-v1-95M's size, with random weights
    python benchmarks/audio.py --only decoding
    python benchmarks/audio.py --quick         a small network, one round: does it run?
The sound is synthetic. The contender is what people write: HubertModel in float32, one window of 5 s at a time; for
decoding, soundfile in blocks, resampled by soxr.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import soxr
import torch
from transformers import HubertConfig, HubertModel

from clamp3.audio.mert import Mert
from clamp3.audio.windows import windows
from clamp3.formats.audio import SAMPLING_RATE, read_audio

# Not with 12 channels in a group, which PyTorch 2.13 convolves wrongly in bf16 on CPUs with AMX.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SMALL |= {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
FORMATS = ("wav", "flac", "mp3", "ogg")  # that soundfile writes
RATE = 44_100  # Hz, of the files that are decoded
TARGETS = {"fp32": 1.2, "bf16": 3.0}
SILENCES = (0.15, 0.4, 1.2)  # seconds


def hubert(small: bool) -> HubertModel:
    """A MERT's network; always the same random weights."""
    torch.manual_seed(0)
    return HubertModel(HubertConfig(**SMALL if small else {})).eval()


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Notes that change every half second, with a little noise."""
    rng = np.random.default_rng(seed)
    notes = 440 * 2 ** (rng.integers(-24, 24, size=int(seconds * 2) + 1) / 12)
    phase = np.cumsum(np.repeat(notes, SAMPLING_RATE // 2)[: int(seconds * SAMPLING_RATE)]) / SAMPLING_RATE
    tone = sum(np.sin(2 * np.pi * number * phase) / number for number in range(1, 6))
    return (0.2 * tone + 0.01 * rng.standard_normal(len(tone))).astype(np.float32)


@torch.inference_mode()
def window_by_window(model: HubertModel, waveform: np.ndarray) -> np.ndarray:
    """(layers, windows, hidden)."""
    cut = []
    for window in windows(waveform):
        states = model(torch.from_numpy(window)[None], output_hidden_states=True).hidden_states
        cut.append(torch.stack([state.mean(1)[0] for state in states]))
    return torch.stack(cut, 1).numpy()


def in_turn(small: bool, rounds: int) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """The seconds of sound done in each round; for each precision, our time and HubertModel's in each round."""
    waveform = sound(40)
    plain = hubert(small)
    contenders = {precision: Mert(hubert(small), "cpu", precision) for precision in TARGETS}
    expected = window_by_window(plain, waveform)
    for precision, mert in contenders.items():
        ((_, found),) = mert.extract_layers([windows(waveform)])
        if cosine(found, expected) < (0.999999 if precision == "fp32" else 0.999):
            raise RuntimeError(f"the contenders' features are not the same in {precision}")
    times: dict[str, list[tuple[float, float]]] = {precision: [] for precision in contenders}
    for _ in range(rounds):
        theirs = elapsed(lambda: window_by_window(plain, waveform))
        for precision, mert in contenders.items():
            times[precision].append(
                (elapsed(lambda mert=mert: list(mert.extract_layers([windows(waveform)]))), theirs)
            )
    return len(waveform) / SAMPLING_RATE, times


def elapsed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least, over all vectors."""
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def after_silence(small: bool) -> dict[float, float]:
    """For each of SILENCES before a clip of 30 s: the cosine of its mean feature with that of the clip alone."""
    mert, clip = Mert(hubert(small), "cpu"), sound(30)
    clips = [clip] + [np.pad(clip, (int(seconds * SAMPLING_RATE), 0)) for seconds in SILENCES]
    found = dict(mert.extract_layers(map(windows, clips)))
    vectors = [found[index].mean((0, 1)) for index in range(len(clips))]
    return {seconds: cosine(vectors[0], vector) for seconds, vector in zip(SILENCES, vectors[1:], strict=True)}


def by_soundfile(path: Path) -> np.ndarray:
    """The same as `read_audio`, for a whole file."""
    stream = soxr.ResampleStream(RATE, SAMPLING_RATE, 1, dtype="float32", quality="VHQ")
    with soundfile.SoundFile(path) as file:
        mixed = [
            stream.resample_chunk(block.mean(1)) for block in file.blocks(16_384, dtype="float32", always_2d=True)
        ]
    return np.concatenate([*mixed, stream.resample_chunk(np.zeros(0, np.float32), last=True)])


def decoding(folder: Path, minutes: float, rounds: int) -> dict[str, tuple[float, float]]:
    """For each of FORMATS: how many seconds of stereo sound are decoded in one, by `read_audio` and by soundfile."""
    block = np.tile(np.stack([sound(60, seed=1), sound(60, seed=2)], 1), (int(max(1, minutes)), 1))
    speeds = {}
    for kind in FORMATS:
        path = folder / f"x.{kind}"
        with soundfile.SoundFile(path, "w", RATE, 2) as file:
            for start in range(0, len(block), RATE):  # libsndfile crashes on long Ogg Vorbis at once
                file.write(block[start : start + RATE])
        times = [(elapsed(lambda: read_audio(path)), elapsed(lambda: by_soundfile(path))) for _ in range(rounds)]  # noqa: B023
        ours, theirs = (len(block) / RATE / median(found) for found in zip(*times, strict=True))
        speeds[kind] = ours, theirs
    return speeds


def peak_memory(folder: Path, minutes: float, kind: str) -> tuple[int, int]:
    """Bytes at the peak of a process that reads and cuts a stereo file of so many minutes; bytes of its waveform."""
    path = folder / f"{minutes}.{kind}"
    block = np.random.default_rng(0).standard_normal((44_100, 2)).astype(np.float32) * 0.1
    with soundfile.SoundFile(path, "w", 44_100, 2) as file:
        for _ in range(int(minutes * 60)):
            file.write(block)
    command = [sys.executable, __file__, "--measure", str(path)]
    peak, waveform = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return int(peak), int(waveform)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network, one round")
    parser.add_argument("--only", choices=["features", "decoding"], help="a part of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        waveform = read_audio(args.measure)
        sum(len(window) for window in windows(waveform))
        # Not ru_maxrss, which starts from the peak of the process that started this one.
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]
        print(int(peak) * 1024, waveform.nbytes)
        return

    rounds = 1 if args.quick else args.rounds
    if args.only != "decoding":
        print_features(args.quick, rounds)
    if args.only != "features":
        print_decoding(args.quick, rounds)


def print_features(quick: bool, rounds: int) -> None:
    amount, times = in_turn(quick, rounds)
    for precision, target in TARGETS.items():
        ours, theirs = (median(found) for found in zip(*times[precision], strict=True))
        ratio = median(slow / fast for fast, slow in times[precision])
        speeds = f"{amount / ours:.1f} s of sound a second against {amount / theirs:.1f}"
        print(f"{precision}: {speeds}, ratio {ratio:.2f} (target {target})")
    for seconds, found in after_silence(quick).items():
        print(f"{seconds} s of silence before a clip of 30 s: cosine {found:.5f}")


def print_decoding(quick: bool, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind, (ours, theirs) in decoding(Path(folder), 1 if quick else 4, rounds).items():
            print(f"{kind}: {ours:.0f} s of sound decoded a second, soundfile {theirs:.0f}, ratio {ours / theirs:.2f}")
        for kind in ("wav",) if quick else ("wav", "mp3"):
            short, _ = peak_memory(Path(folder), 0.2, kind)
            for minutes in (1,) if quick else (10, 120):
                peak, waveform = peak_memory(Path(folder), minutes, kind)
                beyond = f"{(peak - short - waveform) / 1e6:+.1f} MB beyond a short file"
                print(f"{kind}, {minutes} min: {waveform / 1e6:.0f} MB of waveform, {beyond}")


if __name__ == "__main__":
    main()
