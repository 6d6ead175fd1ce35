"""A web service beside a program in another language: features of texts, and of uploaded files.

    uvicorn --app-dir examples/jobs --factory sidecar:create_app
Texts are posted to /texts as a JSON list, a file to /file as the field `upload` of a form. MIDI, MusicXML and sound
are told from each other by their bytes. What has no feature is answered with 422 and the reason.
"""

from fastapi import FastAPI, UploadFile
from fastapi.responses import JSONResponse

from clamp3 import Embedder


def create_app(weights: str = "saas") -> FastAPI:
    app, embedder = FastAPI(), Embedder.from_pretrained(weights)

    @app.exception_handler(ValueError)
    def refuse(request, error):
        return JSONResponse({"error": str(error)}, 422)

    @app.post("/texts")
    def texts(texts: list[str]) -> list[list[float]]:
        return embedder.embed_text(texts, normalize=True).tolist()

    @app.post("/file")
    def file(upload: UploadFile) -> list[float]:
        return embedder.embed_any([upload.file.read()], normalize=True)[0].tolist()

    return app
