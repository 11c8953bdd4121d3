"""Asks the running server of a gallery, which has the model in memory; imports nothing that takes time."""

import json
import os
from dataclasses import asdict
from typing import Any

from component.search.query import Filter, Query

PORT_FILE = "serve.json"  # in the gallery, while its server runs
_SECONDS = 60


def ask_running(gallery_folder: str, query: Query, top_k: int, where: Filter) -> dict[str, Any] | None:
    """The answer of the server, see `Answer.as_json`; None if none runs, or if it does not answer this query.

    Nor does one whose gallery has been indexed with another text half since it started. Only queries with at most one
    image, given as a path, are supported.
    """
    if len(query.images) > 1:
        return None
    try:
        with open(os.path.join(gallery_folder, PORT_FILE), encoding="utf-8") as file:
            server = json.load(file)
        import urllib.request  # takes a tenth of the time of a query, and most galleries have no server

        image = b""
        for path in query.images:
            with open(path, "rb") as file:
                image = file.read()
        where = asdict(where) | {"folder": where.folder and os.path.abspath(where.folder)}
        options = {
            "texts": query.texts,
            "minus": query.minus,
            "like": query.like,
            "image_weight": query.image_weight,
            "top_k": top_k,
            **where,
        }
        request = urllib.request.Request(
            server["url"].format("api/search"),
            data=json.dumps(options).encode() + b"\n" + image,
            headers={"Content-Type": "application/octet-stream"},
        )
        # Ignore proxies in the environment: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as response:
            answer = json.load(response)
        # Another program may use the port of a server that was killed. A server of another text half says false.
        is_this_gallery = answer.pop("gallery") == server["gallery"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return answer if is_this_gallery else None
