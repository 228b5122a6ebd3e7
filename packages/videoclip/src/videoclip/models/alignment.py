"""Tokens to the embedding that is aligned, with or without their places.

Legend: B clips, D width of a token, T, H, W the grid of the tokens, N = T·H·W, G cells of a coarser grid.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = (2, 4, 4)
"""Cells in time, height and width: a region of the body keeps its place, and a walk its two halves."""


def pool_on_grid(tokens_BDTHW: Tensor, *, grid: tuple[int, int, int] = GRID) -> Tensor:
    """Return the mean token of each cell of a grid, (B, G·D), cell by cell.

    Equals:
        torch's `adaptive_avg_pool3d`, whose gradient on a GPU is not deterministic; this is one product of matrices.
    """
    weight_NG = _cell_weights(tuple(tokens_BDTHW.shape[2:]), grid).to(tokens_BDTHW)
    return (tokens_BDTHW.flatten(2) @ weight_NG).transpose(1, 2).flatten(1)


def _cell_weights(size: tuple[int, ...], grid: tuple[int, int, int]) -> Tensor:
    """Return the weight of each token in each cell, (N, G); the weights of a cell sum to 1."""
    along = [F.adaptive_avg_pool1d(torch.eye(length), cells) for length, cells in zip(size, grid, strict=True)]
    return torch.einsum("ta,hb,wc->thwabc", *along).reshape(-1, grid[0] * grid[1] * grid[2])
