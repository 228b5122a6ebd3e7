"""Reductions of a tile of logits to one number for each row and one for each column.

A reduction turns logits z_ij, with optional log-weights, into a total over the row and a total over the column; joins
the totals of several tiles; and gives the derivative of the totals for the backward. Four of them:

    LogSumExp            log Σ w·exp(z)        any range of logits, each direction with its own maximum
    BoundedLogSumExp     log Σ exp(z)          logits known to be small: one exponential serves both directions
    SoftplusSum          Σ log(1 + exp(±z))    the sigmoid loss
    WeightedSoftplusSum  Σ w·log(1 + exp(z))   its negatives with weights of any size

Legend: I rows and J columns of one tile. A pair that does not count has the logit `absent` (∓∞), which adds nothing.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_common.losses.scratch import Scratch

Sides = tuple[Tensor, Tensor]
"""A value for rows and the same for columns. Totals and their gradients are (I,) and (J,). Logits are both (I, J): the
same tensor twice, unless a pair counts in one direction only."""


class Reduction(Protocol):
    """Protocol: totals of a tile, how to join tiles, and the derivative."""

    absent: float
    """Logit of a pair that does not count."""

    def start(self, like: Tensor) -> Tensor:
        """Return the total of no pairs."""

    def tile(self, z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
        """Return the totals of one tile."""

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """Return the total of two disjoint sets of pairs."""

    def finish(self, total: Tensor) -> Tensor:
        """Return the total as the caller sees it, after every tile."""

    def single(self, z: Tensor) -> Tensor:
        """Return the finished total of a single pair."""

    def merge(self, totals: Tensor) -> Tensor:
        """Return the total of disjoint sets whose finished totals are stacked along dimension 0; differentiable."""

    def divide(self, total: Tensor, log_factor: Tensor) -> Tensor:
        """Return the finished total with every weight divided by exp(log_factor)."""

    def slope(
        self, z: Sides, log_weight_IJ: Tensor | None, total: Sides, grad: Sides, out_IJ: Tensor, scratch: Scratch
    ) -> Tensor:
        """Write dz of one tile to `out_IJ`, given the finished totals and their gradients; return it."""


class LogSumExp:
    """log Σ w·exp(z), each direction stabilised by its own maximum; −∞ without pairs."""

    absent = float("-inf")

    def start(self, like: Tensor) -> Tensor:
        return torch.full_like(like, float("-inf"))

    def tile(self, z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
        row_IJ, column_IJ = _weighted(z, log_weight_IJ, scratch)
        exp_IJ = scratch.take("exp", *row_IJ.shape)
        return _log_sum_exp(row_IJ, 1, exp_IJ), _log_sum_exp(column_IJ, 0, exp_IJ)

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        return torch.logaddexp(total, part)

    def finish(self, total: Tensor) -> Tensor:
        return total

    def single(self, z: Tensor) -> Tensor:
        return z

    def merge(self, totals: Tensor) -> Tensor:
        return log_sum_exp(totals, dim=0)

    def divide(self, total: Tensor, log_factor: Tensor) -> Tensor:
        return total - log_factor

    def slope(
        self, z: Sides, log_weight_IJ: Tensor | None, total: Sides, grad: Sides, out_IJ: Tensor, scratch: Scratch
    ) -> Tensor:
        row_IJ, column_IJ = _weighted(z, log_weight_IJ, scratch)
        exp_IJ = scratch.take("exp", *row_IJ.shape)
        slope = _on_device(_softmax_slope, row_IJ)
        return slope(row_IJ, column_IJ, _finite(total[0]), _finite(total[1]), *grad, out_IJ, exp_IJ)


class BoundedLogSumExp(LogSumExp):
    """log Σ exp(z) for |z| ≤ `limit`: exp(z) cannot overflow nor vanish; both directions share it and need no maxima.

    A third of the elementwise work of `LogSumExp`. For plain pairs: unweighted, each counting in both directions.
    """

    @staticmethod
    def limit(dtype: torch.dtype) -> float:
        """Return the largest |z| for which exp(z), its sums and their reciprocals stay inside the range of `dtype`."""
        return 300.0 if dtype == torch.float64 else 40.0

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def tile(self, z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
        exp_IJ = torch.exp(z[0], out=scratch.take("exp", *z[0].shape))
        return exp_IJ.sum(1), exp_IJ.sum(0)

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        return total + part

    def finish(self, total: Tensor) -> Tensor:
        return total.log()

    def slope(
        self, z: Sides, log_weight_IJ: Tensor | None, total: Sides, grad: Sides, out_IJ: Tensor, scratch: Scratch
    ) -> Tensor:
        row_I, column_J = (g * (-_finite(t)).exp() for g, t in zip(grad, total, strict=True))
        exp_IJ = torch.exp(z[0], out=scratch.take("exp", *z[0].shape))
        return torch.add(row_I[:, None], column_J, out=out_IJ).mul_(exp_IJ)


class SoftplusSum:
    """Σ log(1 + exp(sign·z)): `sign` is +1 for negatives, −1 for positives. Without weights."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.absent = -sign * float("inf")

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def tile(self, z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
        row_IJ = self.single(z[0])
        column_IJ = row_IJ if z[0] is z[1] else self.single(z[1])
        return row_IJ.sum(1), column_IJ.sum(0)

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        return total + part

    def finish(self, total: Tensor) -> Tensor:
        return total

    def single(self, z: Tensor) -> Tensor:
        return F.softplus(self.sign * z, threshold=30.0)

    def merge(self, totals: Tensor) -> Tensor:
        return totals.sum(0)

    def divide(self, total: Tensor, log_factor: Tensor) -> Tensor:
        return total * (-log_factor).exp()

    def slope(
        self, z: Sides, log_weight_IJ: Tensor | None, total: Sides, grad: Sides, out_IJ: Tensor, scratch: Scratch
    ) -> Tensor:
        row_I, column_J = grad
        slope_IJ = torch.mul(z[0], self.sign, out=out_IJ).sigmoid_()
        if z[0] is z[1]:
            slope_IJ *= row_I[:, None] + column_J
        else:
            slope_IJ *= row_I[:, None]
            slope_IJ += (self.sign * z[1]).sigmoid_().mul_(column_J)
        return slope_IJ.mul_(self.sign)


class WeightedSoftplusSum(LogSumExp):
    """Σ w·log(1 + exp(z)), kept as its logarithm until `divide`: unnormalised weights may exceed floats."""

    def tile(self, z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
        return super().tile(self._logs(z), log_weight_IJ, scratch)

    def single(self, z: Tensor) -> Tensor:
        return F.softplus(z, threshold=30.0).log_()

    def divide(self, total: Tensor, log_factor: Tensor) -> Tensor:
        return (total - log_factor).exp()

    def slope(
        self, z: Sides, log_weight_IJ: Tensor | None, total: Sides, grad: Sides, out_IJ: Tensor, scratch: Scratch
    ) -> Tensor:
        slope_IJ = super().slope(self._logs(z), log_weight_IJ, total, grad, out_IJ, scratch)
        # log(log(1 + exp(z))) rises by σ(z) / log(1 + exp(z)), which below −40 is 1 to the last digit
        known_IJ = torch.maximum(*z).clamp_min_(-40.0)
        return slope_IJ.mul_(known_IJ.sigmoid()).div_(F.softplus(known_IJ, threshold=30.0))

    def _logs(self, z: Sides) -> Sides:
        row_IJ = self.single(z[0])
        return row_IJ, row_IJ if z[0] is z[1] else self.single(z[1])


def log_sum_exp(values: Tensor, *, dim: int) -> Tensor:
    """Compute `values.logsumexp(dim)`, with a zero gradient instead of NaN where every value is −∞."""
    empty = (values == float("-inf")).all(dim)
    return values.masked_fill(empty.unsqueeze(dim), 0.0).logsumexp(dim).masked_fill(empty, float("-inf"))


def _weighted(z: Sides, log_weight_IJ: Tensor | None, scratch: Scratch) -> Sides:
    if log_weight_IJ is None:
        return z
    row_IJ = torch.add(z[0], log_weight_IJ, out=scratch.take("row", *z[0].shape))
    if z[0] is z[1]:
        return row_IJ, row_IJ
    return row_IJ, torch.add(z[1], log_weight_IJ, out=scratch.take("column", *z[1].shape))


def _finite(total: Tensor) -> Tensor:
    # A row without negatives has total −∞ and all logits −∞; subtracting 0 instead gives exp(−∞) = 0.
    return total.masked_fill(total == float("-inf"), 0.0)


def _log_sum_exp(z_IJ: Tensor, dim: int, exp_IJ: Tensor) -> Tensor:
    top = _finite(z_IJ.amax(dim, keepdim=True))
    return torch.sub(z_IJ, top, out=exp_IJ).exp_().sum(dim).log_().add_(top.squeeze(dim))


def _softmax_slope(
    row_z_IJ: Tensor,
    column_z_IJ: Tensor,
    row_I: Tensor,
    column_J: Tensor,
    row_grad_I: Tensor,
    column_grad_J: Tensor,
    out_IJ: Tensor,
    exp_IJ: Tensor,
) -> Tensor:
    torch.sub(column_z_IJ, column_J, out=exp_IJ).exp_().mul_(column_grad_J)
    return torch.sub(row_z_IJ, row_I[:, None], out=out_IJ).exp_().mul_(row_grad_I[:, None]).add_(exp_IJ)


@cache
def _compiled(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(body, dynamic=True)
    return compiled


def _on_device(body: Callable[..., Tensor], like: Tensor) -> Callable[..., Tensor]:
    # CUDA: seven passes over the tile become one kernel. CPU: they are cheap beside the matmul, and a compiler may be
    # missing.
    return _compiled(body) if like.is_cuda and find_spec("triton") else body
