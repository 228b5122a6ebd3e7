"""What every format is turned into: images with their captions, and the set they make."""

from dataclasses import dataclass, field
from pathlib import Path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image, its captions and its split.

    Attributes:
        id: Position in the whole set, stable for a given set of files: equal ids are the same image.
        name: What a person calls it: the file name, or `shard.tar/member.jpg`.
        path: The image file, or the tar shard that holds it.
        captions: At least one, stripped, in the order of the file.
        split: `train`, `val` or `test`.
        span: Offset and size in bytes inside `path` where the image lies in a tar shard; `None` for a file of its own.
    """

    id: int
    name: str
    path: Path
    captions: tuple[str, ...]
    split: str
    span: tuple[int, int] | None = None

    def read(self) -> bytes:
        """The encoded image (JPEG, PNG, …) as bytes.

        Raises:
            OSError: The file is not there or cannot be read.
        """
        if self.span is None:
            return self.path.read_bytes()
        offset, size = self.span
        with self.path.open("rb") as shard:
            shard.seek(offset)
            return shard.read(size)


@dataclass(frozen=True, slots=True)
class CaptionData:
    """A data set as loaded.

    Attributes:
        root: Where it was read from.
        format: The name of its format (see `formats.FORMATS`).
        images: All images of the three splits, ordered by id.
        skipped: Images left out under `on_error="skip"`.
        skipped_captions: Empty captions left out under `on_error="skip"`.
        problems: One line for each thing left out.
        unlisted: Captioned images in no split, where a split is stated for others.
    """

    root: Path
    format: str
    images: list[ImageRecord]
    skipped: int = 0
    skipped_captions: int = 0
    problems: list[str] = field(default_factory=list)
    unlisted: int = 0

    def split(self, name: str) -> list[ImageRecord]:
        """The images of `train`, `val` or `test`, in the order of their ids; empty where the set has no such split."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: expected one of {', '.join(SPLITS)}")
        return [record for record in self.images if record.split == name]
