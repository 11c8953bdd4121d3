"""A faiss index of a gallery, for several million images: candidates in a millisecond, most of them right.

It is derived from the vectors, kept next to them, and built again when it does not belong to them.
"""

import json
import logging
import math
import os
from typing import BinaryIO

import numpy as np

from component.gallery.reader import Gallery, chunks
from component.ground.files import new_file
from component.ground.optional import import_optional
from component.ground.output_paths import require_writable

logger = logging.getLogger(__name__)

APPROXIMATE_INDEX = "vectors.faiss"  # holds a line of JSON, the index in faiss's format, and _END
MIN_RECALL = 0.95  # recall@10 against the exact search that the number of probed cells must reach
MAX_EXACT_ROWS = 50_000  # up to this many rows are compared with the query one by one
_END = b"complete"
_FIRST_PROBES = 8
_TRAINING_VECTORS = 64  # per cell


class ApproximateIndex:
    """Cells of vectors in 8 bits each (faiss IVF,SQ8). Open it with `open_index`.

    Attributes:
        rows: of the gallery that it covers, from the first on.
        probes: cells that a search looks into, of `cells`.
        recall: recall@10 of texts against the exact search, with these probes.
    """

    def __init__(self, index, probes: int = 0, recall: float = 0.0):
        self._index, self.probes, self.recall = index, probes, recall
        self.rows, self.cells = index.ntotal, index.nlist

    def __str__(self) -> str:
        cells = f"{self.probes} of {self.cells} cells probed"
        return f"approximate index of {self.rows:,} vectors: {cells}, recall@10 {self.recall:.3f}"

    def search(self, query: np.ndarray, wanted: int, allowed: np.ndarray) -> np.ndarray:
        """Candidates for the best of the allowed rows.

        Args:
            query: (D,) fp32.
            wanted: number of rows.
            allowed: (N,) bool.

        Returns:
            (n,) int64 rows: all allowed ones if these are few, else at least `wanted` of them.
        """
        num_allowed = int(allowed.sum())
        if num_allowed <= max(wanted, MAX_EXACT_ROWS):
            return np.flatnonzero(allowed)
        # Only this share of the vectors in a cell is allowed: probe more cells in proportion.
        probes = math.ceil(self.probes * len(allowed) / num_allowed)
        while len(rows := self._probe(query[None], wanted, allowed, min(probes, self.cells))[0]) < wanted:
            if probes >= self.cells:
                break
            probes *= 2
        return rows

    def _probe(self, queries: np.ndarray, wanted: int, allowed: np.ndarray, probes: int) -> list[np.ndarray]:
        faiss = import_optional("faiss", "The approximate search", "search")
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        _, found = self._index.search(np.ascontiguousarray(queries), wanted, params=parameters)
        return [rows[rows >= 0] for rows in found]

    def measure(self, gallery: Gallery, at: int = 10) -> None:
        """Set `probes` to the fewest cells, doubled again and again, that reach MIN_RECALL, and set `recall`.

        Rows that a writer has added since the index was built do not count. The queries are the gallery's random
        *texts*: an index that is good for images can be poor for texts, which are in another region of the space.
        """
        vectors, allowed = gallery.vectors()[: self.rows], gallery.rows_where()[: self.rows]
        at, queries = min(at, int(allowed.sum())), np.array(gallery.about["random_texts"], np.float32)
        best = [set(rows.tolist()) for rows in _exact(vectors, queries, at, allowed)]
        self.probes = min(_FIRST_PROBES, self.cells)
        while True:
            found = self._probe(queries, max(at, 1), allowed, self.probes)
            hits = sum(len(rows & set(some.tolist())) for rows, some in zip(best, found, strict=True))
            self.recall = hits / max(1, at * len(queries))
            if self.recall >= MIN_RECALL or self.probes == self.cells:
                return
            self.probes = min(2 * self.probes, self.cells)


def open_index(gallery: Gallery) -> ApproximateIndex | None:
    """The index of a gallery, built if no stored one matches; None if it cannot be stored.

    Raises:
        ImportError: faiss is not installed.
    """
    faiss = import_optional("faiss", "The approximate search", "search")
    path = os.path.join(gallery.folder, APPROXIMATE_INDEX)
    try:
        with open(path, "rb") as file:
            state = _state(file)
            if state and (state["id"], state["rows"]) == (gallery.about.get("id"), gallery.num_rows()):
                index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
                return ApproximateIndex(index, state["probes"], state["recall"])
    except (OSError, RuntimeError):  # faiss raises RuntimeError for a damaged file
        pass
    try:
        if "id" not in gallery.about:
            raise ValueError(f"{gallery.folder} is of an earlier version; index its images once more to update it")
        require_writable(path)
    except ValueError as error:
        logger.warning("The search is exact, without an index: %s.", error)
        return None
    return build_index(gallery)


def _state(file: BinaryIO) -> dict | None:
    """The first line of an index file, if it is a whole one; the file is left right after it."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END)))
    is_whole = file.read() == _END
    file.seek(0)
    line = file.readline(1000)
    return json.loads(line) if is_whole and line.startswith(b"{") else None


def build_index(gallery: Gallery) -> ApproximateIndex:
    """Build the index, measure its recall and write it."""
    faiss = import_optional("faiss", "The approximate search", "search")
    vectors = gallery.vectors()
    cells = max(1, min(len(vectors) // 39, round(4 * math.sqrt(len(vectors)))))  # faiss wants 39 vectors per cell
    index = faiss.index_factory(gallery.width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(
        np.random.default_rng(0).choice(len(vectors), min(len(vectors), _TRAINING_VECTORS * cells), False)
    )
    index.train(vectors[sample].astype(np.float32))
    for _, chunk in chunks(vectors):
        index.add(chunk)
    built = ApproximateIndex(index)
    built.measure(gallery)
    state = {"id": gallery.about["id"], "rows": built.rows, "probes": built.probes, "recall": built.recall}
    with new_file(os.path.join(gallery.folder, APPROXIMATE_INDEX), "wb") as file:
        file.write(json.dumps(state).encode() + b"\n")
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        file.write(_END)
    return built


def _exact(vectors: np.ndarray, queries: np.ndarray, at: int, allowed: np.ndarray) -> np.ndarray:
    """(Q, at) best rows of each query."""
    best, best_rows = np.full((len(queries), at), -np.inf, np.float32), np.zeros((len(queries), at), np.int64)
    for start, chunk in chunks(vectors):
        scores = queries @ chunk.T
        rows = np.arange(start, start + len(chunk))
        scores[:, ~allowed[rows]] = -np.inf
        rows = np.broadcast_to(rows, scores.shape)
        scores, rows = np.concatenate([best, scores], axis=1), np.concatenate([best_rows, rows], axis=1)
        order = scores.argpartition(-at, axis=1)[:, -at:] if at else np.empty((len(queries), 0), np.int64)
        best, best_rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return best_rows
