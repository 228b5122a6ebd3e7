"""Small indexes with vectors of whole numbers, whose sums are exact in float32. Shared by the tests of the index."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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
