"""Why a file was found: where its cosine with all that was asked comes from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clamp3.features.embedder import Embedder
from clamp3.features.explanation import Share
from clamp3.io.reports import describe_error
from clamp3.search.collection import ready_feature
from clamp3.search.combining import VANISHED
from clamp3.web.collection import Part


def explain_match(embedder: Embedder, parts: Sequence[Part], path: Path, count: int) -> dict[str, Any]:
    """The `count` strongest places of the file and of the query, with what each adds to the cosine.

    Of several parts, the query is the direction of their sum, so that each counts by its weight over that sum's
    length; a place of theirs tells in "of" which file it is in, None: in the text. Raises ValueError where
    the file or a part has no positions or cannot be read, and where the parts cancel each other out.
    """
    sources = [path, *(part.source for part in parts)]
    if any(isinstance(one, Path) and ready_feature(one) is not None for one in sources):
        raise ValueError("a feature that came ready-made has no positions")
    length = float(np.linalg.norm(sum(part.weight * part.unit for part in parts)))
    if length < VANISHED:
        raise ValueError("the queries cancel each other out: nothing is left to explain")
    cosine, item, query = 0.0, [], []
    for part in parts:
        try:
            found = embedder.explain(part.source, path)
        except (ValueError, OSError, MemoryError) as error:
            reason = describe_error(error)
            for source in (path, part.source):
                reason = reason.replace(str(source), source.name) if isinstance(source, Path) else reason
            raise ValueError(reason) from None
        weight = part.weight / length
        cosine += weight * found.cosine
        item.append([replace(share, share=weight * share.share) for share in found.item])
        query += [(part.name, replace(share, share=weight * share.share)) for share in found.query]
    places = [replace(some[0], share=sum(one.share for one in some)) for some in zip(*item, strict=True)]
    return {
        "cosine": cosine,
        "query": [{**share.as_json(), "of": name} for name, share in strongest(query, count)],
        "item": [share.as_json() for _, share in strongest([(None, place) for place in places], count)],
    }


def strongest(shares: Sequence[tuple[str | None, Share]], count: int) -> list[tuple[str | None, Share]]:
    """Those that add most, in the order of strength; without the parts of a header and the ends of a sequence."""
    return sorted((one for one in shares if one[1].unit), key=lambda one: -one[1].share)[:count]
