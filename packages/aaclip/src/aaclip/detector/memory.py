"""Patches of a few normal images of a class, remembered without training, and how far other patches are from them.

Shapes: B images, k remembered images, g patches a side, L = g² patches, D shared width, N = 2kL remembered patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT = 25.0
"""Logits that one unit of distance adds to a map: a quarter of the weight of the texts. With more, few remembered
images drowned the texts (measured on drawn kinds that none of the published figures uses)."""
PART = 1024
"""Remembered patches that are compared at a time."""


class Level(NamedTuple):
    """One level of a memory.

    Attributes:
        patches_ND: Unit patches of the normal images and of their mirror images.
        usual: Mean distance from a normal patch to the nearest patch of another remembered image.
    """

    patches_ND: Tensor
    usual: Tensor


@dataclass(frozen=True)
class Memory:
    """Unit patches of a few normal images.

    Attributes:
        levels: One for each level of the model.
        images: k.
    """

    levels: list[Level]
    images: int

    @classmethod
    def from_patches(cls, levels_KLD: Sequence[Tensor], mirrored_KLD: Sequence[Tensor]) -> "Memory":
        """Remember images.

        Args:
            levels_KLD: Unit patches (k, L, D) of k normal images, one tensor for each level.
            mirrored_KLD: The same of their mirror images.
        """
        levels = []
        for plain_KLD, mirror_KLD in zip(levels_KLD, mirrored_KLD, strict=True):
            # Image i and its mirror image are entries i and k + i. Each entry is compared with all the others.
            entries_ELD = torch.cat([plain_KLD, mirror_KLD])
            usual = []
            for number, own_LD in enumerate(entries_ELD):
                others_ND = torch.cat([entries_ELD[:number], entries_ELD[number + 1 :]]).flatten(0, 1)
                usual.append(_distance_to_nearest(own_LD, others_ND).mean())
            levels.append(Level(entries_ELD.flatten(0, 1), torch.stack(usual).mean()))
        return cls(levels, images=len(levels_KLD[0]))

    def to(self, device: torch.device) -> "Memory":
        """Return the same on a device."""
        levels = [Level(level.patches_ND.to(device), level.usual.to(device)) for level in self.levels]
        return Memory(levels, self.images)


def measure_surprise(levels_BLD: Sequence[Tensor], memory: Sequence[Level]) -> list[Tensor]:
    """Return (B, g, g) logits for the distance beyond the usual one, for each level.

    The distance is one minus the cosine to the nearest remembered patch, as in PatchCore (Roth et al., CVPR 2022)
    without its subsampling, and in WinCLIP+ (Jeong et al., CVPR 2023). The usual distance among the normal images is
    subtracted, so that a normal patch adds nothing on average.

    Args:
        levels_BLD: Unit patches of the images, one tensor for each level.
        memory: The levels of a `Memory`.
    """
    surprises = []
    for patches_BLD, level in zip(levels_BLD, memory, strict=True):
        distance_BL = _distance_to_nearest(patches_BLD, level.patches_ND)
        side = isqrt(distance_BL.shape[1])
        surprises.append(WEIGHT * (distance_BL - level.usual).unflatten(1, (side, side)))
    return surprises


def _distance_to_nearest(patches_BLD: Tensor, others_ND: Tensor) -> Tensor:
    """Return (…, L) one minus the cosine to the nearest of `others_ND`."""
    # some remembered patches at a time, because B·L·N cosines would not fit in memory; a loop over images could not be
    # exported for any batch
    nearest_BL = [(patches_BLD @ part_PD.T).amax(dim=-1) for part_PD in others_ND.split(PART)]
    return 1 - torch.stack(nearest_BL).amax(dim=0)
