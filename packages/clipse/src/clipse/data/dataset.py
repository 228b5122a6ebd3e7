"""Records to samples to batches: decoding, augmentation, the choice of captions, collation.

Shapes: B images in a batch, T texts in a batch (T = B for one caption an image, more for all of them), H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipse.data.cache import ImageCache
from clipse.data.images import load
from clipse.data.records import ImageRecord


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the captions chosen for it.

    Attributes:
        image: (3, H, W) float, as the preprocessing made it, or a row of a locked tower's features.
        captions: One for `captions="one"`, all of them for `captions="all"`.
        image_id: `ImageRecord.id`.
        name: `ImageRecord.name`, for messages.
    """

    image: Tensor
    captions: tuple[str, ...]
    image_id: int
    name: str


@dataclass(slots=True)
class Batch:
    """What a training step sees.

    Attributes:
        images_B3HW: Float images, or (B, F) features.
        tokens: Whatever the tokenizer returned for the T texts.
        image_ids_B: (B,) long, the id of each image.
        owner_T: (T,) long, the row of `images_B3HW` that each text belongs to.
        names: B names, for messages.
    """

    images_B3HW: Tensor
    tokens: Any
    image_ids_B: Tensor
    owner_T: Tensor
    names: list[str]


class Flickr8kDataset(Dataset[Sample]):
    """One row per image, with one random caption an epoch or all of its captions.

    Augmentation and the choice of caption are functions of (seed, epoch, index) only, so any worker, in any order,
    before or after a restart, makes the same sample.

    Args:
        records: What `CaptionData.split` returns.
        preprocess: Called as `preprocess(image)`, or as `preprocess(image, generator=torch.Generator)` where `augment`,
            with a PIL image or a (3, h, w) uint8 tensor; returns (3, H, W) float.
        seed: Root of all randomness.
        captions: `one` shows one caption an epoch, at random; `all` shows every caption.
        cache: Decoded images (`ImageCache`), or None to decode each time.
        augment: Whether the preprocessing is random.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        *,
        preprocess: Callable[..., Tensor],
        seed: int = 0,
        captions: Literal["one", "all"] = "one",
        cache: ImageCache | None = None,
        augment: bool = False,
    ) -> None:
        self.records = records
        self.preprocess = preprocess
        self.seed = seed
        self.captions = captions
        self.cache = cache
        self.augment = augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch: other captions, other crops."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = self.cache[record] if self.cache is not None else load(record)
        if self.augment:
            generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch, index, stream=1))
            pixels = self.preprocess(image, generator=generator)
        else:
            pixels = self.preprocess(image)
        captions = chosen_captions(record, self.captions, seed=self.seed, epoch=self.epoch, index=index)
        return Sample(image=pixels, captions=captions, image_id=record.id, name=record.name)


class CLIPCollator:
    """Samples to a `Batch`: stacks the images, tokenizes every text once.

    Args:
        tokenizer: `tokenizer(list[str]) -> tokens`; the tokens pass through untouched.
    """

    def __init__(self, tokenizer: Callable[[list[str]], Any]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        counts = torch.tensor([len(sample.captions) for sample in samples])
        return Batch(
            images_B3HW=torch.stack([sample.image for sample in samples]),
            tokens=self.tokenizer([caption for sample in samples for caption in sample.captions]),
            image_ids_B=torch.tensor([sample.image_id for sample in samples]),
            owner_T=torch.repeat_interleave(torch.arange(len(samples)), counts),
            names=[sample.name for sample in samples],
        )


def chosen_captions(
    record: ImageRecord, captions: Literal["one", "all"], *, seed: int, epoch: int, index: int
) -> tuple[str, ...]:
    """The captions that row `index` shows in this epoch."""
    if captions == "all":
        return record.captions
    choice = np.random.default_rng(_seed(seed, epoch, index, stream=0)).integers(len(record.captions))
    return (record.captions[choice],)


def _seed(seed: int, epoch: int, index: int, *, stream: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, index, stream)).generate_state(1, np.uint64)[0] >> 1)
