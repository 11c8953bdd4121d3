"""Rows of all processes in one tensor, with gradients back to where each row came from."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def row_gather(count: int, device: torch.device) -> Callable[[Tensor], tuple[Tensor, int]]:
    """A function: (count, D) of this process → (N, D) of all in the order of the ranks, and where the own rows begin.

    The count may differ between processes. It is asked for once, because that waits for the device.

    The backward pass adds up what all processes want of a row, and hands it to the one that made it. Without that,
    each process would pull its own embeddings towards the others' but never move the others'.
    """
    size = torch.tensor([count], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    sizes = torch.cat(sizes).tolist()
    return lambda rows: _GatherRows.apply(rows, sizes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]):
        ctx.start, ctx.size = sum(sizes[: dist.get_rank()]), len(rows)
        # Collectives want equal shapes: shorter ones are filled up and cut again.
        padded = rows.new_zeros(max(*sizes, 1), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), ctx.start

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.size], None
