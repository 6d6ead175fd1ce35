"""The notes of one-voice ABC tunes: as MTF, and as sound by a plain synthesizer.

It reads what folk tunes are made of, a hundred times as fast as readers of all ABC do: notes, rests, chords, tuplets,
broken rhythm and changes of key and metre. Grace notes are left out, and repeats are played once.
"""

from functools import cache

import numpy as np

from clamp3.formats.notes import Melody, read_melody

__all__ = ["Melody", "contour", "read_melody", "to_mtf", "to_sound"]

TICKS_PER_BEAT = 480  # a beat is a quarter note
TEMPO = 500_000  # microseconds to a beat; the same for all tunes, so that it tells nothing
VELOCITY = 80

MAJOR_KEYS = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#".split()  # from seven flats to seven sharps


def contour(melody: Melody) -> tuple[int, ...]:
    """The steps from note to note, in semitones: what two copies of a tune share in any key, metre and rhythm."""
    pitches = [note.pitch for note in melody.notes]
    return tuple(after - before for before, after in zip(pitches, pitches[1:], strict=False))


def to_mtf(melody: Melody) -> str:
    """The tune as MTF: what `midi_to_mtf` makes of a MIDI file whose notes end by a `note_on` of velocity 0."""
    lines = [f"ticks_per_beat {TICKS_PER_BEAT}"]
    if melody.metre:
        lines.append(f"time_signature {melody.metre[0]} {melody.metre[1]} 24 8 0")
    lines += [f"key_signature {MAJOR_KEYS[melody.fifths + 7]} 0", f"set_tempo {TEMPO} 0"]
    events = []
    for note in melody.notes:
        start, end = (round(beats * TICKS_PER_BEAT) for beats in (note.start, note.start + note.length))
        events += [(start, 1, note.pitch, VELOCITY), (end, 0, note.pitch, 0)]
    before = 0
    for now, _, pitch, velocity in sorted(events):  # at one time, ends come before beginnings
        lines.append(f"note_on {now - before} 0 {pitch} {velocity}")
        before = now
    return "\n".join([*lines, "end_of_track 0"])


# ---------- sound ----------

# The strengths of the harmonics of each instrument, and the seconds in which its tones fade to 1/e.
INSTRUMENTS = {
    "plucked": ((1.0, 0.5, 0.25, 0.12), 0.5),
    "flute": ((1.0, 0.3, 0.05), 8.0),
    "fiddle": ((1.0, 0.8, 0.6, 0.5, 0.3, 0.2), 4.0),
}
LONGEST_TONE = 4.0  # seconds
ATTACK, RELEASE = 0.005, 0.02  # seconds


@cache
def tone(instrument: str, pitch: int, rate: int) -> np.ndarray:
    """`LONGEST_TONE` seconds of a tone, float32 (samples,)."""
    harmonics, decay = INSTRUMENTS[instrument]
    time = np.arange(int(LONGEST_TONE * rate)) / rate
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    wave = sum(
        level * np.sin(2 * np.pi * frequency * number * time)
        for number, level in enumerate(harmonics, 1)
        if frequency * number < rate / 2
    )
    return (wave * np.exp(-time / decay) * np.minimum(1, time / ATTACK)).astype(np.float32)


def to_sound(melody: Melody, seconds: float, rate: int, instrument: str) -> np.ndarray:
    """The first `seconds` of the tune, or all if it is shorter, float32 (samples,) at `rate` Hz."""
    beat = TEMPO / 1e6
    sound = np.zeros(int(min(seconds, melody.length * beat) * rate), np.float32)
    fade = np.linspace(1, 0, int(RELEASE * rate), dtype=np.float32)
    for note in melody.notes:
        first = int(note.start * beat * rate)
        samples = min(int(note.length * beat * rate), int(LONGEST_TONE * rate), len(sound) - first)
        if samples > len(fade):
            wave = tone(instrument, note.pitch, rate)[:samples].copy()
            wave[-len(fade) :] *= fade
            sound[first : first + samples] += wave
    return sound / max(1e-6, np.abs(sound).max()) * np.float32(0.8)
