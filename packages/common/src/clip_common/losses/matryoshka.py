"""A loss at several widths of the same embeddings, in one pass over their product.

Legend: B rows, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist

from clip_common.losses.infonce import Form, InfoNCE


@dataclass(frozen=True)
class Matryoshka(Form):
    """Any form at the full width and at prefixes, so that truncated embeddings remain useful.

    L = full·L_D + nested·Σ_d c_d·L_d over the widths d below D, each prefix normalised separately; D counts once.

    Args:
        form: Loss at each width.
        dims: Prefix widths, decreasing; a leading D changes nothing.
        weights: c_d of each of `dims`; None is 1 each.
        full: Weight of the full width.
        nested: Weight of the sum over smaller widths.
        dims_per_step: Number of widths below D per call, drawn from torch's CPU generator (rank 0's) and reweighted to
            keep the expectation; None uses all.

    Equals:
        The sum of `form` over `x[:, :d]` and `y[:, :d]`.
    Cost:
        Partial products accumulate from prefix to prefix, so all widths together cost the products of the widest; each
        adds its own elementwise work on a tile, and a tile in memory.
    Reference:
        Kusupati et al., Matryoshka Representation Learning, 2022, equation 1.

    Example:
        >>> loss = Matryoshka(InfoNCE(), dims=(512, 256, 128))(image_BD, text_BD, scale=1 / 0.07)
    """

    form: Form = InfoNCE()  # noqa: RUF009 (it is frozen)
    dims: Sequence[int] = (512, 256, 128)
    weights: Sequence[float] | None = None
    full: float = 1.0
    nested: float = 1.0
    dims_per_step: int | None = None

    def __post_init__(self) -> None:
        if list(self.dims) != sorted(set(self.dims), reverse=True) or min(self.dims, default=1) < 1:
            raise ValueError(f"dims must be whole numbers from 1 up, each smaller than the one before, got {self.dims}")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"one weight for each of dims: got {len(self.weights)} weights for {len(self.dims)} dims")
        if self.dims_per_step is not None and self.dims_per_step < 1:
            raise ValueError(f"dims_per_step must be at least 1, or None for all, got {self.dims_per_step}")
        if self.form.base is not self.form:
            raise ValueError(f"Matryoshka takes a form of one width, got {self.form}")

    @property
    def base(self) -> Form:
        return self.form

    def widths(self, full: int) -> dict[int, float]:
        """Return the coefficient of each width for this call; draws the narrower widths if `dims_per_step` is set."""
        if self.dims and self.dims[0] > full:
            raise ValueError(f"dims must not exceed the embeddings' width {full}, got {self.dims}")
        weights = dict(zip(self.dims, self.weights or [1.0] * len(self.dims), strict=True))
        below = [dim for dim in self.dims if dim < full]
        taken = below
        if self.dims_per_step is not None and self.dims_per_step < len(below):
            taken = [below[i] for i in _draw(len(below), self.dims_per_step)]
        coefficients = {dim: self.nested * weights[dim] * len(below) / len(taken) for dim in taken}
        return {**coefficients, full: self.full}


def _draw(n: int, k: int) -> list[int]:
    """Draw k of n, the same on every rank: collectives of different sizes would hang."""
    drawn = torch.randperm(n)[:k]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        drawn = drawn.to(device)
        dist.broadcast(drawn, src=0)
    return [int(i) for i in drawn]
