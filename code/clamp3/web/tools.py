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
from clamp3.search.collection import load_query
from clamp3.web.collection import MOST_FOUND, Collection, Explain, Kind

ABOUT = """Searches a collection of sheet music (MusicXML, ABC), MIDI, recordings and texts about music, by what it
sounds like or is about. Texts may be in any language that the model knows."""


def create_tools(collection: Collection, explain: Explain | None = None) -> MCPServer:
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
    async def search(query: str, top_k: int = 10, modality: str | None = None) -> list[dict[str, Any]]:
        """Find the files closest to a text, or to a file of this machine given by its path.

        modality: "symbolic" (scores and MIDI), "audio" or "text" for files of that kind alone. Each record has the
        file, its cosine with the query, and the share of the collection (percentile) that is less close.
        """
        return await in_thread(_search, collection, query, top_k, modality)

    @server.tool()
    async def embed(texts: list[str] | None = None, files: list[str] | None = None) -> list[dict[str, Any]]:
        """The embeddings of texts and of files of this machine, to be compared by their cosine."""
        return await in_thread(_embed, collection, texts or [], files or [])

    @server.tool(name="explain")
    async def explain_match(text: str, id: str) -> dict[str, Any]:
        """What in a file that search has found, by its id, matches a text."""
        if explain is None:
            raise ToolError("this version cannot explain matches")
        return await in_thread(lambda: explain(text, collection.served(id)))

    return server


def _search(collection: Collection, query: str, top_k: int, modality: str | None) -> list[dict[str, Any]]:
    if not 1 <= top_k <= MOST_FOUND:
        raise ValueError(f"top_k must be from 1 to {MOST_FOUND}")
    if modality not in (None, *get_args(Kind)):
        raise ValueError('modality must be "symbolic", "audio" or "text"')
    wanted = load_query(query, lambda: collection.embedder)
    return [{"query": query, **record} for record in collection.search(wanted.features[0], top_k, modality)]


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
