"""Columns of images and sounds in Arrow tables, of parquet files and of Hugging Face `datasets`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from clip_common.errors import DataError
from edgeglass.data.records import Blob


@dataclass(frozen=True)
class MediaColumn:
    """A column of images or sounds.

    Attributes:
        name: The column.
        kind: `path`, `bytes`, or `both`: a struct {bytes, path}, as Hugging Face writes.
    """

    name: str
    kind: Literal["path", "bytes", "both"]

    @property
    def leaf(self) -> str:
        """The column of encoded images or sounds, as parquet names it; not for `path`."""
        return f"{self.name}.bytes" if self.kind == "both" else self.name

    def read_paths(self, table: Any) -> list[str | None]:
        """Return the path of each row; None where there is none."""
        import pyarrow.compute as pc

        if self.kind == "bytes":
            return [None] * len(table)
        column = table[self.name]
        return (pc.struct_field(column, "path") if self.kind == "both" else column).to_pylist()

    def take_bytes(self, table: Any) -> Any:
        """Return the column of encoded images or sounds, without copying it."""
        import pyarrow.compute as pc

        return pc.struct_field(table[self.name], "bytes") if self.kind == "both" else table[self.name]


def media_column(name: str, type: Any, *, at: str) -> MediaColumn:
    """Return how a column holds images or sounds, by its Arrow type.

    Raises:
        DataError: Neither paths, nor bytes, nor a struct of both.
    """
    from pyarrow import types

    value = type.value_type if types.is_dictionary(type) else type
    if types.is_string(value) or types.is_large_string(value):
        return MediaColumn(name, "path")
    if types.is_binary(value) or types.is_large_binary(value):
        return MediaColumn(name, "bytes")
    if types.is_struct(value) and {"bytes", "path"} <= {field.name for field in value}:
        return MediaColumn(name, "both")
    raise DataError(f"{at}: column {name} is of type {type}, expected paths, bytes, or a struct of bytes and path")


def media_values(
    paths: list[str | None], has_bytes: list[bool], make_blob: Callable[[int], Blob]
) -> list[str | Blob | None]:
    """Return what each row holds: a `Blob` if its bytes are there, else its path, else None."""
    return [make_blob(row) if there else path for row, (there, path) in enumerate(zip(has_bytes, paths, strict=True))]
