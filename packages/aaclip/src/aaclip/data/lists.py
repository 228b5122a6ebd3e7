"""Sets described by files: VisA's table, AA-CLIP's JSON lines, AnomalyCLIP's meta.json."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from aaclip.data.records import Record
from clip_common.errors import DataError
from clip_common.tables import read_json, read_json_lines, read_table

_Split = Literal["train", "test"]
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")


@dataclass(frozen=True, slots=True)
class Row:
    """One picture as a list states it: paths unchanged, the mask empty if none is stated."""

    image: str
    class_name: str
    split: _Split
    anomalous: bool
    mask: str
    defect: str


@dataclass(frozen=True)
class Listing:
    """A kind of list.

    Attributes:
        description: Its file and fields, for people.
        files: Root -> the lists of this kind in it.
        parse: List -> its rows.
    """

    description: str
    files: Callable[[Path], list[Path]]
    parse: Callable[[Path], Iterator[Row]]

    def read(self, root: Path) -> list[Row]:
        """Read all lists of this kind in a folder.

        Raises:
            DataError: A list that cannot be read, or none of them names a picture.
        """
        rows = [row for file in self.files(root) for row in self.parse(file)]
        if not rows:
            raise DataError(f"{root}: no pictures are listed in {', '.join(file.name for file in self.files(root))}")
        return rows


def to_records(rows: Sequence[Row], root: Path) -> tuple[list[Record], list[str]]:
    """Return the records of some rows, and a line for each missing mask.

    Paths start from `root`, or from its parent if they begin with the root's own name.

    Raises:
        DataError: A picture is listed twice, or none of the pictures exists.
    """
    images = [_locate(row.image, root) for row in rows]
    twice = [image for image, count in Counter(images).items() if count > 1]
    if twice:
        raise DataError(f"{root}: {len(twice)} picture(s) are listed twice, first {twice[0]}: keep one of each")
    if not any(image.is_file() for image in images):
        raise DataError(
            f"{root}: none of the {len(images)} listed pictures is there, first {images[0]}: "
            "data.root is the folder that their paths start from"
        )
    with_masks = {row.class_name for row in rows if row.anomalous and row.mask}
    records, problems = [], []
    for row, image in zip(rows, images, strict=True):
        mask = _locate(row.mask, root) if row.mask else None
        if mask is not None and not mask.is_file():
            if row.anomalous:
                problems.append(f"{image}: no mask; expected {mask}")
            mask = None
        elif mask is None and row.anomalous and row.class_name in with_masks:
            problems.append(f"{image}: no mask is listed, though other pictures of {row.class_name} have one")
        records.append(Record(image, row.class_name, row.split, row.anomalous, mask=mask, defect=row.defect))
    return records, problems


def _locate(path: str, root: Path) -> Path:
    below = root / path
    beside = root.parent / path
    return beside if not below.is_file() and beside.is_file() else below


def _visa_files(root: Path) -> list[Path]:
    file = root / "split_csv" / "1cls.csv"
    return [file] if file.is_file() else []


def _parse_visa(file: Path) -> Iterator[Row]:
    for line, row in read_table(file, needed=_VISA_COLUMNS, delimiter=","):
        at = f"{file}, line {line}"
        if row["label"] not in ("normal", "anomaly"):
            raise DataError(f"{at}: expected the label normal or anomaly, got {row['label']!r}")
        anomalous = row["label"] == "anomaly"
        defect = "anomaly" if anomalous else "good"
        yield Row(row["image"], row["object"], _split(row["split"], at=at), anomalous, row["mask"], defect)


def _jsonl_files(root: Path) -> list[Path]:
    files = sorted(file for file in root.glob("*.jsonl") if file.is_file() and not file.name.startswith("."))
    return [file for file in files if _first_line_names_an_image(file)]


def _first_line_names_an_image(file: Path) -> bool:
    # other tools leave .jsonl files of their own in a set's folder
    with file.open("rb") as stream:
        first = next((line for line in stream if line.strip()), b"")
    return b'"image_path"' in first


def _parse_jsonl(file: Path) -> Iterator[Row]:
    name = file.name.lower()
    split: _Split = "train" if "train" in name and "test" not in name else "test"
    for line, entry in read_json_lines(file):
        at = f"{file}, line {line}"
        anomalous = _flag(entry, "label", at=at)
        yield Row(
            image=_string(entry, "image_path", at=at),
            class_name=_string(entry, "class_name", at=at),
            split=split,
            anomalous=anomalous,
            mask=_string(entry, "mask_path", at=at, optional=True),
            defect="anomaly" if anomalous else "good",
        )


def _meta_files(root: Path) -> list[Path]:
    return [root / "meta.json"] if (root / "meta.json").is_file() else []


def _parse_meta(file: Path) -> Iterator[Row]:
    for key, classes in _of_type(read_json(file), dict, at=str(file)).items():
        split = _split(key, at=str(file))
        for class_name, entries in _of_type(classes, dict, at=f"{file}, {split}").items():
            at = f"{file}, {split}, {class_name}"
            for number, entry in enumerate(_of_type(entries, list, at=at), start=1):
                place = f"{at}, entry {number}"
                entry = _of_type(entry, dict, at=place)
                anomalous = _flag(entry, "anomaly", at=place)
                defect = _string(entry, "specie_name", at=place, optional=True) or "anomaly"
                yield Row(
                    image=_string(entry, "img_path", at=place),
                    class_name=class_name,
                    split=split,
                    anomalous=anomalous,
                    mask=_string(entry, "mask_path", at=place, optional=True),
                    defect=defect if anomalous else "good",
                )


LISTINGS: dict[str, Listing] = {
    "visa": Listing("split_csv/1cls.csv with object,split,label,image,mask", _visa_files, _parse_visa),
    "jsonl": Listing("*.jsonl of image_path, label, class_name, mask_path", _jsonl_files, _parse_jsonl),
    "meta": Listing("meta.json of train and test, classes, img_path, mask_path, anomaly", _meta_files, _parse_meta),
}
"""Kinds of lists by format."""


def _of_type(value: Any, kind: type, *, at: str) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{at}: expected a JSON {'object' if kind is dict else 'array'}, got {value!r:.60}")
    return value


def _string(entry: dict[str, Any], key: str, *, at: str, optional: bool = False) -> str:
    value = entry.get(key)
    if optional and not value:
        return ""
    if not isinstance(value, str) or not value:
        raise DataError(f"{at}: expected {key} as text, got {value!r:.60}")
    return value


def _flag(entry: dict[str, Any], key: str, *, at: str) -> bool:
    value = entry.get(key)
    if value not in (0, 1):
        raise DataError(f"{at}: expected {key} to be 0 (normal) or 1 (anomalous), got {value!r:.60}")
    return bool(value)


def _split(name: str, *, at: str) -> _Split:
    if name not in ("train", "test"):
        raise DataError(f"{at}: expected the split train or test, got {name!r}")
    return cast(_Split, name)
