"""Folders of inputs -> mirrored folders of features: the work of extract_clamp3.py and extract_m3.py."""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clamp3 import __version__
from clamp3.distributed import gather, on_main
from clamp3.errors import Note, UserError
from clamp3.features.embedder import Embedder
from clamp3.features.manifest import GLOBAL, STATES, Maker, check_or_record_maker, load_manifest
from clamp3.features.parts import parts_in, rows_done, save_in_parts
from clamp3.features.reading import Item, encode, is_sound, listen, plain, read_in_processes, read_item
from clamp3.formats.registry import SOUND, check_size, format_of
from clamp3.inputs.encoder import InputEncoder
from clamp3.io.files import load_array, read_text, save_array
from clamp3.io.folders import Job, Outcome, Plan, Tally, plan, save_report, share, tally
from clamp3.io.reports import Report, describe_error
from clamp3.io.rows import package
from clamp3.io.shards import Shard
from clamp3.modalities import AUDIO, SYMBOLIC

if TYPE_CHECKING:
    from accelerate import PartialState

    from clamp3.audio.mert import Mert

Model = TypeVar("Model")
Embed = Callable[[Embedder, Sequence[Path]], Iterator[tuple[Item, np.ndarray | None]]]
PARQUET = "parquet"  # what stands in the manifest of a folder of parts
# Bytes up to which symbolic files are read in this process: of formats whose reading is slow, and of others. Nothing
# of that size can hold it up; larger files are for worker processes, with their limits of time and memory.
SMALL = {True: 1 << 16, False: 1 << 22}


def extract(
    load_embedder: Callable[[], Embedder],
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    pooled: bool,
    state: "PartialState",
    embed: Embed | None = None,
    progress: bool = False,
    shard: Shard | None = None,
    to: str = "npy",
) -> Report:
    """Write a .npy for each input under `input_dir`: (1, clamp3_hidden_size) pooled, else (1, length, hidden).

    `to` is "parquet" for rows of Parquet files instead (`parts`). `embed` says how files become features, by default
    as inputs of the models. Otherwise as `extract_folder`.
    """
    in_parts = to == PARQUET
    if in_parts:
        package("pyarrow", "pyarrow")

    def load(jobs: list[Job]) -> Embedder:
        embedder = load_embedder()
        embedder.prepare_for(job.source for job in jobs)
        return embedder

    def maker(embedder: Embedder, jobs: list[Job]) -> Maker:
        return {
            "kind": GLOBAL if pooled else STATES,
            "weights": embedder.identity,
            "file": str(embedder.weights) if embedder.weights else None,
            "fingerprint": embedder.fingerprint,
            "precision": embedder.precision,
            "audio_encoder": embedder.audio_encoder_identity if any(is_sound(job.source) for job in jobs) else None,
            "version": __version__,
            **({"format": PARQUET} if in_parts else {}),
        }

    def outcomes(embedder: Embedder, jobs: list[Job]) -> Generator[Outcome, None, None]:
        made = _features(embedder, jobs, embed or partial(embed_inputs, pooled=pooled))
        return save_in_parts(made, output_dir, embedder.fingerprint) if in_parts else _save_each(made)

    return extract_folder(load, maker, outcomes, input_dir, output_dir, extensions, state, progress, shard, in_parts)


def extract_folder(
    load: Callable[[list[Job]], Model],
    maker: Callable[[Model, list[Job]], Maker],
    outcomes: Callable[[Model, list[Job]], Generator[Outcome, None, None]],
    input_dir: Path,
    output_dir: Path,
    extensions: Collection[str],
    state: "PartialState",
    progress: bool = False,
    shard: Shard | None = None,
    in_parts: bool = False,
) -> Report:
    """Write a .npy for each input under `input_dir`: `outcomes` does the jobs of this process with its model.

    Of those that save `in_parts`, outputs are rows of Parquet files.

    Processes share the work; each loads what all jobs need, and each returns the report of all, which the first one
    also writes into `output_dir`. `progress` shows a bar in the first. Of a `shard`, they do its share, while
    runs of other shares may be at work in the same folders. `maker` says what makes the features: it is recorded in a
    new `output_dir`, and from then on inputs that change are done again. Raises UserError as `plan` and `load` do, and
    where `output_dir` holds features of another maker.
    """
    start = time.perf_counter()

    def look() -> tuple[Plan, bool]:
        maker = load_manifest(output_dir) if output_dir.is_dir() else None
        _check_format(output_dir, maker, in_parts)
        extension, rows = (None, partial(rows_done, output_dir)) if in_parts else (".npy", None)
        recorded = maker is not None
        return plan(input_dir, output_dir, extensions, extension, None, recorded, shard, rows), recorded

    todo, recorded = on_main(state, look)
    jobs = share(todo.jobs, state.num_processes, state.process_index)
    done = Tally()
    if todo.jobs or recorded:
        model = _agreed(lambda: load(todo.jobs), state)
        is_new = not recorded and todo.is_new
        on_main(state, lambda: check_or_record_maker(output_dir, maker(model, todo.jobs), is_new))
        with closing(outcomes(model, jobs)) as results:
            done = tally(results, len(jobs), progress and state.is_main_process)
        if shard:  # two that began at the same moment may have recorded what made them over each other
            on_main(state, lambda: check_or_record_maker(output_dir, maker(model, todo.jobs), is_new=False))

    stopped = next(filter(None, gather(state, [done.stopped])), None)
    written = sum(gather(state, [done.written]))
    done = Tally(written, gather(state, done.failures), gather(state, done.warnings), stopped)
    return on_main(state, lambda: save_report(output_dir, todo, done, time.perf_counter() - start))


def _agreed(load: Callable[[], Model], state: "PartialState") -> Model:
    """What `load` returns; where it fails in one process, all raise its error."""
    errors: list[str] = []
    try:
        model = load()
    except UserError as error:
        errors = [str(error)]
    errors = gather(state, errors)
    if errors:
        raise UserError(errors[0])
    return model


def _check_format(folder: Path, recorded: Maker | None, in_parts: bool) -> None:
    """Raise UserError where `folder` holds features in the other format."""
    has_parts = (recorded or {}).get("format") == PARQUET or bool(parts_in(folder))
    if has_parts != in_parts and (recorded or has_parts):
        there, option = ("Parquet files", "--to parquet") if has_parts else ("a .npy for each input", "no --to")
        raise UserError(f"{folder} holds features in {there}: go on with {option}, or give another output folder")


def _features(embedder: Embedder, jobs: list[Job], embed: Embed) -> Iterator[Outcome]:
    """What comes of `jobs`, in any order, with their features as content."""
    for item, feature in embed(embedder, [job.source for job in jobs]):
        job, repairs = jobs[item.index], tuple(item.repairs)
        if feature is None:
            yield Outcome(job, describe_error(item.error), repairs)
        else:
            yield _made(job, feature[None], embedder.precision, repairs)


def _made(job: Job, feature: np.ndarray, precision: str, repairs: tuple[str, ...]) -> Outcome:
    """That of a job whose `feature`, as its content, is to be written, if it is a number throughout."""
    if not np.isfinite(feature).all():
        return Outcome(job, f"the feature is not finite in {precision}", repairs)
    return Outcome(job, warnings=repairs, content=feature)


def _save_each(made: Iterator[Outcome]) -> Generator[Outcome, None, None]:
    """Write a .npy for each feature."""
    for outcome in made:
        yield outcome if outcome.failure is not None else _save_feature(outcome)


def _save_feature(outcome: Outcome) -> Outcome:
    job = outcome.job
    job.warn_first(outcome.warnings)
    try:
        save_array(job.target, outcome.content)
    except OSError as error:
        return Outcome.unwritten(job, job.target, error, outcome.warnings)
    return replace(outcome, content=None)


def embed_inputs(embedder: Embedder, paths: Sequence[Path], pooled: bool) -> Iterator[tuple[Item, np.ndarray | None]]:
    """The items of `paths`, each an input of a model as it is, with their features."""
    processes = embedder.processes
    large = {index for index, path in enumerate(paths) if _is_large(path)} if processes else set()

    def items() -> Iterator[Item]:
        for index, path in enumerate(paths):
            if index not in large:
                yield read_input(embedder, index, path)
        if large and processes:
            yield from read_in_processes(partial(read_model_input, plain(embedder)), paths, large, processes)

    return embedder.embed_items(items(), pooled)


def _is_large(path: Path) -> bool:
    known = format_of(path)
    try:
        return known is not None and known.modality == SYMBOLIC.name and path.stat().st_size > SMALL[known.is_slow]
    except OSError:  # which will be named when it is read
        return False


def read_input(embedder: Embedder, index: int, path: Path) -> Item:
    """The file as an item with its tower's input sequence."""
    known = format_of(path)
    assert known is not None
    return read_item(Item(index, known.modality), partial(read_model_input, embedder, path))


def read_model_input(encoder: InputEncoder, path: Path, note: Note) -> np.ndarray:
    """The file as its tower's input sequence; ABC may have to be interleaved first."""
    known = format_of(path)
    assert known is not None
    check_size(path, known)
    load = load_array if known.modality == AUDIO.name else read_text
    return encode(encoder, known.modality, load(path), note)


# ---------- sound ----------


def extract_mert(
    load_mert: "Callable[[], Mert]",
    input_dir: Path,
    output_dir: Path,
    mean_features: bool,
    state: "PartialState",
    progress: bool = False,
    shard: Shard | None = None,
) -> Report:
    """Write a .npy for each audio file under `input_dir`: (layers, windows, hidden), or the layers' mean.

    With `mean_features` that is (1, windows, hidden). Otherwise as `extract_folder`.
    """

    def maker(mert: "Mert", _jobs: list[Job]) -> Maker:
        kind = "MERT features, the mean of the layers" if mean_features else "MERT features of all layers"
        made = {"kind": kind, "weights": mert.identity, "file": mert.identity, "precision": mert.precision}
        return {**made, "version": __version__}

    def outcomes(mert: "Mert", jobs: list[Job]) -> Generator[Outcome, None, None]:
        return _save_each(_mert_features(mert, jobs, mean_features))

    return extract_folder(
        lambda _jobs: load_mert(), maker, outcomes, input_dir, output_dir, SOUND.extensions, state, progress, shard
    )


def _mert_features(mert: "Mert", jobs: list[Job], mean_features: bool) -> Iterator[Outcome]:
    """What comes of `jobs`, in any order, with their features as content."""
    for item in listen(mert, [job.source for job in jobs], mert.extract if mean_features else mert.extract_layers):
        job, repairs = jobs[item.index], tuple(item.repairs)
        if item.error is not None:
            yield Outcome(job, describe_error(item.error), repairs)
        else:
            yield _made(job, item.content[None] if mean_features else item.content, mert.precision, repairs)
