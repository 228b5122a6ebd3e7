"""Read a caption file of images: rows merged by image, image files found, stated splits."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_common.captions.formats import PARSERS, Row
from clip_common.captions.splits import read_split_lists
from clip_common.errors import DataError

FOLDERS = ("", "Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")
"""Folders of images, relative to the captions file."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image of a caption file.

    Attributes:
        name: The image as the file names it.
        path: Its file, which may be missing.
        captions: In the order of the file, as they are there: some may be empty.
        split: `train`, `val` or `test`; "" if none is stated.
    """

    name: str
    path: Path
    captions: tuple[str, ...]
    split: str


def read_caption_file(file: Path, *, format: str) -> list[CaptionedImage]:
    """Return the images of a caption file, each once, in the order of first appearance.

    Splits are those of the rows; if no row has one, those of Flickr8k's lists beside the file.

    Args:
        file: The caption file.
        format: One of `PARSERS`.

    Raises:
        DataError: A line that is not of the format, an image in two splits, or lists that name none of the images.
    """
    rows = merge_rows(PARSERS[format](file), file=file)
    lists = {} if any(row.split for row in rows) else read_split_lists(file.parent)
    folder = _find_image_folder(rows, file.parent)
    images = [
        CaptionedImage(row.image, folder / row.image, row.captions, row.split or lists.get(Path(row.image).name, ""))
        for row in rows
    ]
    if rows and lists and not any(image.split for image in images):
        raise DataError(f"{file.parent}: the split lists name none of the {len(rows)} captioned images")
    return images


def merge_rows(rows: Iterable[Row], *, file: Path) -> list[Row]:
    """Merge rows into one per image, in the order of first appearance, with all its captions and its split.

    Raises:
        DataError: An image is in two splits.
    """
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    twice: dict[str, str] = {}
    for row in rows:
        captions.setdefault(row.image, []).extend(row.captions)
        split = splits.setdefault(row.image, row.split) or row.split
        if row.split not in (None, split):
            twice[row.image] = f"{split} and {row.split}"
        splits[row.image] = split
    if twice:
        name, where = next(iter(twice.items()))
        raise DataError(
            f"{file}: {len(twice)} image(s) are in two splits, first {name} in {where}: keep one split for each"
        )
    return [Row(image, tuple(texts), splits[image]) for image, texts in captions.items()]


def _find_image_folder(rows: list[Row], folder: Path) -> Path:
    """Return the first known folder that holds one of the images, else `Images`."""
    for name in FOLDERS:
        if any((folder / name / row.image).is_file() for row in rows[:50]):
            return folder / name
    return folder / "Images"
