"""A gallery as a web page: search by text and by image, zero-shot classification, download.

Images are addressed by the digest of their content, so no path is part of a URL, and what a browser has cached of one
gallery is never shown for another on the same port. starlette is imported here, in `guard` and in `question`.
"""

import os
import threading
import traceback
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from component.gallery.reader import cut
from component.gallery.rows import GalleryImage
from component.ground.optional import import_optional
from component.ground.plain_text import one_line
from component.image.load import decode
from component.image.reading import BadImageError
from component.prompts import embed_classes
from component.search.guard import Access, Guard, Refused, json_response, refusal
from component.search.query import Query
from component.search.question import MAX_LABELS, MAX_TOP_K, Bodies, Question
from component.search.searcher import Hit, Searcher
from component.search.thumbnails import for_browser, thumbnail
from component.search.zip_stream import zip_stream

MAX_ZIP_IMAGES = 500
NUM_SAMPLES = 24  # images on the page before the first search
_QUERY_EDGE = 1024  # pixels; large query images are reduced to this, several times the input size of a tower
_LOCAL = Access()
_PAGE = Path(__file__).parent / "page"


def make_app(searcher: Searcher, access: Access = _LOCAL):
    """An ASGI application.

    Raises ImportError if starlette is not installed.
    """
    import_optional("starlette", "The web page", "search")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response, StreamingResponse
    from starlette.routing import Route

    answers, bodies = _Answers(searcher), Bodies()

    def answering(answer):
        async def endpoint(request: Request) -> Response:
            try:
                return await answer(request)
            except (Refused, ValueError, OSError) as error:
                # A future of another thread and this error refer to each other; the frames hold the uploaded image.
                traceback.clear_frames(error.__traceback__)
                return refusal(_refused(error))

        return endpoint

    def static(name: str):
        async def endpoint(request: Request) -> Response:
            return FileResponse(_PAGE / name, headers={"Cache-Control": "no-cache"})

        return endpoint

    def question(answer):
        async def endpoint(request: Request) -> Response:
            async with bodies.read(request) as question:
                return json_response(await run_in_threadpool(answer, question))

        return answering(endpoint)

    async def about(request: Request) -> Response:
        return json_response(await run_in_threadpool(answers.about))

    async def small(request: Request) -> Response:
        content = await run_in_threadpool(answers.thumbnail, request.path_params["digest"])
        # The URL contains the digest of the content, so the response never changes.
        return Response(
            content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=31536000, immutable"}
        )

    async def whole(request: Request) -> Response:
        content, media_type = await run_in_threadpool(answers.whole, request.path_params["digest"])
        return Response(content, media_type=media_type, headers={"Cache-Control": "private, no-cache"})

    async def download(request: Request) -> Response:
        images = await run_in_threadpool(answers.images, request.query_params.get("ids", ""))
        headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
        return StreamingResponse(zip_stream(images), media_type="application/zip", headers=headers)

    app = Starlette(
        routes=[
            Route("/", static("index.html")),
            *(Route(f"/{name}", static(name)) for name in ("page.css", "page.js", "icon.svg")),
            Route("/api/about", answering(about)),
            Route("/api/search", question(answers.search), methods=["POST"]),
            Route("/api/classify", question(answers.classify), methods=["POST"]),
            Route("/thumbnail/{digest}", answering(small)),
            Route("/image/{digest}", answering(whole)),
            Route("/images.zip", answering(download)),
        ]
    )
    app.router.redirect_slashes = False
    return Guard(app, access)


def _refused(error: Refused | ValueError | OSError) -> Refused:
    """The response that an error becomes."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BadImageError):
        return Refused(400, error.reason, one_line(error))
    if isinstance(error, ValueError):
        return Refused(400, "question", one_line(error))
    return Refused(503, "busy", one_line(error))  # the gallery has been locked for too long


class _Answers:
    """The answers of the server; each method may run in a separate thread."""

    def __init__(self, searcher: Searcher):
        self.searcher, self.gallery = searcher, searcher.gallery
        # One query and one decoding at a time: two would take twice the memory without being faster.
        self._answering, self._decoding = threading.Lock(), threading.Lock()
        self._overview = lru_cache(maxsize=1)(self._make_overview)

    def about(self) -> dict:
        return self._overview(self.gallery.version())

    def _make_overview(self, version) -> dict:
        with self.gallery.snapshot():
            rows = np.flatnonzero(self.gallery.rows_where())
            chosen = rows[np.linspace(0, len(rows) - 1, min(NUM_SAMPLES, len(rows))).round().astype(int)]
            samples = [Hit(self.gallery.image(int(row)), 0.0).as_json() for row in chosen]
            return {
                **self.gallery.counts(),
                "model": os.path.basename(self.gallery.about["model"]),
                "folders": self.gallery.folders(),
                "samples": samples,
            }

    def search(self, question: Question) -> dict:
        top_k = int(question.number("top_k", 1, MAX_TOP_K, 20))
        offset = int(question.number("offset", 0, MAX_TOP_K, 0))
        with self._answering:
            query = Query(
                texts=question.texts("texts"),
                minus=question.texts("minus"),
                images=[self._decode(question.image)] if question.image else [],
                like=question.rows("like"),
                image_weight=question.number("image_weight", 0, 1, 0.5),
            )
            answer = self.searcher.answer(query, top_k, question.where(), offset)
        # The command line takes the answer as long as this model is the gallery's; see `ask_running`.
        gallery = self.gallery.about.get("id") if self.searcher.is_current else False
        return {"gallery": gallery, **answer.as_json()}

    def classify(self, question: Question) -> dict:
        labels = list(dict.fromkeys(question.texts("labels", MAX_LABELS)))
        if len(labels) < 2:
            raise ValueError("labels: expected at least two")
        if not question.image:
            raise ValueError("expected an image")
        with self._answering, torch.inference_mode():
            model = self.searcher.towers.model
            classes = embed_classes(model, self.searcher.towers.processor, labels).numpy()
            query = self.searcher.embed(Query(images=[self._decode(question.image)]))
            cosines = torch.from_numpy(cut(classes, self.gallery.width) @ query)
            shares = (cosines * model.logit_scale.exp().float().cpu()).softmax(dim=0)
        order = shares.argsort(descending=True).tolist()
        return {
            "labels": [{"label": labels[i], "share": shares[i].item(), "cosine": cosines[i].item()} for i in order]
        }

    def thumbnail(self, digest: str) -> bytes:
        return self._read(digest, lambda image: thumbnail(image, self.gallery.folder))

    def whole(self, digest: str) -> tuple[bytes, str]:
        return self._read(digest, for_browser)

    def _read(self, digest: str, read):
        try:
            image = self.gallery.image_with(bytes.fromhex(digest))
        except ValueError:
            image = None
        if image is None:
            raise Refused(404, "no_image", "the gallery has no such image")
        try:
            with self._decoding:
                return read(image)
        except BadImageError as error:
            raise Refused(410, "gone", one_line(error)) from None

    def images(self, ids: str) -> dict[int, GalleryImage | None]:
        rows = [int(text) for text in ids.split(",") if text.isdecimal() and text.isascii() and len(text) < 19]
        if len(rows) > MAX_ZIP_IMAGES:
            raise Refused(400, "too_many", f"a zip holds at most {MAX_ZIP_IMAGES} images")
        images = {row: self.gallery.image(row) for row in rows}
        if not any(images.values()):
            raise Refused(404, "no_image", "the gallery has no such images")
        return images

    def _decode(self, content: bytes) -> Image.Image:
        with self._decoding:
            image = decode(content, edge=_QUERY_EDGE).rgb
            return image.reduce(max(1, min(image.size) // _QUERY_EDGE))
