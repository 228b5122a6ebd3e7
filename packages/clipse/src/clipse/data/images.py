"""Bytes to pictures, one way everywhere: RGB, turned as EXIF says, or an error that names the file."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps, UnidentifiedImageError

from clip_common.errors import DataError
from clip_common.reporting import Progress
from clipse.data.records import ImageRecord

# What PIL raises on damaged files, by format.
BROKEN = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode(content: bytes, *, name: str) -> Image.Image:
    """An encoded image as RGB pixels.

    Raises:
        DataError: Not an image, truncated, or damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except BROKEN as error:
        reason = str(error).split("<", 1)[0].strip() or type(error).__name__
        raise DataError(f"{name}: not a readable image ({reason})") from error


def load(record: ImageRecord) -> Image.Image:
    """The picture of a record.

    Raises:
        DataError: The file is gone or is no readable image.
    """
    try:
        content = record.read()
    except OSError as error:
        raise DataError(f"{record.path}: cannot be read ({error.strerror})") from error
    return decode(content, name=str(record.path) if record.span is None else record.name)


def problems_of(records: Sequence[ImageRecord], *, progress: Progress | None = None) -> dict[int, str]:
    """Record id -> what is wrong, for every image that does not decode in full; in threads, as PIL releases the GIL."""

    def problem(record: ImageRecord) -> str | None:
        try:
            load(record)
        except DataError as error:
            return str(error)
        return None

    found: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        for done, (record, message) in enumerate(zip(records, pool.map(problem, records), strict=True), start=1):
            if message is not None:
                found[record.id] = message
            if progress is not None:
                progress(done, len(records))
    return found
