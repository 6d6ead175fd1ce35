"""A collection as a map: a point for each feature, so that what is alike lies close together, and its colour."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from clamp3.errors import UserError
from clamp3.formats.registry import format_of
from clamp3.search.filters import kind_of
from clamp3.search.ranking import normalized
from clamp3.tasks.extras import needs_classify

FEWEST = 10  # pieces, under which there are too few neighbours for more than their main directions
NEIGHBOURS, PERPLEXITY, COMPONENTS = 15, 30, 50
OTHERS, UNKNOWN = "others", "not known"
# Of Paul Tol's "bright" and "muted" schemes, which the colour-blind can tell apart; the last two are of the others.
COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#ddaa33", "#117733", "#882255"),
    *("#888888", "#cccccc"),
)


@dataclass(frozen=True)
class Piece:
    """What a point of the map stands for."""

    name: str  # the path relative to the collection's folder
    path: Path | None = None  # of the music or text itself, where that is known
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "score", "midi", "audio" or "text"; "feature" where only that is known."""
        known = format_of(self.path) if self.path and self.path.suffix.lower() != ".npy" else None
        return (self.path and known and kind_of(self.path, known.modality)) or "feature"

    @property
    def folder(self) -> str:
        """The first folder of its path, "." for none."""
        return PurePosixPath(self.name).parts[0] if len(PurePosixPath(self.name).parts) > 1 else "."


def project(features: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Points (n, 2) for features (n, hidden), between -1 and 1, and the method: UMAP if umap-learn is installed.

    Else it is scikit-learn's t-SNE, and for fewer than FEWEST the first two principal components. The same features
    and seed give the same points. Raises UserError where scikit-learn is missing.
    """
    unit = normalized(features)
    if len(unit) < FEWEST:
        return fitted(principal(unit, 2)), "principal components"
    try:
        from umap import UMAP
    except ImportError:
        pass
    else:
        umap = UMAP(n_neighbors=min(NEIGHBOURS, len(unit) - 1), metric="cosine", random_state=seed, n_jobs=1)
        return fitted(umap.fit_transform(unit)), "UMAP"
    with needs_classify():
        from sklearn.manifold import TSNE

    # Between vectors of length one, the squared distance is twice what the cosine lacks of one.
    reduced = principal(unit, COMPONENTS)
    start = np.random.default_rng(seed).normal(
        0, 1e-6, (len(unit), 2)
    )  # so that no two are at one place, as equal ones
    start += reduced[:, :2] / max(reduced[:, 0].std(), 1e-6) * 1e-4
    tsne = TSNE(perplexity=min(PERPLEXITY, (len(unit) - 1) / 3), init=start.astype(np.float32), random_state=seed)
    return fitted(tsne.fit_transform(reduced)), "t-SNE"


def principal(features: np.ndarray, count: int) -> np.ndarray:
    """The first principal components (n, count) of features (n, hidden); zeros for those that there are not."""
    centred = (features - features.mean(axis=0)).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    best = vectors[:, ::-1][:, :count]
    best = best * np.where(best[np.abs(best).argmax(axis=0), np.arange(best.shape[1])] < 0, -1, 1)  # else either sign
    components = centred @ best
    return np.pad(components, ((0, 0), (0, count - components.shape[1]))).astype(np.float32)


def fitted(points: np.ndarray) -> np.ndarray:
    """Points (n, 2), moved and scaled evenly to lie between -1 and 1."""
    points = np.asarray(points, np.float64)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    return (points - middle) / max(np.abs(points - middle).max(), np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Map:
    """Where the pieces lie, and how they are coloured."""

    pieces: Sequence[Piece]
    points: np.ndarray  # (pieces, 2)
    method: str  # that has placed them
    by: str  # what they are coloured by
    labels: Sequence[str]  # of each piece
    groups: Sequence[str]  # what has a colour
    group: Sequence[int]  # of each piece, its place among these
    colours: Sequence[str]  # of each group, "#rrggbb"


def map_of(pieces: Sequence[Piece], features: np.ndarray, by: str = "kind", seed: int = 0) -> Map:
    """The map of `pieces` with these features (n, hidden), coloured as `labels_by` says. Raises UserError as it does,
    and as `project` does."""
    labels = labels_by(pieces, by)
    groups, group = groups_of(labels)
    points, method = project(features, seed)
    return Map(pieces, points, method, by, labels, groups, group, colours_of(groups))


def labels_by(pieces: Sequence[Piece], colour: str) -> list[str]:
    """What a piece is coloured by: its "kind", its "folder", or what its metadata say in that column.

    Raises UserError where no piece has the column.
    """
    if colour in ("kind", "folder"):
        return [getattr(piece, colour) for piece in pieces]
    if not any(colour in piece.metadata for piece in pieces):
        columns = sorted({column for piece in pieces for column in piece.metadata})
        raise UserError(f"nothing is known of {colour!r}; there are {', '.join(['kind', 'folder', *columns])}")
    return [str(piece.metadata.get(colour) or UNKNOWN) for piece in pieces]


def groups_of(labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """The names of the groups, at most one for each of COLOURS, and the place of each label's group among them.

    The most frequent labels have one each; rarer ones are together, and so are those that are not known.
    """
    counts = Counter(label for label in labels if label != UNKNOWN)
    named = sorted(counts, key=lambda label: (-counts[label], label))[: len(COLOURS) - 2]
    groups = [*named, *([OTHERS] * (len(counts) > len(named))), *([UNKNOWN] * (UNKNOWN in labels))]
    place = {name: index for index, name in enumerate(groups)}
    return groups, [place.get(label, len(named)) for label in labels]


def colours_of(groups: Sequence[str]) -> list[str]:
    """The colour of each group of `groups_of`."""
    late = {OTHERS: COLOURS[-2], UNKNOWN: COLOURS[-1]}
    return [late.get(name, COLOURS[index % (len(COLOURS) - 2)]) for index, name in enumerate(groups)]
