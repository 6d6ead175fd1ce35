"""Which references are relevant to which queries, by file names or by a CSV file of pairs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from clamp3.errors import UserError
from clamp3.io.reports import FileIssue
from clamp3.io.tables import read_table
from clamp3.search.ranking import Relevant


def stem(file: str) -> tuple[str, str]:
    """What the two files of a pair have in common: the folder, and the file name up to its first dot."""
    path = PurePosixPath(file)
    return str(path.parent), path.name.lstrip(".").partition(".")[0]


def pair_by_name(queries: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """For each query, the indices of the references with the same `stem`."""
    by_stem: dict[tuple[str, str], list[int]] = {}
    for index, file in enumerate(references):
        by_stem.setdefault(stem(file), []).append(index)
    return [by_stem.get(stem(file), []) for file in queries]


def pair_by_csv(path: Path, queries: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """For each query, the indices of its references, from a CSV file of lines "query,reference".

    Paths in it are relative to the folders. Raises UserError for a line that does not name a query and a reference.
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
    queries: Sequence[str], references: Sequence[str], relevant: Relevant
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Yield the name, queries and candidates of each folder of queries in which a query has a relevant reference.

    Candidates are the references that are relevant to one of its queries or lie in the folder of the same relative
    path.
    """
    for folder in sorted({stem(file)[0] for file in queries}):
        members = [index for index, file in enumerate(queries) if stem(file)[0] == folder]
        positives = {reference for query in members for reference in relevant[query]}
        if positives:
            same_folder = {index for index, file in enumerate(references) if stem(file)[0] == folder}
            yield folder, members, sorted(positives | same_folder)


def unpaired(queries: Sequence[str], references: Sequence[str], relevant: Relevant) -> list[FileIssue]:
    """An issue for each query and each reference without a partner. Raises UserError where there are no pairs."""
    paired = {index for positives in relevant for index in positives}
    if not paired:
        raise UserError(
            f"nothing to compare: no query (such as {queries[0]}) belongs to a reference (such as {references[0]}); "
            "pairs have the same relative folder and name up to the first dot, or are listed by --pairs FILE.csv"
        )
    issues = [
        FileIssue(file, "a query without a reference")
        for file, positives in zip(queries, relevant, strict=True)
        if not len(positives)
    ]
    return issues + [FileIssue(f, "a reference without a query") for i, f in enumerate(references) if i not in paired]


def ambiguous_pairs(
    queries: Sequence[str], references: Sequence[str], relevant: Relevant
) -> tuple[list[FileIssue], list[FileIssue]]:
    """Pairings by name that are ambiguous (several references for a query), and those that share a reference.

    The latter may be intended.
    """
    ambiguous = [
        FileIssue(file, f"{len(found)} references have its name up to the first dot, such as {references[found[0]]}")
        for file, found in zip(queries, relevant, strict=True)
        if len(found) > 1
    ]
    uses = Counter(found[0] for found in relevant if len(found) == 1)
    shared = [
        FileIssue(file, f"shares {references[found[0]]} with {uses[found[0]] - 1} more")
        for file, found in zip(queries, relevant, strict=True)
        if len(found) == 1 and uses[found[0]] > 1
    ]
    return ambiguous, shared
