"""The first layers of every small encoder, Conv3d-BatchNorm3d-ReLU-MaxPool3d, in about half the memory.

For the backward pass, the plain sequence keeps the output of the convolution, that of ReLU and the pooling indices, all
at full resolution. Here only the output of the convolution is kept. Pooling commutes with ReLU, and also with the
normalisation, which is affine per channel, unless its factor γ is negative: that channel would need a minimum. So the
sign of γ moves into the convolution's weights, the convolution's output is pooled at once, and normalisation and ReLU
process pooled elements only. The statistics are still those of all elements.

Legend: B clips, C channels, T frames, H and W pixels, N = T·H·W.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Size = tuple[int, int, int]

CHUNK = 4096
"""Number of rows that are summed at once on a CPU."""


class Stem(nn.Module):
    """Conv3d-BatchNorm3d-ReLU-MaxPool3d: (B, in, T, H, W) → (B, out, T/pool, H/pool, W/pool).

    Parameters, buffers and their updates are those of `self.conv` and `self.bn`.

    Equals:
        `nn.Sequential(conv, bn, nn.ReLU(), nn.MaxPool3d(pool))`, forward and backward. The gradient differs only if γ
        is exactly 0: the plain sequence then pools a constant, and its first element gets the gradient; here the
        largest element gets it, as for every γ above 0.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: Size = (3, 3, 3), pool: Size = (2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, kernel)
        self.bn = nn.BatchNorm3d(out_channels)
        self.pool = pool

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        conv, bn = self.conv, self.bn
        assert conv.bias is not None
        assert bn.running_mean is not None
        assert bn.running_var is not None
        sign_C = torch.where(bn.weight < 0, -1.0, 1.0).to(bn.weight)  # never 0: γ could never leave 0
        weight, bias = conv.weight * _per_channel(sign_C)[..., None], conv.bias * sign_C
        y_BCTHW = conv3d(channels_last(x_BCTHW), weight, bias, padding=conv.around)
        if self.training:
            pooled, mean_C, variance_C = _PoolAndMoments.apply(y_BCTHW, self.pool)
            count = y_BCTHW.numel() // len(mean_C)
            with torch.no_grad():
                _update_running(bn, mean_C=sign_C * mean_C, variance_C=variance_C * (count / (count - 1)))
        else:
            pooled = F.max_pool3d(y_BCTHW, self.pool)
            mean_C, variance_C = sign_C * bn.running_mean, bn.running_var
        factor_C = sign_C * bn.weight * (variance_C + bn.eps).rsqrt()
        shift_C = bn.bias - factor_C * mean_C
        return torch.addcmul(_per_channel(shift_C), pooled, _per_channel(factor_C)).relu_().to(pooled.dtype)


def same(kernel: Size) -> Size:
    """Return the padding that keeps the size, for a kernel of odd sizes."""
    time, height, width = kernel
    return time // 2, height // 2, width // 2


class Conv3d(nn.Conv3d):
    """`conv3d` as a module that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=same(kernel))
        self.around = same(kernel)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return conv3d(x_BCTHW, self.weight, self.bias, padding=self.around)


def conv3d(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, *, padding: Size) -> Tensor:
    """Compute torch's conv3d; two frames under autocast on a CPU are computed in float32.

    In bf16, the gradient of the weights reads uninitialised memory then (oneDNN of torch 2.13, on processors with bf16
    instructions) and is sometimes NaN.
    """
    if x_BCTHW.shape[2] != 2:
        return F.conv3d(x_BCTHW, weight, bias, padding=padding)
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(x_BCTHW.to(weight.dtype), weight, bias, padding=padding)


def channels_last(x_BCTHW: Tensor) -> Tensor:
    """Return a copy with the channels innermost: CPUs pool it ten times and convolve it twice as fast.

    `contiguous` would not change a single channel, because its strides fit both layouts, and the convolution would
    return the other layout.
    """
    return torch.empty_like(x_BCTHW, memory_format=torch.channels_last_3d).copy_(x_BCTHW)


def upcast(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _PoolAndMoments(torch.autograd.Function):
    """Map y (B, C, T, H, W) to its window maxima and the mean and biased variance (C,) of all elements, in float32+."""

    @staticmethod
    def forward(ctx: Any, y_BCTHW: Tensor, pool: Size) -> tuple[Tensor, Tensor, Tensor]:
        pooled, where = F.max_pool3d(y_BCTHW, pool, return_indices=True)
        mean_C, variance_C = _moments(_rows(y_BCTHW).flatten(0, 1))
        ctx.save_for_backward(y_BCTHW, where.int(), mean_C)  # positions within one clip and channel: below 2³¹
        return pooled.contiguous(), mean_C, variance_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pooled_grad: Tensor, mean_grad_C: Tensor, variance_grad_C: Tensor) -> tuple[Tensor, None]:
        y_BCTHW, where, mean_C = ctx.saved_tensors
        count = y_BCTHW.numel() // len(mean_C)
        slope_C = 2 * variance_grad_C / count
        level_C = mean_grad_C / count - slope_C * mean_C
        grad = torch.empty_like(y_BCTHW)
        for grad_CTHW, y_CTHW in zip(grad, y_BCTHW, strict=True):  # bf16 becomes float32 one clip at a time
            torch.addcmul(_per_channel(level_C), y_CTHW, _per_channel(slope_C), out=grad_CTHW)
        _rows(grad).scatter_add_(1, _rows(where).long(), _rows(pooled_grad))
        return grad, None


def _moments(rows_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,), in float32 or more.

    Rows are summed in chunks: on a CPU, torch accumulates the statistics of channels-last rows in a single float32,
    and over two million rows the variance is wrong in the third digit.
    """
    unread_C = upcast(rows_NC.new_ones(rows_NC.shape[1]))
    chunks = rows_NC.split(CHUNK if rows_NC.is_cpu else len(rows_NC))
    mean_C = torch.stack([chunk_NC.sum(dim=0, dtype=unread_C.dtype) for chunk_NC in chunks]).sum(dim=0) / len(rows_NC)
    # the function that batch normalisation uses: it returns statistics without normalising
    statistics = [torch.batch_norm_update_stats(chunk_NC, unread_C, unread_C.clone(), 0.0) for chunk_NC in chunks]
    means_KC, variances_KC = (torch.stack(each) for each in zip(*statistics, strict=True))
    share_K1 = unread_C.new_tensor([len(chunk_NC) / len(rows_NC) for chunk_NC in chunks])[:, None]
    return mean_C, (share_K1 * (variances_KC + (means_KC - mean_C).square())).sum(dim=0)


def _update_running(bn: nn.BatchNorm3d, *, mean_C: Tensor, variance_C: Tensor) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    assert bn.momentum is not None
    bn.num_batches_tracked.add_(1)
    bn.running_mean.lerp_(mean_C.to(bn.running_mean), bn.momentum)
    bn.running_var.lerp_(variance_C.to(bn.running_var), bn.momentum)


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C[:, None, None, None]


def _rows(x_BCTHW: Tensor) -> Tensor:
    """Return x as (B, N, C), a view if the channels are innermost."""
    return x_BCTHW.movedim(1, -1).flatten(1, 3)
