"""Embed a split: every image once and all of its captions, in the order of the records.

N images, T captions, D the shared width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip_common.backbones import move
from clip_common.loader import original_errors
from clip_common.reporting import Progress
from clipse.data import CLIPCollator, Flickr8kDataset, ImageRecord
from clipse.models.retrieval import RetrievalModel


@dataclass(frozen=True)
class EmbeddedPairs:
    """Unit vectors of a split, on the CPU in float32; caption t belongs to image `text_to_image_T[t]`."""

    image_ND: Tensor
    text_TD: Tensor
    text_to_image_T: Tensor


@torch.inference_mode()
def embed_pairs(
    model: RetrievalModel,
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> EmbeddedPairs:
    """Encode every image and every caption of `records`; the model is in eval mode meanwhile.

    Raises:
        DataError: An image cannot be read or decoded.
    """
    dataset = Flickr8kDataset(records, preprocess=model.bundle.preprocess, captions="all")
    loader = DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=CLIPCollator(model.bundle.tokenizer)
    )
    training = model.training
    model.eval()
    images, texts = [], []
    with original_errors():
        for batch in loader:
            images.append(model.encode_image(batch.images_B3HW.to(model.device)).cpu())
            texts.append(model.encode_text(move(batch.tokens, model.device)).cpu())
            if progress is not None:
                progress(sum(map(len, images)), len(records))
    model.train(training)
    return EmbeddedPairs(torch.cat(images), torch.cat(texts), find_owners(records))


def find_owners(records: Sequence[ImageRecord]) -> Tensor:
    """Return (T,) long: the position in `records` of the image of each caption."""
    counts = torch.tensor([len(record.captions) for record in records])
    return torch.repeat_interleave(torch.arange(len(records)), counts)
