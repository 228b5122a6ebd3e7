"""Files to pictures and masks, one way everywhere, or an error that names the file.

Shapes: H, W pixels as the picture is seen, that is, after it was turned as EXIF says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip_common.errors import DataError

_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises on damaged files, by format."""

_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""PIL's modes of grey pictures with 16 bits."""


def read_image(path: Path) -> Image.Image:
    """A picture as RGB.

    It is turned as EXIF says. 16-bit grey is scaled from 0..65535, not cut off at 255. Transparency is dropped and the
    colours under it stay: white put there instead would have an edge that the camera never saw, and edges are what
    defects look like.

    Raises:
        DataError: Missing, damaged, no picture, larger than PIL's limit against decompression bombs, or of a kind
            that has no brightness range (floating point, more than 16 bits).
    """
    with _opened(path) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as `read_image` gives its file.

    Raises:
        ValueError: Of a kind that has no brightness range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels: save it with 8 or 16 bits")
    # PIL warns of palettes with transparency unless they pass through RGBA
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def read_mask(path: Path, *, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask, True on the defect: (H, W) bool.

    Every pixel above black is the defect, as masks that number their defects 1, 2, … need it. JPEG is the exception:
    it blurs edges into black, so there the defect is what is nearer to white.

    Args:
        path: Its file.
        size: Width and height of its picture, as `read_image(…).size` has them.

    Raises:
        DataError: Missing, damaged, no picture, or of another size.
    """
    with _opened(path) as image:
        if image.mode in (*_WIDE, "F", "1"):
            mask_HW = np.asarray(image) > 0
        elif image.format in ("JPEG", "MPO"):
            mask_HW = np.asarray(image.convert("L")) > 127
        else:
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            mask_HW = np.asarray(opaque.convert("RGB")).max(axis=2) > 0
    height, width = mask_HW.shape
    if (width, height) != size:
        raise DataError(f"{path}: a mask of {width}x{height} pixels, but its image has {size[0]}x{size[1]}")
    return mask_HW


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The decoded file, turned as EXIF says; what PIL raises inside becomes one line with the path."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.format = file.format  # a turned copy forgets it
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _BROKEN as error:
        # PIL names a file that it cannot identify again, and may go on for lines
        reason = " ".join(str(error).split("cannot identify image file")[0].split()) or "not an image"
        raise DataError(f"{path}: not a readable image ({reason})") from error


def _eight_bits(grey_HW: NDArray[np.int32] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise ValueError(f"grey values {grey_HW.min()} to {grey_HW.max()}: save it with 8 or 16 bits")
    return ((grey_HW.astype(np.int64) + 128) // 257).astype(np.uint8)  # 65535 = 255 · 257
