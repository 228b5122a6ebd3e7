"""Small indexes, shared by the tests of the index.

Vectors of whole numbers have sums that are exact in float32; vectors of a nested spectrum are like Matryoshka's.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from clip_common.index import VectorIndex

WIDTH = 4
ABOUT = {"model": "f" * 64, "model_name": "toy", "collection": "numbers"}


def index_in(folder: Path | None) -> VectorIndex:
    return VectorIndex(**ABOUT) if folder is None else VectorIndex.open_or_create(folder, **ABOUT)


def vectors_of(numbers: Sequence[int]) -> Tensor:
    """Rows of -2..2, the same for the same number."""
    rows = [torch.randint(-2, 3, (WIDTH,), generator=torch.Generator().manual_seed(number)) for number in numbers]
    return torch.stack(rows).float() if rows else torch.empty(0, WIDTH)


def put(index: VectorIndex, *numbers: int) -> None:
    """Add or replace the items of these numbers."""
    index.update([str(number) for number in numbers], vectors_of(numbers), stamps=[f"stamp {n}" for n in numbers])


def contents(index: VectorIndex) -> dict[str, tuple[str, list[float]]]:
    """Stamp and vector of every item, as they are read by id."""
    known = index.stamps()
    return {id: (known[id], vector) for id, vector in zip(index.ids, index.vectors(index.ids).tolist(), strict=True)}


def nested_vectors(count: int, width: int, *, seed: int) -> Tensor:
    """Unit vectors whose variance falls with the dimension."""
    vectors_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(vectors_ND * (1 + torch.arange(width) / 8) ** -0.75, dim=1)


def filled(folder: Path | None, vectors_ND: Tensor, *, parts: int = 1) -> VectorIndex:
    """An index of these vectors under their row numbers; several segments, opened from disk, if there is a folder."""
    index = VectorIndex(**ABOUT, folder=folder)
    for rows in torch.arange(len(vectors_ND)).chunk(parts):
        index.add([str(row) for row in rows.tolist()], vectors_ND[rows])
        if folder is not None:
            index.save()
    return index if folder is None else VectorIndex.open(folder)
