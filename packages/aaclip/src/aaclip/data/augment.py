"""Random geometry and colour of training pictures; masks follow the geometry of their pictures.

Shapes: S pixels a side of the result, L of the larger resize that it is cropped from.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from aaclip.config import AugmentConfig


def squash(
    image: Image.Image, mask_HW: NDArray[np.bool_] | None, *, side: int
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return picture (bicubic) and mask (nearest neighbour) at `side` x `side` pixels, whatever their aspect.

    Args:
        image: The picture.
        mask_HW: Its mask; None means all False.
        side: Pixels a side.
    """
    if mask_HW is None:
        return _resize(image, side), np.zeros((side, side), dtype=bool)
    return _resize(image, side), np.asarray(_resize_mask(mask_HW, side)) > 0


class Augment:
    """`augment(image, mask, rng)` -> picture and mask of S x S pixels, a function of these three alone.

    Resize to L = crop · S (bicubic, aspect not kept), rotation and shift around the centre, a random S x S crop,
    flips, and then, with `colour`, brightness, contrast and saturation in random order; or each by its own coin before
    the resize. Areas from outside the picture repeat the nearest pixel of its edge, or have the mean colour: black
    corners would look like defects, and a reflection could show a defect again where the mask says normal.

    Args:
        config: Amount of each.
        size: S.
        colour: Change colours too (stage 2).
        mean: Mean colour, red, green and blue from 0 to 1, for `fill=mean`.
    """

    def __init__(
        self, config: AugmentConfig, *, size: int, colour: bool, mean: Sequence[float] = (0.5, 0.5, 0.5)
    ) -> None:
        self.config, self.size, self.colour = config, size, colour
        self.mean = [round(255 * value) for value in mean]

    def __call__(
        self, image: Image.Image, mask_HW: NDArray[np.bool_] | None, rng: torch.Generator
    ) -> tuple[Image.Image, NDArray[np.bool_]]:
        """Return one random view.

        Args:
            image: An RGB picture of any size.
            mask_HW: Its mask, of the same size; None for a normal picture: the result is all False.
            rng: Source of all random numbers; the same count is drawn for any configuration.

        Returns:
            The view, and its (S, S) bool mask.
        """
        config = self.config
        uniform = torch.rand(13, generator=rng).tolist()
        turned, shifted, mirrored, upended, coloured = uniform[:5]
        angle = _interpolate(-config.rotation, config.rotation, uniform[5]) if turned < config.rotation_p else 0.0
        large = round(self.size * config.crop)
        reach = config.translation * large if shifted < config.translation_p else 0.0
        shift = [round(_interpolate(-reach, reach, number)) for number in uniform[6:8]]
        top, left = (int(number * (large - self.size + 1)) for number in uniform[8:10])
        order = torch.randperm(3, generator=rng).tolist()
        coins = torch.rand(3, generator=rng).tolist()

        if self.colour and config.jitter_coins == "each":
            tossed = [which for which in range(3) if coins[which] < config.jitter_p]
            image = _recolour(image, uniform[10:13], order=tossed, most=config.jitter)
        picture = _resize(image, large)
        marked = Image.new("L", (large, large)) if mask_HW is None else _resize_mask(mask_HW, large)
        if angle or any(shift):
            picture, marked = self._move(picture, marked, angle=angle, shift=shift)
        picture, marked = (
            functional.crop(one, top, left, height=self.size, width=self.size) for one in (picture, marked)
        )
        if mirrored < config.flip_horizontal:
            picture, marked = functional.horizontal_flip(picture), functional.horizontal_flip(marked)
        if upended < config.flip_vertical:
            picture, marked = functional.vertical_flip(picture), functional.vertical_flip(marked)
        if self.colour and config.jitter_coins == "one" and coloured < config.jitter_p:
            picture = _recolour(picture, uniform[10:13], order=order, most=config.jitter)
        return picture, np.asarray(marked) > 0

    def _move(
        self, picture: Image.Image, marked: Image.Image, *, angle: float, shift: list[int]
    ) -> tuple[Image.Image, Image.Image]:
        """Return both turned by `angle` degrees clockwise around the centre, and shifted by (x, y) pixels."""
        side = picture.width
        turn = math.radians(angle)
        overhang = side / 2 * (abs(math.cos(turn)) + abs(math.sin(turn)) - 1)
        margin = math.ceil(overhang) + max(map(abs, shift)) + 2  # 2: reach of the bicubic filter
        motion = {"angle": angle, "translate": shift, "scale": 1.0, "shear": [0.0, 0.0]}
        if self.config.fill == "mean":
            padded = functional.pad(picture, [margin] * 4, fill=self.mean)
        else:
            padded = functional.pad(picture, [margin] * 4, padding_mode="edge")
        picture = functional.affine(padded, interpolation=InterpolationMode(self.config.resampling), **motion)
        marked = functional.affine(
            functional.pad(marked, [margin] * 4), interpolation=InterpolationMode.NEAREST, **motion
        )
        return functional.center_crop(picture, [side, side]), functional.center_crop(marked, [side, side])


def _recolour(picture: Image.Image, uniform: list[float], *, order: list[int], most: float) -> Image.Image:
    change = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for which in order:
        picture = change[which](picture, _interpolate(max(0.0, 1 - most), 1 + most, uniform[which]))
    return picture


def _resize(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _resize_mask(mask_HW: NDArray[np.bool_], side: int) -> Image.Image:
    return Image.fromarray(mask_HW.astype(np.uint8) * 255).resize((side, side), Image.Resampling.NEAREST)


def _interpolate(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform
