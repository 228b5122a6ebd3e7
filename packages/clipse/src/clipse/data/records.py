"""Records that every caption format is read into: images with their captions, and the whole set."""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from clip_common.captions import SPLITS, Problem
from clip_common.errors import DataError
from clip_common.images import read_image


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image, its captions and its split.

    Attributes:
        id: Position in the whole set, stable for a given set of files: equal ids are the same image.
        name: Name for messages: the file name, or `shard.tar/member.jpg`.
        path: The image file, or the tar shard or Arrow file that holds it.
        captions: At least one, stripped, in the order of the file.
        split: `train`, `val` or `test`.
        span: Offset and size in bytes of the image inside `path`; None if `path` is the image file itself.
    """

    id: int
    name: str
    path: Path
    captions: tuple[str, ...]
    split: str
    span: tuple[int, int] | None = None

    def read(self) -> bytes:
        """Return the encoded image (JPEG, PNG, …) as bytes.

        Raises:
            OSError: The file is missing or cannot be read.
        """
        if self.span is None:
            return self.path.read_bytes()
        offset, size = self.span
        with self.path.open("rb") as shard:
            shard.seek(offset)
            return shard.read(size)

    def load_image(self) -> Image.Image:
        """Decode the image to RGB pixels.

        Raises:
            DataError: The file is missing, or is not a readable image.
        """
        if self.span is None:
            return read_image(self.path)
        try:
            content = self.read()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return read_image(content, name=self.name)


@dataclass(frozen=True, slots=True)
class CaptionData:
    """A data set as loaded.

    Attributes:
        root: The folder or captions file that it was read from.
        format: Name of its format (see `detection.FORMATS`).
        images: All images of the three splits, ordered by id.
        skipped: Images left out under `on_error="skip"`.
        skipped_captions: Empty captions left out under `on_error="skip"`.
        problems: What was left out, or, under `on_error="raise"`, nothing.
        notes: What was chosen in reading: columns, and the folder of the images; one line each.
        unlisted: Number of captioned images without a split, when other images have one.
    """

    root: Path
    format: str
    images: list[ImageRecord]
    skipped: int = 0
    skipped_captions: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlisted: int = 0

    def split(self, name: str) -> list[ImageRecord]:
        """Return the images of `train`, `val` or `test`, ordered by id; empty if the set has no such split."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: expected one of {', '.join(SPLITS)}")
        return [record for record in self.images if record.split == name]
