"""Each image decoded once: uint8 pixels in one memory-mapped file, written whole or not at all."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_common.errors import DataError
from clip_common.reporting import Progress
from clipse.data.images import load
from clipse.data.records import ImageRecord


class ImageCache:
    """uint8 pixels of a set of records, shrunk until the short side has `side` pixels; nothing is cropped.

    Made at the first use of a set and read back afterwards. The key is the files' names, sizes and times, so a changed
    image makes another cache.

    Args:
        folder: Where the caches lie.
        records: The images.
        side: Pixels of the short side: what the preprocessing needs, with room for its random crops. Smaller images
            stay as they are.
        progress: Called while images are decoded.

    Raises:
        DataError: An image that cannot be read, or too little space on the disk; nothing is left behind.
        OSError: The disk filled up meanwhile; nothing is left behind either.
    """

    def __init__(
        self, folder: Path, records: Sequence[ImageRecord], *, side: int, progress: Progress | None = None
    ) -> None:
        self.rows = {record.id: row for row, record in enumerate(records)}
        self.folder = folder / _key(records, side)
        if not self.folder.exists():
            self._write(records, side, progress)
        self.shapes_N2 = np.load(self.folder / "shapes.npy")
        self.starts_N = np.concatenate([[0], np.cumsum(self.shapes_N2.prod(axis=1) * 3)])
        self.pixels = np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pixels": None}  # a worker maps the file itself; pickled, the pixels would be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.pixels = np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")

    def __getitem__(self, record: ImageRecord) -> Tensor:
        """(3, height, width) uint8."""
        row = self.rows[record.id]
        height, width = self.shapes_N2[row]
        pixels = np.array(self.pixels[self.starts_N[row] : self.starts_N[row + 1]]).reshape(height, width, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _write(self, records: Sequence[ImageRecord], side: int, progress: Progress | None) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        needed = len(records) * side * side * 4  # a 4:3 picture of three bytes a pixel
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise DataError(
                f"{self.folder.parent}: the image cache needs about {needed / 2**20:,.0f} MiB and the disk has "
                f"{free / 2**20:,.0f} MiB free: set data.cache=false, or data.cache_dir to another disk"
            )
        draft = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=".draft-"))
        try:
            shapes = []
            with (draft / "pixels.bin").open("wb") as stream:
                for done, record in enumerate(records, start=1):
                    pixels_HW3 = np.asarray(_shrunk(load(record), side))
                    stream.write(pixels_HW3.tobytes())
                    shapes.append(pixels_HW3.shape[:2])
                    if progress is not None:
                        progress(done, len(records))
            np.save(draft / "shapes.npy", np.array(shapes, dtype=np.int64))
            try:
                draft.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # else another process was quicker, with the same bytes
                    raise
        except OSError as error:
            error.filename = error.filename or str(self.folder.parent)  # a full disk does not say which it is
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    if short <= side:
        return image
    # the long side is cut down, as torchvision's Resize does, so that resizing again to the same side changes nothing
    width, height = (side if length == short else int(side * length / short) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _key(records: Sequence[ImageRecord], side: int) -> str:
    digest = hashlib.sha256(f"{side}".encode())
    for record in records:
        status = record.path.stat()
        digest.update(f"{record.path.resolve()}|{record.span}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]
