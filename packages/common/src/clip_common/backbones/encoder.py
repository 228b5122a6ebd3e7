"""One encoder of images, texts or sounds: a tower, what feeds it, and what identifies it. A bundle is two of them.

    encoder = load_vision("facebook/dinov2-small")           # or load_clip("tiny").image
    item = encoder.feed.load(Path("a.jpg").read_bytes(), name="a.jpg")
    encoder.tower.pooled(encoder.feed.batch([item]))         # (1, D)

A further kind needs a trunk with `features`, and a feed with the four members of `Feed`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clip_common.backbones.mel import Mel, Segments
from clip_common.backbones.preprocess import Preprocess
from clip_common.backbones.spec import AudioSpec, BundleSpec, ImageSpec, Spec, TextSpec, Tokens
from clip_common.backbones.tokenizers import Tokenizer
from clip_common.errors import check_list

if TYPE_CHECKING:
    from clip_common.backbones.towers import TextTower, Tower, VisionTower


class Feed(Protocol):
    """What turns files or texts into the input of a tower."""

    @property
    def key(self) -> str:
        """Equal keys, equal inputs: part of the key of every cached feature."""

    @property
    def example(self) -> Any:
        """An item, from which the shape of the features is learned."""

    def load(self, source: Any, *, name: str) -> Any:
        """Return one item. Called from several threads at once.

        Args:
            source: The content of a file (bytes), or a text.
            name: Of the source, for messages.

        Raises:
            OSError, ValueError: A source that cannot be used.
        """

    def batch(self, items: Sequence[Any]) -> Tokens:
        """Return the tower's input for B items: a tensor, or a dict of tensors."""


@dataclass(frozen=True)
class ImageFeed:
    """Encoded images to pixels (B, 3, S, S).

    Args:
        preprocess: A picture to pixels (3, S, S).
    """

    preprocess: Preprocess

    @property
    def key(self) -> str:
        from clip_common import images

        return json.dumps([images.VERSION, self.preprocess.key])

    @property
    def example(self) -> Tensor:
        return torch.zeros(3, self.preprocess.size, self.preprocess.size)

    def load(self, source: bytes, *, name: str) -> Tensor:
        from clip_common import images

        return self.preprocess(images.read_image(source, name=name))

    def batch(self, items: Sequence[Tensor]) -> Tensor:
        check_list(items, "items", empty=False)
        return torch.stack(list(items))


@dataclass(frozen=True)
class TextFeed:
    """Texts to tokens.

    Args:
        tokenizer: B texts to the tokens of a tower.
    """

    tokenizer: Tokenizer

    @property
    def key(self) -> str:
        return self.tokenizer.key

    @property
    def example(self) -> str:
        return "a"

    def load(self, source: str, *, name: str) -> str:
        return source

    def batch(self, items: Sequence[str]) -> Tokens:
        check_list(items, "items", empty=False)
        return self.tokenizer(items)


@dataclass(frozen=True)
class SoundFeed:
    """Encoded sounds to spectrograms, in segments of at most the encoder's window.

    Args:
        mel: Samples to segments.
    """

    mel: Mel

    @property
    def key(self) -> str:
        from clip_common import sounds

        return json.dumps([sounds.VERSION, self.mel.key])

    @property
    def example(self) -> Segments:
        return self.mel(torch.zeros(1))

    def load(self, source: bytes, *, name: str) -> Segments:
        from clip_common import sounds

        return self.mel(sounds.read_sound(source, name=name))

    def from_samples(self, samples_T: Tensor) -> Segments:
        """Return the item of (T,) float32 samples at 16 kHz, full scale 1.

        Raises:
            DataError: Another shape or dtype, no samples, or some that are NaN or infinite.
        """
        from clip_common import sounds

        sounds.check_samples(samples_T)
        return self.mel(samples_T)

    def batch(self, items: Sequence[Segments]) -> dict[str, Tensor]:
        """Return the tower's input for B sounds with S segments in all.

        Returns:
            `mel` (S, M, T), zero after the segment; `length` (S,), its frames; `frames` (S,), its tokens that hold
            sound; `owner` (S,), the number of its sound in the batch.
        """
        check_list(items, "items", empty=False)
        mels = [mel for item in items for mel in item.mels]
        longest = max(mel.shape[1] for mel in mels)
        return {
            "mel": torch.stack([torch.nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels]),
            "length": torch.tensor([mel.shape[1] for mel in mels]),
            "frames": torch.tensor([frames for item in items for frames in item.frames]),
            "owner": torch.tensor([number for number, item in enumerate(items) for _ in item.mels]),
        }


@dataclass
class Encoder:
    """A tower with what feeds it and what identifies it.

    Attributes:
        tower: Trunk and head.
        feed: Files or texts to the tower's input.
        spec: Name, sizes and fingerprint.
    """

    tower: Tower
    feed: Feed
    spec: Spec


@dataclass
class ImageEncoder(Encoder):
    """An encoder of images."""

    tower: VisionTower
    feed: ImageFeed
    spec: ImageSpec


@dataclass
class TextEncoder(Encoder):
    """An encoder of texts."""

    tower: TextTower
    feed: TextFeed
    spec: TextSpec


@dataclass
class AudioEncoder(Encoder):
    """An encoder of sounds."""

    tower: Tower
    feed: SoundFeed
    spec: AudioSpec


@dataclass
class Bundle:
    """Two encoders into one space.

    Attributes:
        image: Encoder of images.
        text: Encoder of texts.
        train_preprocess: A picture to the pixels of training (random resized crop).
        spec: Where the pair came from.
        logit_scale: ln of the scale that the loaded model was trained with, or ln(1/0.07) to start from.
        logit_bias: SigLIP's bias; None for a model without one.
        trunks: Fingerprints of the trunks of a dual as it runs them, image and text; None for a CLIP.
    """

    image: ImageEncoder
    text: TextEncoder
    train_preprocess: Preprocess
    spec: BundleSpec
    logit_scale: float
    logit_bias: float | None = None
    trunks: tuple[str, str] | None = None

    @property
    def image_tower(self) -> VisionTower:
        """Pixels to embeddings."""
        return self.image.tower

    @property
    def text_tower(self) -> TextTower:
        """Tokens to embeddings."""
        return self.text.tower

    @property
    def preprocess(self) -> Preprocess:
        """A picture to the pixels of evaluation."""
        return self.image.feed.preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to tokens."""
        return self.text.feed.tokenizer
