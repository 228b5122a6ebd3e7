"""Conversations to batches: which ones an epoch shows, their tokens, and the features of their images.

Shapes: see `edgeglass.models.vlm.sequences`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clip_common.backbones.trunk import TokenSequence
from edgeglass.data.conversations import Conversation
from edgeglass.models.vlm.layout import EncodedConversation
from edgeglass.models.vlm.sequences import Rows, pack_conversations, pad_conversations
from edgeglass.scoring.features import ImageTokens, move_inputs


@dataclass(slots=True)
class VlmBatch:
    """Rows of conversations, and the features of the images that they show.

    Attributes:
        rows: Tokens.
        images: Features (G, L, F) with their mask; None where no conversation has an image.
        names: Of the conversations, for messages.
    """

    rows: Rows
    images: TokenSequence | None
    names: list[str]

    def to(self, device: torch.device) -> "VlmBatch":
        """Return the batch on a device."""
        images = None if self.images is None else move_inputs(self.images, device)
        return VlmBatch(self.rows.to(device), images, self.names)


@dataclass
class VlmSplit:
    """A split, ready for training.

    Attributes:
        conversations: In the order of the set.
        encoded: Their tokens.
        images: Their images.
        units: What is shuffled: the conversations about one image, or one without an image.
    """

    conversations: Sequence[Conversation]
    encoded: Sequence[EncodedConversation]
    images: ImageTokens
    units: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        of_image: dict[int, list[int]] = {}
        self.units = []
        for number, image in enumerate(self.images.rows):
            if image is None:
                self.units.append([number])
                continue
            if image not in of_image:
                of_image[image] = []
                self.units.append(of_image[image])
            of_image[image].append(number)

    def batch(self, numbers: Sequence[int], *, row_length: int | None) -> VlmBatch:
        """Return the batch of conversations: packed into rows of this length, or padded with None."""
        features, images, prefixes = self.images.select(numbers)
        encoded = [self.encoded[number] for number in numbers]
        if row_length is None:
            rows = pad_conversations(encoded, images, prefixes)
        else:
            rows = pack_conversations(encoded, images, prefixes, row_length=row_length)
        return VlmBatch(rows, features, [self.conversations[number].name for number in numbers])

    def choose(self, unit: int, *, seed: int, epoch: int, most: int | None) -> list[int]:
        """Return the conversations of a unit that an epoch shows: `most` of them, drawn by seed, epoch and unit."""
        own = self.units[unit]
        if most is None or len(own) <= most:
            return own
        chosen = np.random.default_rng((seed, epoch, unit)).permutation(len(own))[:most]
        return [own[place] for place in sorted(chosen.tolist())]

    def lengths(self) -> list[int]:
        """Return the length of the longest row that each unit makes when padded: for batches of similar lengths."""
        return [
            max(
                len(self.encoded[number].before) + len(self.encoded[number].ids) + (self.images.prefix_of(number) or 0)
                for number in unit
            )
            for unit in self.units
        ]


class VlmBatchMaker:
    """Collates units of a split, with the epoch, into a `VlmBatch`.

    Args:
        split: The split.
        row_length: Tokens of a packed row; None: padded rows.
        per_image: Conversations about an image that an epoch shows; None: all.
        seed: Of that draw.
    """

    def __init__(self, split: VlmSplit, *, row_length: int | None, per_image: int | None, seed: int) -> None:
        self.split = split
        self.row_length = row_length
        self.per_image = per_image
        self.seed = seed

    def __call__(self, keys: Sequence[tuple[int, int]]) -> VlmBatch:
        numbers = [
            number
            for unit, epoch in keys
            for number in self.split.choose(unit, seed=self.seed, epoch=epoch, most=self.per_image)
        ]
        return self.split.batch(numbers, row_length=self.row_length)
