"""Compare searching a gallery with other engines, on the same synthetic vectors.

    pip install usearch lancedb faiss-cpu
    python benchmarks/search_bench.py --rows 100000 1000000

Vectors form clusters; queries form a separate cone at some distance from all images, as text embeddings do. Recall is
relative to an exact search by numpy in fp32. The row of an engine that is not installed shows the error. Prints a
Markdown table.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

WIDTH, TOP_K, QUERIES = 512, 10, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(*args.one)
    print("| rows | engine | build s | p50 ms | p99 ms | recall@10 | add 1% s | disk MB | RSS MB |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            make(rows, Path(folder))
            for engine in args.engines:  # each in its own process, to measure its memory
                done = subprocess.run(
                    [sys.executable, __file__, "--one", engine, folder], capture_output=True, text=True
                )
                line = done.stdout.strip() or f"{engine} | {(done.stderr.strip().splitlines() or ['?'])[-1][:80]}"
                print(f"| {rows:,} | {line} |", flush=True)


def make(rows: int, folder: Path) -> None:
    """Write vectors, another 1% of vectors to add, queries, and their true answers as .npy files."""
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(1000, WIDTH)) + 2 * random.normal(size=WIDTH))
    gap = unit(random.normal(size=WIDTH))  # offset between images and texts
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, (rows, WIDTH))
    for start in range(0, rows, 50_000):
        size = min(50_000, rows - start)
        chunk = centres[random.integers(0, len(centres), size)] + random.normal(0, 0.03, (size, WIDTH))
        vectors[start : start + size] = unit(chunk)
    queries = unit(centres[random.integers(0, len(centres), QUERIES)] + random.normal(0, 0.03, (QUERIES, WIDTH)) + gap)
    more = unit(centres[random.integers(0, len(centres), rows // 100)] + random.normal(0, 0.03, (rows // 100, WIDTH)))
    best = np.full((QUERIES, 2 * TOP_K), -np.inf), np.zeros((QUERIES, 2 * TOP_K), np.int64)
    for start in range(0, rows, 50_000):
        scores = queries.astype(np.float32) @ vectors[start : start + 50_000].astype(np.float32).T
        ids = np.tile(np.arange(start, start + scores.shape[1]), (QUERIES, 1))
        scores, ids = np.hstack([best[0], scores]), np.hstack([best[1], ids])
        order = np.argsort(-scores, axis=1)[:, : 2 * TOP_K]
        best = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    np.save(folder / "queries.npy", queries.astype(np.float32))
    np.save(folder / "more.npy", more.astype(np.float16))
    np.save(folder / "truth.npy", best[1][:, :TOP_K])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def measure(name: str, folder: str) -> None:
    vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r")
    queries, more, truth = (np.load(Path(folder) / f"{file}.npy") for file in ("queries", "more", "truth"))
    own_folder = Path(folder) / name
    own_folder.mkdir()
    started = time.perf_counter()
    engine = ENGINES[name](vectors, own_folder)
    build = time.perf_counter() - started
    engine.search(queries[0])
    seconds, right = [], 0
    for query, answers in zip(queries, truth, strict=True):
        started = time.perf_counter()
        found = engine.search(query)
        seconds.append(time.perf_counter() - started)
        right += len(set(found) & set(answers.tolist()))
    started = time.perf_counter()
    engine.add(more)
    engine.search(queries[0])
    added = time.perf_counter() - started
    disk = sum(path.stat().st_size for path in own_folder.rglob("*") if path.is_file())
    shutil.rmtree(own_folder)
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{engine.title} | {build:.1f} | {p50:.1f} | {p99:.1f} | {right / truth.size:.3f} | {added:.2f} | "
        f"{disk / 1e6:,.0f} | {memory:,.0f}"
    )


class Ours:
    title = "search_image.py, exact"

    def __init__(self, vectors, folder, approximate=False):
        import torch  # noqa: F401, which `serve` has loaded: vectors are compared by it

        from component.search.searcher import Searcher
        from component.search.writer import GalleryWriter

        texts = np.asarray(vectors[:100], np.float32).tolist()  # the index measures its recall with them
        self.gallery = GalleryWriter.create(str(folder), WIDTH, fingerprint="", model="", random_texts=texts)
        for start in range(0, len(vectors), 10_000):
            self.add(vectors[start : start + 10_000])
        self.searcher = Searcher(self.gallery, None, self.open_index() if approximate else None)

    def open_index(self):
        from component.search.approximate import open_index

        return open_index(self.gallery)

    def add(self, vectors):
        from component.gallery.rows import ImageFile
        from component.ground.file_state import FileState

        first = self.gallery.num_rows()
        rows = range(first, first + len(vectors))
        files = [ImageFile(f"/photos/{row:08d}.jpg", FileState(row, row, row, row)) for row in rows]
        digests = [row.to_bytes(16, "little") for row in rows]
        self.gallery.add(files, digests, [None] * len(files), vectors)

    def search(self, query):
        return [hit.image.row for hit in self.searcher.search(query, TOP_K)]


class OursApproximate(Ours):
    title = "search_image.py --approximate"

    def __init__(self, vectors, folder):
        super().__init__(vectors, folder, approximate=True)

    def add(self, vectors):
        super().add(vectors)
        if hasattr(self, "searcher"):
            self.searcher.approximate = self.open_index()


class FaissFlat:
    title, kind = "faiss Flat fp16", "SQfp16"

    def __init__(self, vectors, folder):
        import faiss

        self.file = str(folder / "index")
        self.index = faiss.index_factory(WIDTH, self.kind, faiss.METRIC_INNER_PRODUCT)
        self.index.train(np.asarray(vectors[:100_000], np.float32))
        for start in range(0, len(vectors), 50_000):
            self.index.add(np.asarray(vectors[start : start + 50_000], np.float32))
        if hasattr(self.index, "nprobe"):
            self.index.nprobe = 32
        faiss.write_index(self.index, self.file)

    def add(self, vectors):
        import faiss

        self.index.add(np.asarray(vectors, np.float32))
        faiss.write_index(self.index, self.file)

    def search(self, query):
        return self.index.search(query[None], TOP_K)[1][0].tolist()


class FaissIVF(FaissFlat):
    title, kind = "faiss IVF1024,SQ8, nprobe 32", "IVF1024,SQ8"


class USearch:
    title = "usearch HNSW f16"

    def __init__(self, vectors, folder):
        from usearch.index import Index

        self.file = str(folder / "index")
        self.index = Index(ndim=WIDTH, metric="ip", dtype="f16")
        self.add(vectors)

    def add(self, vectors):
        first = len(self.index)
        self.index.add(np.arange(first, first + len(vectors)), np.asarray(vectors))
        self.index.save(self.file)

    def search(self, query):
        return self.index.search(query.astype(np.float16), TOP_K).keys.tolist()


class Lance:
    title = "LanceDB IVF_PQ, 20 probes, refined"

    def __init__(self, vectors, folder):
        import lancedb

        self.table = lancedb.connect(str(folder)).create_table("t", self.rows(0, vectors))
        self.table.create_index(metric="dot", index_type="IVF_PQ")

    def rows(self, first, vectors):
        import pyarrow

        flat = pyarrow.array(np.asarray(vectors, np.float32).ravel())
        ids = pyarrow.array(np.arange(first, first + len(vectors)))
        return pyarrow.table({"id": ids, "vector": pyarrow.FixedSizeListArray.from_arrays(flat, WIDTH)})

    def add(self, vectors):
        self.table.add(self.rows(self.table.count_rows(), vectors))

    def search(self, query):
        found = self.table.search(query).metric("dot").nprobes(20).refine_factor(5).limit(TOP_K).select(["id"])
        return found.to_arrow()["id"].to_pylist()


ENGINES = {
    "exact": Ours,
    "approximate": OursApproximate,
    "faiss_flat": FaissFlat,
    "faiss_ivf": FaissIVF,
    "usearch": USearch,
    "lancedb": Lance,
}

if __name__ == "__main__":
    main()
