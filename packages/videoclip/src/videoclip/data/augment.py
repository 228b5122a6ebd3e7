"""Random views of a training clip; the map is transformed exactly as the frames are.

C channels of a map, T frames, S pixels a side.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from videoclip.config import AugmentConfig


def augment(
    frames_T3SS: Tensor, map_CTSS: Tensor, config: AugmentConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random view of a clip: mirrored, cropped and resized back, recoloured, alike in all frames.

    Args:
        frames_T3SS: uint8.
        map_CTSS: Float; mirrored and cropped, but not recoloured.
        config: Strength of each change.
        rng: Generator; the number of draws is the same for every configuration.

    Returns:
        Frames and map, of unchanged shapes and dtypes.
    """
    mirrored, share, down, across, bright, contrast = torch.rand(6, generator=rng).tolist()
    side = frames_T3SS.shape[-1]
    kept = round(side * (1 - share * (1 - config.crop)))
    box = {
        "top": int(down * (side - kept + 1)),
        "left": int(across * (side - kept + 1)),
        "height": kept,
        "width": kept,
    }
    moved = []
    for pixels in (frames_T3SS, map_CTSS):
        if config.flip and mirrored < 0.5:
            pixels = functional.horizontal_flip(pixels)
        if kept < side:
            pixels = functional.resized_crop(pixels, **box, size=[side, side], antialias=True)
        moved.append(pixels)
    frames, map_ = moved
    if config.colour:
        frames = functional.adjust_brightness(frames, 1 + config.colour * (2 * bright - 1))
        frames = functional.adjust_contrast(frames, 1 + config.colour * (2 * contrast - 1))
    return frames, map_
