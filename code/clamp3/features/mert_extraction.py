"""Folders of audio -> mirrored folders of MERT features: the work of extract_mert.py."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.audio.mert import Mert
from clamp3.features.extraction import extract_folder, save_feature
from clamp3.features.reading import listen
from clamp3.formats.audio import EXTENSIONS
from clamp3.io.folders import Job, Outcome
from clamp3.io.reports import reason

if TYPE_CHECKING:
    from accelerate import PartialState


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
    for item in listen(mert, [job.source for job in jobs]):
        job, repairs = jobs[item.index], tuple(item.repairs)
        if item.error is not None:
            yield Outcome(job, reason(item.error), repairs)
            continue
        features = item.content.mean(axis=0, keepdims=True) if mean_features else item.content
        yield save_feature(job, features, mert.precision, repairs)
