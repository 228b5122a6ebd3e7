"""The one reader of pictures: files and bytes to RGB, grey levels and masks, or a one-line error that names the file.

Needs pillow, of the extra `clip` or `synthetic`. Every function may be called from several threads at once.

Shapes: H, W pixels of the picture as a viewer shows it, that is, after the EXIF turn.
"""

import glob
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from clip_common.errors import DataError, check_list, printable

VERSION = 1
"""Part of every cache key that depends on decoded pixels. Raise it when any picture decodes to other pixels."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Lower-case suffixes of the files that count as pictures in a folder. A file named directly may have any other."""

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats that are read. All are decoded within this process; EPS would start Ghostscript."""

_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of grey pictures with more than 8 bits."""

_ORIENTATION = 0x0112
"""EXIF tag."""

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

# Pillow warns from one to two times its limit and raises above. The larger pictures are read without the noise.
# `catch_warnings` around each call would not do: it is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class TooManyPixelsError(DataError):
    """A picture with more pixels than a limit; they were not decoded."""


def read_image(source: Path | bytes, *, name: str | None = None, most_pixels: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB.

    - It is turned as its EXIF orientation says.
    - Of a GIF, WebP, APNG or TIFF with several frames, the first is read.
    - Transparency is composed on white.
    - Grey with more than 8 bits is scaled, not clipped: integers from 0..65535; floats from 0..1 if all values are
      within it, else from 0..255 if all are, else from 0..65535.
    - ICC profiles are ignored on purpose: CLIP models were trained on pictures read without them.

    Args:
        source: A file, or the bytes of one.
        name: What error messages call it; default: the path.
        most_pixels: Width times height of the largest picture that is decoded; None: Pillow's limit alone.

    Returns:
        A picture in memory, without metadata.

    Raises:
        TooManyPixelsError: More pixels than `most_pixels`, or than Pillow's limit against decompression bombs.
        DataError: A file that is missing or cannot be opened; not a picture in one of `FORMATS`; damaged or truncated;
            grey values outside the ranges above.
    """
    name = name or _name(source)
    with _opened(source, name, most_pixels=most_pixels) as image:
        return _as_rgb(image, name)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened picture to the RGB pixels that `read_image` gives for its file.

    Args:
        image: Left unchanged. Of several frames, the current one is converted.

    Raises:
        DataError: As for `read_image`.
    """
    name = printable(getattr(image, "filename", "") or "the picture")
    with _one_line_errors(name), _unmapped(image):
        turned = ImageOps.exif_transpose(image)
    return _as_rgb(turned, name)


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Read a picture as grey levels: (H, W), the luma (ITU-R 601) of its RGB pixels.

    Raises:
        DataError: As for `read_image`.
    """
    return np.array(read_image(path).convert("L"))


def read_binary(path: Path) -> NDArray[np.bool_] | None:
    """Read a picture whose values are all 0 or 1 as a mask: (H, W), True at 1; None if it has other values.

    Grey with more than 8 bits counts by its values in the file, every other picture by its luma.

    Raises:
        DataError: As for `read_image`.
    """
    name = printable(path)
    with _opened(path, name) as image:
        values_HW = np.asarray(image if image.mode in _WIDE else _as_rgb(image, name).convert("L"))
    mask_HW = values_HW == 1
    return mask_HW if np.array_equal(values_HW, mask_HW) else None


def read_mask(path: Path, *, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask: (H, W), True on the defect.

    Every pixel above black is the defect, because some masks number their defects 1, 2, …. JPEG is the exception: it
    blurs edges into black, so there a pixel counts from 128 of 255. Transparency is ignored.

    Args:
        path: The mask's file.
        size: Width and height of the picture that it belongs to, as in `read_image(…).size`.

    Raises:
        DataError: As for `read_image`, and for a mask of another size.
    """
    name = printable(path)
    with _opened(path, name) as image, _one_line_errors(name):
        if image.mode in (*_WIDE, "1"):
            mask_HW = np.asarray(image) > 0
        elif image.format in ("JPEG", "MPO"):
            mask_HW = np.asarray(image.convert("L")) > 127
        else:
            # Pillow warns about a palette with transparency unless it passes through RGBA
            opaque = image.convert("RGBA") if "transparency" in image.info else _straight(image)
            mask_HW = np.asarray(opaque.convert("RGB")).max(axis=2) > 0
    height, width = mask_HW.shape
    if (width, height) != size:
        raise DataError(f"{name}: a mask of {width}x{height} pixels, but its image has {size[0]}x{size[1]}")
    return mask_HW


def read_size(source: Path | bytes, *, name: str | None = None) -> tuple[int, int]:
    """Read width and height of a picture, as `read_image(…).size` has them; no pixels are decoded.

    Raises:
        DataError: As for `read_image`, as far as the header tells.
    """
    name = name or _name(source)
    with _stream(source, name) as stream, _one_line_errors(name), Image.open(stream, formats=FORMATS) as image:
        width, height = image.size
        # Pillow turns TIFF files itself, and so does the size that it tells
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SIDEWAYS
        return (height, width) if turned else (width, height)


def find_images(sources: Sequence[str | Path], *, exclude: Path | None = None) -> list[Path]:
    """List the pictures that files, folders and globs name, each once.

    Args:
        sources: A file counts whatever its suffix. A folder counts for the files in it, at any depth, that have one of
            `IMAGE_SUFFIXES` and are not hidden. Anything else is a glob, in which `**` is any depth.
        exclude: Folder that is skipped inside folders, such as that of earlier outputs.

    Returns:
        In the order of the sources; within one source sorted by path.

    Raises:
        DataError: A source without pictures.
    """
    check_list(sources, "sources")
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        try:
            if path.is_dir():
                files = [file for file in path.rglob("*") if _counts(path, file, exclude=exclude)]
            elif path.exists():
                files = [path]
            else:
                matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob matches hidden files too)
                files = [file for file in map(Path, matches) if file.is_file()]
        except OSError as error:
            raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
        if not files:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise DataError(f"{printable(path)}: no picture there ({kinds}); name a file, a folder or a glob")
        found += sorted(files)
    return list(dict.fromkeys(found))


def _counts(folder: Path, file: Path, *, exclude: Path | None) -> bool:
    if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        return False
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not (exclude is not None and file.absolute().is_relative_to(exclude.absolute()))


def _name(source: Path | bytes) -> str:
    return printable(source) if isinstance(source, Path) else "the picture"


@contextmanager
def _stream(source: Path | bytes, name: str) -> Iterator[IO[bytes]]:
    """Open a file or bytes for reading."""
    try:
        stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder, where an image file is expected") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    with stream:
        yield stream


@contextmanager
def _opened(source: Path | bytes, name: str, *, most_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open and decode a picture and turn it as EXIF says."""
    with _stream(source, name) as stream:
        with _one_line_errors(name):
            image = Image.open(stream, formats=FORMATS)
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise TooManyPixelsError(
                    f"{name}: {image.width} x {image.height} pixels, expected at most {most_pixels:,}: scale it down"
                )
            ImageOps.exif_transpose(image, in_place=True)
        with image:
            yield image


@contextmanager
def _unmapped(image: Image.Image) -> Iterator[None]:
    """Hide the path of an opened TIFF from Pillow, which would map an uncompressed one into memory.

    Pillow 11 to 13 maps it with width and height exchanged if EXIF turns it by 90 degrees, and so scrambles its pixels.
    `_opened` hands Pillow a stream, not a path, for the same reason.
    """
    if not (isinstance(image, ImageFile.ImageFile) and image.format == "TIFF"):
        yield
        return
    path, image.filename = image.filename, ""
    try:
        yield
    finally:
        image.filename = path


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises into one line. Its plugins raise nearly every built-in exception for damaged files."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{name}: not a readable image ({error})") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a readable image (not an image: expected {', '.join(FORMATS)})") from error
    except Exception as error:
        reason = " ".join(str(error).split("<", 1)[0].split()) or type(error).__name__
        raise DataError(f"{name}: not a readable image ({reason})") from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    with _one_line_errors(name):
        if image.mode in _WIDE:
            rgb = _scaled(image).convert("RGB")
        elif image.has_transparency_data:
            rgb = _on_white(_straight(image).convert("RGBA"))
        elif image.mode == "RGB" and not isinstance(image, ImageFile.ImageFile):
            rgb = image  # `to_rgb` made this copy
        else:
            rgb = image.convert("RGB")
        rgb.info = {}  # what is left of the file must not be applied twice
        return rgb


def _straight(image: Image.Image) -> Image.Image:
    """Undo premultiplied alpha, which Pillow converts to nothing else."""
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    return image if straight is None else image.convert(straight)


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _scaled(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image)
    levels_HW = _eight_bits(values_HW)
    if "transparency" in image.info:  # a PNG may name one grey value as transparent
        levels_HW[values_HW == image.info["transparency"]] = 255
    return Image.fromarray(levels_HW)


def _eight_bits(values_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    low, high = values_HW.min(), values_HW.max()
    if not (low >= 0 and high <= 65535):  # NaN included
        raise ValueError(f"grey values {low:g} to {high:g}, expected 0 to 65535: save it with 8 or 16 bits")
    if values_HW.dtype.kind != "f":
        return ((values_HW.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 · 257
    top = next(top for top in (1, 255, 65535) if high <= top)
    return np.rint(values_HW.astype(np.float64) * (255 / top)).astype(np.uint8)
