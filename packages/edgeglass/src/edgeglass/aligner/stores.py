"""Where the vectors of an index are kept: files of `clip_common.index`, one index for each modality.

One index for each modality, so that a search of one modality reads no other vectors, and so that the modality that is
nearest to all queries does not hide the others.

Shapes: Q queries, B items, D width.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clip_common.index import Neighbour, VectorIndex
from clip_common.index.certificate import Certificate, certify
from clip_common.index.first import First
from edgeglass.config import MODALITIES


class VectorStore(Protocol):
    """Vectors with ids, stamps and payloads, by modality."""

    def stamps(self, modality: str) -> dict[str, str]:
        """Return the stamps of the items, by id."""

    def count(self, modality: str) -> int:
        """Return the number of items."""

    def vectors(self, modality: str, ids: Sequence[str]) -> Tensor:
        """Return the vectors (B, D) of items."""

    def payloads(self, modality: str, ids: Sequence[str]) -> list[Any]:
        """Return the payloads of items."""

    def update(
        self, modality: str, ids: Sequence[str], vectors_BD: Tensor, *, stamps: Sequence[str], payloads: Sequence[Any]
    ) -> None:
        """Add items, replacing those with the same ids."""

    def delete(self, modality: str, ids: Sequence[str]) -> None:
        """Delete items."""

    def save(self) -> None:
        """Write the changes."""

    def nearest(
        self,
        modality: str,
        query_QD: Tensor,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        unique: float | None,
        where: str | None,
    ) -> list[list[Neighbour]]:
        """Return the k items of one modality most similar to each query; see `VectorIndex.nearest`."""

    def certify(
        self,
        modality: str,
        query_QD: Tensor | None,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        sample: int,
    ) -> Certificate:
        """Measure the recall of such searches; see `clip_common.index.certify`."""


class FileStore:
    """A `VectorIndex` for each modality, in subfolders of a folder.

    Args:
        folder: Made by the first `save`.
        model: Fingerprint of the model.
        model_name: Name of the model, for messages.
        root: Folder of the items.

    Raises:
        VectorIndexError: A subfolder is damaged, belongs to another model or root, or holds other files.
    """

    def __init__(self, folder: Path, *, model: str, model_name: str, root: Path) -> None:
        self.indexes = {
            modality: VectorIndex.open_or_create(
                folder / modality, model=model, model_name=model_name, collection=os.fspath(root)
            )
            for modality in MODALITIES
        }

    def stamps(self, modality: str) -> dict[str, str]:
        return self.indexes[modality].stamps()

    def count(self, modality: str) -> int:
        return len(self.indexes[modality])

    def vectors(self, modality: str, ids: Sequence[str]) -> Tensor:
        return self.indexes[modality].vectors(ids)

    def payloads(self, modality: str, ids: Sequence[str]) -> list[Any]:
        return [self.indexes[modality].payload(id) for id in ids]

    def update(
        self, modality: str, ids: Sequence[str], vectors_BD: Tensor, *, stamps: Sequence[str], payloads: Sequence[Any]
    ) -> None:
        self.indexes[modality].update(ids, vectors_BD, stamps=stamps, payloads=payloads)

    def delete(self, modality: str, ids: Sequence[str]) -> None:
        self.indexes[modality].delete(ids)

    def save(self) -> None:
        for index in self.indexes.values():
            index.save()

    def nearest(
        self,
        modality: str,
        query_QD: Tensor,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        unique: float | None,
        where: str | None,
    ) -> list[list[Neighbour]]:
        if where is not None:
            raise ValueError("where: an index in files has no SQL filter; build it with store=lancedb")
        index = self.indexes[modality]
        # all queries at once, even where the index is empty, because settings are checked either way
        return index.nearest_to_each(query_QD, k, dim=dim, candidates=candidates, first=first, unique=unique)

    def certify(
        self,
        modality: str,
        query_QD: Tensor | None,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        sample: int,
    ) -> Certificate:
        index = self.indexes[modality]
        return certify(index, query_QD, k, dim=dim, candidates=candidates, first=first, sample=sample)


def sample_vectors(store: VectorStore, modality: str, count: int, *, seed: int = 0) -> Tensor:
    """Draw at most `count` items of a modality; return their vectors."""
    ids = sorted(store.stamps(modality))
    chosen = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:count]
    return store.vectors(modality, [ids[place] for place in sorted(chosen.tolist())])
