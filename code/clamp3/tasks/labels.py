"""Classes of files: what they are called and prompted by, and which one a file's name, folder or a CSV file says."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from clamp3.errors import UserError
from clamp3.io.files import read_text
from clamp3.io.reports import FileIssue, describe_error
from clamp3.io.tables import read_table


def spoken(label: str) -> str:
    """A label as a prompt says it: folders' underscores are spaces."""
    return " ".join(label.replace("_", " ").split())


def read_prompts(path: Path, templates: Sequence[str]) -> dict[str, list[str]]:
    """The prompts of each label in a text file of lines "label", or "label: prompt | prompt | …".

    A label without prompts has `templates`, with it in place of {}. Raises UserError where the file cannot be read, a
    label is there twice but for case and underscores, or there are fewer than two.
    """
    try:
        lines = read_text(path).split("\n")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {describe_error(error)}") from None
    prompts: dict[str, list[str]] = {}
    known: set[str] = set()
    for number, line in enumerate(lines, 1):
        label, colon, own = (part.strip() for part in line.removeprefix("\ufeff").partition(":"))
        texts = [text.strip() for text in own.split("|") if text.strip()]
        if not (label or colon):
            continue
        if not label or (colon and not texts):
            raise UserError(f'{path}:{number}: a line must be "label" or "label: prompt | prompt", not {line!r}')
        if (key := spoken(label).casefold()) in known:
            raise UserError(f"{path}:{number}: {label} is there twice")
        known.add(key)
        prompts[label] = texts or [template.replace("{}", spoken(label)) for template in templates]
    if len(prompts) < 2:
        raise UserError(f"{path} has {len(prompts)} labels; to choose, it takes two or more")
    return prompts


def read_labels(path: Path) -> dict[str, str]:
    """The label of each file in a CSV file of lines "file,label". Raises UserError where a file has two."""
    labels: dict[str, str] = {}
    for number, (file, label) in read_table(path, ("file", "label")):
        if not file or not label:
            raise UserError(f"{path}:{number}: a line must be file,label")
        if labels.setdefault(file, label) != label:
            raise UserError(f"{path}:{number}: {file} is {labels[file]} in another line")
    return labels


def label_source(name: str) -> str | dict[str, str]:
    """What `labels_of` takes: "name" and "folder" as they are, the path of a CSV file as its `read_labels`."""
    return name if name in ("name", "folder") else read_labels(Path(name))


def labels_of(
    source: str | dict[str, str], files: Sequence[str], known: Sequence[str] | None = None
) -> tuple[list[str | None], list[FileIssue]]:
    """The label of each of `files`, None where it has none, with remarks on those.

    A label is what stands in a file's "name" before the first underscore, or its first "folder", or what the `source`,
    by file, says. Where only some labels are `known`, it is one of them, letter case and underscores aside, and the
    last folder counts where the first names none.
    """
    labels: list[str | None] = []
    remarks = []
    written = {label: label for label in known or ()}
    meant = {spoken(label).casefold(): label for label in known or ()}
    for file in files:
        names = _names(source, file)
        found = [written.get(name) or meant.get(spoken(name).casefold()) for name in names] if known else names
        labels.append(next(filter(None, found), None))
        if labels[-1] is None:
            said = " and ".join(dict.fromkeys(names))
            remarks.append(FileIssue(file, f"{said}: none of the labels" if said else "it has no label"))
    return labels, remarks


def _names(source: str | dict[str, str], file: str) -> list[str]:
    """What may be the label of a file, by its path relative to its collection's folder."""
    path = PurePosixPath(file)
    if isinstance(source, dict):
        return [source[file]] if file in source else []
    if source == "name":
        label, underscore, _rest = path.name.partition("_")
        return [label] if label and underscore else []
    return [path.parts[0], path.parent.name] if len(path.parts) > 1 else []
