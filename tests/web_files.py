"""A folder of files of all kinds, hostile ones too, that the tests of the web server search."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import uvicorn

from clamp3.formats.audio import read_audio
from clamp3.web.collection import DEMO, Collection
from clamp3.web.server import create_app

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


def make_described(folder: Path) -> tuple[Path, dict[Path, dict]]:
    """A folder of scores, a text, MIDI, and a recording of a minute; and their metadata."""
    chosen = [*sorted(DEMO.glob("*.abc"))[:8], *(next(iter(sorted(DEMO.glob(f"*{end}")))) for end in (".mid", ".txt"))]
    for path in chosen:
        shutil.copy(path, folder)
    sounds = [read_audio(path, 24_000) for path in sorted(DEMO.glob("*.mp3"))[:3]]
    soundfile.write(folder / "long.flac", np.concatenate(sounds), 24_000)
    years = {path.resolve(): str(1800 + 10 * place) for place, path in enumerate(sorted(folder.iterdir()))}
    return folder, {path: {"year": year, "<i>seen by</i>": HOSTILE} for path, year in years.items()}


@contextlib.contextmanager
def served(collection: Collection) -> Iterator[str]:
    """The address of a server of this process, for the block."""
    config = uvicorn.Config(create_app(collection), port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
