"""Rows of features on disk by the digest of what they were computed from; many writers, no lock.

A shelf is one folder: one trunk, used in one way. It holds shards, safetensors files of `keys` (R, 32) uint8 and
`features` (R, …) float32. A shard is written under a temporary name, flushed and renamed, and never changed afterwards:
a reader sees all of it or nothing, a killed writer leaves at most a temporary file, and two writers add shards beside
each other. There is no index that could disagree with the shards: their keys are the index, read at every use.
"""

import hashlib
import json
import shutil
import time
import uuid
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


class Shelf:
    """The shards of one trunk used in one way.

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

    def read(self, digests: Sequence[bytes]) -> Tensor:
        """Return the (N, …) features of one or more digests, in order; all must be kept. Shards are memory-mapped."""
        index = self.index()
        rows_of: dict[Path, list[tuple[int, int]]] = {}
        for position, digest in enumerate(digests):
            shard, row = index[digest]
            rows_of.setdefault(shard, []).append((position, row))
        result: Tensor | None = None
        for shard, pairs in rows_of.items():
            features = _read(shard, "features")
            if result is None:
                result = features.new_empty(len(digests), *features.shape[1:])
            positions, rows = torch.tensor(pairs).T
            result[positions] = features[rows]
        assert result is not None
        return result

    def write(self, digests: Sequence[bytes], features: Tensor) -> None:
        """Add a shard.

        Raises:
            FeatureCacheError: The disk is full, or cannot be written; nothing half-written is left.
        """
        keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            write_tensors(self.folder / f"{uuid.uuid4().hex}.safetensors", {"keys": keys, "features": features})
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
