"""Read a folder that Hugging Face `datasets` saved; images stay encoded in its Arrow files, each at its offset."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clip_common.captions import CaptionedImage, Place, ReadLog, Row, find_columns, make_row, merge_rows, parse_split
from clip_common.errors import DataError, check_extra

MARKERS = ("dataset_dict.json", "state.json")
"""One of these files is in every folder that `save_to_disk` writes."""


def read_saved(roots: Sequence[Path], log: ReadLog) -> list[CaptionedImage]:
    """Read the rows of a `Dataset` or `DatasetDict`; splits are the keys of the latter, or a column.

    An image is a struct of bytes and path, bytes, or a path relative to the folder. Images of the same bytes in several
    rows, one for each caption, are one image.

    Raises:
        ValueError: pyarrow is not installed.
    """
    check_extra("pyarrow>=20.0", "pyarrow", purpose=f"{roots[0]}: a folder of Hugging Face datasets")
    rows: list[tuple[Row, Path]] = []
    for root in roots:
        for split, file in _list_files(root, log):
            rows += _read_arrow(file, log, split=split)
    return merge_rows(_join_copies(rows), log)


def _list_files(root: Path, log: ReadLog) -> Iterator[tuple[str | None, Path]]:
    """Yield the split and the path of each Arrow file of a saved `Dataset` or `DatasetDict`."""
    whole = root / MARKERS[0]
    try:
        keys = list(_read_json(whole)["splits"]) if whole.is_file() else [""]
    except (DataError, KeyError, TypeError) as error:
        log.add("file", Place(whole), f"expected the names of splits ({error})")
        return
    for key in keys:
        state = root / key / MARKERS[1]
        try:
            split = parse_split(key, at=str(whole))
            names = [part["filename"] for part in _read_json(state)["_data_files"]]
        except (DataError, KeyError, TypeError) as error:
            log.add("file", Place(state), f"not a readable split of a saved dataset ({error})")
            continue
        yield from ((split, state.parent / name) for name in names)


def _read_arrow(file: Path, log: ReadLog, *, split: str | None) -> Iterator[tuple[Row, Path]]:
    import pyarrow
    from pyarrow import ipc

    try:
        mapped = pyarrow.memory_map(str(file))
        start = mapped.read_buffer().address
        mapped.seek(0)
        batches = list(ipc.open_stream(mapped))
    except (pyarrow.ArrowException, OSError) as error:
        log.add("file", Place(file), f"not a readable Arrow file ({' '.join(str(error).split())})")
        return
    number = 0
    for batch in batches:
        try:
            roles = find_columns(batch.schema.names, log)
            images = list(_read_images(batch.column(roles["image"]), start))
        except DataError as error:
            log.add("file", Place(file), str(error))
            return
        texts = {role: batch.column(name).to_pylist() for role, name in roles.items() if role != "image"}
        for row, (name, span) in enumerate(images):
            number += 1
            place = Place(file, number, "row")
            label = name or (f"{file.name}, row {number}" if span else None)
            values = {"image": label} | {role: column[row] for role, column in texts.items()}
            made = make_row(values, place, log, split=split)
            if made is not None and span is not None:
                yield Row(made.image, made.captions, made.split, place, span), file
            elif made is not None:
                yield made, file.parent / made.image


def _join_copies(rows: Sequence[tuple[Row, Path]]) -> Iterator[tuple[Row, Path]]:
    """Yield the rows, those whose images have the same bytes with the place of the first."""
    sizes = Counter(row.span[1] for row, _ in rows if row.span)
    first: dict[tuple[int, bytes], tuple[Row, Path]] = {}
    for row, path in rows:
        if row.span is None or sizes[row.span[1]] == 1:
            yield row, path
            continue
        with path.open("rb") as stream:
            stream.seek(row.span[0])
            digest = hashlib.sha256(stream.read(row.span[1])).digest()
        same, place = first.setdefault((row.span[1], digest), (row, path))
        yield replace(row, image=same.image, span=same.span), place


def _read_images(column: Any, start: int) -> Iterator[tuple[str | None, tuple[int, int] | None]]:
    """Yield the path of each row, and the span in the file of its bytes, if they are in it.

    Raises:
        DataError: Neither paths, nor bytes, nor a struct of both.
    """
    from pyarrow import types

    if types.is_string(column.type) or types.is_large_string(column.type):
        yield from ((path, None) for path in column.to_pylist())
        return
    paths: list[str | None] = [None] * len(column)
    if types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        paths = column.field("path").to_pylist()
        column = column.field("bytes")
    wide = types.is_large_binary(column.type)
    if not wide and not types.is_binary(column.type):
        raise DataError(f"expected images as bytes, paths, or a struct of both, got {column.type}")
    if not len(column):
        return
    _, offsets, content = column.buffers()
    offsets_N = np.frombuffer(offsets, np.int64 if wide else np.int32)[column.offset :]
    # the buffers are views of the mapped file, which datasets does not compress: addresses are places in it
    first = 0 if content is None else content.address - start
    for row, (path, there) in enumerate(zip(paths, column.is_valid().to_pylist(), strict=True)):
        begin, end = int(offsets_N[row]), int(offsets_N[row + 1])
        yield path, (first + begin, end - begin) if there else None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
