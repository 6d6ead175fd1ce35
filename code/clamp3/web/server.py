"""The server: a page to search with, and the same over REST. See docs/web.md for what is asked and answered."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from clamp3 import __version__
from clamp3.errors import UserError
from clamp3.formats.captions import is_picture
from clamp3.formats.registry import extensions, format_of
from clamp3.modalities import TEXT
from clamp3.search.filters import Filter
from clamp3.search.ranking import normalized
from clamp3.web.batching import Batcher
from clamp3.web.collection import (
    MOST_FOUND,
    MOST_VALUES,
    Collection,
    Kind,
    Modality,
    NotReady,
    Terms,
    Unknown,
    readable,
)
from clamp3.web.explaining import explain_match
from clamp3.web.protection import Limits, Protection, problem
from clamp3.web.recordings import Recordings
from clamp3.web.uploads import Late, Workshop, caption_upload, embed_kept, embed_upload, kept_upload, shown_name
from clamp3.web.views import BARS, View, view

STATIC = Path(__file__).parent / "static"
FILE_POLICY = "default-src 'none'; sandbox"  # of files of the collection, should a browser open one as a page
MODEL = "clamp3"  # what requests may call the model, whichever it is
MOST_PLACES = 2000  # of a file, that an explanation may be asked for
MOST_PARTS = 20  # files that are added to a query, or subtracted
TopK = Annotated[int, Query(ge=1, le=MOST_FOUND)]
Text = Annotated[str | None, Query(max_length=Limits.characters, description="a text")]
Like = Annotated[str | None, Query(max_length=64, description="the id of a file of the collection")]
Ids = Annotated[tuple[str, ...], Query(max_length=MOST_PARTS, description="ids of files that count too, or against")]
Where = Annotated[tuple[str, ...], Query(max_length=MOST_PARTS, description="conditions on metadata, as year<1850")]
FormIds = Annotated[tuple[str, ...], Form(max_length=MOST_PARTS)]
Places = Annotated[int, Query(ge=1, le=MOST_PLACES)]


class EmbeddingsRequest(BaseModel):
    """As other servers of embeddings take it; what is not named here is passed over."""

    input: str | list[str]
    model: str = MODEL
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="must be the model's own, if it is given")


def create_app(
    collection: Collection, token: str | None = None, limits: Limits | None = None, captioner: str | None = None
) -> Protection:
    """The ASGI application over a collection, which starts and ends with it.

    `captioner`, as `captions.caption_of` takes it, puts pictures into words; without one they are refused.
    """
    limits = limits or Limits()
    state = Service(collection, limits, captioner)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        collection.start()
        state.begin()
        yield
        state.close()

    app = FastAPI(
        title="CLaMP 3",
        version=__version__,
        description="Search and embeddings of sheet music, MIDI, audio and text.",
        docs_url=None,  # both pages take their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    add_errors(app)
    add_rest(app, state)
    add_search(app, state)
    add_files(app, state)
    app.mount("/static", StaticFiles(directory=STATIC), "static")
    return Protection(app, limits, token)


class Service:
    """What the routes share."""

    def __init__(self, collection: Collection, limits: Limits, captioner: str | None):
        self.collection, self.limits, self.captioner = collection, limits, captioner
        self.recordings = Recordings()
        self.views = lru_cache(maxsize=256)(self._view)

    def begin(self) -> None:
        """Begin to take requests, in the event loop."""
        self.workshop = Workshop(self.limits.work_seconds)
        self.texts: Batcher[str, tuple[np.ndarray, int]] = Batcher(self._embed_texts, "texts")

    def close(self) -> None:
        self.texts.close()
        self.collection.close()
        self.recordings.close()

    def _embed_texts(self, texts: Sequence[str]) -> list[tuple[np.ndarray, int] | Exception]:
        """The feature (hidden,) of each text, and of how many tokens it is made."""
        embedder = self.collection.embedder
        found: list[tuple[np.ndarray, int] | Exception] = [ValueError("a text without letters or signs")] * len(texts)
        sequences, places = [], []
        for place, text in enumerate(texts):
            try:
                sequences.append(embedder.encode_text(text))
                places.append(place)
            except ValueError as error:
                found[place] = error
        for index, feature in embedder.embed(TEXT.name, sequences):
            found[places[index]] = feature, len(sequences[index])
        return found

    async def embed_text(self, text: str) -> tuple[np.ndarray, int]:
        """Raises ValueError for an empty text and one that is too long."""
        if len(text) > self.limits.characters:
            raise ValueError(f"a text of {len(text)} characters; the most is {self.limits.characters}")
        if not text.strip():
            raise ValueError("the text is empty")
        self.collection.check_ready()
        return await self.texts(text)

    async def query_of(self, q: str | None, like: str | None) -> np.ndarray | str:
        """The feature (hidden,) of a text, or the id: exactly one is given."""
        if (q is None) == (like is None):
            raise ValueError("give either q, a text, or like, the id of a file")
        return like if like is not None else (await self.embed_text(q or ""))[0]

    async def caption_of(self, file: UploadFile) -> str | None:
        """What an uploaded picture shows, in words; None where it is no picture that this server reads."""
        if self.captioner is None or not is_picture(Path(shown_name(file.filename))):
            return None
        return await self.workshop.run(partial(caption_upload, self.captioner, file.filename, file.file))

    async def search(self, query: np.ndarray | str, terms: Terms, melody: np.ndarray | None = None) -> list[dict]:
        return await run_in_threadpool(self.collection.search, query, terms, melody)

    async def explain(
        self, query: np.ndarray | str, terms: Terms, source: str | Path, identity: str, count: int
    ) -> dict:
        """Why a file of the collection is close to what is asked."""
        if not self.collection.explains:
            raise HTTPException(501, "ONNX files cannot explain what was found: start the server with other weights")
        path = self.collection.served(identity)
        parts = await run_in_threadpool(self.collection.parts, query, terms, source)
        why = await self.workshop.run(partial(explain_match, self.collection.embedder, parts, path, count))
        return {"file": self.collection.name_of(self.collection.path_of(identity)), **why}

    def _view(self, path: Path, bars: int, is_numbered: bool, _changed: int) -> View:
        embedder = self.collection.embedder
        return view(path, embedder.processes, bars, is_numbered and not embedder.as_is)


# ---------- errors ----------


def add_errors(app: FastAPI) -> None:
    """Have each error answered by a sentence."""

    def answers(error: type[Exception], status: int, headers: dict[str, str] | None = None) -> None:
        @app.exception_handler(error)
        async def answer(_: Request, raised: Exception) -> JSONResponse:
            return problem(status, str(raised), headers)

    answers(ValueError, 422)
    answers(UserError, 500)
    answers(Unknown, 404)
    answers(Late, 503, {"Retry-After": "60"})
    answers(NotReady, 503, {"Retry-After": "2"})

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, raised: HTTPException) -> JSONResponse:
        return problem(raised.status_code, str(raised.detail), dict(raised.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def of_request(_: Request, raised: RequestValidationError) -> JSONResponse:
        said = [f"{'.'.join(map(str, error['loc'][1:])) or 'request'}: {error['msg']}" for error in raised.errors()]
        return problem(422, "; ".join(said))


# ---------- REST ----------


def add_rest(app: FastAPI, service: Service) -> None:
    """The routes that programs use; the page uses them too."""
    collection, limits = service.collection, service.limits

    @app.get("/healthz")
    async def healthz() -> dict:
        """How far the collection is, and what the server can do."""
        now = collection.progress
        return {
            "state": now.state,
            "done": now.done,
            "total": now.total,
            "reason": now.reason,
            "failures": [{"file": readable(issue.file), "reason": issue.reason} for issue in now.failures[:100]],
            "collection": readable(collection.path.name),
            "extensions": extensions(),
            "explain": collection.explains,
            "passages": {"state": now.passages, "done": now.passages_done, "total": now.passages_total},
            "batches": service.texts.batches,
            "texts": service.texts.items,
        }

    @app.get("/collection")
    async def facts() -> dict:
        """What there is to ask for: how many files of each kind, and the columns of metadata with their values.

        "folder" is how the names of all files begin.
        """
        collection.check_ready()
        columns = {name: sorted(values)[:MOST_VALUES] for name, values in sorted(collection.columns.items())}
        passages = collection.progress.passages
        return {"kinds": collection.kinds, "columns": columns, "passages": passages, "folder": collection.common}

    @app.post("/embed")
    async def embed(files: Annotated[list[UploadFile], File()]) -> list[dict]:
        """The features of files, as clamp3_embd.py writes them; of a file that has none, the reason."""
        if len(files) > limits.files:
            raise ValueError(f"{len(files)} files; the most is {limits.files}")
        embedder, records = collection.embedder, []
        for file in files:
            record: dict[str, Any] = {"file": shown_name(file.filename)}
            try:
                made = await service.workshop.run(partial(embed_upload, embedder, file.filename, file.file))
                record |= {"modality": made.modality, "embedding": made.feature.tolist(), "remarks": made.remarks}
            except UserError:
                raise
            except ValueError as error:
                record["error"] = str(error)
            records.append(record | {"weights": str(embedder.weights)})
        return records

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingsRequest) -> dict:
        """The features of texts, of length one, in the form that clients of embeddings know."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        embedder = collection.embedder
        names = {MODEL, embedder.weights.name if embedder.weights else MODEL}
        if request.model not in names:
            raise HTTPException(404, f"there is no model {request.model}; here is {' and '.join(sorted(names))}")
        if not 1 <= len(texts) <= limits.texts:
            raise ValueError(f"input must be 1 to {limits.texts} texts, not {len(texts)}")
        if request.dimensions not in (None, embedder.sizes.clamp3_hidden_size):
            raise ValueError(f"this model's features have {embedder.sizes.clamp3_hidden_size} dimensions")
        made = await gathered([service.embed_text(text) for text in texts])
        tokens = sum(count for _, count in made)
        return {
            "object": "list",
            "model": request.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": written(feature, request.encoding_format)}
                for index, (feature, _) in enumerate(made)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def add_search(app: FastAPI, service: Service) -> None:
    """The routes that search, and that say why something was found."""
    collection = service.collection

    @app.get("/search")
    async def search(
        q: Text = None,
        like: Like = None,
        also: Ids = (),
        without: Ids = (),
        top_k: TopK = 10,
        modality: Modality | None = None,
        kind: Kind | None = None,
        where: Where = (),
        passages: Annotated[bool, Query(description="rank files by the closest of their passages")] = False,
    ) -> list[dict]:
        """The files closest to a text, or to a file of the collection: exactly one of `q` and `like` is given."""
        terms = Terms(also, without, Filter(modality, kind, where), passages, top_k)
        query = await service.query_of(q, like)
        return [{"query": q, **record} for record in await service.search(query, terms)]

    @app.post("/search")
    async def search_by_file(
        file: UploadFile,
        also: FormIds = (),
        without: FormIds = (),
        top_k: Annotated[int, Form(ge=1, le=MOST_FOUND)] = 10,
        modality: Annotated[Modality | None, Form()] = None,
        kind: Annotated[Kind | None, Form()] = None,
        where: FormIds = (),
        passages: Annotated[bool, Form()] = False,
    ) -> list[dict]:
        """The files of the collection closest to an uploaded one."""
        name = shown_name(file.filename)
        terms = Terms(also, without, Filter(modality, kind, where), passages, top_k)
        with named(name):
            if (caption := await service.caption_of(file)) is not None:
                records = await service.search((await service.embed_text(caption))[0], terms)
                return [{"query": name, "caption": caption, **record} for record in records]
            upload = file.filename, file.file, True
            made = await service.workshop.run(partial(embed_upload, collection.embedder, *upload))
        records = await service.search(made.feature, terms, made.melody)
        return [{"query": name, "remarks": made.remarks, **record} for record in records]

    @app.get("/explain")
    async def explain(
        id: Annotated[str, Query(max_length=64, description="of the file that was found")],
        q: Text = None,
        like: Like = None,
        also: Ids = (),
        without: Ids = (),
        top_k: Places = 3,
    ) -> dict:
        """Which places of a file, and which of the query, add most to their cosine, and how much."""
        terms, query = Terms(also, without), await service.query_of(q, like)
        return await service.explain(query, terms, q or "", id, top_k)

    @app.post("/explain")
    async def explain_upload(
        file: UploadFile,
        id: Annotated[str, Form(max_length=64)],
        also: FormIds = (),
        without: FormIds = (),
        top_k: Annotated[int, Form(ge=1, le=MOST_PLACES)] = 3,
    ) -> dict:
        """The same of an uploaded file."""
        name, terms = shown_name(file.filename), Terms(also, without)
        with named(name):
            if (caption := await service.caption_of(file)) is not None:
                feature, _ = await service.embed_text(caption)
                return {"caption": caption, **await service.explain(feature, terms, caption, id, top_k)}
        with named(name), kept_upload(name, file.file) as path:
            made = await service.workshop.run(partial(embed_kept, collection.embedder, path))
            return await service.explain(made.feature, terms, path, id, top_k)


@contextlib.contextmanager
def named(name: str) -> Any:
    """A block whose ValueErrors get the name of what they are about."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


async def gathered(calls: Sequence[Any]) -> list[Any]:
    """What `calls` return; where any fails, the first error, once all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def written(feature: np.ndarray, form: str) -> list[float] | str:
    """A feature (hidden,), brought to length one: as numbers, or as float32 in base64."""
    unit = normalized(feature[None])[0]
    return unit.tolist() if form == "float" else base64.b64encode(unit.astype("<f4").tobytes()).decode()


# ---------- the page and the files ----------


def add_files(app: FastAPI, service: Service) -> None:
    """The page, and what it shows of the collection's files, which are named by their ids alone."""
    collection = service.collection

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    @app.get("/files/{identity}")
    async def shown(identity: str, bars: Annotated[int, Query(ge=1, le=16)] = BARS, numbered: bool = False) -> dict:
        """What the page shows of a file: a score in ABC, notes, a text or a recording's address.

        With `numbered`, a score's ABC is laid out anew, and "places" tells where in it each bar is.
        """
        path = collection.served(identity)
        found = await service.workshop.run(partial(service.views, path, bars, numbered, path.stat().st_mtime_ns))
        name = collection.name_of(collection.path_of(identity))
        address = {"address": f"/files/{identity}/sound"} if found["kind"] == "sound" else {}
        return {"file": name, **found, **address}

    @app.get("/files/{identity}/name")
    async def name(identity: str) -> dict:
        """What a file of the collection is called."""
        return {"file": collection.name_of(collection.path_of(identity))}

    @app.get("/files/{identity}/raw")
    async def raw(identity: str) -> FileResponse:
        """The file itself, to be saved."""
        path = collection.served(identity)
        return FileResponse(
            path,
            200,
            {"Content-Security-Policy": FILE_POLICY},
            "application/octet-stream",
            filename=readable(path.name),
        )

    @app.get("/files/{identity}/sound")
    async def sound(identity: str) -> FileResponse:
        """A recording, as a browser plays it."""
        path = collection.served(identity)
        known = format_of(path)
        if not (known and known.decode):  # to look at it by `view` would convert a score, in the loop of the server
            raise Unknown("this file is no recording")
        playable, kind = await service.workshop.run(partial(service.recordings.playable, path))
        return FileResponse(playable, 200, {"Content-Security-Policy": FILE_POLICY}, kind)
