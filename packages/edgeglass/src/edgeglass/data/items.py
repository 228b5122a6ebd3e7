"""The items of a set of samples: its images, different captions and sounds, and the samples they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeglass.config import MODALITIES
from edgeglass.data.records import Sample


@dataclass(frozen=True)
class Items:
    """The items of one modality.

    Attributes:
        sources: Files (or bytes in a file) of images or sounds, or texts; each once.
        rows: For each sample the rows of its items in `sources`: several for captions; none if it lacks the modality.
    """

    sources: list[Any]
    rows: list[tuple[int, ...]]

    @property
    def first_N(self) -> Tensor:
        """The first item of each sample (N,), long; -1 if it lacks the modality."""
        return torch.tensor([rows[0] if rows else -1 for rows in self.rows], dtype=torch.long)

    def owners(self) -> list[list[int]]:
        """Return for each item the samples that it belongs to."""
        owners: list[list[int]] = [[] for _ in self.sources]
        for sample, rows in enumerate(self.rows):
            for row in rows:
                owners[row].append(sample)
        return owners


def collect_items(samples: Sequence[Sample]) -> dict[str, Items]:
    """Return the items of each modality that any of the samples has; equal sources and equal captions are one item."""
    found: dict[str, Items] = {}
    for modality in MODALITIES:
        place: dict[Any, int] = {}
        rows = []
        for sample in samples:
            own = sample.captions if modality == "text" else (getattr(sample, modality),)
            rows.append(tuple(place.setdefault(source, len(place)) for source in own if source is not None))
        if place:
            found[modality] = Items(list(place), rows)
    return found


def find_groups(items: dict[str, Items], count: int) -> Tensor:
    """Return (N,) long: equal numbers for samples that share an image or a sound, directly or through others.

    Args:
        items: Of `collect_items`.
        count: N.
    """
    root = list(range(count))

    def find(sample: int) -> int:
        while root[sample] != sample:
            root[sample] = root[root[sample]]
            sample = root[sample]
        return sample

    for modality in ("image", "audio"):
        for owners in items[modality].owners() if modality in items else ():
            for other in owners[1:]:
                root[find(other)] = find(owners[0])
    return torch.tensor([find(sample) for sample in range(count)], dtype=torch.long)
