"""A map as one HTML file that needs nothing else: it engraves and plays what one points at, and asks nobody.

It holds the page's own engraver and player, the piano's recordings and the music. Whatever comes from files is data in
JSON, in which no sign can end or begin a tag, and the page sets it as text; a policy lets its own scripts alone run.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clamp3.io.folders import Job
from clamp3.io.reports import printable
from clamp3.io.workers import Pool, Processes
from clamp3.tasks.maps import Map, Piece
from clamp3.web.views import BARS, View, view_job

STATIC = Path(__file__).parent / "static"
MOST_OF_ONE = 500_000  # characters of JSON of a piece's music
CHUNK = 200  # files that are converted before it is asked whether there is room for more
NO_MUSIC = "its music is not known here; --music names the folder that it lies in"
NO_SOUND = "a recording, which this page does not hold"
NO_ROOM = "this page has no room for its music (--music_limit)"
TOO_LARGE = f"its music takes over {MOST_OF_ONE / 1e6} MB"


class Answer(NamedTuple):
    """What a query finds: the places of pieces, closest first, each with its cosine."""

    query: str
    found: list[tuple[int, float]]


def music_of(pieces: Sequence[Piece], limit: int, processes: Processes) -> tuple[list[View | None], list[str]]:
    """How to show each piece, up to `limit` bytes of JSON in all, in the order of `pieces`; and else why not.

    What is converted is so in `processes`, within their limits of time and memory.
    """
    views: list[View | None] = [None] * len(pieces)
    reasons = [NO_MUSIC if piece.path is None else "" for piece in pieces]
    wanted = []
    for index, piece in enumerate(pieces):
        if piece.kind == "audio":
            reasons[index] = NO_SOUND
        elif piece.kind in ("score", "midi", "text"):
            wanted.append(index)
        else:
            reasons[index] = NO_MUSIC
    left = limit
    with Pool(processes) as pool:
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            found = dict(_views([pieces[index].path for index in chunk], pool)) if left > 0 else {}
            for index in chunk:
                view, reason = found.get(pieces[index].path, (None, NO_ROOM))
                size = len(json.dumps(view))
                if view is not None and size > MOST_OF_ONE:
                    reason = TOO_LARGE
                elif view is not None and size > left:
                    left, reason = 0, NO_ROOM  # and none of those that follow: it has the first pieces
                elif view is not None:
                    views[index], left = view, left - size
                    continue
                reasons[index] = reason
    return views, reasons


def _views(paths: Sequence[Path | None], pool: Pool) -> Iterator[tuple[Path | None, tuple[View | None, str]]]:
    jobs = [Job(path, (), 0) for path in dict.fromkeys(paths) if path is not None]
    for outcome in pool.run(partial(view_job, BARS), jobs):
        view = outcome.content if outcome.failure is None else None
        if view is not None and outcome.warnings:
            view = {**view, "remarks": [*view.get("remarks", ()), *outcome.warnings]}
        yield outcome.job.source, (view, outcome.failure or "")


def page(
    chart: Map,
    title: str,
    facts: str,
    music: Sequence[View | None],
    reasons: Sequence[str],
    answers: Sequence[Answer] = (),
) -> str:
    """The HTML of a map, whose pieces have this music or these reasons for none, as `music_of` gives them."""
    data = {
        "points": np.round(chart.points, 4).tolist(),
        "names": [printable(piece.name) for piece in chart.pieces],
        "kinds": [piece.kind for piece in chart.pieces],
        "by": printable(chart.by),
        "labels": [printable(label) for label in chart.labels],
        "groups": [printable(name) for name in chart.groups],
        "group": list(chart.group),
        "colours": list(chart.colours),
        "music": list(music),
        "reasons": list(reasons),
        "notes": _held_back(music, reasons),
        "answers": [{"query": printable(answer.query), "found": answer.found} for answer in answers],
    }
    scripts = _scripts()
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    filled = {
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:",
        "title": html.escape(printable(title)),
        "facts": html.escape(printable(facts)),
        "style": _read("style.css") + _read("map/map.css"),
        "licences": html.escape(_read("abcjs-basic-min.js.LICENSE.txt") + "\n" + _read("piano/LICENSE.txt")),
        "data": json_in_html(data),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], _read("map/map.html"))


def _held_back(music: Sequence[View | None], reasons: Sequence[str]) -> str:
    """How many pieces are shown by their names alone, for people."""
    missing = sum(view is None for view in music)
    late = reasons.count(NO_ROOM)
    if not missing:
        return ""
    return f"Of {missing} of {len(music)} it has the name alone" + (f", of {late} for want of room." if late else ".")


def json_in_html(data: Any) -> str:
    """JSON that no HTML parser takes for anything else: without the signs of tags, entities and comments."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII alone
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scripts() -> list[str]:
    """The engraver, the piano's recordings, and the modules of the page, as one script: it loads nothing."""
    piano = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in sorted(STATIC.glob("piano/*.mp3"))}
    modules = [re.sub(r"^import .*\n", "", _read(name), flags=re.MULTILINE) for name in ("player.js", "views.js")]
    modules = [re.sub(r"^export ", "", module, flags=re.MULTILINE) for module in modules]
    own = "\n".join(["(() => {", '"use strict";', *modules, _read("map/map.js"), "})();"])
    return [_read("abcjs-basic-min.js"), f"globalThis.PIANO = {json.dumps(piano)};", own]


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return STATIC.joinpath(name).read_text(encoding="utf-8")
