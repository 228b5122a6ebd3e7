"""What a loss keeps of a tile of logits: one number for each row and one for each column.

A reduction turns logits z_ij, with optional log-weights, into a total over the row and a total over the column; joins
the totals of several tiles; and gives the derivative of the totals for the backward. Three of them:

    LogSumExp         log Σ w·exp(z)         any range of logits, each direction with its own maximum
    BoundedLogSumExp  log Σ exp(z)           logits known to be small: one exponential serves both directions
    SoftplusSum       Σ w·log(1 + exp(±z))   the sigmoid loss

Legend: K heads, I rows and J columns of one tile. A pair that does not count holds `absent` (∓∞) and adds nothing.
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
"""Something of the rows and the same of the columns. Totals and their gradients are (K, I) and (K, J); logits are
(K, I, J) both, and one tensor twice unless a pair counts in one direction only."""


class Reduction(Protocol):
    """One number for each row and each column of a tile, how to join tiles, and the derivative."""

    absent: float
    """The logit of a pair that does not count."""

    def start(self, like: Tensor) -> Tensor:
        """The total of no pairs at all."""

    def prepare(self, z: Sides, scratch: Scratch) -> Sides:
        """What `tile` and `slope` read: the logits themselves, or what is made of them once for both."""

    def tile(self, z: Sides, log_weight_KIJ: Tensor | None, scratch: Scratch) -> Sides:
        """The totals of one tile."""

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        """The total of two disjoint sets of pairs."""

    def finish(self, total: Tensor) -> Tensor:
        """What the caller sees once every tile is in."""

    def single(self, z: Tensor) -> Tensor:
        """The finished total of one pair alone."""

    def merge(self, totals: Tensor) -> Tensor:
        """The total of disjoint sets of pairs whose finished totals are stacked along dimension 0; differentiable."""

    def divide(self, total: Tensor, log_factor: Tensor) -> Tensor:
        """The finished total had every weight been divided by exp(log_factor)."""

    def slope(self, z: Sides, log_weight_KIJ: Tensor | None, total: Sides, grad: Sides, scratch: Scratch) -> Tensor:
        """dz of one tile, in scratch memory, given the finished totals and the gradients that reach them."""


class LogSumExp:
    """log Σ w·exp(z), each direction stabilised by its own maximum; −∞ where there is no pair."""

    absent = float("-inf")

    def start(self, like: Tensor) -> Tensor:
        return torch.full_like(like, float("-inf"))

    def prepare(self, z: Sides, scratch: Scratch) -> Sides:
        return z

    def tile(self, z: Sides, log_weight_KIJ: Tensor | None, scratch: Scratch) -> Sides:
        row_KIJ, column_KIJ = _weighted(z, log_weight_KIJ, scratch)
        exp_KIJ = scratch.take("exp", *row_KIJ.shape)
        return _log_sum_exp(row_KIJ, 2, exp_KIJ), _log_sum_exp(column_KIJ, 1, exp_KIJ)

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

    def slope(self, z: Sides, log_weight_KIJ: Tensor | None, total: Sides, grad: Sides, scratch: Scratch) -> Tensor:
        row_KIJ, column_KIJ = _weighted(z, log_weight_KIJ, scratch)
        exp_KIJ = scratch.take("exp", *row_KIJ.shape)
        slope = _on_device(_softmax_slope, row_KIJ)
        slope_KIJ = scratch.take("slope", *row_KIJ.shape)
        return slope(row_KIJ, column_KIJ, _finite(total[0]), _finite(total[1]), *grad, slope_KIJ, exp_KIJ)


class BoundedLogSumExp(LogSumExp):
    """log Σ exp(z) for |z| ≤ `limit`: exp(z) cannot overflow nor vanish; both directions share it and need no maxima.

    A third of the elementwise work of `LogSumExp`. For plain pairs: unweighted, each counting in both directions.
    """

    @staticmethod
    def limit(dtype: torch.dtype) -> float:
        """The largest |z| for which exp(z), its sums and their reciprocals stay well inside the range of `dtype`."""
        return 300.0 if dtype == torch.float64 else 40.0

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def prepare(self, z: Sides, scratch: Scratch) -> Sides:
        exp_KIJ = torch.exp(z[0], out=scratch.take("exp", *z[0].shape))
        return exp_KIJ, exp_KIJ

    def tile(self, z: Sides, log_weight_KIJ: Tensor | None, scratch: Scratch) -> Sides:
        exp_KIJ, _ = z
        return exp_KIJ.sum(2), exp_KIJ.sum(1)

    def join(self, total: Tensor, part: Tensor) -> Tensor:
        return total + part

    def finish(self, total: Tensor) -> Tensor:
        return total.log()

    def slope(self, z: Sides, log_weight_KIJ: Tensor | None, total: Sides, grad: Sides, scratch: Scratch) -> Tensor:
        exp_KIJ, _ = z
        row_KI, column_KJ = (g * (-_finite(t)).exp() for g, t in zip(grad, total, strict=True))
        sum_IJ = scratch.take("sum", *exp_KIJ.shape[1:])
        for exp_IJ, row_I, column_J in zip(exp_KIJ, row_KI, column_KJ, strict=True):
            exp_IJ *= torch.add(row_I[:, None], column_J, out=sum_IJ)
        return exp_KIJ


class SoftplusSum:
    """Σ w·log(1 + exp(sign·z)): `sign` is +1 for negatives, −1 for positives."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.absent = -sign * float("inf")

    def start(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def prepare(self, z: Sides, scratch: Scratch) -> Sides:
        return z

    def tile(self, z: Sides, log_weight_KIJ: Tensor | None, scratch: Scratch) -> Sides:
        row_KIJ = self._terms(z[0], log_weight_KIJ)
        column_KIJ = row_KIJ if z[0] is z[1] else self._terms(z[1], log_weight_KIJ)
        return row_KIJ.sum(2), column_KIJ.sum(1)

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

    def slope(self, z: Sides, log_weight_KIJ: Tensor | None, total: Sides, grad: Sides, scratch: Scratch) -> Tensor:
        row_KI, column_KJ = grad
        slope_KIJ = torch.mul(z[0], self.sign, out=scratch.take(f"slope {self.sign}", *z[0].shape)).sigmoid_()
        if z[0] is z[1]:
            slope_KIJ *= row_KI[:, :, None] + column_KJ[:, None, :]
        else:
            slope_KIJ *= row_KI[:, :, None]
            slope_KIJ += (self.sign * z[1]).sigmoid_().mul_(column_KJ[:, None, :])
        return slope_KIJ.mul_(self.sign if log_weight_KIJ is None else log_weight_KIJ.exp().mul_(self.sign))

    def _terms(self, z_KIJ: Tensor, log_weight_KIJ: Tensor | None) -> Tensor:
        terms_KIJ = self.single(z_KIJ)
        return terms_KIJ if log_weight_KIJ is None else terms_KIJ.mul_(log_weight_KIJ.exp())


def log_sum_exp(values: Tensor, *, dim: int) -> Tensor:
    """`values.logsumexp(dim)` with a zero gradient, not NaN, where every value is −∞."""
    empty = (values == float("-inf")).all(dim)
    return values.masked_fill(empty.unsqueeze(dim), 0.0).logsumexp(dim).masked_fill(empty, float("-inf"))


def _weighted(z: Sides, log_weight_KIJ: Tensor | None, scratch: Scratch) -> Sides:
    if log_weight_KIJ is None:
        return z
    row_KIJ = torch.add(z[0], log_weight_KIJ, out=scratch.take("row", *z[0].shape))
    if z[0] is z[1]:
        return row_KIJ, row_KIJ
    return row_KIJ, torch.add(z[1], log_weight_KIJ, out=scratch.take("column", *z[1].shape))


def _finite(total: Tensor) -> Tensor:
    # A row without negatives has the total −∞, and −∞ in all its logits: exp(−∞ − 0) is the zero that is meant.
    return total.masked_fill(total == float("-inf"), 0.0)


def _log_sum_exp(z_KIJ: Tensor, dim: int, exp_KIJ: Tensor) -> Tensor:
    top = _finite(z_KIJ.amax(dim, keepdim=True))
    return torch.sub(z_KIJ, top, out=exp_KIJ).exp_().sum(dim).log_().add_(top.squeeze(dim))


def _softmax_slope(
    row_z_KIJ: Tensor,
    column_z_KIJ: Tensor,
    row_KI: Tensor,
    column_KJ: Tensor,
    row_grad_KI: Tensor,
    column_grad_KJ: Tensor,
    slope_KIJ: Tensor,
    exp_KIJ: Tensor,
) -> Tensor:
    torch.sub(column_z_KIJ, column_KJ[:, None, :], out=exp_KIJ).exp_().mul_(column_grad_KJ[:, None, :])
    return torch.sub(row_z_KIJ, row_KI[:, :, None], out=slope_KIJ).exp_().mul_(row_grad_KI[:, :, None]).add_(exp_KIJ)


@cache
def _compiled(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(body, dynamic=True)
    return compiled


def _on_device(body: Callable[..., Tensor], like: Tensor) -> Callable[..., Tensor]:
    # On CUDA seven passes over the tile become one kernel. On a CPU they are cheap beside the matmul, and there may be
    # no compiler.
    return _compiled(body) if like.is_cuda and find_spec("triton") else body
