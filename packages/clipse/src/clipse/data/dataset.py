"""Dataset of image-caption samples and their collation into batches.

Shapes: B images and T texts in a batch (T = B with one caption per image, more with all captions), H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipse.data.cache import ImageCache
from clipse.data.equal_captions import count_same, hash_caption
from clipse.data.records import ImageRecord


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the captions chosen for it.

    Attributes:
        image: (3, H, W) float from the preprocessing, or a row of a locked tower's features.
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
    """Batch of a training step.

    Attributes:
        images_B3HW: Float images, or (B, F) features.
        tokens: The tokenizer's output for the T texts.
        image_ids_B: (B,) long, the id of each image.
        owner_T: (T,) long, the row of `images_B3HW` that each text belongs to.
        text_ids_T: (T,) long, equal for captions of one text (`normalise_caption`).
        same_T3: (T, 3) long, on the CPU: see `count_same`.
        names: B image names, for messages.
    """

    images_B3HW: Tensor
    tokens: Any
    image_ids_B: Tensor
    owner_T: Tensor
    text_ids_T: Tensor
    same_T3: Tensor
    names: list[str]


class Flickr8kDataset(Dataset[Sample]):
    """One sample per image, with one random caption per epoch or with all of its captions.

    Augmentation and the choice of caption depend on (seed, epoch, index) only, so that a sample is the same in any
    worker, in any order, and after a restart.

    Args:
        records: The images of a split (`CaptionData.split`).
        preprocess: Called as `preprocess(image)`, or as `preprocess(image, generator=torch.Generator)` where `augment`,
            with a PIL image or a (3, h, w) uint8 tensor; returns (3, H, W) float.
        seed: Root seed of augmentation and caption choice.
        captions: `one` shows one random caption per epoch; `all` shows every caption.
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
        """Set the epoch, which changes captions and crops."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image = self.cache[record] if self.cache is not None else record.load_image()
        if self.augment:
            generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch, index, stream=1))
            pixels = self.preprocess(image, generator=generator)
        else:
            pixels = self.preprocess(image)
        captions = choose_captions(record, self.captions, seed=self.seed, epoch=self.epoch, index=index)
        return Sample(image=pixels, captions=captions, image_id=record.id, name=record.name)


class CLIPCollator:
    """Collate samples into a `Batch`: stack the images, tokenize each text once.

    Args:
        tokenizer: `tokenizer(list[str]) -> tokens`; the tokens are kept as returned.
    """

    def __init__(self, tokenizer: Callable[[list[str]], Any]) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        counts = torch.tensor([len(sample.captions) for sample in samples])
        captions = [caption for sample in samples for caption in sample.captions]
        image_ids_B = torch.tensor([sample.image_id for sample in samples])
        owner_T = torch.repeat_interleave(torch.arange(len(samples)), counts)
        text_ids_T = torch.tensor([hash_caption(caption) for caption in captions])
        return Batch(
            images_B3HW=torch.stack([sample.image for sample in samples]),
            tokens=self.tokenizer(captions),
            image_ids_B=image_ids_B,
            owner_T=owner_T,
            text_ids_T=text_ids_T,
            same_T3=count_same(image_ids_B[owner_T], text_ids_T),
            names=[sample.name for sample in samples],
        )


def choose_captions(
    record: ImageRecord, captions: Literal["one", "all"], *, seed: int, epoch: int, index: int
) -> tuple[str, ...]:
    """Return the captions that sample `index` shows in this epoch."""
    if captions == "all":
        return record.captions
    choice = np.random.default_rng(_seed(seed, epoch, index, stream=0)).integers(len(record.captions))
    return (record.captions[choice],)


def _seed(seed: int, epoch: int, index: int, *, stream: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, index, stream)).generate_state(1, np.uint64)[0] >> 1)
