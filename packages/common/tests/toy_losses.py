"""Batches, comparisons of losses with their gradients, and a GPU that nothing may wait for, for tests of losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

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


class _NoCopies(TorchDispatchMode):
    """No tensor moves from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        moved = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
        if moved is not None and args[moved].device != result.device:
            raise AssertionError(f"a copy from {args[moved].device} to {result.device} waits for the GPU")
        return result


@contextmanager
def imagined_gpu() -> Iterator[None]:
    """Tensors that are made inside are on a GPU that need not exist: reading a value and copying to it raise."""
    with FakeTensorMode(allow_non_fake_inputs=False), _NoCopies():
        yield
