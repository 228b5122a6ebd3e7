"""Rows of features on disk by the digest of what they were computed from; many writers, no lock.

A shelf is one folder: one trunk, used in one way. It holds shards, safetensors files of `keys` (R, 32) uint8 and
`features` (R, …) float32. Rows of different length are joined to `features` (ΣT, F), and `ends` (R,) int64 says where
each one ends. A shard is written under a temporary name, flushed and renamed, and never changed afterwards:
a reader sees all of it or nothing, a killed writer leaves at most a temporary file, and two writers add shards beside
each other. There is no index that could disagree with the shards: their keys are the index, read at every use.
"""

import hashlib
import json
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.runs.files import write_text
from clip_common.tensors import TensorsError, read_tensor, write_tensors

DIGEST_BYTES = 32
ABANDONED_SECONDS = 3600
"""A temporary file of this age belongs to a writer that was killed: no shard takes that long to write."""


class FeatureCacheError(ValueError):
    """Features that cannot be kept or cannot be trusted: one line that says where, why, and what to do."""


class Shelf(ABC):
    """The shards of one trunk used in one way; `RowShelf` and `SequenceShelf` say how rows are stored.

    Args:
        root: Folder of all shelves.
        description: Everything that the features depend on, apart from what they are computed from; names the folder.
    """

    def __init__(self, root: Path, description: Mapping[str, Any]) -> None:
        self.description = json.dumps(description, indent=2, sort_keys=True)
        self.folder = root / hashlib.sha256(self.description.encode()).hexdigest()[:32]

    def index(self) -> dict[bytes, tuple[Path, int]]:
        """Return the shard and the row of every digest that is kept.

        Raises:
            FeatureCacheError: A damaged shard.
        """
        found: dict[bytes, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            keys = _read(shard, "keys").contiguous().numpy().tobytes()
            for row in range(len(keys) // DIGEST_BYTES):
                found.setdefault(keys[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES], (shard, row))
        return found

    @abstractmethod
    def read(self, digests: Sequence[bytes]) -> Any:
        """Return the rows of one or more digests, in order; all must be kept. Shards are memory-mapped."""

    @abstractmethod
    def pack(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a shard, apart from its keys."""

    def find(self, digests: Sequence[bytes]) -> dict[Path, list[tuple[int, int]]]:
        """Return the positions in `digests` and the rows of each shard that holds some of them."""
        index = self.index()
        rows_of: dict[Path, list[tuple[int, int]]] = {}
        for position, digest in enumerate(digests):
            shard, row = index[digest]
            rows_of.setdefault(shard, []).append((position, row))
        return rows_of

    def write(self, digests: Sequence[bytes], rows: Sequence[Tensor]) -> None:
        """Add a shard.

        Raises:
            FeatureCacheError: The disk is full, or cannot be written; nothing half-written is left.
        """
        keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            write_tensors(self.folder / f"{uuid.uuid4().hex}.safetensors", {"keys": keys} | self.pack(rows))
            if not (self.folder / "shelf.json").exists():
                write_text(self.folder / "shelf.json", self.description + "\n")
        except OSError as error:
            raise FeatureCacheError(
                f"{self.folder}: features could not be written ({error.strerror or error}); "
                "what was written before is kept: free some space or choose another folder for the cache, and run again"
            ) from error

    def check_space(self, needed_bytes: int, what: str) -> None:
        """Raise FeatureCacheError if the disk has less free space than features need: before they are computed.

        Args:
            needed_bytes: Their size.
            what: What needs it, for the message.
        """
        existing = next(parent for parent in self.folder.absolute().parents if parent.exists())
        free_bytes = shutil.disk_usage(existing).free
        if free_bytes < needed_bytes:
            raise FeatureCacheError(
                f"{what} need {format_bytes(needed_bytes)}, but {existing} has {format_bytes(free_bytes)} free: "
                "free some space or choose another folder for the cache"
            )

    def _sweep(self) -> None:
        for file in self.folder.glob(".*tmp*"):  # safetensors' own end in random letters
            try:
                if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                    file.unlink()
            except FileNotFoundError:
                pass  # another writer finished it, or swept it first


class RowShelf(Shelf):
    """Rows of one shape."""

    def read(self, digests: Sequence[bytes]) -> Tensor:
        """Return the (N, …) features of one or more digests, in order; all must be kept. Shards are memory-mapped."""
        result: Tensor | None = None
        for shard, pairs in self.find(digests).items():
            features = _read(shard, "features")
            if result is None:
                result = features.new_empty(len(digests), *features.shape[1:])
            positions, rows = torch.tensor(pairs).T
            result[positions] = features[rows]
        assert result is not None
        return result

    def pack(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"features": torch.stack(list(rows))}


class SequenceShelf(Shelf):
    """Rows (T, F) of different length T."""

    def read(self, digests: Sequence[bytes]) -> list[Tensor]:
        """Return the (T, F) rows of these digests, in order; all must be kept.

        They are views of the memory-mapped shards: values are read from the disk when they are first used.
        """
        result: dict[int, Tensor] = {}
        for shard, pairs in self.find(digests).items():
            joined, ends = _read(shard, "features"), [0, *_read(shard, "ends").tolist()]
            result |= {position: joined[ends[row] : ends[row + 1]] for position, row in pairs}
        return [result[position] for position in range(len(digests))]

    def pack(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        ends = torch.tensor([len(row) for row in rows]).cumsum(0)
        return {"features": torch.cat(list(rows)), "ends": ends}


def format_bytes(size_bytes: int) -> str:
    """Return a size for people: `1536` → `1.5 KiB`."""
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.4g} {units[0]}"


def _read(shard: Path, name: str) -> Tensor:
    try:
        return read_tensor(shard, name)
    except TensorsError as error:
        raise FeatureCacheError(f"{error}; its rows are computed again") from error
