"""Read parquet files: images and sounds as paths, bytes, or {bytes, path}; their bytes stay in the file until used."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from clip_common.errors import DataError, printable
from edgeglass.data.arrow import MediaColumn, media_column, media_values
from edgeglass.data.records import Sample
from edgeglass.data.rows import AUDIO, IMAGES, KEYS, Row, make_sample, name_split


@dataclass(frozen=True, slots=True)
class ParquetBlob:
    """An image or a sound in a parquet file.

    Reading one reads its row group, and the last row groups are kept: rows in order cost one read a group, rows in
    random order one read each.
    """

    name: str
    file: Path
    column: MediaColumn
    group: int
    row: int

    def read(self) -> bytes:
        """Return the encoded image or sound.

        Raises:
            OSError: The file cannot be read.
        """
        written_at = self.file.stat().st_mtime_ns
        with _lock:
            values = _read_group(self.file, written_at, self.column, self.group)
        return values[self.row].as_py()


def find_parquet(root: Path) -> list[Path]:
    """Return the parquet files of a set: the file itself, or those in the folder and in its folders, by path."""
    return [root] if root.is_file() else sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])


def read_parquet(root: Path) -> Iterator[Sample]:
    """Yield one sample a row; the name of a file or of its folder, such as train-00000.parquet, may state the split.

    Raises:
        ImportError: pyarrow is not installed.
        DataError: A file that is not parquet or lacks the columns, or a row that `make_sample` refuses.
    """
    for id, row in enumerate(read_parquet_rows(root, keys=KEYS)):
        yield make_sample(row.values, id=id, at=row.at, folder=row.folder, split=row.split)


def read_parquet_rows(root: Path, *, keys: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of parquet files, with those of the columns `keys` that there are.

    Raises:
        ImportError: pyarrow is not installed.
        DataError: A file that is not parquet or has none of the columns.
    """
    pyarrow = _import_pyarrow(root)
    for file in find_parquet(root):
        split = name_split([file.name] if file == root else file.relative_to(root).parts)
        try:
            for number, values in enumerate(_read_rows(file, keys)):
                yield Row(values, at=f"{printable(file)}, row {number}", folder=file.parent, split=split)
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error


def read_columns(file: Path) -> list[str]:
    """Return the names of the columns of a parquet file.

    Raises:
        ImportError: pyarrow is not installed.
        DataError: Not a parquet file.
    """
    pyarrow = _import_pyarrow(file)
    try:
        return list(pyarrow.parquet.read_schema(file).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _import_pyarrow(root: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{root}: parquet files need pyarrow: pip install 'edgeglass[parquet]'") from error
    return pyarrow


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{printable(file)}: not a readable parquet file ({_one_line(error)})")


def _read_rows(file: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the values of each row by key, without reading the bytes of images and sounds."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as opened:
        schema = opened.schema_arrow
        if not set(keys) & set(schema.names):
            raise DataError(f"{printable(file)}: none of the columns {', '.join(keys)}, got {', '.join(schema.names)}")
        media = [
            media_column(name, schema.field(name).type, at=printable(file))
            for name in (*IMAGES, *AUDIO)
            if name in keys and name in schema.names
        ]
        plain = [name for name in keys if name in schema.names and name not in (*IMAGES, *AUDIO)]
        leaves = {"path": "{}", "both": "{}.path"}
        wanted = [*plain, *(leaves[column.kind].format(column.name) for column in media if column.kind in leaves)]
        first = 0
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, columns=wanted)
            rows = opened.metadata.row_group(group).num_rows
            columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in plain}
            for column in media:
                make_blob = partial(_blob, file, column, group, first)
                columns[column.name] = media_values(
                    column.read_paths(table), _find_bytes(opened, column, group), make_blob
                )
            for row in range(rows):
                yield {name: values[row] for name, values in columns.items()}
            first += rows


def _blob(file: Path, column: MediaColumn, group: int, first: int, row: int) -> ParquetBlob:
    return ParquetBlob(f"{printable(file)}, row {first + row}, {column.name}", file, column, group, row)


def _find_bytes(opened: Any, column: MediaColumn, group: int) -> list[bool]:
    """Return whether each row of a group has bytes: by the counts of nulls in the footer, where they say so."""
    part = opened.metadata.row_group(group)
    rows = part.num_rows
    if column.kind == "path":
        return [False] * rows
    chunks = (part.column(number) for number in range(part.num_columns))
    found = next(chunk for chunk in chunks if chunk.path_in_schema == column.leaf)
    if found.is_stats_set and found.statistics.has_null_count and found.statistics.null_count in (0, rows):
        return [found.statistics.null_count == 0] * rows
    return column.take_bytes(opened.read_row_group(group, columns=[column.leaf])).is_valid().to_pylist()


_lock = threading.Lock()
"""Threads that read neighbouring rows wait for one read of their group, rather than read it once each."""


@lru_cache(maxsize=4)
def _read_group(file: Path, written_at: int, column: MediaColumn, group: int) -> Any:
    """Return the bytes of a row group."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            return column.take_bytes(opened.read_row_group(group, columns=[column.leaf]))
    except ArrowException as error:
        raise OSError(f"{printable(file)}: row group {group} is damaged ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
