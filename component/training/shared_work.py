"""Reading a table once for all processes of a training."""

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

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

    def place_among(self, view: str) -> tuple[int, int]:
        views = gather_object([view])
        return views[: self._state.process_index].count(view), views.count(view)

    def exchange(self, function: Callable[[Any], Any], mine: Sequence[Any]) -> Iterator[Any]:
        results = iter(DataLoader(mine, batch_size=None, num_workers=self.num_workers, collate_fn=function))
        for _ in range(max(gather_object([len(mine)]))):
            yield from gather_object(list(islice(results, 1)))

    def require_same_files(self, files: Mapping[str, str | None]) -> None:
        digest = hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=16).hexdigest()
        if len(set(gather_object([digest]))) == 1:
            return
        first, *others = gather_object([(f"process {self._state.process_index} on {platform.node()}", files)])
        for where, seen in others:
            names = sorted(name for name in {**first[1], **seen} if seen.get(name) != first[1].get(name))
            if names:
                one, other = (
                    f"{who} sees {all_of.get(names[0]) or 'no such file'}" for who, all_of in (first, (where, seen))
                )
                more = f" ({len(names) - 1} more files differ)" if len(names) > 1 else ""
                raise ValueError(
                    f"The processes see different files: of {names[0]}, {one}, {other}{more}. All machines must have "
                    "the same files."
                )
