"""Folders of inputs -> mirrored folders of features: the work of extract_clamp3.py and extract_m3.py."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clamp3.audio.mert import Mert
from clamp3.distributed import finish, gather, on_main
from clamp3.errors import UserError
from clamp3.features.embedder import Embedder
from clamp3.features.reading import Item, encode, listen, read_item
from clamp3.formats.registry import SOUND, model_inputs
from clamp3.io.files import load_array, read_text, save_array
from clamp3.io.folders import Job, Outcome, Tally, plan, report, share, tally
from clamp3.io.reports import describe_error
from clamp3.modalities import AUDIO

if TYPE_CHECKING:
    from accelerate import PartialState

Model = TypeVar("Model")
Embed = Callable[[Embedder, Sequence[Path]], Iterator[tuple[Item, np.ndarray | None]]]


def extract(
    load_embedder: Callable[[], Embedder],
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    pooled: bool,
    state: "PartialState",
    embed: Embed | None = None,
) -> int:
    """Write a .npy for each input under `input_dir`: (1, clamp3_hidden_size) pooled, else (1, length, hidden).

    `embed` says how files become features, by default as inputs of the models. Otherwise as `extract_folder`.
    """

    def load(jobs: list[Job]) -> Embedder:
        embedder = load_embedder()
        embedder.prepare_for(job.source for job in jobs)
        if state.is_main_process and embedder.weights:
            print(f"weights: {embedder.weights}")
        return embedder

    outcomes = partial(_outcomes, embed=embed or partial(embed_inputs, pooled=pooled))
    return extract_folder(load, outcomes, input_dir, output_dir, extensions, state)


def extract_folder(
    load: Callable[[list[Job]], Model],
    outcomes: Callable[[Model, list[Job]], Iterator[Outcome]],
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    state: "PartialState",
) -> int:
    """Do the inputs under `input_dir`, each of which has a .npy: `outcomes` does those of a process with its model.

    Processes share the work; each loads what all jobs need. Returns the exit code: 1 if an input failed. Raises
    UserError as `plan` and `load` do.
    """
    start = time.perf_counter()
    todo = on_main(state, lambda: plan(input_dir, output_dir, extensions, ".npy"))
    jobs = share(todo.jobs, state.num_processes, state.process_index)
    done = Tally()
    if todo.jobs:
        model = _agreed(lambda: load(todo.jobs), state)
        done = tally(outcomes(model, jobs), len(jobs), show=state.is_main_process)

    done = Tally(sum(gather(state, [done.written])), gather(state, done.failures), gather(state, done.warnings))
    if state.is_main_process:
        report(output_dir, todo, done, time.perf_counter() - start)
    finish(state)
    return 1 if todo.failures or done.failures else 0


def _agreed(load: Callable[[], Model], state: "PartialState") -> Model:
    """What `load` returns; where it fails in one process, all raise its error."""
    errors = []
    try:
        model = load()
    except UserError as error:
        errors = [str(error)]
    errors = gather(state, errors)
    if errors:
        raise UserError(errors[0])
    return model


def _outcomes(embedder: Embedder, jobs: list[Job], embed: Embed) -> Iterator[Outcome]:
    """Do `jobs`, in any order."""
    for item, feature in embed(embedder, [job.source for job in jobs]):
        job, repairs = jobs[item.index], tuple(item.repairs)
        if feature is None:
            yield Outcome(job, describe_error(item.error), repairs)
        else:
            yield save_feature(job, feature[None], embedder.precision, repairs)


def save_feature(job: Job, feature: np.ndarray, precision: str, repairs: tuple[str, ...] = ()) -> Outcome:
    """Write `feature`, if it is a number throughout and can be written; `repairs` are what its input needed."""
    if not np.isfinite(feature).all():
        return Outcome(job, f"the feature is not finite in {precision}", repairs)
    try:
        save_array(job.target, feature)
    except OSError as error:
        return Outcome(job, f"{job.target} cannot be written: {error.strerror}", repairs)
    return Outcome(job, warnings=repairs)


def embed_inputs(embedder: Embedder, paths: Sequence[Path], pooled: bool) -> Iterator[tuple[Item, np.ndarray | None]]:
    """The items of `paths`, each an input of a model as it is, with their features."""
    items = (read_input(embedder, index, path) for index, path in enumerate(paths))
    return embedder.embed_items(items, pooled)


def read_input(embedder: Embedder, index: int, path: Path) -> Item:
    """The file as its tower's input sequence; ABC may have to be interleaved first."""
    modality = next(known.modality for known in model_inputs() if path.suffix.lower() in known.extensions)
    load = load_array if modality == AUDIO.name else read_text
    return read_item(Item(index, modality), lambda note: encode(embedder, modality, load(path), note))


# ---------- sound ----------


def extract_mert(
    load_mert: Callable[[], Mert], input_dir: Path, output_dir: Path, mean_features: bool, state: "PartialState"
) -> int:
    """Write a .npy for each audio file under `input_dir`: (layers, windows, hidden), or the layers' mean.

    With `mean_features` that is (1, windows, hidden). Otherwise as `extract_folder`.
    """
    outcomes = partial(_mert_outcomes, mean_features=mean_features)
    return extract_folder(lambda _jobs: load_mert(), outcomes, input_dir, output_dir, SOUND.extensions, state)


def _mert_outcomes(mert: Mert, jobs: list[Job], mean_features: bool) -> Iterator[Outcome]:
    """Do `jobs`, in any order."""
    for item in listen(mert, [job.source for job in jobs], mert.extract if mean_features else mert.extract_layers):
        job, repairs = jobs[item.index], tuple(item.repairs)
        if item.error is not None:
            yield Outcome(job, describe_error(item.error), repairs)
        else:
            features = item.content[None] if mean_features else item.content
            yield save_feature(job, features, mert.precision, repairs)
