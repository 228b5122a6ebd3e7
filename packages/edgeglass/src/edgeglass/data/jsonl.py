"""Read JSON lines: {"image"?, "captions"|"caption"|"text"?, "audio"?, "split"?}, paths relative to the file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_common.errors import DataError, printable
from clip_common.tables import explain_unknown, read_json_lines
from edgeglass.data.records import Sample
from edgeglass.data.rows import KEYS, make_sample, name_split


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
    if len(files) > 1 and not all(name_split([file.name]) for file in files):
        names = ", ".join(file.name for file in files)
        raise DataError(f"{printable(root)}: several JSONL files ({names}): name one, data.root={files[0]}")
    return files


def read_jsonl(files: Sequence[Path]) -> Iterator[Sample]:
    """Yield one sample a row; the name of a file such as train.jsonl is the split of its rows that state none.

    Raises:
        DataError: A line that is not a JSON object, or a row that `make_sample` refuses.
    """
    id = 0
    for file in files:
        split = name_split([file.name])
        for line, row in read_json_lines(file):
            at = f"{printable(file)}, line {line}"
            if row and not row.keys() & set(KEYS):
                raise DataError(f"{at}: {explain_unknown(next(iter(row)), kind='key', known=KEYS)}")
            yield make_sample(row, id=id, at=at, folder=file.parent, split=split)
            id += 1
