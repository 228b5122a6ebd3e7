"""The operation under every loss here: reduce all pairs of x and y tile by tile, without ever storing the B×C matrix.

For every head the negatives of each row and of each column are reduced (`reductions`), and the logits of the positives
are read from the same tiles. Only the two inputs and O(B) totals are kept; the backward recomputes the tiles. If one
tile holds everything, it is kept instead: the dense path.

Legend: K heads, B rows, C columns, D width, I rows and J columns of one tile, N either B or C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_common.losses.logits import Head, Logits
from clip_common.losses.pairs import Pairs, Tile
from clip_common.losses.reductions import LogSumExp, Reduction, Sides
from clip_common.losses.scratch import Scratches
from clip_common.threads import count_workers, map_pieces

TILE_NUMBERS = 2**22
"""Logits in one tile, all heads together: 16 MiB in fp32, large enough for the matmul to run at full speed."""

PIECE_NUMBERS = 2**20
"""The most in a tile on a CPU, where each thread computes tiles of its own."""

PIECE_ROWS = 256
"""The fewest rows and columns of such a tile; narrower products are slow."""

DENSE_NUMBERS = 2**23
"""Up to this many logits in all there is one tile, and it is kept for the backward."""

Window = tuple[slice, slice]
"""Rows and columns of a tile."""

WEIGHTS = LogSumExp()
"""Reduction of the weights themselves."""


class Totals(NamedTuple):
    """Totals of one direction over the pairs of this process: of negatives, positives and weights.

    `log_weight_N` is the logarithm of the sum of the weights.
    """

    negative_total_KN: Tensor
    positive_sum_KN: Tensor
    positive_total_KN: Tensor
    log_weight_N: Tensor
    negatives_N: Tensor
    positives_N: Tensor


def reduce_pairs(
    x_BD: Tensor,
    y_CD: Tensor,
    *,
    scale: Tensor,
    bias: Tensor | None,
    heads: tuple[Head, ...],
    pairs: Pairs,
    negatives: Reduction,
    positives: Reduction,
    tile: int | None,
) -> tuple[Totals, Totals]:
    """Compute totals of the rows and of the columns, differentiable once in x, y, scale and bias.

    Args:
        x_BD, y_CD: float32 or float64, not normalised.
        heads: In order of width; the last is D wide.
        positives: Reduces the positives where `pairs` has positive ids.
        tile: Rows and columns of a tile; None chooses.
    """
    outputs = _ReducePairs.apply(x_BD, y_CD, scale, bias, heads, pairs, negatives, positives, tile)
    rows, columns = (Totals(*outputs[side::2]) for side in (0, 1))
    if pairs.positive is None:  # one positive each, or, of a column whose row is elsewhere, none
        rows, columns = (
            totals._replace(
                positive_total_KN=torch.where(
                    totals.positives_N > 0, positives.single(totals.positive_sum_KN), totals.positive_total_KN
                )
            )
            for totals in (rows, columns)
        )
    return rows, columns


class _ReducePairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BD: Tensor,
        y_CD: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        heads: tuple[Head, ...],
        pairs: Pairs,
        negatives: Reduction,
        positives: Reduction,
        tile: int | None,
    ) -> tuple[Tensor, ...]:
        by_x = ctx.needs_input_grad[0] or not ctx.needs_input_grad[1]
        logits = Logits(x_BD, y_CD, scale=scale, bias=bias, heads=heads, by_x=by_x)
        zeros: Sides = (x_BD.new_zeros(len(heads), len(x_BD)), x_BD.new_zeros(len(heads), len(y_CD)))
        negative_total: Sides = (negatives.start(zeros[0]), negatives.start(zeros[1]))
        positive_total: Sides = (positives.start(zeros[0]), positives.start(zeros[1]))
        positive_sum: Sides = (zeros[0].clone(), zeros[1].clone())
        log_weight: Sides = (WEIGHTS.start(zeros[0][0]), WEIGHTS.start(zeros[1][0]))
        negative_count: Sides = (zeros[0][0].clone(), zeros[1][0].clone())
        positive_count: Sides = (zeros[0][0].clone(), zeros[1][0].clone())

        dense = tile is None and len(heads) * len(x_BD) * len(y_CD) <= DENSE_NUMBERS
        numbers = TILE_NUMBERS if x_BD.is_cuda else PIECE_NUMBERS
        numbers = numbers if pairs.plain else numbers // 4  # masks and weights are tiles too
        largest = max(len(x_BD), len(y_CD))
        size = math.isqrt(numbers // len(heads))
        if (workers := count_workers(x_BD.device)) > 1:  # neighbours share no rows: so many as to occupy the threads
            size = min(size, max(PIECE_ROWS, largest * 2 // (3 * workers)))
        size = largest if dense else tile or size
        windows = _windows(len(x_BD), len(y_CD), size)
        device, scratches = x_BD.device, Scratches(x_BD)

        def reduce(window: Window) -> tuple[Window, _Found]:
            part, scratch = Tile(pairs, *window, like=x_BD), scratches.here()
            z_KIJ = logits.tile(*window, scratch.take("z", len(heads), *part.shape))
            negatives_here, positives_here = part.counts()
            found = _Found(negatives_here, positives_here, [], [], [])
            if part.log_weight_IJ is not None:
                row_IJ, column_IJ = part.negatives(part.log_weight_IJ, absent=WEIGHTS.absent)
                found.log_weight = (row_IJ.logsumexp(1), column_IJ.logsumexp(0))
            for k, z_IJ in enumerate(z_KIJ):
                if pairs.positive is None:
                    positive_sum[0][k, part.paired_rows] = part.paired(z_IJ)
                    positive_sum[1][k, part.paired_columns] = part.paired(z_IJ)
                else:
                    found_IJ = part.positives(z_IJ, absent=positives.absent)
                    found.positive_totals.append(positives.tile((found_IJ, found_IJ), None, scratch))
                    found_IJ = part.positives(z_IJ, absent=0.0)
                    found.positive_sums.append((found_IJ.sum(1), found_IJ.sum(0)))
                z = part.negatives(z_IJ, absent=negatives.absent)
                weights_IJ = part.log_weight_IJ if heads[k].weighted else None
                found.negative_totals.append(negatives.tile(z, weights_IJ, scratch))
            found.kept = (part, z_KIJ) if dense else None
            return window, found

        kept = None
        for window, found in map_pieces(reduce, windows, device=device):
            kept = found.kept
            _join(torch.add, negative_count, window, found.negatives)
            _join(torch.add, positive_count, window, found.positives)
            if found.log_weight is not None:
                _join(WEIGHTS.join, log_weight, window, found.log_weight)
            for k, sides in enumerate(found.positive_totals):
                _join(positives.join, _head(positive_total, k), window, sides)
            for k, sides in enumerate(found.positive_sums):
                _join(torch.add, _head(positive_sum, k), window, sides)
            for k, sides in enumerate(found.negative_totals):
                _join(negatives.join, _head(negative_total, k), window, sides)

        if pairs.log_weight is None:
            log_weight = (negative_count[0].log(), negative_count[1].log())
        negative_total = (negatives.finish(negative_total[0]), negatives.finish(negative_total[1]))
        ctx.save_for_backward(x_BD, y_CD, scale, bias, *negative_total, *positive_total, positive_sum[0])
        ctx.heads, ctx.pairs, ctx.negatives, ctx.positives, ctx.windows = heads, pairs, negatives, positives, windows
        ctx.kept = (logits, scratches, *kept) if kept is not None and any(ctx.needs_input_grad) else None
        ctx.mark_non_differentiable(*log_weight, *negative_count, *positive_count)
        return *negative_total, *positive_sum, *positive_total, *log_weight, *negative_count, *positive_count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, y_CD, scale, bias, *totals, positive_sum_KB = ctx.saved_tensors
        negative_total, positive_total = (totals[0], totals[1]), (totals[2], totals[3])
        negative_grad, positive_sum_grad, positive_grad, *_ = zip(grads[0::2], grads[1::2], strict=True)
        heads, pairs, negatives, positives = ctx.heads, ctx.pairs, ctx.negatives, ctx.positives
        x_needed, y_needed, scale_needed, bias_needed = ctx.needs_input_grad[:4]

        with torch.autocast(device_type=x_BD.device.type, enabled=False):
            kept, ctx.kept = ctx.kept, None  # overwritten below, so a second backward recomputes it
            if kept is not None:
                logits, scratches, kept_part, kept_z_KIJ = kept
            else:
                by_x = x_needed or not y_needed
                logits = Logits(x_BD, y_CD, scale=scale, bias=bias, heads=heads, by_x=by_x)
                scratches = Scratches(x_BD)
            logits.start_gradients(y=y_needed)

            def collect(window: Window) -> Tensor:
                scratch = scratches.here()
                if kept is not None:
                    part, z_KIJ = kept_part, kept_z_KIJ
                else:
                    part = Tile(pairs, *window, like=x_BD)
                    z_KIJ = logits.tile(*window, scratch.take("z", len(heads), *part.shape))
                wider_IJ, bias_grad = None, torch.zeros_like(scale)
                for k, z_IJ in reversed(list(enumerate(z_KIJ))):
                    z = part.negatives(z_IJ, absent=negatives.absent)
                    weights_IJ = part.log_weight_IJ if heads[k].weighted else None
                    total, grad = _part(_head(negative_total, k), part), _part(_head(negative_grad, k), part)
                    out_IJ = scratch.take(f"grad {k % 2}", *part.shape)
                    grad_IJ = negatives.slope(z, weights_IJ, total, grad, out_IJ, scratch)
                    if pairs.plain:  # `part.negatives` put −∞ here
                        part.paired(z_IJ).copy_(positive_sum_KB[k, part.paired_rows])
                    if pairs.positive is None:
                        part.paired(grad_IJ).add_(positive_sum_grad[0][k, part.paired_rows])
                        part.paired(grad_IJ).add_(positive_sum_grad[1][k, part.paired_columns])
                    else:
                        found_IJ = part.positives(z_IJ, absent=positives.absent)
                        total, grad = _part(_head(positive_total, k), part), _part(_head(positive_grad, k), part)
                        out_IJ = scratch.take("positives", *part.shape)
                        grad_IJ += positives.slope((found_IJ, found_IJ), None, total, grad, out_IJ, scratch)
                        row_I, column_J = _part(_head(positive_sum_grad, k), part)
                        grad_IJ += part.positives(row_I[:, None] + column_J, absent=0.0)
                    if bias is not None:
                        bias_grad += grad_IJ.sum()
                    wider_IJ = logits.collect(k, grad_IJ, z_IJ, *window, wider_IJ)
                return bias_grad

            for bias_grad in map_pieces(collect, ctx.windows, device=x_BD.device, touches=_touches):
                logits.bias_grad += bias_grad
            x_grad_BD, y_grad_CD, scale_grad = logits.gradients()
        return (
            x_grad_BD if x_needed else None,
            y_grad_CD,
            scale_grad if scale_needed else None,
            logits.bias_grad if bias_needed else None,
            *(None,) * 5,
        )


@dataclass
class _Found:
    """What one tile adds to the totals; lists are by head."""

    negatives: Sides
    positives: Sides
    negative_totals: list[Sides]
    positive_totals: list[Sides]
    positive_sums: list[Sides]
    log_weight: Sides | None = None
    kept: tuple[Tile, Tensor] | None = None  # if there is one tile only


def _windows(rows: int, columns: int, size: int) -> list[Window]:
    """Cut rows × columns into tiles, in an order in which neighbours share neither rows nor columns if possible."""
    across, down = _cut(rows, size), _cut(columns, size)
    return [(window, down[(r + d) % len(down)]) for d in range(len(down)) for r, window in enumerate(across)]


def _cut(count: int, size: int) -> list[slice]:
    """Split `count` into windows of nearly equal length, at most `size`."""
    parts = math.ceil(count / size) if count else 0
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _touches(window: Window) -> tuple[tuple[str, int], tuple[str, int]]:
    """Name the rows and the columns whose gradients a tile adds to."""
    return ("rows", window[0].start), ("columns", window[1].start)


def _head(sides: Sides, k: int) -> Sides:
    return sides[0][k], sides[1][k]


def _part(sides: Sides, part: Tile) -> Sides:
    return sides[0][part.rows], sides[1][part.columns]


def _join(join: Callable[[Tensor, Tensor], Tensor], totals: Sides, window: Window, found: Sides) -> None:
    for total, here, part in zip(totals, found, window, strict=True):
        total[part] = join(total[part], here)
