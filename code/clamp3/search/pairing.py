"""Which references belong to which queries: by the files' names, or as a CSV file says."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from clamp3.errors import UserError
from clamp3.io.reports import FileIssue
from clamp3.io.tables import read_table


def stem(file: str) -> tuple[str, str]:
    """What must be the same in the names of a pair: the folder, and the file's name up to its first dot."""
    path = PurePosixPath(file)
    return str(path.parent), path.name.lstrip(".").partition(".")[0]


def pair_by_name(queries: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """For each query, the indices of the references of the same `stem`."""
    by_stem: dict[tuple[str, str], list[int]] = {}
    for index, file in enumerate(references):
        by_stem.setdefault(stem(file), []).append(index)
    return [by_stem.get(stem(file), []) for file in queries]


def pair_by_csv(path: Path, queries: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """For each query, the indices of its references: a line "query,reference" for each pair, relative to the folders.

    Raises UserError for a line that does not name a query and a reference.
    """
    sides = {
        "query": {file: index for index, file in enumerate(queries)},
        "reference": {file: index for index, file in enumerate(references)},
    }
    pairs: list[list[int]] = [[] for _ in queries]
    for number, names in read_table(path, ("query", "reference")):
        for (side, known), name in zip(sides.items(), names, strict=True):
            if name not in known:
                raise UserError(f"{path}:{number}: no {side} {name} has a feature")
        query, reference = (known[name] for known, name in zip(sides.values(), names, strict=True))
        if reference not in pairs[query]:
            pairs[query].append(reference)
    return pairs


def folder_parts(
    queries: Sequence[str], references: Sequence[str], right: Sequence[Sequence[int]]
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Yield each folder of queries, its queries and their candidates, if there are pairs among them.

    Candidates are the references that belong to one of its queries, or lie in the folder of the same relative path.
    """
    for folder in sorted({stem(file)[0] for file in queries}):
        own = [index for index, file in enumerate(queries) if stem(file)[0] == folder]
        belonging = {reference for query in own for reference in right[query]}
        if belonging:
            beside = {index for index, file in enumerate(references) if stem(file)[0] == folder}
            yield folder, own, sorted(belonging | beside)


def unpaired(queries: Sequence[str], references: Sequence[str], right: Sequence[Sequence[int]]) -> list[FileIssue]:
    """The files that belong to none. Raises UserError where that is all of them."""
    used = {index for own in right for index in own}
    if not used:
        raise UserError(
            f"nothing to compare: no query (such as {queries[0]}) belongs to a reference (such as {references[0]}); "
            "pairs have the same relative folder and name up to the first dot, or else --pairs FILE.csv tells them"
        )
    alone = [
        FileIssue(file, "a query without a reference") for file, own in zip(queries, right, strict=True) if not own
    ]
    return alone + [FileIssue(f, "a reference without a query") for i, f in enumerate(references) if i not in used]


def doubtful(
    queries: Sequence[str], references: Sequence[str], right: Sequence[Sequence[int]]
) -> tuple[list[FileIssue], list[FileIssue]]:
    """What names do not decide: queries with several references; and queries that share one, which may be meant."""
    undecided = [
        FileIssue(file, f"{len(own)} references have its name up to the first dot, such as {references[own[0]]}")
        for file, own in zip(queries, right, strict=True)
        if len(own) > 1
    ]
    times = Counter(own[0] for own in right if len(own) == 1)
    shared = [
        FileIssue(file, f"shares {references[own[0]]} with {times[own[0]] - 1} more")
        for file, own in zip(queries, right, strict=True)
        if len(own) == 1 and times[own[0]] > 1
    ]
    return undecided, shared
