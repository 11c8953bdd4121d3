"""How the reading of a table is split: one process alone, or several that share the work."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from component.pairs.shards import ShardIndex, index_shards


class Work:
    """One process alone; `component.training.shared_work` is for several.

    Args:
        num_workers: processes that index shards in addition to this one.

    Attributes:
        is_writer: whether this process writes what all of them read.
    """

    is_writer = True

    def __init__(self, num_workers: int = 0):
        self.num_workers = num_workers

    def index_shards(self, paths: Sequence[str]) -> Iterator[ShardIndex]:
        """The index of each shard, in order."""
        return index_shards(paths, self.num_workers)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Like `map`, but reads the next item while the function runs: a tokenizer releases the GIL."""
        items, end = iter(items), object()
        with ThreadPoolExecutor(1) as pool:
            item = next(items, end)
            while item is not end:
                result = pool.submit(function, item)
                item = next(items, end)
                yield result.result()

    def everywhere(self, fact: bool) -> bool:
        """Whether a fact holds in all processes. They wait for each other here."""
        return fact

    def place_among(self, view: str) -> tuple[int, int]:
        """The place of this process among those with the same view, and how many these are."""
        return 0, 1

    def exchange(self, function: Callable[[Any], Any], mine: Sequence[Any]) -> Iterator[Any]:
        """The results of the items of all processes, in any order; each calls this with its own items."""
        return map(function, mine)

    def require_same_files(self, files: Mapping[str, str | None]) -> None:
        """Raise ValueError if another process sees other files than the first one.

        Args:
            files: path → what this process sees there, in words; None if there is no file.
        """


ALONE = Work()
