"""Folders of audio -> mirrored folders of MERT features: the work of extract_mert.py."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clamp3.batch import Job, Outcome, reason
from clamp3.convert.audio import EXTENSIONS, read_audio, windows
from clamp3.extraction import extract_folder, save_feature
from clamp3.mert import Mert

if TYPE_CHECKING:
    from accelerate import PartialState

READERS = {"cpu": 1, "other": 4}  # threads that decode ahead of the network; each holds a file's waveform


@dataclass
class Track:
    """A file that was read: its windows, or why there are none, and what was mended."""

    job: Job
    windows: Iterator[np.ndarray] | None = None
    failure: str | None = None
    repairs: list[str] = field(default_factory=list)


def extract_mert(
    load_mert: Callable[[], Mert], input_dir: Path, output_dir: Path, mean_features: bool, state: "PartialState"
) -> int:
    """Write a .npy for each audio file under `input_dir`: (layers, windows, hidden), or the layers' mean.

    With `mean_features` that is (1, windows, hidden). Otherwise as `extract_folder`.
    """
    outcomes = partial(_outcomes, mean_features=mean_features)
    return extract_folder(lambda _jobs: load_mert(), outcomes, input_dir, output_dir, EXTENSIONS, state)


def _outcomes(mert: Mert, jobs: list[Job], mean_features: bool) -> Iterator[Outcome]:
    """Do `jobs`, in any order."""
    tracks: list[Track] = []
    failures: list[Outcome] = []

    def readable() -> Iterator[Iterator[np.ndarray]]:
        for track in _read_ahead(jobs, READERS["cpu" if mert.device.type == "cpu" else "other"]):
            if track.windows is None:
                failures.append(Outcome(track.job, track.failure, tuple(track.repairs)))
            else:
                tracks.append(track)
                yield track.windows

    for index, features in mert.extract_windows(readable()):
        if mean_features:
            features = features.mean(axis=0, keepdims=True)
        track = tracks[index]
        track.windows = None  # and with them the waveform
        yield save_feature(track.job, features, mert.precision, tuple(track.repairs))
    yield from failures


def _read_ahead(jobs: list[Job], readers: int) -> Iterator[Track]:
    """The tracks of `jobs`, in their order, the next of them read while one is used."""
    waiting = iter(jobs)
    with ThreadPoolExecutor(readers) as pool:
        upcoming = deque(pool.submit(_read, job) for job in islice(waiting, readers))
        while upcoming:
            track = upcoming.popleft().result()
            upcoming.extend(pool.submit(_read, job) for job in islice(waiting, 1))
            yield track


def _read(job: Job) -> Track:
    track = Track(job)
    try:
        track.windows = windows(read_audio(job.source, track.repairs.append), track.repairs.append)
    except Exception as error:  # whatever a damaged file makes a decoder raise, the others go on
        track.failure = reason(error)
    return track
