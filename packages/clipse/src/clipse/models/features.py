"""Cached features of locked towers: computed once, then read by row instead of pixels and tokens.

N images, F features of a trunk, T texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_common.backbones import is_frozen
from clip_common.devices import pick_device
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter
from clipse.data import ImageRecord, Sample, choose_captions
from clipse.models.retrieval import RetrievalModel


class ImageFeatureDataset(Dataset[Sample]):
    """`Flickr8kDataset` with feature rows instead of images; captions are chosen the same way.

    Args:
        records: N images.
        features_NF: Their feature rows, in the order of `records`.
        captions: `one` shows one random caption per epoch; `all` shows every caption.
        seed: Root seed of the caption choice.
    """

    def __init__(
        self, records: Sequence[ImageRecord], features_NF: Tensor, *, captions: Literal["one", "all"], seed: int = 0
    ) -> None:
        self.records = records
        self.features_NF = features_NF
        self.seed = seed
        self.captions = captions
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes captions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        captions = choose_captions(record, self.captions, seed=self.seed, epoch=self.epoch, index=index)
        return Sample(image=self.features_NF[index], captions=captions, image_id=record.id, name=record.name)


class TextFeatures:
    """Lookup that is called like a tokenizer: T known texts -> their (T, F) feature rows."""

    def __init__(self, texts: Sequence[str], features_TF: Tensor) -> None:
        self.rows = {text: row for row, text in enumerate(texts)}
        self.features_TF = features_TF

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.features_TF[torch.tensor([self.rows[text] for text in texts])]


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of the locked trunks of a model for its data; empty for a tower that trains.

    Attributes:
        images: Split → (N, F) feature rows, in the order of its records.
        texts: Replaces the tokenizer for the captions of all splits.
    """

    images: Mapping[str, Tensor] = field(default_factory=dict)
    texts: TextFeatures | None = None


def load_frozen_features(
    model: RetrievalModel,
    records: Mapping[str, Sequence[ImageRecord]],
    *,
    cache: FeatureCache,
    reporter: Reporter,
    devices: str = "auto",
) -> FrozenFeatures:
    """Compute the features of every locked trunk, or read them from the cache.

    Args:
        model: Its locked trunks are run; moved to the device for the computation, and back.
        records: Split → images.
        cache: Where features are kept.
        reporter: Shows progress.
        devices: `trainer.devices`: a GPU is used if available, unless this says CPU.
    """
    locked_image, locked_text = is_frozen(model.image_tower.trunk), is_frozen(model.text_tower.trunk)
    if not (locked_image or locked_text):
        return FrozenFeatures()
    home = model.device
    model.to(pick_device(devices))
    images: dict[str, Tensor] = {}
    if locked_image:
        for split, rows in records.items():
            with reporter(f"image features of the {split} split") as progress:
                # a file by its path, so that the cache remembers its hash; a member of a shard by its record
                sources = [record if record.span else record.path for record in rows]
                images[split] = cache.features(model.bundle.image, sources, progress=progress)
    texts = None
    if locked_text:
        captions = sorted({text for rows in records.values() for record in rows for text in record.captions})
        with reporter("caption features") as progress:
            texts = TextFeatures(captions, cache.features(model.bundle.text, captions, progress=progress))
    model.to(home)
    return FrozenFeatures(images=images, texts=texts)
