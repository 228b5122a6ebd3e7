"""Rows of a batch that is spread over processes: gathered with gradients, however unevenly they are spread.

Every process computes the loss of the whole batch, local rows × all columns, and the backward of a gather sums the
gradients of all processes. So each holds N times its share of the gradient, and what averages over N processes (DDP)
yields the gradient of one process with the whole batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable


def gather_rows(rows_BX: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, differentiable; the input itself in a single process.

    Args:
        rows_BX: (B, …); B may differ from process to process, and may be 0. All else must agree.
    """
    return Ranks.holding(rows_BX).gather(rows_BX)


@dataclass(frozen=True)
class Ranks:
    """How many rows each process holds, and which of them this is."""

    sizes: tuple[int, ...]
    rank: int

    @staticmethod
    def alone(rows: int) -> "Ranks":
        """A single process, whatever else is running."""
        return Ranks((rows,), 0)

    @staticmethod
    def holding(rows: Tensor) -> "Ranks":
        """Ask every process how many rows it holds (one small collective)."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks.alone(len(rows))
        size = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        return Ranks(tuple(torch.cat(sizes).tolist()), dist.get_rank())

    @property
    def offset(self) -> int:
        """Where this process's rows begin among all."""
        return sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """(B, …) → (ΣB, …), differentiable."""
        if len(self.sizes) == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.sizes, self.rank)
        return gathered

    def stack(self, tensor: Tensor) -> Tensor:
        """One tensor from each process, all of one shape → (N, …), differentiable."""
        return Ranks((1,) * len(self.sizes), self.rank).gather(tensor[None])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        received = [_padded(rows[:0], max(sizes)) for _ in sizes]
        dist.all_gather(received, _padded(rows, max(sizes)))
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        sent = [_padded(part, max(ctx.sizes)) for part in grad.split(ctx.sizes)]
        total = torch.empty_like(sent[0])
        dist.reduce_scatter(total, sent)
        return total[: ctx.sizes[ctx.rank]], None, None


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])
