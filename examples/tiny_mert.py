"""A small network of MERT's kind that has learned what plain synthesized tunes are made of, and the features it gives.

MERT itself was trained on 1,000 hours of music. This one hears a few thousand tunes and is told, frame by frame, which
note sounds, how far it is from the note before and how long it lasts; and of each piece its metre and key signature.
"""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import numpy as np

from clamp3.audio.windows import WINDOW, windows
from clamp3.formats.audio import SAMPLING_RATE
from notes import INSTRUMENTS, TEMPO, Melody, read_melody, to_sound

SECONDS = 15  # of each tune that are rendered
PIECE = 2 * SAMPLING_RATE  # samples; it learns from such pieces, and then reads whole windows
NOISE = 0.1  # from lowest to highest at most, of the loudest sample
HOP, FIELD = 320, 400  # samples between frames, and that a frame sees
CONFIG = {
    "sample_rate": SAMPLING_RATE,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": [32] * 7,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
LENGTHS = (0.0, 0.3, 0.6, 0.9, 1.4, 1.9, 2.9)  # beats, from which on a note belongs to the next class
WIDEST_STEP = 12  # semitones
METRES = ("2/4", "3/4", "4/4", "2/2", "3/8", "6/8", "9/8", "4/2", "3/2", "6/4")
SILENCE = 128  # as a pitch
# What is learned of each frame, and how many classes it has; then the same of each piece.
FRAME_TARGETS = {"pitch": SILENCE + 1, "step": 2 * WIDEST_STEP + 2, "length": len(LENGTHS) + 1}
WHOLE_TARGETS = {"metre": len(METRES) + 1, "fifths": 15}
BATCH, LEARNING_RATE, WARMUP = 16, 1e-3, 50


@dataclass(frozen=True)
class Heard:
    """A piece of sound, float32 (samples,), and what is to be learned about it."""

    samples: np.ndarray
    frames: dict[str, np.ndarray]  # (frames,)
    whole: dict[str, int]


def render(melody: Melody, rng: np.random.Generator) -> np.ndarray:
    """The tune on some instrument, with some noise, float32 (samples,)."""
    sound = to_sound(melody, SECONDS, SAMPLING_RATE, rng.choice(list(INSTRUMENTS)))
    noise = rng.random(len(sound), np.float32) - np.float32(0.5)  # normal noise takes longer to make than the rest
    return sound + np.float32(NOISE * rng.random()) * noise


def frame_targets(melody: Melody, start: float, count: int) -> dict[str, np.ndarray]:
    """The classes of `count` frames from `start` (seconds) on."""
    beats = (start + (np.arange(count) * HOP + FIELD / 2) / SAMPLING_RATE) / (TEMPO / 1e6)
    targets = {name: np.full(count, classes - 1) for name, classes in FRAME_TARGETS.items()}
    before = None
    for note in melody.notes:
        sounding = (beats >= note.start) & (beats < note.start + note.length)
        targets["pitch"][sounding] = note.pitch
        targets["length"][sounding] = np.searchsorted(LENGTHS, note.length, side="right") - 1
        if before is not None:
            targets["step"][sounding] = min(max(note.pitch - before, -WIDEST_STEP), WIDEST_STEP) + WIDEST_STEP
        before = note.pitch
    return targets


def hear(melody: Melody, rng: np.random.Generator) -> Heard | None:
    """A random piece of the windows that the network will read; None where the tune is too short."""
    parts = [part for part in windows(render(melody, rng), note=lambda _: None) if len(part) > PIECE]
    if not parts:
        return None
    chosen = rng.integers(len(parts))
    first = rng.integers(len(parts[chosen]) - PIECE)
    start = (chosen * WINDOW + first) / SAMPLING_RATE
    metre = "/".join(map(str, melody.metre or ()))
    return Heard(
        parts[chosen][first : first + PIECE],
        frame_targets(melody, start, (PIECE - FIELD) // HOP + 1),
        {"metre": METRES.index(metre) if metre in METRES else len(METRES), "fifths": melody.fifths + 7},
    )


def heard(melodies: list[Melody], seed: int) -> Iterator[Heard]:
    """Windows of random tunes, without end."""
    rng = np.random.default_rng(seed)
    while True:
        for index in rng.permutation(len(melodies)):
            if (window := hear(melodies[index], rng)) is not None:
                yield window


def train_mert(melodies: list[Melody], folder: Path, steps: int, seed: int) -> dict[str, float]:
    """Train the network on windows of `melodies`, put it into `folder`, and return the last steps' accuracies."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(seed)
    model = HubertModel(HubertConfig(**CONFIG, apply_spec_augment=False, layerdrop=0.0)).train()
    heads = nn.ModuleDict(
        {name: nn.Linear(CONFIG["hidden_size"], n) for name, n in (FRAME_TARGETS | WHOLE_TARGETS).items()}
    )
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=min(0.3, WARMUP / steps))
    stream = heard(melodies, seed)
    recent: list[dict[str, float]] = []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        batch = [next(stream) for _ in range(BATCH)]
        states = model(torch.from_numpy(np.stack([w.samples for w in batch])), output_hidden_states=True).hidden_states
        mean = torch.stack(states).mean(
            0
        )  # (batch, frames, hidden): what CLaMP 3 is given, but for the mean over time
        loss, accuracies = torch.zeros(()), {}
        for name, head in heads.items():
            if name in FRAME_TARGETS:
                logits = head(states[-1]).flatten(0, 1)
                targets = torch.from_numpy(np.concatenate([w.frames[name] for w in batch]))
            else:
                logits, targets = head(mean.mean(1)), torch.tensor([w.whole[name] for w in batch])
            loss = loss + F.cross_entropy(logits, targets)
            accuracies[name] = float((logits.argmax(-1) == targets).float().mean())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-49:], {"loss": float(loss.detach()), **accuracies}]
        if step % 50 == 0 or step == steps:
            figures = {name: float(np.mean([entry[name] for entry in recent])) for name in recent[0]}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"listening, step {step}/{steps}: {shown} ({time.perf_counter() - start:.0f} s)", flush=True)
    save_mert(model, folder)
    return figures


def save_mert(model, folder: Path) -> None:
    """Config and weights, under the names that MERT's have."""
    from safetensors.torch import save_file

    renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for present, old in renamed.items():
            name = name.replace(present, old)
        weights[name] = tensor.half().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    folder.joinpath("config.json").write_text(json.dumps(CONFIG, indent=4) + "\n", encoding="utf-8")


# ---------- features ----------


def extract(sources: list[tuple[Path, Path]], mert_folder: Path, seed: int, processes: int) -> None:
    """For each (ABC, .npy) of `sources`, render the tune and write its features (1, windows, hidden)."""
    shares = [sources[number::processes] for number in range(processes)]
    work = partial(extract_share, mert_folder=mert_folder, seed=seed)
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=sys.path.__init__, initargs=(sys.path,)
    ) as pool:
        list(pool.map(work, shares))


def extract_share(sources: list[tuple[Path, Path]], mert_folder: Path, seed: int) -> None:
    """`extract`, in this process alone."""
    import torch

    from clamp3.audio.mert import Mert

    torch.set_num_threads(1)
    mert = Mert.from_pretrained(str(mert_folder), "cpu")
    sounds = (
        render(read_melody(abc.read_text(encoding="utf-8")), np.random.default_rng([seed, crc32(abc.name.encode())]))
        for abc, _ in sources
    )
    for index, features in mert.extract_layers(map(windows, sounds)):
        sources[index][1].parent.mkdir(parents=True, exist_ok=True)
        np.save(sources[index][1], features.mean(axis=0, keepdims=True))
