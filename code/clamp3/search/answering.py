"""What is asked of a collection, a folder's or an index, and the records that answer it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.errors import Note, UserError, warn
from clamp3.features.cache import FeatureCache
from clamp3.features.embedder import Embedder
from clamp3.features.passages import melody_of
from clamp3.io.files import content_hash
from clamp3.io.reports import quoted
from clamp3.io.rows import name_in_row
from clamp3.modalities import SYMBOLIC
from clamp3.search.calibration import Space
from clamp3.search.collection import (
    UNKNOWN,
    Collection,
    check_comparable,
    existing_path,
    fingerprints,
    load_query,
    provenance,
    query_modality,
)
from clamp3.search.combining import combined_query, diverse, pool_size
from clamp3.search.engines import Engine, Hit
from clamp3.search.filters import EVERYTHING, File, Filter
from clamp3.search.index import Entry, Index
from clamp3.search.indexing import READY_MADE, check_or_record_model
from clamp3.search.ranking import top_k


@dataclass(frozen=True)
class Question:
    """What to search for, among what, and how many answers to give."""

    query: str  # a file, or else a text; as are the others
    also: tuple[str, ...] = ()  # more queries, which are added (`combining.combined_query`)
    without: tuple[str, ...] = ()  # and those that are subtracted
    as_text: bool = False  # all of them are texts, even where there are files or folders of such names
    not_itself: bool = False  # files that are asked with, and copies of them, are no answers
    only: Filter = EVERYTHING
    k: int = 10
    diversity: float = 0.0  # the share of `combining.diverse`
    calibrate: str = "none"  # one of calibration.METHODS
    note: Note = warn  # is told what there is to say of the queries: damage, say, or letters that no token stands for

    @property
    def files(self) -> list[Path]:
        """Those that are asked with."""
        paths = () if self.as_text else map(existing_path, (self.query, *self.also, *self.without))
        return [path for path in paths if path is not None]

    def filter(self) -> Filter:
        """Which files may be answers. Raises UserError where there is none that `not_itself` could leave out."""
        if not self.not_itself:
            return self.only
        if not self.files:
            raise UserError("--not_itself leaves out the file that is the query, and this query is a text")
        but = {path.resolve() for path in self.files} | {content_hash(path) for path in self.files}
        return replace(self.only, but=self.only.but | but)


@dataclass
class Wanted:
    """A question's feature, and what it was made of."""

    feature: np.ndarray  # (hidden,)
    parts: list[Collection] = field(default_factory=list)
    modality: str = ""  # of the query itself


def load_question(
    question: Question, load_embedder: Callable[[], Embedder], cache: FeatureCache | None = None
) -> Wanted:
    """The feature of all queries together. Raises UserError as `load_query`, and where they do not compare."""
    queries = question.query, *question.also, *question.without
    parts = [load_query(query, load_embedder, cache, question.as_text) for query in queries]
    for issue in (issue for part in parts for issue in part.repairs):
        question.note(f"{issue.file}: {issue.reason}")
    for part in parts[1:]:
        check_comparable(parts[0], part)
    first, *others = (part.features[0] for part in parts)
    if others:
        first = combined_query(first, others[: len(question.also)], others[len(question.also) :])
    return Wanted(first, parts, query_modality(question.query, question.as_text))


def search_collection(
    references: Collection,
    question: Question,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
) -> list[dict]:
    """The files closest to what is asked, as records of rank, cosine, file and weights.

    With a calibration, cosines are those of the corrected space. Raises UserError as `load_question`, where the
    features differ in width, and for conditions on metadata, which a folder has none of.
    """
    if question.only.where:
        folder = quoted(references.folder)
        raise UserError(
            "a folder has no metadata: conditions need an index, which "
            f"clamp3_index.py build INDEX {folder} --metadata FILE.csv makes"
        )
    wanted = load_question(question, load_embedder, cache)
    for part in wanted.parts:
        check_comparable(part, references)
    kinds = references.modalities
    space = Space.of(references.features, kinds, question.calibrate)
    places = np.flatnonzero(_passed(references, kinds, question.filter(), question.files))
    if not len(places):
        return []
    features, kinds = references.features[places], [kinds[place] for place in places]
    moved = space.references(features, kinds, wanted.modality)
    depth = pool_size(question.k) if question.diversity else question.k
    (indices,), (cosines,) = top_k(space.queries(wanted.feature[None], wanted.modality), moved, depth)
    if question.diversity:
        chosen = diverse(cosines, features[indices], question.k, question.diversity)
        indices, cosines = indices[chosen], cosines[chosen]
    origin = provenance(*wanted.parts, references)
    return [
        {"rank": rank, "cosine": cosine, "file": references.files[place], **origin}
        for rank, (place, cosine) in enumerate(zip(places[indices], cosines.tolist(), strict=True), 1)
    ]


def _passed(references: Collection, kinds: list[str], only: Filter, asked_with: list[Path]) -> list[bool]:
    """For each file of a folder, whether it may be an answer."""
    hash_of, files = _hashes(only, asked_with), []
    for name, kind in zip(references.files, kinds, strict=True):
        path = references.folder / name
        files.append(File(path.resolve(), kind, hash_of(path), {}))
    return only.passed(files)


def _hashes(only: Filter, asked_with: list[Path]) -> Callable[[Path], str]:
    """What gives the content hash of a file where `only` could leave it out by that, and it is there; else nothing.

    Of `asked_with`, only files of the same size are hashed; with other contents that are not to be found, all.
    """
    given = only.but - {content_hash(path) for path in asked_with} if only.but else only.but
    are_given = any(isinstance(one, str) for one in given)
    sizes = {path.stat().st_size for path in asked_with} if only.but else set()

    def hash_of(path: Path) -> str:
        may_be_copy = only.but and path.is_file() and (are_given or path.stat().st_size in sizes)
        return content_hash(path) if may_be_copy else ""

    return hash_of


def search_index(
    index: Index,
    question: Question,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
    approximate: bool | None = None,
    passages: bool = False,
    per_file: int | None = None,
    by_melody: bool = True,
) -> list[dict]:
    """The files closest to what is asked, as records of rank, cosine, file and metadata.

    With `passages`, the k closest passages, at most `per_file` of each file: a record has its "passage" too, such as
    {"bars": [17, 24]}, and for a query of notes, unless `by_melody` is false, the "melody": the cosine that ranked it
    together with the other. `approximate` as in Index.search. Raises UserError where the query's weights are not the
    index's.
    """
    if not len(index):
        raise UserError(f"{index.folder} is empty: clamp3_index.py add {quoted(index.folder)} FOLDER")
    wanted = load_question(question, load_embedder, cache)
    recorded = index.meta.get("identity")
    for part in wanted.parts:
        if part.weights and recorded and not recorded.startswith(READY_MADE):
            check_or_record_model(index, load_embedder().identity, part.weights)
    is_notes = passages and by_melody and wanted.modality == SYMBOLIC.name and len(wanted.parts) == 1
    found = index.search(
        *(wanted.feature, question.k, approximate, None, passages, per_file, question.calibrate, wanted.modality),
        only=question.filter(),
        diversity=question.diversity,
        melody=melody_of(load_embedder(), Path(question.query)) if is_notes else None,
    )
    made = {
        "weights": index.meta.get("weights", UNKNOWN),
        "fingerprint": index.meta.get("fingerprint"),
    }
    return [_record(rank, cosine, entry, made, *more) for rank, (cosine, entry, *more) in enumerate(found, 1)]


def search_engine(
    engine: Engine,
    question: Question,
    load_embedder: Callable[[], Embedder],
    cache: FeatureCache | None = None,
    approximate: bool | None = None,
) -> list[dict]:
    """The files closest to what is asked, of those that an index was exported to: records as `search_index` gives.

    Copies of a file that is asked with are recognized where they are at hand. `approximate` as in Engine.search.
    Raises UserError where the query's weights are not the rows', and for a calibration.
    """
    if question.calibrate != "none":
        raise UserError(f"--calibrate needs an index of our own, which {engine.what} is not")
    if not len(engine):
        raise UserError(f"{engine.what} is empty")
    only = question.filter()
    wanted = load_question(question, load_embedder, cache)
    made = {fingerprint: name for part in wanted.parts for fingerprint, name in fingerprints(part).items()}
    weights = engine.weights or made.get(engine.fingerprint or "", UNKNOWN)
    for fingerprint, name in made.items():
        if engine.fingerprint not in (None, fingerprint):
            raise UserError(
                f"{engine.what} holds features made by {weights} ({engine.fingerprint}), not by {name} "
                f"({fingerprint}): these do not compare; choose the same weights (--variant, --weights, config.py)"
            )
    hash_of = _hashes(only, question.files)
    only = replace(only, but=only.but | {Path(name_in_row(one)) for one in only.but if isinstance(one, Path)})
    hits = engine.search(
        wanted.feature,
        question.k,
        approximate,
        only,
        question.diversity,
        hash_of,
    )
    if others := {hit.fingerprint for hit in hits} - {engine.fingerprint}:
        raise UserError(f"{engine.what} mixes features of several models: {engine.fingerprint}, {others.pop()}")
    return [
        _record(rank, hit.cosine, hit, {"weights": weights, "fingerprint": engine.fingerprint})
        for rank, hit in enumerate(hits, 1)
    ]


def _record(rank: int, cosine: float, found: Entry | Hit, made: Mapping, *passage: Any) -> dict:
    """What is told of a file that was found, with the Span of a passage, and its melody's cosine, if any."""
    return {
        "rank": rank,
        "cosine": cosine,
        "file": str(found.path),
        **({"passage": passage[0].as_json()} if passage else {}),
        **({"melody": passage[1]} if passage[1:] else {}),
        "modality": found.modality,
        "metadata": found.metadata,
        **made,
    }
