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
    ranks, (rows_BX,) = Ranks.meet(rows_BX)
    return ranks.gather(rows_BX)


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
    def meet(*tensors: Tensor) -> tuple["Ranks", list[Tensor]]:
        """Ask every process how many rows it holds, and which of these learn somewhere (one small collective).

        The backward of a gather is a collective too, and waits for those whose rows carry no gradient: what learns on
        one process takes a gradient on all, if need be a copy of it that nobody reads.

        Args:
            tensors: What is to be gathered, or goes into it, in one order on every process; the rows of the last count.

        Returns:
            The ranks, and the tensors to go on with.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Ranks.alone(len(tensors[-1])), list(tensors)
        here = torch.tensor(
            [len(tensors[-1]), *(tensor.requires_grad for tensor in tensors)], device=tensors[-1].device
        )
        everywhere = [torch.empty_like(here) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, here)
        sizes, *learns = zip(*(part.tolist() for part in everywhere), strict=True)
        alike = [
            tensor.detach().requires_grad_() if any(somewhere) and not tensor.requires_grad else tensor
            for tensor, somewhere in zip(tensors, learns, strict=True)
        ]
        return Ranks(sizes, dist.get_rank()), alike

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
