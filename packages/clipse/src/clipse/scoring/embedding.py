"""Embed a split: every image once and all of its captions, in the order of the records.

N images, T captions, F features of a trunk, D the shared width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_common.backbones import move
from clip_common.loader import original_errors
from clip_common.reporting import Progress
from clipse.data import CLIPCollator, Flickr8kDataset, ImageCache, ImageRecord, Sample
from clipse.models.features import ImageFeatureDataset, TextFeatures
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
    image_NF: Tensor | None = None,
    texts: TextFeatures | None = None,
    pixels: ImageCache | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> EmbeddedPairs:
    """Encode every image and every caption of `records`; the model is in eval mode meanwhile.

    Args:
        model: On its device.
        records: N images.
        image_NF: Feature rows of the images, in the order of `records`, in place of pixels.
        texts: Feature rows of the captions, in place of tokens.
        pixels: The images, decoded; None decodes them here.
        batch_size: Images at a time, with all of their captions.
        workers: Processes that decode and tokenize.
        progress: Called with the number of images that are done, and of all.

    Raises:
        DataError: An image cannot be read or decoded.
    """
    dataset: Dataset[Sample]
    if image_NF is None:
        dataset = Flickr8kDataset(records, preprocess=model.bundle.preprocess, captions="all", cache=pixels)
    else:
        dataset = ImageFeatureDataset(records, image_NF, captions="all")
    collate = CLIPCollator(texts or model.bundle.tokenizer)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    training = model.training
    model.eval()
    seen, read = [], []
    with original_errors():
        for batch in loader:
            inputs, tokens = batch.images_B3HW.to(model.device), move(batch.tokens, model.device)
            seen.append(model.encode_image(inputs, rows=image_NF is not None).cpu())
            read.append(model.encode_text(tokens, rows=texts is not None).cpu())
            if progress is not None:
                progress(sum(map(len, seen)), len(records))
    model.train(training)
    return EmbeddedPairs(torch.cat(seen), torch.cat(read), find_owners(records))


def find_owners(records: Sequence[ImageRecord]) -> Tensor:
    """Return (T,) long: the position in `records` of the image of each caption."""
    counts = torch.tensor([len(record.captions) for record in records])
    return torch.repeat_interleave(torch.arange(len(records)), counts)
