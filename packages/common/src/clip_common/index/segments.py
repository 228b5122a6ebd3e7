"""Segments of an index: rows that were added together, and the earlier rows that they delete.

A segment is a safetensors file that is written once: `vectors` (S, D) float32; `ids`, `stamps` and `payloads`, S texts
each, as UTF-8 (`.data`) and the byte at which each text ends (`.ends`); `deleted`, int64, rows of earlier segments,
counted through all of them. S may be 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_common.tensors import RowFile, TensorsError, read_tensors, write_tensors


class VectorIndexError(ValueError):
    """An index that cannot be used. The message is one line: which index, why, and what to do."""


class Texts:
    """Texts in one array of bytes, decoded when picked.

    File names that are not UTF-8 are returned unchanged: the encoding is that of `os.fsencode` on Linux.
    """

    def __init__(self, data: Tensor, ends: Tensor) -> None:
        self.data = data
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Encode texts.

        Raises:
            ValueError: A text contains half a surrogate pair, which UTF-8 cannot encode.
        """
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(torch.from_numpy(data), torch.from_numpy(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def pick(self, row_K: NDArray[np.int64]) -> list[str]:
        """Return the texts of some rows."""
        data, ends = self.data.numpy().data, self.ends.numpy()
        start_K = np.where(row_K > 0, ends[row_K - 1], 0)
        places = zip(start_K.tolist(), ends[row_K].tolist(), strict=True)
        return [str(data[start:end], "utf-8", "surrogateescape") for start, end in places]

    def decode(self) -> list[str]:
        """Return all texts, faster than one by one."""
        data, ends = self.data.numpy().tobytes(), self.ends.tolist()
        return [data[start:end].decode("utf-8", "surrogateescape") for start, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class Segment:
    """Rows of an index.

    Attributes:
        ids: S ids.
        stamps: S stamps; "" for an item without one.
        payloads: S JSON values as text; "" for an item without one.
        vectors_SD: (S, D) float32 on the CPU; memory-mapped if it was read.
        deleted: int64, the rows of earlier segments that this segment deletes.
        file: The file of the vectors, for reads that leave no mapped pages in memory; None for a segment in memory.
    """

    ids: Texts
    stamps: Texts
    payloads: Texts
    vectors_SD: Tensor
    deleted: Tensor
    file: RowFile | None = None

    def __len__(self) -> int:
        return len(self.vectors_SD)

    def read(self, rows: Sequence[int], out_KD: NDArray[np.float32]) -> None:
        """Copy the vectors of some rows into a matrix."""
        if self.file is not None:
            self.file.read(rows, out_KD)
        else:
            np.take(self.vectors_SD.numpy(), rows, axis=0, out=out_KD)

    def walk(self, rows: int, *, dim: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the first `dim` numbers of all vectors, at most `rows` vectors at a time, with the row of the first."""
        buffer_SD = torch.empty(min(rows, len(self)), self.vectors_SD.shape[1])
        for start in range(0, len(self), rows):
            tile_SD = self.vectors_SD[start : start + rows]
            if self.file is not None:
                tile_SD = buffer_SD[: len(tile_SD)]
                self.file.read_range(start, tile_SD.numpy())
            yield start, tile_SD[:, :dim]


def write_segment(file: Path, segment: Segment) -> None:
    """Write a segment, whole or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    texts = {"ids": segment.ids, "stamps": segment.stamps, "payloads": segment.payloads}
    tensors = {f"{name}.data": column.data for name, column in texts.items()}
    tensors |= {f"{name}.ends": column.ends for name, column in texts.items()}
    write_tensors(file, tensors | {"vectors": segment.vectors_SD, "deleted": segment.deleted})


def read_segment(file: Path, *, width: int, rows_before: int) -> Segment:
    """Memory-map a segment that `write_segment` wrote.

    Args:
        file: The segment.
        width: D of the index.
        rows_before: Number of rows in earlier segments.

    Raises:
        TensorsError: The file is damaged, or is not a segment of an index of this width.
    """
    tensors, vectors = read_tensors(file), RowFile(file, "vectors")
    try:
        ids, stamps, payloads = (
            Texts(tensors[f"{name}.data"], tensors[f"{name}.ends"]) for name in ("ids", "stamps", "payloads")
        )
        segment = Segment(ids, stamps, payloads, tensors["vectors"], tensors["deleted"], vectors)
    except KeyError as error:
        raise TensorsError(f"{file.name} lacks the tensor {error}") from error
    fits = segment.vectors_SD.ndim == 2 and segment.vectors_SD.shape[1] == width
    for column in (ids, stamps, payloads):
        end = int(column.ends[-1]) if len(column) else 0
        fits = fits and len(column) == len(segment) and end == len(column.data)
    if not fits or not bool(((segment.deleted >= 0) & (segment.deleted < rows_before)).all()):
        raise TensorsError(f"the parts of {file.name} do not belong together")
    return segment


def select_rows(segments: Sequence[Segment], rows: Sequence[int], *, deleted: Tensor) -> Segment:
    """Copy rows into one segment.

    Args:
        segments: One or more.
        rows: In ascending order, counted through these segments.
        deleted: As for `Segment`.
    """
    vectors: list[Tensor] = []
    columns: list[list[str]] = [[], [], []]
    wanted, start = torch.tensor(rows, dtype=torch.int64), 0
    for segment in segments:
        inside = wanted[(wanted >= start) & (wanted < start + len(segment))] - start
        vectors.append(segment.vectors_SD if len(inside) == len(segment) else segment.vectors_SD[inside])
        for chosen, column in zip(columns, (segment.ids, segment.stamps, segment.payloads), strict=True):
            texts = column.decode()
            chosen.extend(texts[row] for row in inside.tolist())
        start += len(segment)
    ids, stamps, payloads = map(Texts.of, columns)
    return Segment(ids, stamps, payloads, torch.cat(vectors), deleted)
