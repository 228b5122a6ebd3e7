"""Preprocessing: an image to the pixels of a tower by open_clip's transforms, with a key for caches.

Shapes: H, W of the source; S pixels a side of the result.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TRAIN_CROP = (0.9, 1.0)
"""Share of the area that a training crop keeps: open_clip's default."""
RATIO = (3 / 4, 4 / 3)
"""Range of the aspect ratio of a training crop: torchvision's default, which open_clip keeps."""


@dataclass(frozen=True)
class Preprocess:
    """A transform of images: `preprocess(image)` returns (3, S, S) float32.

    For RGB pictures it equals open_clip's `image_transform(is_train=False)` without `crop_scale` and its
    `image_transform(is_train=True)` with it, up to rounding. A PIL image goes through `images.to_rgb` first, so that an
    opened picture of any mode and EXIF turn gives the same pixels as its file.

    Args:
        size: S.
        mean, std: Statistics per channel, of values in 0..1.
        interpolation: Filter, antialiased.
        resize_mode: `shortest` side to `resize` and the centre cropped; `longest` side to S and padded with `fill`;
            `squash` both.
        fill: Grey level 0..255 of the padding.
        resize: Pixels of the shortest side before the crop; None = S.
        corner: Centre crops that leave half a pixel start at the even one (`even`, as open_clip and torchvision do) or
            at the smaller one (`down`, as transformers does).
        crop_scale: Share of the area, smallest and largest, that a random training crop keeps; None = no augmentation.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill: int = 0
    resize: int | None = None
    corner: Literal["even", "down"] = "even"
    crop_scale: tuple[float, float] | None = None

    @property
    def key(self) -> str:
        """Name of this transform in caches: equal keys, equal pixels."""
        return json.dumps({"version": 1} | asdict(self), sort_keys=True)

    def __call__(self, image: "Image | Tensor", *, generator: Generator | None = None) -> Tensor:
        """Return the pixels (3, S, S) of one image.

        Args:
            image: A PIL image of any mode, or (3, H, W) uint8.
            generator: Draws the random crop (None: torch's global one). Unused without `crop_scale`.
        """
        pixels_3SS = (
            self._transform_tensor(image, generator)
            if isinstance(image, Tensor)
            else self._transform_picture(image, generator)
        )
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        normalised = pixels_3SS.to(torch.float32, memory_format=torch.contiguous_format)
        return normalised.mul_(1 / (255 * std)).sub_(mean / std)

    def _transform_picture(self, image: "Image", generator: Generator | None) -> Tensor:
        import numpy as np
        from PIL.Image import Resampling

        from clip_common.images import to_rgb

        image = to_rgb(image)
        sampling = Resampling[self.interpolation.upper()]
        square = (self.size, self.size)
        if self.crop_scale is not None:
            top, left, height, width = draw_crop(image.height, image.width, self.crop_scale, generator)
            image = image.crop((left, top, left + width, top + height)).resize(square, Resampling.BICUBIC)
        else:
            rows, columns = self._choose_size(image.height, image.width)
            image = image.resize((columns, rows), sampling)
            if self.resize_mode == "shortest":
                top, left = self._find_corner(rows), self._find_corner(columns)
                image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self._pad(pixels) if self.resize_mode == "longest" else pixels

    def _transform_tensor(self, image_3HW: Tensor, generator: Generator | None) -> Tensor:
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        size, (height, width) = [self.size, self.size], image_3HW.shape[1:]
        if self.crop_scale is not None:
            crop = draw_crop(height, width, self.crop_scale, generator)
            return functional.resized_crop(image_3HW, *crop, size=size, interpolation=InterpolationMode.BICUBIC)
        if self.interpolation == "lanczos":  # torch has no such filter
            return self._transform_picture(Image.fromarray(image_3HW.permute(1, 2, 0).numpy()), generator)
        resized = functional.resize(
            image_3HW, list(self._choose_size(height, width)), interpolation=InterpolationMode(self.interpolation)
        )
        if self.resize_mode == "longest":
            return self._pad(resized)
        top, left = (self._find_corner(side) for side in resized.shape[1:])
        return functional.crop(resized, top, left, *size)

    def _find_corner(self, side: int) -> int:
        """Return where the centre crop of a side of this many pixels starts."""
        return (side - self.size) // 2 if self.corner == "down" else round((side - self.size) / 2)

    def _choose_size(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the whole image after the resize, rounded as open_clip and torchvision do."""
        if self.resize_mode == "squash":
            return self.size, self.size
        if self.resize_mode == "longest":
            ratio = max(height, width) / self.size
            return round(height / ratio), round(width / ratio)
        short = self.resize or self.size
        if height <= width:
            return short, int(short * width / height)
        return int(short * height / width), short

    def _pad(self, pixels_3HW: Tensor) -> Tensor:
        _, height, width = pixels_3HW.shape
        top, left = (self.size - height) // 2, (self.size - width) // 2
        canvas = pixels_3HW.new_full((3, self.size, self.size), self.fill)
        canvas[:, top : top + height, left : left + width] = pixels_3HW
        return canvas


def draw_crop(
    height: int, width: int, scale: tuple[float, float], generator: Generator | None
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a random resized crop, as torchvision's RandomResizedCrop does.

    Args:
        height, width: Pixels of the image.
        scale: Smallest and largest share of its area.
        generator: Draws the crop.
    """
    for _ in range(10):
        share = torch.empty(1).uniform_(*scale, generator=generator).item()
        aspect = math.exp(torch.empty(1).uniform_(*map(math.log, RATIO), generator=generator).item())
        rows = round(math.sqrt(height * width * share / aspect))
        columns = round(math.sqrt(height * width * share * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(torch.randint(height - rows + 1, (1,), generator=generator))
            left = int(torch.randint(width - columns + 1, (1,), generator=generator))
            return top, left, rows, columns
    # no draw fitted, as in a very long image: the largest centred crop within the range of ratios
    aspect = min(max(width / height, RATIO[0]), RATIO[1])
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
