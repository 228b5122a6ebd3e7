"""The inputs of a model for a set of samples: cached features of frozen encoders, or items that the encoder reads anew.

Shapes: G images, R items of a modality, B rows of a batch, L tokens, F width of an encoder's features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clip_common.backbones import Feed
from clip_common.backbones.trunk import TokenSequence
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter
from edgeglass.data.items import Items
from edgeglass.data.records import Source
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.encoders import ModalityEncoder
from edgeglass.models.vlm.prefix import VisionPrefix

NAMES = {"image": "image features", "text": "caption features", "audio": "sound features"}


class Inputs(Protocol):
    """The items of one modality, as inputs of its encoder."""

    def batch(self, rows: Sequence[int]) -> Any:
        """Return the encoder's input for these items; a row of -1 stands for none, and holds any content."""

    def __len__(self) -> int:
        """Return R."""
        ...


@dataclass(frozen=True)
class CachedInputs:
    """Features of a frozen encoder.

    Attributes:
        vectors_RF: One vector an item; None for an encoder that pools sequences.
        sequences: One sequence (L, F) an item, of different lengths.
    """

    vectors_RF: Tensor | None = None
    sequences: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.sequences) if self.vectors_RF is None else len(self.vectors_RF)

    def batch(self, rows: Sequence[int]) -> TokenSequence:
        if self.vectors_RF is not None:
            index_B = torch.as_tensor(rows, dtype=torch.long)
            return ModalityEncoder.wrap(self.vectors_RF[index_B.clamp_min(0)])
        parts = [self.sequences[row] if row >= 0 else self.sequences[0][:1] for row in rows]
        lengths_B = torch.tensor([len(part) for part in parts])
        tokens_BLF = pad_sequence(parts, batch_first=True)
        return TokenSequence(tokens_BLF, torch.arange(tokens_BLF.shape[1]) < lengths_B[:, None])


@dataclass(frozen=True)
class LiveInputs:
    """Items that are read anew for each batch, for an encoder that trains."""

    feed: Feed
    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, rows: Sequence[int]) -> Any:
        return self.feed.batch([self.feed.example if row < 0 else self._load(self.items[row]) for row in rows])

    def _load(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.feed.load(item, name=item)
        content = item.read_bytes() if isinstance(item, Path) else item.read()
        return self.feed.load(content, name=str(item) if isinstance(item, Path) else item.name)


def read_inputs(
    encoder: ModalityEncoder, items: Items, *, trains: bool, cache: FeatureCache, reporter: Reporter, what: str
) -> Inputs:
    """Return the inputs of an encoder for all items of its modality; features come from the cache where they can.

    Args:
        encoder: On the device that computes.
        items: The items.
        trains: Whether weights of the encoder change.
        cache: Keeps features of frozen encoders.
        reporter: Shows progress.
        what: Words for it, such as "image features of the train split".

    Raises:
        ValueError: One line: an item that cannot be read, or too little space on the disk.
    """
    if trains:
        return LiveInputs(encoder.encoder.feed, items.sources)
    with reporter(what) as progress:
        if encoder.pools_first:
            return CachedInputs(vectors_RF=cache.features(encoder.encoder, items.sources, progress=progress))
        return CachedInputs(sequences=cache.sequences(encoder.encoder, items.sources, progress=progress))


@dataclass(frozen=True)
class ImageTokens:
    """The images of a list of conversations, each once, as a frozen encoder sees them.

    Attributes:
        features: Features of G images.
        rows: For each conversation the row of its image in `features`; None without one.
        prefixes: Tokens of each image before a decoder's text.
    """

    features: CachedInputs
    rows: list[int | None]
    prefixes: list[int]

    def prefix_of(self, conversation: int) -> int | None:
        """Return the number of tokens of a conversation's image; None without one."""
        row = self.rows[conversation]
        return None if row is None else self.prefixes[row]

    def select(self, conversations: Sequence[int]) -> tuple[TokenSequence | None, list[int | None], list[int]]:
        """Return what a batch of conversations shows.

        Returns:
            Features of its images, each once, None if it shows none; the row of each conversation's image in them;
            the tokens of each image.
        """
        rows = [self.rows[number] for number in conversations]
        shown = sorted({row for row in rows if row is not None})
        place = {row: number for number, row in enumerate(shown)}
        owners = [None if row is None else place[row] for row in rows]
        return self.features.batch(shown) if shown else None, owners, [self.prefixes[row] for row in shown]


def read_image_tokens(
    prefix: VisionPrefix, images: Sequence[Source | None], *, cache: FeatureCache, reporter: Reporter, what: str
) -> ImageTokens:
    """Return the images of conversations; features come from the cache where they can.

    Args:
        prefix: On the device that computes.
        images: The image of each conversation; None for one without.
        cache: Keeps features of frozen encoders.
        reporter: Shows progress.
        what: Words for it, such as "image features of the train split".

    Raises:
        ValueError: One line: an image that cannot be read, tokens that cannot be merged, or too little space on the
            disk.
    """
    place: dict[Source, int] = {}
    rows = [None if image is None else place.setdefault(image, len(place)) for image in images]
    if not place:
        return ImageTokens(CachedInputs(), rows, [])
    with reporter(what) as progress:
        features = CachedInputs(sequences=cache.sequences(prefix.encoder, list(place), progress=progress))
    return ImageTokens(features, rows, [prefix.count(len(tokens_LF)) for tokens_LF in features.sequences])


@torch.no_grad()
def embed_inputs(
    model: MultimodalAlignmentModel, modality: str, source: Inputs, *, batch_size: int, reporter: Reporter, what: str
) -> Tensor:
    """Return the embeddings (R, D) of all items of a modality, not normalised, float32 on the CPU, in eval mode."""
    encoder = model.encoder_of(modality)
    training, device = model.training, model.device
    model.eval()
    parts = []
    with reporter(what) as progress:
        for start in range(0, len(source), batch_size):
            rows = range(start, min(start + batch_size, len(source)))
            parts.append(encoder(move_inputs(source.batch(rows), device)).pooled.float().cpu())
            if progress is not None:
                progress(rows.stop, len(source))
    model.train(training)
    return torch.cat(parts)


def move_inputs(inputs: Any, device: torch.device) -> Any:
    """Return the tensors of an encoder's input on a device."""
    if isinstance(inputs, TokenSequence):
        return TokenSequence(*(part.to(device, non_blocking=True) for part in inputs))
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
