"""Real music as sound: the notes of a MIDI file, each a few harmonics that die away."""

import io

import mido
import numpy as np

HARMONICS = (1.0, 0.5, 0.25, 0.12)
DECAY = 0.5  # seconds to 1/e


def render(midi: bytes, seconds: float, rate: int) -> np.ndarray:
    """The first `seconds` of a MIDI file -> float32 (samples, 2), high notes further to the right."""
    sound = np.zeros((int(seconds * rate), 2))
    started: dict[int, float] = {}
    now = 0.0
    for message in mido.MidiFile(file=io.BytesIO(midi)):
        now += message.time
        if message.type not in ("note_on", "note_off"):
            continue
        begin = started.pop(message.note, None)
        if begin is not None and begin < seconds:
            _add(sound, rate, message.note, begin, now)
        if message.type == "note_on" and message.velocity:
            started[message.note] = now
    return (sound / np.abs(sound).max() * 0.8).astype(np.float32)


def _add(sound: np.ndarray, rate: int, note: int, begin: float, end: float) -> None:
    first = int(begin * rate)
    time = np.arange(min(int((end - begin) * rate), len(sound) - first)) / rate
    frequency = 440 * 2 ** ((note - 69) / 12)
    tone = sum(
        level * np.sin(2 * np.pi * frequency * number * time)
        for number, level in enumerate(HARMONICS, 1)
        if frequency * number < rate / 2
    )
    tone = tone * np.exp(-time / DECAY) * np.minimum(1, time / 0.005) * np.minimum(1, (end - begin - time) / 0.01)
    right = np.clip(note / 127, 0, 1)
    sound[first : first + len(time)] += tone[:, None] * [1 - right, right]
