"""From patches and class embeddings to maps. B images, L = g² patches, D shared width, K levels, S pixels a side.

A patch's logits are 100·cos to "normal" and to "abnormal". Only their difference is needed: softmax over two classes is
its sigmoid, and the released code's test map, (s_abnormal + 1 − s_normal)/2, is half of it plus one half.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

TEMPERATURE = 100.0

BLUR: dict[str, tuple[int, float]] = {"industrial": (7, 1.0), "medical": (9, 1.5)}
"""Width of the kernel and σ, in patches, by domain."""


def differences(patches_BLD: Tensor, text_BD2: Tensor, *, temperature: Tensor | float = TEMPERATURE) -> Tensor:
    """Return (B, g, g): logit of abnormal minus logit of normal."""
    direction_BD = text_BD2[..., 1] - text_BD2[..., 0]
    difference_BL = temperature * torch.einsum("bld,bd->bl", patches_BLD, direction_BD)
    side = isqrt(difference_BL.shape[1])
    return difference_BL.unflatten(1, (side, side))


def probability_map(difference_Bgg: Tensor, *, size: int) -> Tensor:
    """Return the (B, S, S) probability of abnormal for training: interpolated logits, then the sigmoid."""
    return upsample(difference_Bgg, size=size).sigmoid()


def anomaly_map(
    difference_KBgg: Sequence[Tensor],
    *,
    size: int,
    domain: Literal["industrial", "medical"] = "industrial",
    weights_K: Tensor | None = None,
) -> Tensor:
    """Return the (B, S, S) mean logit difference of the levels, blurred and interpolated: above 0 means abnormal.

    The levels are averaged on the grid first, then blurred once and interpolated once. All three are linear, so this
    equals doing it level by level, at a quarter of the cost for four levels.

    Args:
        difference_KBgg: Results of `differences`, one for each level.
        size: S.
        domain: Width of the blur.
        weights_K: Weights of the levels, which sum to one; None: equal weights.
    """
    mean_Bgg = mean_level(difference_KBgg, weights_K=weights_K)
    width, sigma = BLUR[domain]
    side = mean_Bgg.shape[-1]
    width = min(width, 2 * side - 1)  # a reflected border reaches at most once across the grid
    blurred_B1gg = gaussian_blur(mean_Bgg[:, None], kernel_size=[width, width], sigma=[sigma, sigma])
    return upsample(blurred_B1gg[:, 0], size=size)


def mean_level(difference_KBgg: Sequence[Tensor], *, weights_K: Tensor | None = None) -> Tensor:
    """Return the (B, g, g) mean logit difference of the levels, float32: the map before the blur.

    Args:
        difference_KBgg: Results of `differences`, one for each level.
        weights_K: Weights of the levels, which sum to one; None: equal weights.
    """
    stacked_KBgg = torch.stack(list(difference_KBgg)).float()
    if weights_K is None:
        return stacked_KBgg.mean(dim=0)
    return torch.einsum("kbij,k->bij", stacked_KBgg, weights_K.float())


def upsample(map_Bgg: Tensor, *, size: int) -> Tensor:
    """Return the map at (B, S, S), bilinear, with corners aligned."""
    return interpolate(map_Bgg[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]
