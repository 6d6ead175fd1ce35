"""What a search has found, explained: the bars and words that make each file close to the query."""

from collections.abc import Callable
from pathlib import Path

from clamp3.features.embedder import Embedder
from clamp3.search.collection import existing_path, ready_feature

Explanations = list[dict]


def explain_found(
    found: list[dict], query: str, load_embedder: Callable[[], Embedder], folder: Path, as_text: bool = False
) -> Explanations:
    """For each record of a search: the three strongest places of the query and of the file, or why there are none.

    Each record gets its own as "explanation". Files are relative to `folder`, unless they are absolute. The query is
    a file or else a text, or with `as_text` a text.
    """
    source: str | Path = query if as_text else existing_path(query) or query
    explanations = []
    for record in found:
        path = Path(folder if folder.is_dir() else folder.parent, record["file"])
        try:
            if any(isinstance(one, Path) and ready_feature(one) is not None for one in (source, path)):
                raise ValueError("a feature that came ready-made has no positions")
            strongest = load_embedder().explain(source, path).strongest()
            record["explanation"] = {side: [one.as_json() for one in some] for side, some in strongest.items()}
        except (ValueError, OSError) as error:
            record["explanation"] = {"problem": str(error)}
        explanations.append(record["explanation"])
    return explanations
