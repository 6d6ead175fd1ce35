"""A folder of files of all kinds, hostile ones too, that the tests of the web server search."""

import shutil
from pathlib import Path

import numpy as np
import soundfile

from clamp3.web.collection import DEMO

HOSTILE = "<img src=x onerror=document.title='owned'>.abc"
SECRET = "the secret of the house"


def make_folder(folder: Path) -> Path:
    """Returns the folder of music, beside which lies a secret."""
    music = folder / "music"
    music.joinpath("deep").mkdir(parents=True)
    chosen = {".abc": 6, ".musicxml": 2, ".mid": 2, ".mp3": 1, ".txt": 2}
    for extension, count in chosen.items():
        for path in sorted(DEMO.glob(f"*{extension}"))[:count]:
            shutil.copy(path, music)
    first, second = sorted(music.glob("*.abc"))[:2]
    shutil.copy(second, music / HOSTILE)
    second.unlink()
    seconds = np.arange(3 * 16_000) / 16_000
    soundfile.write(music / "deep" / "tone.aiff", 0.3 * np.sin(2 * np.pi * 440 * seconds), 16_000)
    (music / "broken.mid").write_bytes(b"MThd and nothing")
    (folder / "secret.txt").write_text(SECRET)
    (music / "link_out.txt").symlink_to(folder / "secret.txt")
    (music / "link_in.abc").symlink_to(first)
    return music
