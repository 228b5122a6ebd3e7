"""Samples to batches: the inputs of every encoder, which of them are present, and the ids that pair them.

Shapes: B samples of a batch, N samples of a split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeglass.data.dataset import choose_caption
from edgeglass.data.items import Items, collect_items, find_groups
from edgeglass.data.records import Sample
from edgeglass.scoring.features import Inputs, move_inputs


@dataclass(slots=True)
class Batch:
    """B samples.

    Attributes:
        inputs: Input of each encoder, B rows; rows of absent modalities hold any content.
        present: (B,) bool by modality.
        captions_B: Id of the caption that each sample shows, long; negative and unique for a sample without one.
        groups_B: Equal for samples that share an image or a sound.
        samples_B: Row of each sample in its split.
        names: Of the samples, for messages.
    """

    inputs: dict[str, Any]
    present: dict[str, Tensor]
    captions_B: Tensor
    groups_B: Tensor
    samples_B: Tensor
    names: list[str]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(
            inputs={name: move_inputs(one, device) for name, one in self.inputs.items()},
            present={name: mask_B.to(device) for name, mask_B in self.present.items()},
            captions_B=self.captions_B.to(device),
            groups_B=self.groups_B.to(device),
            samples_B=self.samples_B.to(device),
            names=self.names,
        )


@dataclass
class SplitData:
    """A split, ready for training.

    Attributes:
        samples: N samples.
        sources: Inputs of each encoder for the items of its modality; of the training split, of every encoder.
        items: Items of each modality that the split has.
        seed: Of the choice of captions.
        groups_N: Equal for samples that share an image or a sound.
    """

    samples: Sequence[Sample]
    sources: Mapping[str, Inputs]
    seed: int
    items: dict[str, Items] = field(init=False)
    groups_N: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.items = collect_items(self.samples)
        self.groups_N = find_groups(self.items, len(self.samples))

    def choose_captions(self, epoch: int | None) -> Tensor:
        """Return the caption (N,) that each sample shows in an epoch, as a row of the text items.

        A sample without captions gets a negative number of its own. `epoch=None` shows the first caption.
        """
        rows = [() for _ in self.samples] if "text" not in self.items else self.items["text"].rows
        chosen = [0 if epoch is None else self._choose(index, epoch) for index in range(len(rows))]
        return torch.tensor(
            [own[pick] if own else -1 - index for index, (own, pick) in enumerate(zip(rows, chosen, strict=True))]
        )

    def _choose(self, index: int, epoch: int) -> int:
        return choose_caption(self.samples[index], seed=self.seed, epoch=epoch, index=index) or 0

    def choose_items(self, modality: str, captions_N: Tensor) -> Tensor:
        """Return the item (N,) of a modality that each sample shows; -1 for one that lacks it.

        Args:
            modality: One that the split has.
            captions_N: Of `choose_captions`.
        """
        return captions_N.clamp_min(-1) if modality == "text" else self.items[modality].first_N

    def batch(self, rows: Sequence[int], captions_N: Tensor) -> Batch:
        """Return the batch of these samples.

        Args:
            rows: Rows of the samples in the split.
            captions_N: Of `choose_captions`.
        """
        samples_B = torch.tensor(rows, dtype=torch.long)
        inputs, present = {}, {}
        for modality, source in self.sources.items():
            items_B = self.choose_items(modality, captions_N)[samples_B]
            inputs[modality] = source.batch(items_B.tolist())
            present[modality] = items_B >= 0
        return Batch(
            inputs=inputs,
            present=present,
            captions_B=captions_N[samples_B],
            groups_B=self.groups_N[samples_B],
            samples_B=samples_B,
            names=[self.samples[row].name for row in rows],
        )


class SampleDataset(Dataset[tuple[int, int]]):
    """Rows of a split with the epoch, from which `BatchMaker` makes a batch in the same process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes captions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.epoch


class BatchMaker:
    """Collates rows of a split into a `Batch`."""

    def __init__(self, data: SplitData) -> None:
        self.data = data
        self.epoch = -1
        self.captions_N = torch.empty(0, dtype=torch.long)

    def __call__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epoch = keys[0][1]
        if epoch != self.epoch:
            self.epoch, self.captions_N = epoch, self.data.choose_captions(epoch)
        return self.data.batch([row for row, _ in keys], self.captions_N)
