"""Read caption files of images: rows merged by image, image files found, stated splits."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.captions.columns import Row
from clip_common.captions.formats import PARSERS
from clip_common.captions.problems import Place, ReadLog
from clip_common.captions.splits import read_split_lists
from clip_common.errors import check_list

FOLDERS = (
    *("", "Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images"),
    *("train2014", "val2014", "train2017", "val2017"),
)
"""Folders of images, relative to the captions file, to the folder above `annotations`, or to the working folder."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image of a caption file.

    Attributes:
        name: The image as the file names it.
        path: Its file, which may be missing, or the file that holds its bytes.
        captions: In the order of the file, as they are there: some may be empty.
        split: `train`, `val` or `test`; "" if none is stated.
        places: Place of each caption; of the image, if it has none.
        span: Offset and size in bytes of the encoded image in `path`; None if `path` is the image.
    """

    name: str
    path: Path
    captions: tuple[str, ...]
    split: str
    places: tuple[Place, ...]
    span: tuple[int, int] | None = None


def read_caption_files(files: Sequence[Path], *, format: str, log: ReadLog) -> list[CaptionedImage]:
    """Return the images of caption files that are read together, each once, in the order of first appearance.

    Splits are those of the rows or of the files' names; if there are none, those of Flickr8k's lists beside the file.
    Paths of images are relative to the file, to a known folder of images beside it, or to the working folder: whichever
    has most of them. Where most paths stay inside that folder, one that leaves it (absolute, or through ..) is a
    problem of its row.

    Args:
        files: Caption files of one format.
        format: One of `PARSERS`.
        log: Names columns, and receives what cannot be used.
    """
    check_list(files, "files")
    rows: list[tuple[Row, Path]] = []
    for file in files:
        read = _drop_strays(list(PARSERS[format](file, log)), log)
        names = list(dict.fromkeys(row.image for row in read))
        folder = _find_image_folder(names, file, log)
        paths = {name: folder / name for name in names}
        rows += [(row, paths[row.image]) for row in read]
    images = merge_rows(rows, log)
    lists = {} if any(image.split for image in images) else read_split_lists(files[0].parent, log)
    if not lists or not images:
        return images
    listed = [
        CaptionedImage(image.name, image.path, image.captions, lists.get(image.path.name, ""), image.places, image.span)
        for image in images
    ]
    if not any(image.split for image in listed):
        folder = files[0].parent
        log.add("split", Place(folder), f"the split lists name none of the {len(images)} captioned images")
    return listed


def merge_rows(rows: Iterable[tuple[Row, Path]], log: ReadLog) -> list[CaptionedImage]:
    """Merge rows into one image per file, in the order of first appearance, with all its captions and its split.

    An image in two splits is a problem, and is left out.

    Args:
        rows: Each with the file of its image, or with the file that holds its bytes.
        log: Receives the problems.
    """
    groups: dict[object, list[tuple[Row, Path]]] = {}
    normal: dict[str, str] = {}
    for row, path in rows:
        given = str(path)
        file = normal.get(given) or normal.setdefault(given, os.path.normpath(given))
        groups.setdefault((file, row.span), []).append((row, path))
    images = []
    for group in groups.values():
        first, path = group[0]
        stated = next((row for row, _ in group if row.split), first)
        other = next((row for row, _ in group if row.split not in (None, stated.split)), None)
        if other is not None:
            text = (
                f"{first.image} in {stated.split} and {other.split} (first at {stated.place}): keep one split for each"
            )
            log.add("split", other.place, text)
            continue
        captions = tuple(caption for row, _ in group for caption in row.captions)
        places = tuple(row.place for row, _ in group for _ in row.captions) or (first.place,)
        images.append(CaptionedImage(first.image, path, captions, stated.split or "", places, first.span))
    return images


def _drop_strays(rows: list[Row], log: ReadLog) -> list[Row]:
    """Return rows without those whose path leaves the folder of the others, unless most do."""
    leaving = {name for name in {row.image for row in rows} if Path(name).is_absolute() or ".." in Path(name).parts}
    strays = [row for row in rows if row.image in leaving]
    if len(strays) > len(rows) / 2:  # a list of absolute paths
        return rows
    for row in strays:
        text = f"{row.image!r:.80} leaves the folder of the other images: write it relative to that folder"
        log.add("row", row.place, text)
    return [row for row in rows if row.image not in leaving]


def _find_image_folder(names: list[str], file: Path, log: ReadLog) -> Path:
    """Return the folder that holds most of a sample of the images, else `Images`; note which it is.

    Tried are the file's folder, the folder above one called `annotations`, and the working folder, each with the known
    folders in it; then the other folders beside the file.
    """
    sample = names[:: max(1, len(names) // 50)]
    places = [(file.parent, "the folder of the file")]
    if file.parent.name == "annotations":
        places.append((file.parent.parent, "the folder above the file"))
    places.append((Path(), "the working folder"))
    known = [(place / name, said) for place, said in places for name in FOLDERS]
    others = [(other, said) for place, said in places[:-1] for other in sorted(place.iterdir()) if other.is_dir()]
    for tried in (known, others):
        counts = [sum((folder / image).is_file() for image in sample) for folder, _ in tried]
        if any(counts):
            best, said = tried[counts.index(max(counts))]
            log.notes.append(f"{file}: images in {best}, relative to {said}")
            return best
    if names:
        said = ", ".join(said for _, said in places)
        log.notes.append(f"{file}: no image found in {said}, nor in a folder of these")
    return file.parent / "Images"
