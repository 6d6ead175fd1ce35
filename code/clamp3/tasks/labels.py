"""Labels of files, from their names, their folders or a CSV file, and the text prompts of a label."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from clamp3.errors import UserError
from clamp3.io.files import read_text
from clamp3.io.reports import FileIssue, describe_error
from clamp3.io.tables import read_table


def as_words(label: str) -> str:
    """A label as it reads in a prompt, with spaces in place of the underscores of folder names."""
    return " ".join(label.replace("_", " ").split())


def read_prompts(path: Path, templates: Sequence[str]) -> dict[str, list[str]]:
    """The prompts of each label in a text file of lines "label", or "label: prompt | prompt | …".

    A label without prompts gets `templates`, with the label in place of {}. Raises UserError where the file cannot be
    read, a label occurs twice (ignoring case and underscores), or there are fewer than two labels.
    """
    try:
        lines = read_text(path).split("\n")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {describe_error(error)}") from None
    prompts: dict[str, list[str]] = {}
    known: set[str] = set()
    for number, line in enumerate(lines, 1):
        label, colon, listed = (part.strip() for part in line.removeprefix("\ufeff").partition(":"))
        texts = [text.strip() for text in listed.split("|") if text.strip()]
        if not (label or colon):
            continue
        if not label or (colon and not texts):
            raise UserError(f'{path}:{number}: a line must be "label" or "label: prompt | prompt", not {line!r}')
        if (key := as_words(label).casefold()) in known:
            raise UserError(f"{path}:{number}: {label} is there twice")
        known.add(key)
        prompts[label] = texts or [template.replace("{}", as_words(label)) for template in templates]
    if len(prompts) < 2:
        raise UserError(f"{path} has {len(prompts)} labels; at least two are needed")
    return prompts


def read_labels(path: Path) -> dict[str, str]:
    """The label of each file in a CSV file of lines "file,label". Raises UserError where a file has two labels."""
    labels: dict[str, str] = {}
    for number, (file, label) in read_table(path, ("file", "label")):
        if not file or not label:
            raise UserError(f"{path}:{number}: a line must be file,label")
        if labels.setdefault(file, label) != label:
            raise UserError(f"{path}:{number}: {file} is {labels[file]} in another line")
    return labels


def label_source(name: str) -> str | dict[str, str]:
    """The source for `labels_of`: "name" or "folder" unchanged; any other `name` is the path of a CSV file."""
    return name if name in ("name", "folder") else read_labels(Path(name))


def labels_of(
    source: str | dict[str, str], files: Sequence[str], known: Sequence[str] | None = None
) -> tuple[list[str | None], list[FileIssue]]:
    """The label of each of `files`, or None, and an issue for each file without one.

    The `source` is "name" (the file name before its first underscore), "folder" (the top-level folder) or a dictionary
    of labels by file. With `known` labels, only those count, ignoring letter case and underscores, and the innermost
    folder is tried where the top-level one names none of them.
    """
    labels: list[str | None] = []
    issues = []
    exact = {label: label for label in known or ()}
    folded = {as_words(label).casefold(): label for label in known or ()}
    for file in files:
        names = _candidates(source, file)
        found = [exact.get(name) or folded.get(as_words(name).casefold()) for name in names] if known else names
        labels.append(next(filter(None, found), None))
        if labels[-1] is None:
            tried = " and ".join(dict.fromkeys(names))
            issues.append(FileIssue(file, f"{tried}: none of the labels" if tried else "it has no label"))
    return labels, issues


def _candidates(source: str | dict[str, str], file: str) -> list[str]:
    """Candidate labels of a file, given by its path relative to the collection's folder, the preferred one first."""
    path = PurePosixPath(file)
    if isinstance(source, dict):
        return [source[file]] if file in source else []
    if source == "name":
        label, underscore, _rest = path.name.partition("_")
        return [label] if label and underscore else []
    return [path.parts[0], path.parent.name] if len(path.parts) > 1 else []
