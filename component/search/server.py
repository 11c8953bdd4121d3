"""A gallery as a web page: search by text, by image, zero-shot classification.

The server is for one person on one machine. Images go out by their row in the gallery alone, so no path is ever part
of a URL. starlette and uvicorn are imported here and nowhere else.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import torch

from component.ground.optional import import_optional
from component.ground.plain_text import one_line
from component.image.load import BadImageError, load_image
from component.prompts import embed_classes
from component.search.query import Filter, Query, Searcher
from component.search.thumbnails import for_browser, thumbnail

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_TOP_K, MAX_LABELS, MAX_TEXT = 200, 50, 500
PAGE = Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    # Nothing but what this server sends; blob: is the picture that was pasted, before it is sent.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _Refused(Exception):
    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def local_names() -> tuple[str, ...]:
    """The name of this machine and its addresses, by which others may ask for it."""
    name = socket.gethostname().lower()
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    return name, *sorted(found)


def new_token() -> str:
    return secrets.token_urlsafe(16)


def make_app(searcher: Searcher, hosts: tuple[str, ...] = LOOPBACK, token: str | None = None):
    """A Starlette application.

    Args:
        hosts: names and addresses that the Host header may hold, so that no page elsewhere reaches this server by a
            name of its own (DNS rebinding).
        token: what the URL of the page must carry as `?token=`; None: nothing.
    """
    import_optional("starlette", "The web page", "search")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    lock = threading.Lock()  # one model, one query at a time: more at once would be no faster
    cookie = "gallery_token"

    def checked(answer):
        """What every route has in common: who may ask, and how it answers."""

        async def endpoint(request: Request) -> Response:
            try:
                _require_host(request.headers.get("host", ""), hosts)
                given = request.query_params.get("token") or request.cookies.get(cookie) or ""
                if token and not secrets.compare_digest(given.encode(), token.encode()):
                    raise _Refused(403, "this server wants the address that it printed when it started")
                response = await answer(request)
            except _Refused as error:
                response = JSONResponse({"error": str(error)}, error.status)
            except (ValueError, BadImageError) as error:
                response = JSONResponse({"error": one_line(error)}, 400)
            response.headers.update(_HEADERS)
            if token and request.query_params.get("token"):
                response.set_cookie(cookie, token, httponly=True, samesite="strict")
            return response

        return endpoint

    def static(name: str):
        async def answer(request: Request) -> Response:
            return FileResponse(PAGE / name)

        return checked(answer)

    async def about(request: Request) -> Response:
        return JSONResponse({**searcher.gallery.counts(), "model": os.path.basename(searcher.gallery.about["model"])})

    async def search(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answer_search, *await _question(request)))

    def answer_search(options: dict[str, Any], content: bytes) -> dict:
        like = _number(options, "like", 0, 2**62)
        query = Query(
            texts=_lines(options, "texts", 8),
            minus=_lines(options, "minus", 8),
            images=[load_image(content)] if content else [],
            like=[] if like is None else [int(like)],
            image_weight=_number(options, "image_weight", 0, 1, 0.5),
        )
        folder = options.get("folder")
        if not isinstance(folder, (str, type(None))) or "\0" in (folder or ""):
            raise ValueError("folder is no text")
        where = Filter(
            folder=folder or None,
            since=_number(options, "since", 0, 1e11),
            until=_number(options, "until", 0, 1e11),
            threshold=_number(options, "threshold", -10, 10),
            fold=_number(options, "fold", 0, 1),
        )
        with lock:
            hits = searcher.search(searcher.embed(query), int(_number(options, "top_k", 1, MAX_TOP_K, 20)), where)
        return {"hits": [hit.as_json() for hit in hits]}

    async def classify(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answer_classify, *await _question(request)))

    def answer_classify(options: dict[str, Any], content: bytes) -> dict:
        labels = list(dict.fromkeys(_lines(options, "labels", MAX_LABELS)))
        if len(labels) < 2:
            raise ValueError("two labels at least are needed, one a line")
        if not content:
            raise ValueError("an image is needed")
        image = load_image(content)
        with lock, torch.inference_mode():
            classes = embed_classes(searcher.model, searcher.processor, labels)
            cosines = classes @ searcher.embed(Query(images=[image]))
            shares = (cosines * searcher.model.logit_scale.exp().float().cpu()).softmax(dim=0)
        order = shares.argsort(descending=True).tolist()
        return {
            "labels": [{"label": labels[i], "share": shares[i].item(), "cosine": cosines[i].item()} for i in order]
        }

    async def small(request: Request) -> Response:
        image = _image(searcher, request.path_params["row"])
        content = await run_in_threadpool(_or_gone, thumbnail, image, searcher.gallery.folder)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def whole(request: Request) -> Response:
        image = _image(searcher, request.path_params["row"])
        content, kind = await run_in_threadpool(_or_gone, for_browser, image)
        return Response(content, media_type=kind, headers={"Cache-Control": "private, no-cache"})

    return Starlette(
        routes=[
            Route("/", static("index.html")),
            Route("/page.css", static("page.css")),
            Route("/page.js", static("page.js")),
            Route("/icon.svg", static("icon.svg")),
            Route("/api/about", checked(about)),
            Route("/api/search", checked(search), methods=["POST"]),
            Route("/api/classify", checked(classify), methods=["POST"]),
            Route("/thumbnail/{row:int}", checked(small)),
            Route("/image/{row:int}", checked(whole)),
        ]
    )


def serve_app(app, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    uvicorn = import_optional("uvicorn", "The web page", "search")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


def _require_host(given: str, hosts: tuple[str, ...]) -> None:
    name = given.rpartition("]")[0].removeprefix("[") or given.partition(":")[0]
    if name.lower() not in hosts:
        raise _Refused(403, "this server does not answer to that name")


async def _question(request) -> tuple[dict[str, Any], bytes]:
    """The body of a question: one line of JSON, then the bytes of an image, if any."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_UPLOAD_BYTES:
            raise _Refused(413, f"the image has more than {MAX_UPLOAD_BYTES >> 20} MB")
        parts.append(part)
    line, _, content = b"".join(parts).partition(b"\n")
    try:
        options = json.loads(line)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise ValueError("the first line of a question is a JSON object")
    return options, content


def _image(searcher: Searcher, row: int):
    image = searcher.gallery.image(row) if row < 2**62 else None
    if image is None:
        raise _Refused(404, "the gallery has no such image")
    return image


def _or_gone(read, *arguments) -> bytes:
    try:
        return read(*arguments)
    except BadImageError as error:
        raise _Refused(410, one_line(error)) from None


def _lines(options: dict[str, Any], key: str, most: int) -> list[str]:
    texts = options.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: expected a list of texts")
    texts = [text.strip() for text in texts if text.strip()]
    if len(texts) > most or any(len(text) > MAX_TEXT for text in texts):
        raise ValueError(f"{key}: expected at most {most} texts of {MAX_TEXT} characters")
    return texts


def _number(options: dict[str, Any], key: str, least: float, most: float, default: float | None = None):
    value = options.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{key}: expected a number from {least:g} to {most:g}")
    return value
