"""The collection for assistants: tools of the Model Context Protocol."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from clamp3 import __version__
from clamp3.features.cache import embed_files_once
from clamp3.features.passages import melody_of
from clamp3.search.collection import existing_path, load_query
from clamp3.search.filters import Filter
from clamp3.web.collection import MOST_FOUND, Collection, Modality, Terms
from clamp3.web.explaining import explain_match

ABOUT = """Searches a collection of sheet music (MusicXML, ABC), MIDI, recordings and texts about music, by what it
sounds like or is about. Texts may be in any language that the model knows."""


def create_tools(collection: Collection) -> MCPServer:
    """The server, which begins to read the collection when it starts to serve; calls wait until that is done."""

    @contextlib.asynccontextmanager
    async def lifespan(_: MCPServer) -> AsyncIterator[None]:
        collection.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(collection.close)

    server = MCPServer("clamp3", version=__version__, instructions=ABOUT, lifespan=lifespan, log_level="WARNING")

    async def in_thread(call: Any, *arguments: Any) -> Any:
        """What a call returns once the collection is ready; its errors are told to the assistant."""
        try:
            await anyio.to_thread.run_sync(collection.wait)
            return await anyio.to_thread.run_sync(partial(call, *arguments))
        except Exception as error:  # of whatever kind, the assistant is to know the reason
            raise ToolError(str(error) or type(error).__name__) from error

    @server.tool()
    async def search(
        query: str,
        top_k: int = 10,
        modality: str | None = None,
        kind: str | None = None,
        where: list[str] | None = None,
        also: list[str] | None = None,
        without: list[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Find the files closest to a text, or to a file of this machine given by its path.

        modality: "symbolic" (scores and MIDI), "audio" or "text" for files of that kind alone; kind: "score", "midi",
        "audio" or "text". where: conditions on the files' metadata, such as "year<1850". also, without: ids of files
        that were found, to which answers are to be close too, or not. Each record has the file, its id, its cosine
        with the query, the share of the collection (percentile) that is less close, and the bars, seconds or lines
        (passage) that are closest, where the collection has passages.
        """
        terms = (tuple(also or ()), tuple(without or ()))
        return await in_thread(_search, collection, query, top_k, (modality, kind, tuple(where or ())), terms)

    @server.tool()
    async def embed(texts: list[str] | None = None, files: list[str] | None = None) -> list[dict[str, Any]]:
        """The embeddings of texts and of files of this machine, to be compared by their cosine."""
        return await in_thread(_embed, collection, texts or [], files or [])

    @server.tool()
    async def explain(text: str, id: str, top_k: int = 3) -> dict[str, Any]:
        """Why a file that search has found, by its id, is close to a text, or to a file of this machine.

        Gives the bars, seconds or words of the file (item) and those of the query that add most to their cosine.
        """
        return await in_thread(_explain, collection, text, id, top_k)

    return server


def _search(
    collection: Collection,
    query: str,
    top_k: int,
    wanted: tuple[str | None, str | None, tuple[str, ...]],
    others: tuple[tuple[str, ...], tuple[str, ...]],
) -> list[dict[str, Any]]:
    _check_count(top_k)
    modality, kind, where = wanted
    if modality not in (None, *get_args(Modality)):
        raise ValueError('modality must be "symbolic", "audio" or "text"')
    feature = load_query(query, lambda: collection.embedder).features[0]
    path = existing_path(query)
    melody = melody_of(collection.embedder, path) if path else None
    found = collection.search(feature, Terms(*others, Filter(modality, kind, where), k=top_k), melody)
    return [{"query": query, **record} for record in found]


def _explain(collection: Collection, query: str, identity: str, count: int) -> dict[str, Any]:
    _check_count(count)
    path = collection.served(identity)
    feature = load_query(query, lambda: collection.embedder).features[0]
    parts = collection.parts(feature, Terms(), existing_path(query) or query)
    return {"file": collection.name_of(path), **explain_match(collection.embedder, parts, path, count)}


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_FOUND:
        raise ValueError(f"top_k must be from 1 to {MOST_FOUND}")


def _embed(collection: Collection, texts: list[str], files: list[str]) -> list[dict[str, Any]]:
    embedder, paths = collection.embedder, [Path(file) for file in files]
    records: list[dict[str, Any]] = [
        {"text": text, "embedding": feature.tolist()}
        for text, feature in zip(texts, embedder.embed_text(texts), strict=True)
    ]
    made: dict[int, dict[str, Any]] = {}
    for item, feature in embed_files_once(embedder, paths, None):
        problem = item.problem(feature, embedder.precision)
        found = {"error": problem} if problem or feature is None else {"embedding": feature.tolist()}
        made[item.index] = {"file": files[item.index], **found}
    return records + [made[index] for index in range(len(files))]
