"""What normal images of a class look like, patch by patch: remembered, not trained.

Shapes: B images, k remembered ones, g patches a side, L = g² patches, D shared width, N = 2kL remembered patches.
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT = 25.0
"""Logits of a map for one unit of distance, a quarter of what texts weigh: more drowned them where few images were
remembered (on drawn kinds that no figure of ours is about)."""


class Level(NamedTuple):
    """One level's share of a memory.

    Attributes:
        patches_ND: Unit patches of the normal images and of their mirror images.
        usual: Mean distance of a normal patch from the nearest one of another image: what is no surprise.
    """

    patches_ND: Tensor
    usual: Tensor


class Memory:
    """Unit patches of a few normal images, a level each, with which an image's patches are compared.

    The distance is one minus the cosine to the nearest remembered patch, as in PatchCore (Roth et al., CVPR 2022)
    without its subsampling, and WinCLIP+ (Jeong et al., CVPR 2023). From it the usual distance among the normal images
    is taken, so that a normal patch adds nothing on average.

    Args:
        levels: See `Level`.
        images: k.
    """

    def __init__(self, levels: Sequence[Level], *, images: int) -> None:
        self.levels = list(levels)
        self.images = images

    @classmethod
    def of(cls, levels_KLD: Sequence[Tensor], mirrored_KLD: Sequence[Tensor]) -> "Memory":
        """Remember images.

        Args:
            levels_KLD: Unit patches (k, L, D) of k normal images, one tensor a level.
            mirrored_KLD: The same of their mirror images.
        """
        found = []
        for plain_KLD, mirror_KLD in zip(levels_KLD, mirrored_KLD, strict=True):
            # image i and its mirror image are entries i and k + i; every entry is held against all others
            entries_ELD = torch.cat([plain_KLD, mirror_KLD])
            usual = []
            for number, own_LD in enumerate(entries_ELD):
                others_ND = torch.cat([entries_ELD[:number], entries_ELD[number + 1 :]]).flatten(0, 1)
                usual.append(_nearest(own_LD, others_ND).mean())
            found.append(Level(entries_ELD.flatten(0, 1), torch.stack(usual).mean()))
        return cls(found, images=len(levels_KLD[0]))

    def surprise(self, levels_BLD: Sequence[Tensor]) -> list[Tensor]:
        """(B, g, g) logits for the distance beyond the usual one, one a level."""
        found = []
        for patches_BLD, level in zip(levels_BLD, self.levels, strict=True):
            # image by image: B·L·N cosines at once are too many
            distance_BL = torch.stack([_nearest(patches_LD, level.patches_ND) for patches_LD in patches_BLD])
            side = isqrt(distance_BL.shape[1])
            found.append(WEIGHT * (distance_BL - level.usual).unflatten(1, (side, side)))
        return found


def _nearest(patches_LD: Tensor, others_ND: Tensor) -> Tensor:
    """(L,) one minus the cosine to the nearest."""
    return 1 - (patches_LD @ others_ND.T).amax(dim=1)
