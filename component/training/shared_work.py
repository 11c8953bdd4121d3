"""Reading a table once for all processes of a training."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from component.pairs.shards import ShardIndex, index_shards
from component.pairs.work import Work


class SharedWork(Work):
    """Each process does its share of the work and receives the results of all; all must iterate to the end."""

    def __init__(self, num_workers: int = 0):
        super().__init__(num_workers)
        self._state = PartialState()
        self.is_writer = self._state.is_main_process

    def index_shards(self, paths: Sequence[str]) -> Iterator[ShardIndex]:
        mine = index_shards(paths[self._state.process_index :: self._state.num_processes], self.num_workers)
        for _ in range(0, len(paths), self._state.num_processes):
            yield from gather_object(list(islice(mine, 1)))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        items, rank, size = iter(items), self._state.process_index, self._state.num_processes
        if size == 1:
            yield from super().map(function, items)
        while group := list(islice(items, size)):
            yield from gather_object([function(item) for item in group[rank : rank + 1]])

    def everywhere(self, fact: bool) -> bool:
        return all(gather_object([fact]))

    def require_same(self, what: Any, message: str) -> None:
        if any(other != what for other in gather_object([what])):
            raise ValueError(message)
