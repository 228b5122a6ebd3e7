"""Batches, and comparisons of losses with their gradients, for the tests of losses."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

TILES = [None, 5, 7]  # 5 and 7 do not divide 17
SCALE = 6.0


def batch(rows: int = 17, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random, dtype=dtype)
    y = x + torch.randn(rows, width, generator=random, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor, tolerance: float = 1e-6) -> None:
    """Equal, and equal gradients at the inputs."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    found, expected = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def logits(x: Tensor, y: Tensor, scale: Tensor | float = SCALE) -> Tensor:
    return scale * normalize(x, dim=1) @ normalize(y, dim=1).T


def both_ways(one_way, z: Tensor, *more: Tensor) -> Tensor:
    """Half of each direction; what else there is is turned with the matrix."""
    return (one_way(z, *more).mean() + one_way(z.T, *(part.T for part in more)).mean()) / 2


def off_diagonal(z: Tensor) -> Tensor:
    return ~torch.eye(len(z), dtype=torch.bool)
