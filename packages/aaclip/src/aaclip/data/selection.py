"""Which records to train on, kept in a list that can be checked, and never the ones that will be tested."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aaclip.config import DataConfig
from aaclip.data.records import Dataset, Record
from aaclip.data.unreadable import attempt
from clip_common.errors import DataError
from clip_common.runs import write_json

TRAINING_LIST = "training.json"
"""The list in a run's folder of what it learns from."""


def training_records(dataset: Dataset, config: DataConfig, *, seed: int = 0) -> list[Record]:
    """The records that `config.mode`, `config.shot` and `config.labelled` choose.

    Few-shot training draws from the training split where that has normal and anomalous images of every class, as the
    lists of `aaclip data split` have, else from every labelled sample; `labelled` is of full-shot training alone.

    Args:
        dataset: The set.
        config: What to choose.
        seed: Of the few-shot draw.

    Raises:
        DataError: Nothing is left, or too little of a class.
    """
    if config.mode == "few_shot":
        own = dataset.of(split="train")
        kinds = {(name, anomalous) for name in dataset.classes for anomalous in (False, True)}
        complete = kinds == {(record.class_name, record.anomalous) for record in own}
        return few_shot(own if complete else dataset.records, shot=config.shot, seed=seed)
    records = dataset.of(split="test" if config.labelled == "test" else None)
    if not records:
        raise DataError(f"{dataset.root}: no image in its test split, which data.labelled=test asks for: set it to all")
    return records


def few_shot(records: Sequence[Record], *, shot: int, seed: int) -> list[Record]:
    """`shot` / 2 normal and `shot` / 2 anomalous records of each class, class by class.

    Who is drawn depends on the seed and on the names below the set's folder (class, split, defect, file), not on
    where the set lies or in which order its records come; a larger `shot` holds a smaller one's records.

    Raises:
        DataError: An odd `shot`, or a class with too few records of a kind.
    """
    if shot < 2 or shot % 2:
        raise DataError(f"data.shot={shot}: expected an even number from 2 (half normal, half anomalous)")
    kinds: dict[tuple[str, bool], list[Record]] = {
        (record.class_name, anomalous): [] for record in records for anomalous in (False, True)
    }
    for record in records:
        kinds[record.class_name, record.anomalous].append(record)
    chosen = []
    for (class_name, anomalous), of_kind in sorted(kinds.items()):
        if len(of_kind) < shot // 2:
            raise DataError(
                f"class {class_name}: {len(of_kind)} {'anomalous' if anomalous else 'normal'} image(s), "
                f"data.shot={shot} needs {shot // 2}: lower the shot, or leave the class out of data.classes"
            )
        chosen += sorted(of_kind, key=lambda record: _lot(record, seed))[: shot // 2]
    return chosen


def _lot(record: Record, seed: int) -> tuple[bytes, str]:
    name = json.dumps([seed, record.class_name, record.split, record.defect, record.image.name])
    return hashlib.sha256(name.encode()).digest(), record.image.as_posix()


def check_masks(records: Iterable[Record]) -> None:
    """Refuse anomalous records without a mask.

    Raises:
        DataError: The count and the first few.
    """
    bare = [str(record.image) for record in records if record.anomalous and record.mask is None]
    if bare:
        first = ", ".join(bare[:3]) + (", …" if len(bare) > 3 else "")
        raise DataError(
            f"{len(bare)} anomalous image(s) without a mask: {first}: restore the masks (aaclip data check)"
        )


def check_no_overlap(train: Sequence[Record], test: Sequence[Record]) -> None:
    """Refuse to train on images that will be tested, compared by content: copies under other names are found too.

    Raises:
        DataError: How many training images are in the test set, and the first pair; or a file that cannot be read.
    """
    train_of_size, test_of_size = _by_size(train), _by_size(test)
    pairs = []
    for size in sorted(train_of_size.keys() & test_of_size.keys()):  # files of different sizes cannot be equal
        tested = {hash_file(image): image for image in test_of_size[size]}
        pairs += [(image, tested[digest]) for image in train_of_size[size] if (digest := hash_file(image)) in tested]
    if pairs:
        mine, theirs = min(pairs)
        raise DataError(
            f"{len(pairs)} training image(s) are in a test set too, first {mine} = {theirs}: "
            "take them out of one of the two, or test on another set (data.test_roots)"
        )


def save_list(records: Sequence[Record], file: Path, *, root: Path) -> None:
    """Write records as JSON, with paths from `root` and the sha256 of each image, so that a run can be repeated.

    Raises:
        DataError: An image that cannot be read.
    """
    rows = [
        {
            "image": _relative(record.image, root),
            "class_name": record.class_name,
            "split": record.split,
            "anomalous": record.anomalous,
            "mask": None if record.mask is None else _relative(record.mask, root),
            "defect": record.defect,
            "sha256": hash_file(record.image),
        }
        for record in records
    ]
    write_json(file, {"records": rows})


def load_list(file: Path, *, root: Path) -> list[Record]:
    """Read what `save_list` wrote, in its order.

    Raises:
        DataError: Not such a file, or images that are gone or have other content than when the list was saved.
    """
    with _one_line(file):
        rows = _rows(file)
        digests = [row.pop("sha256") for row in rows]
        records = [
            Record(**row | {"image": root / row["image"], "mask": None if row["mask"] is None else root / row["mask"]})
            for row in rows
        ]
    changed = [
        record.image for record, digest in zip(records, digests, strict=True) if hash_file(record.image) != digest
    ]
    if changed:
        raise DataError(
            f"{file}: {len(changed)} of {len(records)} images have other content than when the list was saved, "
            f"first {changed[0]}: restore them, or draw a new list"
        )
    return records


def read_hashes(file: Path) -> list[str]:
    """The sha256 of each image in a list that `save_list` wrote.

    Raises:
        DataError: Not such a file.
    """
    with _one_line(file):
        return [row["sha256"] for row in _rows(file)]


def check_same_images(file: Path, records: Sequence[Record]) -> None:
    """Refuse to go on with other images than those in a saved list.

    Raises:
        DataError: How many are gone and how many are new.
    """
    before, now = set(read_hashes(file)), {hash_file(record.image) for record in records}
    if before != now:
        raise DataError(
            f"{file.parent} was started with other images: {len(before - now)} of them are gone or changed, "
            f"{len(now - before)} are new: restore the set, or name a new run"
        )


def check_not_trained_on(run: Path, images: Sequence[Path], *, purpose: str = "test") -> None:
    """Raise where images that a run learned from are among those that it is to be judged by, compared by content.

    Args:
        run: A run's folder, or that of the detector in it; what is neither learned from nothing that is known.
        images: What cannot be read among them is passed over: who reads it next will tell.
        purpose: `test` or `calibrate`, for the message.

    Raises:
        DataError: Says how many, and the first.
    """
    lists = [folder / TRAINING_LIST for folder in (run.resolve(), run.resolve().parent)] if run.is_dir() else []
    file = next((file for file in lists if file.exists()), None)
    if file is None:
        return
    learned = set(read_hashes(file))
    known = [image for image in images if attempt(hash_file, image, file=image) in learned]
    if known:
        raise DataError(
            f"{len(known)} of {len(images)} images to {purpose} on are among those that {run} learned from, first "
            f"{known[0]}: {purpose} on other images"
        )


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """What may be wrong with a list, as a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a list of records as aaclip saves it ({error!r})") from error


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["records"]
    return rows


def _by_size(records: Iterable[Record]) -> dict[int, list[Path]]:
    images = defaultdict(list)
    for record in records:
        try:
            images[record.image.stat().st_size].append(record.image)
        except OSError as error:
            raise DataError(f"{record.image}: cannot be read ({error.strerror})") from error
    return images


def hash_file(image: Path) -> str:
    """Hexadecimal digest of a file's bytes, as `sha256sum` prints it.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error.strerror})") from error


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()  # not relative_to: a list may name images beside the root
