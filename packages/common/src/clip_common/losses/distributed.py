"""Gather the rows of a batch from all processes, with gradients, also when processes hold different numbers of rows.

Every process computes the loss of the whole batch, local rows × all columns, and the backward of a gather sums the
gradients of all processes. Each process thus holds N times its share of the gradient, and averaging over N processes
(DDP) yields the gradient of one process with the whole batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from clip_common.arrays import as_tensor


def gather_rows(rows_BX: Tensor | ArrayLike) -> Tensor:
    """Return the rows of all processes in rank order, differentiable; the input itself in a single process.

    Args:
        rows_BX: (B, …); B may differ from process to process, and may be 0. Other dimensions must agree.
    """
    ranks, (rows,) = Processes.discover(as_tensor(rows_BX, "rows"))
    return ranks.gather(rows)


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch: number of rows of each, and the rank of this one."""

    sizes: tuple[int, ...]
    rank: int

    @staticmethod
    def single(rows: int) -> "Processes":
        """Return the layout of a single process, even under torch.distributed."""
        return Processes((rows,), 0)

    @staticmethod
    def discover(*tensors: Tensor) -> tuple["Processes", list[Tensor]]:
        """Exchange the number of rows of each process, and which tensors need gradients anywhere, in one collective.

        The backward of a gather is a collective too, and would wait for ranks whose rows need no gradient. So a tensor
        that needs a gradient on one process gets one on all, if necessary as a detached copy.

        Args:
            tensors: Tensors involved in the gather, in the same order on every process; rows of the last are counted.

        Returns:
            The layout, and the tensors to use from here on.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return Processes.single(len(tensors[-1])), list(tensors)
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
        return Processes(sizes, dist.get_rank()), alike

    @property
    def offset(self) -> int:
        """Index of this process's first row among all rows."""
        return sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate (B, …) of all processes to (ΣB, …), differentiable."""
        if len(self.sizes) == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self.sizes, self.rank)
        return gathered

    def stack(self, tensor: Tensor) -> Tensor:
        """Stack one tensor per process, all of one shape, to (N, …), differentiable."""
        return Processes((1,) * len(self.sizes), self.rank).gather(tensor[None])


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
