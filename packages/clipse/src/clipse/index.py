"""The images of a folder and a vector for each, in one file that is brought up to date by what changed.

The file is safetensors: `vectors` (N, D) float32; `stamps` (N, 2) int64, bytes and nanoseconds of the last change;
`names`, the N paths below the folder, joined by the zero byte that no path holds; the folder and the model as metadata.
It is written beside its name and renamed, so that there is one state of it, and read through the page cache.

N images, D the shared width, C candidates.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_common.runs import write_atomically
from clipse.data import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
FORMAT = 1

Stamp = tuple[int, int]
"""Bytes of a file and nanoseconds of its last change: another stamp, another image."""


class IndexFileError(ValueError):
    """An index that cannot be used: one line that says which, why, and what to do."""


@dataclass(frozen=True)
class Hit:
    """One answer: an image file and its cosine similarity to the query, -1 to 1."""

    path: Path
    similarity: float


@dataclass(frozen=True)
class ImageIndex:
    """Encoded images of a folder.

    Attributes:
        root: The folder.
        model: Fingerprint of what made the vectors (`Retriever.fingerprint`).
        model_name: For messages.
        names: N paths below the folder, with forward slashes.
        stamps_N2: (N, 2) int64, their stamps when they were encoded.
        vectors_ND: (N, D) unit vectors, float32 on the CPU; memory-mapped where the index was opened.
    """

    root: Path
    model: str
    model_name: str
    names: tuple[str, ...]
    stamps_N2: Tensor
    vectors_ND: Tensor

    @classmethod
    def empty(cls, root: Path, *, model: str, model_name: str) -> "ImageIndex":
        """An index to add to."""
        no_stamps = torch.empty(0, 2, dtype=torch.int64)
        return cls(root, model, model_name, names=(), stamps_N2=no_stamps, vectors_ND=torch.empty(0, 0))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The N files, in the order of the vectors."""
        return [self.root / name for name in self.names]

    def nearest(self, vector_D: Tensor, k: int) -> list[Hit]:
        """The k images most similar to a unit vector, best first; of equal ones the earlier row first. Exact.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: expected the number of images to return, 1 or more")
        similarity_N = self.vectors_ND @ vector_D
        last = similarity_N.topk(min(k, len(self))).values[-1]
        rows_C = (similarity_N >= last).nonzero()[:, 0]  # more than k where several share the last place
        best = similarity_N[rows_C].sort(descending=True, stable=True)
        rows = rows_C[best.indices[:k]].tolist()
        return [Hit(self.root / self.names[row], similarity_N[row].item()) for row in rows]

    def keeping(self, stamps: Mapping[str, Stamp]) -> "ImageIndex":
        """Without the images that are gone or have another stamp."""
        pairs = zip(self.names, self.stamps_N2.tolist(), strict=True)
        rows = [row for row, (name, stamp) in enumerate(pairs) if stamps.get(name) == tuple(stamp)]
        if len(rows) == len(self):
            return self
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            stamps_N2=self.stamps_N2[rows],
            vectors_ND=self.vectors_ND[rows],
        )

    def adding(self, stamps: Mapping[str, Stamp], vectors_MD: Tensor) -> "ImageIndex":
        """With M images more; all of it in the order of the names."""
        names = (*self.names, *stamps)
        order = sorted(range(len(names)), key=names.__getitem__)
        vectors_ND = torch.cat([self.vectors_ND, vectors_MD]) if len(self) else vectors_MD
        return replace(
            self,
            names=tuple(names[row] for row in order),
            stamps_N2=torch.cat([self.stamps_N2, torch.tensor(list(stamps.values()))])[order],
            vectors_ND=vectors_ND[order],
        )

    def save(self, file: Path) -> None:
        """Write the index; a former one keeps its name until this one is complete.

        Raises:
            IndexFileError: The disk is full.
            OSError: The folder cannot be written.
        """
        about = {"format": FORMAT, "root": os.fspath(self.root.resolve()), "model": self.model, "name": self.model_name}
        names = bytearray(b"\0".join(map(os.fsencode, self.names)))
        tensors = {
            "names": torch.frombuffer(names, dtype=torch.uint8),
            "stamps": self.stamps_N2,
            "vectors": self.vectors_ND,
        }
        try:
            with write_atomically(file) as temporary:
                save_file(tensors, temporary, metadata={"index": json.dumps(about)})
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise IndexFileError(f"{file}: the index could not be written ({error}): free some space") from error

    @classmethod
    def open(cls, file: Path) -> "ImageIndex":
        """Read what `save` wrote; the vectors are mapped, not read.

        Raises:
            IndexFileError: Not an index, or a damaged one.
            FileNotFoundError: There is no such file.
        """
        try:
            with safe_open(file, framework="pt") as stored:
                about = json.loads(stored.metadata()["index"])
                names, stamps_N2, vectors_ND = (stored.get_tensor(name) for name in ("names", "stamps", "vectors"))
            split = tuple(map(os.fsdecode, names.numpy().tobytes().split(b"\0")))
            if not len(split) == len(stamps_N2) == len(vectors_ND) or about["format"] != FORMAT:
                raise ValueError("its parts do not belong together")
            return cls(Path(about["root"]), about["model"], about["name"], split, stamps_N2, vectors_ND)
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise IndexFileError(
                f"{file} is damaged or no index of clipse ({error}): delete it, and the images are encoded again"
            ) from error

    def require(self, *, model: str, model_name: str, file: Path) -> None:
        """Refuse an index whose vectors another model made.

        Raises:
            IndexFileError: Another fingerprint.
        """
        if self.model != model:
            raise IndexFileError(
                f"{file} was made with another model ({self.model_name}, fingerprint {self.model[:12]}…; this one is "
                f"{model_name}, {model[:12]}…): open it with its own model, or delete it and index again"
            )


def scan(root: Path) -> dict[str, Stamp]:
    """Every image file below a folder by its path there, sorted, with its stamp.

    Raises:
        DataError: No such folder, or no image in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder of images to search")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
    return dict(_stamped(files, root))


def _stamped(files: Iterable[Path], root: Path) -> Iterable[tuple[str, Stamp]]:
    for file in files:
        status = file.stat()
        yield file.relative_to(root).as_posix(), (status.st_size, status.st_mtime_ns)


def store_file(cache: Path, root: Path, model: str) -> Path:
    """Where the index of a folder by a model (its fingerprint) is kept."""
    return cache / f"{hashlib.sha256(os.fsencode(root.resolve()) + model.encode()).hexdigest()[:32]}.safetensors"
