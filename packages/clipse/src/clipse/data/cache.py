"""Cache of decoded images: uint8 pixels in one memory-mapped file, complete or absent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_common.pixels import MappedPixels, cache_folder, key_of, state_of
from clip_common.reporting import Progress
from clipse.data.records import ImageRecord


class ImageCache:
    """uint8 pixels of a set of records, shrunk until the short side has `side` pixels; nothing is cropped.

    It is made at the first use of a set and read back afterwards. Its key holds the files' names, sizes and times, so
    a changed image makes another cache.

    Args:
        folder: Folder of all caches.
        records: The images.
        side: Pixels of the short side: the preprocessing's size, with room for its random crops. Smaller images are
            kept at their size.
        progress: Called while images are decoded.

    Raises:
        DataError: An image cannot be read, or the disk has too little space; nothing is left behind.
        OSError: The disk filled up while the cache was written; nothing is left behind.
    """

    def __init__(
        self, folder: Path, records: Sequence[ImageRecord], *, side: int, progress: Progress | None = None
    ) -> None:
        self.rows = {record.id: row for row, record in enumerate(records)}
        self.folder = folder / key_of([side, *((state_of(record.path), record.span) for record in records)])
        if not self.folder.exists():
            self._write(records, side, progress)
        self.shapes_N2 = np.load(self.folder / "shapes.npy")
        self.starts_N = np.concatenate([[0], np.cumsum(self.shapes_N2.prod(axis=1) * 3)])
        self.pixels = MappedPixels(self.folder / "pixels.bin")

    def __getitem__(self, record: ImageRecord) -> Tensor:
        """Return the pixels of an image: (3, height, width) uint8."""
        row = self.rows[record.id]
        height, width = self.shapes_N2[row]
        pixels = self.pixels[self.starts_N[row] : self.starts_N[row + 1]].reshape(height, width, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _write(self, records: Sequence[ImageRecord], side: int, progress: Progress | None) -> None:
        needed = len(records) * side * side * 4  # a 4:3 picture, three bytes per pixel
        with cache_folder(self.folder, needed=needed, what="the image cache") as draft:
            shapes = []
            with (draft / "pixels.bin").open("wb") as stream:
                for done, record in enumerate(records, start=1):
                    pixels_HW3 = np.asarray(_shrunk(record.load_image(), side))
                    stream.write(pixels_HW3.tobytes())
                    shapes.append(pixels_HW3.shape[:2])
                    if progress is not None:
                        progress(done, len(records))
            np.save(draft / "shapes.npy", np.array(shapes, dtype=np.int64))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    if short <= side:
        return image
    # truncate the long side, as torchvision's Resize does, so that resizing again to the same side changes nothing
    width, height = (side if length == short else int(side * length / short) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
