"""Choose the records to train on, keep them in a list that can be checked, and never train on tested images."""

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
"""File of a run's folder that lists its training images, those that it held out included."""
HELD_OUT_LIST = "held-out.json"
"""File of a feedback run's folder that lists the images by which its loops are judged."""


def training_records(dataset: Dataset, config: DataConfig, *, seed: int = 0) -> list[Record]:
    """Return the records that `config.mode`, `config.shot` and `config.labelled` choose.

    Few-shot training draws from the training split if that has normal and anomalous images of every class, as the lists
    of `aaclip data split` have, else from every labelled sample. Only full-shot training reads `labelled`.

    Args:
        dataset: The set.
        config: The choice.
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
    """Draw `shot` / 2 normal and `shot` / 2 anomalous records of each class, class by class.

    The draw depends on the seed and on the names below the set's folder (class, split, defect, file), not on the place
    of the set or the order of its records. A larger `shot` contains the records of a smaller one.

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
        chosen += shuffle_records(of_kind, seed=seed)[: shot // 2]
    return chosen


def split_held_out(records: Sequence[Record], *, share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Return records to learn from, and held-out ones: a share of each class's normal and anomalous images.

    At least one image of a kind is held out, and at least one is left to learn from; the only image of a kind is left.
    As in `few_shot`, the draw depends on the seed and on names.

    Raises:
        DataError: A share above 0, and no kind of image of which two are there.
    """
    kinds: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        kinds.setdefault((record.class_name, record.anomalous), []).append(record)
    held = set()
    for of_kind in kinds.values() if share else ():
        count = min(max(1, round(share * len(of_kind))), len(of_kind) - 1)
        held |= {record.image for record in shuffle_records(of_kind, seed=seed)[:count]}
    if share and not held:
        raise DataError(
            f"no image can be held out: none of {len(kinds)} kinds (class, normal or anomalous) has two: give more "
            "images, or set feedback.held_out=0 feedback.plateau_patience=null"
        )
    return [one for one in records if one.image not in held], [one for one in records if one.image in held]


def shuffle_records(records: Sequence[Record], *, seed: int) -> list[Record]:
    """Return records in an order that depends on the seed and on names, as the draw of `few_shot` does."""
    return sorted(records, key=lambda record: _hash_key(record, seed))


def _hash_key(record: Record, seed: int) -> tuple[bytes, str]:
    name = json.dumps([seed, record.class_name, record.split, record.defect, record.image.name])
    return hashlib.sha256(name.encode()).digest(), record.image.as_posix()


def check_masks(records: Iterable[Record]) -> None:
    """Raise DataError if an anomalous record has no mask; the line has their number and the first few."""
    bare = [str(record.image) for record in records if record.anomalous and record.mask is None]
    if bare:
        first = ", ".join(bare[:3]) + (", …" if len(bare) > 3 else "")
        raise DataError(
            f"{len(bare)} anomalous image(s) without a mask: {first}: restore the masks (aaclip data check)"
        )


def check_no_overlap(train: Sequence[Record], test: Sequence[Record]) -> None:
    """Raise DataError if a training image is in the test set, or a file cannot be read.

    Images are compared by content, so that copies under other names are found. The line has the number of such images
    and the first pair.
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
        DataError: Another kind of file, or images that are gone or have other content than when the list was saved.
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
    """Read the sha256 of each image in a list that `save_list` wrote.

    Raises:
        DataError: Another kind of file.
    """
    with _one_line(file):
        return [row["sha256"] for row in _rows(file)]


def check_same_images(file: Path, records: Sequence[Record]) -> None:
    """Raise DataError if the records have other images than a saved list; the line counts those gone and new."""
    before, now = set(read_hashes(file)), {hash_file(record.image) for record in records}
    if before != now:
        raise DataError(
            f"{file.parent} was started with other images: {len(before - now)} of them are gone or changed, "
            f"{len(now - before)} are new: restore the set, or name a new run"
        )


def find_training_list(run: Path) -> Path | None:
    """Return the list of the images that a run was trained on; None for a folder without one.

    Args:
        run: A run's folder, the folder of the detector in it, or the file of a loop.
    """
    lists = [folder / TRAINING_LIST for folder in (run.resolve(), run.resolve().parent)] if run.exists() else []
    return next((file for file in lists if file.exists()), None)


def read_image_paths(file: Path, *, root: Path) -> list[Path]:
    """Read the images in a list that `save_list` wrote; whether they are still there is not checked.

    Raises:
        DataError: Another kind of file.
    """
    with _one_line(file):
        return [root / row["image"] for row in _rows(file)]


def check_not_trained_on(run: Path, images: Sequence[Path], *, purpose: str = "test") -> None:
    """Raise DataError if a run would be judged by images that it was trained on; images are compared by content.

    Args:
        run: A run's folder, or the folder of the detector in it, or a loop's file; nothing is known about the training
            of others.
        images: Unreadable ones are skipped here, because the job that reads them next reports them.
        purpose: `test` or `calibrate`, for the message.
    """
    file = find_training_list(run)
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
    """Turn any error of a damaged list into a DataError of one line."""
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
    """Return the sha256 of a file's bytes in hexadecimal, as `sha256sum` prints it.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error.strerror})") from error


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()  # not relative_to: a list may name images outside the root
