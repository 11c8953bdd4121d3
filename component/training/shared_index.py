"""Shards are indexed once for all processes of a training."""

from collections.abc import Iterator, Sequence
from itertools import islice

from accelerate import PartialState
from accelerate.utils import gather_object

from component.pairs.shards import ShardIndex, index_shards


def index_shards_together(paths: Sequence[str], num_workers: int = 0) -> Iterator[ShardIndex]:
    """As `index_shards`, but each process indexes its share, and gets all of them. All must call it, to the end.

    Raises:
        ValueError: the processes were given different shards.
    """
    state = PartialState()
    if len(set(gather_object([tuple(paths)]))) > 1:
        raise ValueError(f"The processes see different shards ({paths[0]}, …). All machines must have the same files.")
    mine = index_shards(paths[state.process_index :: state.num_processes], num_workers)
    for _ in range(0, len(paths), state.num_processes):
        yield from gather_object(list(islice(mine, 1)))
