"""Read the files of VQAv2, GQA and TextVQA as they are published; files of questions without answers are not used.

VQAv2    v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json; COCO_train2014_….jpg
GQA      train_balanced_questions.json; 2370799.jpg
TextVQA  TextVQA_0.5.1_train.json; 0054c91397f2fe05.jpg
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_common.captions import parse_split
from clip_common.errors import DataError, printable
from clip_common.tables import read_json
from edgeglass.data.conversations.rows import make_turn
from edgeglass.data.records import Conversation

_SUBSET = re.compile(r"(train|val|test)(?:-dev)?\d{4}")

_GQA_SPLITS = {"train": "train", "val": "val", "testdev": "test"}
"""Name of a part of GQA with answers → split."""

_GQA_ENDING = "_balanced_questions.json"


def find_vqav2(root: Path) -> dict[Path, Path]:
    """Return each file of questions with the file of its annotations, which has the same subset, such as train2014."""
    folder = root.parent if root.is_file() else root
    questions = [root] if root.is_file() else sorted(folder.glob("*questions.json"))
    annotations = {_find_subset(file): file for file in sorted(folder.glob("*annotations.json"))}
    return {
        file: annotations[subset]
        for file in questions
        if file.name.endswith("questions.json") and (subset := _find_subset(file)) and subset in annotations
    }


def find_gqa(root: Path) -> list[Path]:
    """Return the files of balanced questions with answers."""
    files = [root] if root.is_file() else sorted(root.glob(f"*{_GQA_ENDING}"))
    return [file for file in files if file.name.removesuffix(_GQA_ENDING) in _GQA_SPLITS]


def find_textvqa(root: Path) -> list[Path]:
    """Return the files of questions with answers."""
    files = [root] if root.is_file() else sorted(root.glob("TextVQA_*.json"))
    return [file for file in files if re.fullmatch(r"TextVQA_.*(train|val)\.json", file.name)]


def read_vqav2(root: Path, *, images: Path | None) -> Iterator[Conversation]:
    """Yield one conversation a question; its type is that of the answer: yes/no, number or other.

    Raises:
        DataError: No such files, a file of another shape, or a question without annotation.
    """
    id = 0
    for file, annotations in _check_found(find_vqav2(root), root, "*questions.json and *annotations.json").items():
        subset = _find_subset(file)
        with _shape_of(annotations, "annotations of question_id, answers and multiple_choice_answer"):
            answered: dict[Any, Any] = {entry["question_id"]: entry for entry in read_json(annotations)["annotations"]}
        with _shape_of(file, "questions of image_id, question and question_id"):
            rows = read_json(file)["questions"]
            names = [f"COCO_{subset}_{row['image_id']:012d}.jpg" for row in rows]
            folder = _find_folder(names, images or file.parent, ("", subset, "images", f"images/{subset}"))
            split = parse_split(re.sub(r"[-\d].*", "", subset), at=printable(file)) or ""
            for row, name in zip(rows, names, strict=True):
                at = f"{printable(file)}, question {row['question_id']}"
                entry = answered.get(row["question_id"])
                if entry is None:
                    raise DataError(f"{at}: without annotation in {annotations.name}: use files of one release")
                type, answers = entry.get("answer_type", ""), entry["answers"]
                turn = make_turn(row["question"], entry["multiple_choice_answer"], answers, type=type, at=at)
                yield Conversation(id, name, split, folder / name, (turn,))
                id += 1


def read_gqa(root: Path, *, images: Path | None) -> Iterator[Conversation]:
    """Yield one conversation a question; its type is the structural one: query, verify, logical, choose or compare.

    `testdev` is the test split, because the answers of GQA's own test are not published.

    Raises:
        DataError: No such files, or a file of another shape.
    """
    id = 0
    for file in _check_found(find_gqa(root), root, f"train{_GQA_ENDING} and the like"):
        with _shape_of(file, "questions by id, each with imageId, question and answer"):
            questions: Mapping[str, Any] = read_json(file)
            names = [f"{row['imageId']}.jpg" for row in questions.values()]
            folder = _find_folder(names, images or file.parent, ("", "images"))
            split = _GQA_SPLITS[file.name.removesuffix(_GQA_ENDING)]
            for (number, row), name in zip(questions.items(), names, strict=True):
                type = row.get("types", {}).get("structural") or ""
                turn = make_turn(
                    row["question"], row["answer"], None, type=type, at=f"{printable(file)}, question {number}"
                )
                yield Conversation(id, name, split, folder / name, (turn,))
                id += 1


def read_textvqa(root: Path, *, images: Path | None) -> Iterator[Conversation]:
    """Yield one conversation a question, with ten answers.

    Raises:
        DataError: No such files, or a file of another shape.
    """
    id = 0
    for file in _check_found(find_textvqa(root), root, "TextVQA_0.5.1_train.json and the like"):
        with _shape_of(file, "data of image_id, question, answers and set_name"):
            rows = read_json(file)["data"]
            names = [f"{row['image_id']}.jpg" for row in rows]
            folder = _find_folder(names, images or file.parent, ("", "train_images", "images"))
            for number, (row, name) in enumerate(zip(rows, names, strict=True)):
                at = f"{printable(file)}, data[{number}]"
                turn = make_turn(row["question"], None, row["answers"], type="", at=at)
                yield Conversation(id, name, parse_split(row["set_name"], at=at) or "", folder / name, (turn,))
                id += 1


def _find_subset(file: Path) -> str:
    """Return the subset that a file name states, such as train2014; "" if none."""
    found = _SUBSET.search(file.name)
    return found[0] if found else ""


def _find_folder(names: Sequence[str], base: Path, folders: Sequence[str]) -> Path:
    """Return the first of the folders in `base` that holds one of the first fifty images, else `base`."""
    return next(
        (base / folder for folder in folders if any((base / folder / name).is_file() for name in names[:50])), base
    )


def _check_found(files: Any, root: Path, looked_for: str) -> Any:
    if not files:
        raise DataError(f"{printable(root)}: looked for {looked_for}, found none")
    return files


@contextmanager
def _shape_of(file: Path, expected: str) -> Iterator[None]:
    """Raise DataError if reading entries fails because the file has another shape."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{printable(file)}: expected {expected} ({error!r:.80})") from error
