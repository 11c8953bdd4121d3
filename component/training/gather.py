"""Gather rows of all processes into one tensor, with gradients that flow back to the process of each row."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class RowGather:
    """A function: (count, D) of this process → (N, D) of all processes in rank order, and the index of the first row
    of this process.

    The count may differ between processes. They exchange it once here, because that waits for the device.

    The backward pass sums the gradients of a row over all processes and returns the sum to the process that owns it.
    Without that, each process would move its own embeddings towards those of the others, but never the others'.

    Attributes:
        total: N.
    """

    def __init__(self, count: int, device: torch.device):
        size = torch.tensor([count], device=device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        self._sizes = torch.cat(sizes).tolist()
        self.total = sum(self._sizes)

    def __call__(self, rows: Tensor) -> tuple[Tensor, int]:
        return _GatherRows.apply(rows, self._sizes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]):
        ctx.start, ctx.size = sum(sizes[: dist.get_rank()]), len(rows)
        # Collectives need equal shapes: pad the shorter tensors, and remove the padding afterwards.
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
