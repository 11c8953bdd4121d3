"""A faiss index beside a gallery, for several million images: candidates in a millisecond, most of them right.

It is derived from the vectors, built under a temporary name and renamed, and built again when the gallery has changed.
"""

import json
import math
import os

import numpy as np
import torch
from torch import Tensor

from component.ground.files import new_file, write_json
from component.ground.optional import import_optional
from component.search.gallery import Gallery

INDEX, STATE = "vectors.faiss", "vectors.faiss.json"
BOUND = 0.95  # of recall@10 against the exact search, below which it is said
_PROBES = 0.02  # share of the cells that are looked into
_TRAINING_VECTORS = 64  # for each cell


class ApproximateIndex:
    """Cells of vectors in 8 bits each (faiss IVF,SQ8). Open it with `open_index`."""

    def __init__(self, index, recall: float):
        self._index, self.recall = index, recall

    def search(self, query: Tensor, wanted: int, allowed: Tensor) -> Tensor:
        """(n,) int64 rows, n ≤ wanted, of those that are allowed ((N,) bool)."""
        faiss = import_optional("faiss", "The approximate search", "search")
        selector = faiss.IDSelectorBitmap(np.packbits(allowed.numpy(), bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nprobe)
        _, rows = self._index.search(query[None].numpy(), wanted, params=parameters)
        return torch.from_numpy(rows[0][rows[0] >= 0])


def open_index(gallery: Gallery) -> ApproximateIndex:
    """The index of a gallery; built where there is none, or where the gallery has grown since.

    Raises:
        ImportError: faiss is not installed.
    """
    faiss = import_optional("faiss", "The approximate search", "search")
    state = _read_state(gallery)
    if state is None or state["rows"] != len(gallery) or state["fingerprint"] != gallery.about["fingerprint"]:
        return build_index(gallery)
    return ApproximateIndex(faiss.read_index(os.path.join(gallery.folder, INDEX)), state["recall"])


def build_index(gallery: Gallery) -> ApproximateIndex:
    """Build the index anew, and measure its recall@10 with the gallery's random *texts*.

    (An index that is fine for images can be poor for texts, which lie elsewhere in the space.)
    """
    faiss = import_optional("faiss", "The approximate search", "search")
    vectors = gallery.vectors()
    cells = max(1, min(len(vectors) // 39, round(4 * math.sqrt(len(vectors)))))  # faiss wants 39 vectors to a cell
    index = faiss.index_factory(gallery.width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(
        np.random.default_rng(0).choice(len(vectors), min(len(vectors), _TRAINING_VECTORS * cells), False)
    )
    index.train(vectors[sample].astype(np.float32))
    for start in range(0, len(vectors), 65_536):
        index.add(vectors[start : start + 65_536].astype(np.float32))
    index.nprobe = max(1, math.ceil(_PROBES * cells), min(cells, 8))
    built = ApproximateIndex(index, 0.0)
    built.recall = _recall(built, gallery)
    with new_file(os.path.join(gallery.folder, INDEX), "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    state = {"rows": len(gallery), "fingerprint": gallery.about["fingerprint"], "recall": built.recall}
    write_json(os.path.join(gallery.folder, STATE), state)
    return built


def _recall(index: ApproximateIndex, gallery: Gallery, at: int = 10) -> float:
    """Share of the exact top 10 that the index finds, over the gallery's random texts."""
    vectors, allowed = torch.from_numpy(gallery.vectors()), torch.from_numpy(gallery.living())
    at = min(at, int(allowed.sum()))
    found = 0
    queries = torch.tensor(gallery.about["random_texts"])
    for query in queries:
        scores = (vectors @ query.half()).float().masked_fill_(~allowed, -torch.inf)
        found += len(set(scores.topk(at).indices.tolist()) & set(index.search(query, at, allowed).tolist()))
    return found / max(1, at * len(queries))


def _read_state(gallery: Gallery) -> dict | None:
    try:
        with open(os.path.join(gallery.folder, STATE), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None
