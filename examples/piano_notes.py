"""Makes the notes that the web page plays, code/clamp3/web/static/piano/*.mp3, from a free sound font.

    apt-get install fluidsynth fluidr3mono-gm-soundfont
    python examples/piano_notes.py
Every third key of the grand piano, 27 to 105 (MIDI numbers), three seconds at most, mono at 40 kbit/s: the page plays
the keys between them faster or slower. It takes ten seconds.
"""

import subprocess
import tempfile
import wave
from pathlib import Path

import av
import numpy as np

from clamp3.formats.midi import mtf_to_midi

FONT = Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3")
OUTPUT = Path(__file__).parents[1] / "code" / "clamp3" / "web" / "static" / "piano"
KEYS = range(27, 106, 3)
RATE, SECONDS, FADE = 32_000, 3.0, 0.4


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    rendered = {key: played(key) for key in KEYS}
    loudest = max(np.abs(sound).max() for sound in rendered.values())
    for key, sound in rendered.items():
        write_mp3(OUTPUT / f"{key}.mp3", 0.9 / loudest * sound)
    print(f"{len(rendered)} notes, {sum(path.stat().st_size for path in OUTPUT.glob('*.mp3')) / 1e3:.0f} kB")


def played(key: int) -> np.ndarray:
    """The sound (samples,) of a key that is held, from its attack to where it has faded."""
    lines = ["ticks_per_beat 480", "set_tempo 500000 0", f"note_on 0 0 {key} 100", f"note_off 4800 0 {key} 0"]
    with tempfile.TemporaryDirectory() as folder:
        midi, sound = Path(folder, "key.mid"), Path(folder, "key.wav")
        midi.write_bytes(mtf_to_midi("\n".join([*lines, "end_of_track 0"])))
        options = ["-ni", "-q", "-R", "0", "-C", "0", "-g", "1", "-r", str(RATE), "-F", str(sound)]
        subprocess.run(["fluidsynth", *options, str(FONT), str(midi)], check=True, capture_output=True)
        with wave.open(str(sound)) as file:
            stereo = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    mono = stereo.mean(axis=1) / 32768
    start = np.flatnonzero(np.abs(mono) > 0.001)[0]
    mono = mono[start : start + int(SECONDS * RATE)]
    fade = int(FADE * RATE)
    mono[-fade:] *= np.linspace(1, 0, fade)
    return mono


def write_mp3(path: Path, sound: np.ndarray) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libmp3lame", rate=RATE, layout="mono", bit_rate=40_000)
        samples = (sound * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


if __name__ == "__main__":
    main()
