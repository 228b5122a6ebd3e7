"""Sets described by their folders: from one class folder to its records, and the masks that are missing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from aaclip.data.records import Record
from clip_common.images import IMAGE_SUFFIXES

NORMAL = ("normal", "good", "ok")
ANOMALOUS = ("abnormal", "anomaly", "bad", "defective", "ko")


@dataclass(frozen=True)
class Found:
    """Contents of a class folder.

    Attributes:
        class_name: The class.
        records: Its pictures.
        problems: One line for each missing mask.
    """

    class_name: str
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_normal(self, images: Iterable[Path], *, split: Literal["train", "test"]) -> None:
        """Add flawless pictures."""
        self.records.extend(Record(image, self.class_name, split, anomalous=False) for image in images)

    def add_anomalous(self, images: Iterable[Path], *, defect: str, masks: Path | None, suffix: str = "") -> None:
        """Add pictures of a defect, all in the test split.

        Args:
            images: The pictures.
            defect: The set's name for the defect.
            masks: Folder of the masks; None for a format without masks.
            suffix: Of a mask's name, after the name of its picture.
        """
        mask_of = {} if masks is None else {file.stem: file for file in list_pictures(masks)}
        for image in images:
            mask = mask_of.get(f"{image.stem}{suffix}")
            if masks is not None and mask is None:
                self.problems.append(f"{image}: no mask; expected {masks / image.stem}{suffix}.png")
            self.records.append(Record(image, self.class_name, "test", anomalous=True, mask=mask, defect=defect))


@dataclass(frozen=True)
class Tree:
    """A layout of class folders.

    Attributes:
        description: The layout, for people.
        fits: True if a folder is a class in this layout.
        read: Class folder and class name -> its contents.
    """

    description: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Found]


def list_pictures(folder: Path) -> list[Path]:
    """List the visible pictures directly in a folder, by name; empty if the folder is missing."""
    return [file for file in _visible(folder) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]


def list_folders(folder: Path) -> list[Path]:
    """List the visible folders directly in a folder, by name."""
    return [child for child in _visible(folder) if child.is_dir()]


def _visible(folder: Path) -> list[Path]:
    children = folder.iterdir() if folder.is_dir() else []
    return sorted(child for child in children if not child.name.startswith("."))


def _fits_inspection(folder: Path, *, good: str) -> bool:
    return any((folder / split / good).is_dir() for split in ("train", "test")) and not _fits_bmad(folder)


def _read_inspection(folder: Path, class_name: str, *, good: str, suffix: str) -> Found:
    found = Found(class_name)
    found.add_normal(list_pictures(folder / "train" / good), split="train")
    for kind in list_folders(folder / "test"):
        if kind.name == good:
            found.add_normal(list_pictures(kind), split="test")
        else:
            masks = folder / "ground_truth" / kind.name
            found.add_anomalous(list_pictures(kind), defect=kind.name, masks=masks, suffix=suffix)
    return found


def _fits_bmad(folder: Path) -> bool:
    return (folder / "test" / "Ungood").is_dir() or (folder / "test" / "good" / "img").is_dir()


def _read_bmad(folder: Path, class_name: str) -> Found:
    # valid/Ungood is left out: the published numbers are of the test split alone, and all other training pictures of
    # the set are flawless
    found = Found(class_name)
    found.add_normal(list_pictures(folder / "train" / "good"), split="train")
    found.add_normal(list_pictures(folder / "valid" / "good" / "img"), split="train")
    found.add_normal(list_pictures(folder / "test" / "good" / "img"), split="test")
    ungood = folder / "test" / "Ungood"
    found.add_anomalous(list_pictures(ungood / "img"), defect="Ungood", masks=ungood / "label")
    return found


def _fits_polyp(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _read_polyp(folder: Path, class_name: str) -> Found:
    found = Found(class_name)
    found.add_anomalous(list_pictures(folder / "images"), defect="polyp", masks=folder / "masks")
    return found


def _fits_plain(folder: Path) -> bool:
    names = {child.name.lower() for child in list_folders(folder)}
    return not names.isdisjoint(NORMAL) and not names.isdisjoint(ANOMALOUS)


def _read_plain(folder: Path, class_name: str) -> Found:
    found = Found(class_name)
    for child in list_folders(folder):
        if child.name.lower() in NORMAL:
            found.add_normal(list_pictures(child), split="test")
        elif child.name.lower() in ANOMALOUS:
            found.add_anomalous(list_pictures(child), defect=child.name, masks=None)
    return found


_MVTEC = Tree(
    "CLASS/train/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT/*_mask.png",
    fits=partial(_fits_inspection, good="good"),
    read=partial(_read_inspection, good="good", suffix="_mask"),
)

TREES: dict[str, Tree] = {
    "mvtec": _MVTEC,
    "btad": Tree(
        "CLASS/train/ok, CLASS/test/ok and ko, CLASS/ground_truth/ko",
        fits=partial(_fits_inspection, good="ok"),
        read=partial(_read_inspection, good="ok", suffix=""),
    ),
    "mpdd": _MVTEC,
    "bmad": Tree("CLASS/train/good, CLASS/test/good/img, CLASS/test/Ungood/img and label", _fits_bmad, _read_bmad),
    "polyp": Tree("images and masks, or CLASS/images and CLASS/masks", _fits_polyp, _read_polyp),
    "folder": Tree(
        f"one of the folders {', '.join(NORMAL)} and one of {', '.join(ANOMALOUS)}", _fits_plain, _read_plain
    ),
}
"""Layouts by format."""
