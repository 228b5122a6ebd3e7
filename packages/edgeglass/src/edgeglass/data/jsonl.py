"""Read JSON lines: {"image"?, "captions"|"caption"|"text"?, "audio"?, "split"?}, paths relative to the file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_common.errors import DataError, printable
from clip_common.tables import explain_unknown, read_json_lines
from edgeglass.data.records import Sample
from edgeglass.data.rows import KEYS, Row, make_sample, name_split


def find_jsonl(root: Path) -> list[Path]:
    """Return the JSONL files of a set: the file itself, data.jsonl, the only *.jsonl, or one for each split.

    Raises:
        DataError: Several files that are not named after splits; no file.
    """
    if root.is_file():
        return [root]
    if (root / "data.jsonl").is_file():
        return [root / "data.jsonl"]
    files = sorted(root.glob("*.jsonl"))
    if not files:
        raise DataError(f"{printable(root)}: no data.jsonl or other *.jsonl")
    return choose_files(files, root)


def choose_files(files: list[Path], root: Path) -> list[Path]:
    """Return the files: one, or one for each split.

    Raises:
        DataError: Several files that are not named after splits; no file.
    """
    if not files:
        raise DataError(f"{printable(root)}: no file of this format with rows that can be used")
    if len(files) > 1 and not all(name_split([file.name]) for file in files):
        names, kind = ", ".join(file.name for file in files), files[0].suffix.removeprefix(".").upper()
        raise DataError(f"{printable(root)}: several {kind} files ({names}): name one, data.root={files[0]}")
    return files


def read_jsonl(files: Sequence[Path]) -> Iterator[Sample]:
    """Yield one sample a row; the name of a file such as train.jsonl is the split of its rows that state none.

    Raises:
        DataError: A line that is not a JSON object, or a row that `make_sample` refuses.
    """
    for id, row in enumerate(read_jsonl_rows(files)):
        if row.values and not row.values.keys() & set(KEYS):
            raise DataError(f"{row.at}: {explain_unknown(next(iter(row.values)), kind='key', known=KEYS)}")
        yield make_sample(row.values, id=id, at=row.at, folder=row.folder, split=row.split)


def read_jsonl_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of JSONL files.

    Raises:
        DataError: A line that is not a JSON object.
    """
    for file in files:
        split = name_split([file.name])
        for line, values in read_json_lines(file):
            yield Row(values, at=f"{printable(file)}, line {line}", folder=file.parent, split=split)
