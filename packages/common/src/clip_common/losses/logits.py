"""Tiles of logits from two sets of embeddings, and gradients of tiles back to the embeddings.

    z_kij = times_k · scale · ⟨x_i, y_j⟩_k / (‖x_i‖_k ‖y_j‖_k) + bias

with ⟨·,·⟩_k and ‖·‖_k over the first width_k numbers. Each width adds its block of numbers to one running product,
and is read from it, so all widths together cost the product of the widest. Blocks are scaled once for the full width;
narrower widths correct for their own norms. A zero vector has zero logits and no gradient.

Legend: K heads, B rows, C columns, D width, I rows and J columns of one tile, W different widths, E numbers of one
block.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """One set of logits: multiplied by `times`, over the first `width` numbers, reduced with or without weights."""

    times: float = 1.0
    weighted: bool = True
    width: int = 0


class Logits:
    """Computes tiles of logits, and in the backward sums their gradients.

    One side is multiplied by `scale`; its gradient before that factor gives the scale's, also where the scale is 0.

    Args:
        by_x: Whether the gradient of x will be computed; y is multiplied by the scale otherwise.
    """

    def __init__(
        self,
        x_BD: Tensor,
        y_CD: Tensor,
        *,
        scale: Tensor,
        bias: Tensor | None,
        heads: tuple[Head, ...],
        by_x: bool,
    ) -> None:
        assert [head.width for head in heads] == sorted(head.width for head in heads)
        assert heads[-1].width == x_BD.shape[1]
        self.scale, self.bias, self.heads, self.by_x = scale, bias, heads, by_x
        self.widths = sorted({head.width for head in heads})
        self.narrow = sum(head.width < self.widths[-1] for head in heads)
        one = torch.ones_like(scale)
        self.x = _Side(x_BD, self.widths, scale=scale if by_x else one)
        self.y = _Side(y_CD, self.widths, scale=one if by_x else scale)

    def tile(self, rows: slice, columns: slice, out_KIJ: Tensor) -> Tensor:
        """Write logits z to `out_KIJ` and return it."""
        product_IJ = out_KIJ[-1]
        for w, width in enumerate(self.widths):
            x_IE, y_JE = self.x.blocks[w][rows], self.y.blocks[w][columns]
            torch.addmm(product_IJ, x_IE, y_JE.T, beta=float(w > 0), out=product_IJ)
            for k, head in enumerate(self.heads[:-1]):
                if head.width == width and k < self.narrow:
                    torch.mul(product_IJ, head.times * self.x.ratio_WN[w, rows, None], out=out_KIJ[k])
                    out_KIJ[k] *= self.y.ratio_WN[w, columns]
                elif head.width == width:
                    torch.mul(product_IJ, head.times, out=out_KIJ[k])
        if self.heads[-1].times != 1.0:
            product_IJ *= self.heads[-1].times
        return out_KIJ if self.bias is None else out_KIJ.add_(self.bias)

    def start_gradients(self, *, y: bool) -> None:
        """Zero the sums of the requested gradients: of y, and of x as announced."""
        self.bias_grad = torch.zeros_like(self.scale)
        self.x.start_gradient(wanted=self.by_x)
        self.y.start_gradient(wanted=y)

    def collect(
        self, k: int, grad_IJ: Tensor, z_IJ: Tensor, rows: slice, columns: slice, wider_IJ: Tensor | None
    ) -> Tensor:
        """Add the gradient of one head's tile of logits, the last head first. Both tensors are overwritten.

        Writes to these rows and columns only, but for the bias, whose gradient the caller adds to `bias_grad`.

        Args:
            wider_IJ: Returned for the head before; None for the first.
        """
        head = self.heads[k]
        w = self.widths.index(head.width)
        if k < self.narrow:
            slope_IJ = (z_IJ if self.bias is None else z_IJ.sub_(self.bias)).mul_(grad_IJ)
            self.x.slope_WN[w, rows] += slope_IJ.sum(1)
            self.y.slope_WN[w, columns] += slope_IJ.sum(0)
            grad_IJ *= self.x.ratio_WN[w, rows, None]
            grad_IJ *= self.y.ratio_WN[w, columns]
        if head.times != 1.0:
            grad_IJ *= head.times
        if wider_IJ is not None:
            grad_IJ += wider_IJ  # a block's numbers are part of every wider head too
        if k == 0 or self.heads[k - 1].width < head.width:
            if self.x.grad_ND is not None:
                self.x.grad_ND[rows, self.x.windows[w]].addmm_(grad_IJ, self.y.blocks[w][columns])
            if self.y.grad_ND is not None:
                self.y.grad_ND[columns, self.y.windows[w]].addmm_(grad_IJ.T, self.x.blocks[w][rows])
        return grad_IJ

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return dx (B, D), dy (C, D) and dscale, after every tile."""
        x_grad_BD, x_slope = self.x.gradient()
        y_grad_CD, y_slope = self.y.gradient()
        return x_grad_BD, y_grad_CD, x_slope if self.by_x else y_slope


class _Side:
    """One of the two sets of embeddings, cut into blocks between widths, multiplied by `scale` and divided by norms.

    Attributes:
        blocks: (N, E) each, contiguous, because products with a strided window are slow.
        ratio_WN: Factor that renormalises a narrower width by its own norms.
        grad_ND: Sum of the gradients of the blocks.
        slope_WN: Sums of dz·z over the other side: minus the derivative by the logarithm of the norm.
    """

    def __init__(self, x_ND: Tensor, widths: list[int], *, scale: Tensor) -> None:
        self.x_ND, self.scale = x_ND, scale
        self.windows = [slice(start, stop) for start, stop in pairwise([0, *widths])]
        squares = [torch.linalg.vector_norm(x_ND[:, window], dim=1).square() for window in self.windows]
        norm_WN = torch.stack(squares).cumsum(0).sqrt()
        self.inverse_WN = torch.where(norm_WN > 0, norm_WN.reciprocal(), 0.0)
        self.ratio_WN = self.inverse_WN * norm_WN[-1]
        self.blocks = [x_ND[:, window] * (scale * self.inverse_WN[-1])[:, None] for window in self.windows]

    def start_gradient(self, *, wanted: bool) -> None:
        self.grad_ND = torch.zeros_like(self.x_ND) if wanted else None
        self.slope_WN = torch.zeros_like(self.inverse_WN)

    def gradient(self) -> tuple[Tensor | None, Tensor]:
        """Return the gradient of the embeddings, if requested, and Σ dz·z / scale over all pairs."""
        if self.grad_ND is None:
            return None, self.slope_WN.sum()
        self.grad_ND *= self.inverse_WN[-1, :, None]
        cosine_N = (self.x_ND * self.grad_ND).sum(1)  # of all widths together, so the widest is what the others leave
        self.grad_ND *= self.scale
        self.slope_WN[-1] = self.scale * cosine_N - self.slope_WN[:-1].sum(0)
        along_WN = (self.slope_WN * self.inverse_WN.square()).flip(0).cumsum(0).flip(0)
        for window, along_N in zip(self.windows, along_WN, strict=True):
            self.grad_ND[:, window].addcmul_(self.x_ND[:, window], along_N[:, None], value=-1.0)
        return self.grad_ND, cosine_N.sum()
