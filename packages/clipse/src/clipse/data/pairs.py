"""Read folders of pictures, each beside a .txt of the same name whose lines are its captions."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from clip_common.captions import CaptionedImage, Place, ReadLog, find_split
from clip_common.errors import DataError
from clip_common.images import IMAGE_SUFFIXES
from clip_common.tables import read_lines


def has_pairs(root: Path) -> bool:
    """Return whether one of the first thousand pictures of a folder, at any depth, has a text."""
    return any(picture.with_suffix(".txt").is_file() for picture in islice(_pictures(root), 1000))


def read_pairs(roots: Sequence[Path], log: ReadLog) -> list[CaptionedImage]:
    """Read one image per picture, sorted by path; a first folder whose name begins with a split sets it.

    A picture without a text is a problem, and so is a text without a picture in a folder that has both.
    """
    images = []
    for root in roots:
        pictures = sorted(_pictures(root))
        for picture in pictures:
            text, name = picture.with_suffix(".txt"), str(picture.relative_to(root))
            try:
                lines = list(read_lines(text)) if text.is_file() else []
            except DataError as error:
                log.add("sample", Place(text), str(error).removeprefix(f"{text}: "))
                continue
            if not text.is_file():
                log.add("sample", Place(picture), f"no captions: expected {text.name} beside it")
                continue
            places = tuple(Place(text, number) for number, _ in lines) or (Place(text),)
            split = find_split(picture.relative_to(root).parts[:-1]) or ""
            captions = tuple(line for _, line in lines) or ("",)
            images.append(CaptionedImage(name, picture, captions, split, places))
        stems = {picture.with_suffix("") for picture in pictures}
        for folder in sorted({picture.parent for picture in pictures}):
            for text in sorted(folder.glob("*.txt")):
                if text.with_suffix("") not in stems and text.stem.lower() not in ("readme", "license", "licence"):
                    log.add("sample", Place(text), "no picture of this name beside it")
    return images


def _pictures(root: Path) -> Iterator[Path]:
    return (file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))
