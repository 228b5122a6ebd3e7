"""What identifies encoders and bundles, the tokens of a text, and the error that every loader raises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Tokens = Tensor | dict[str, Tensor]
"""What a tokenizer returns and a text tower takes: (B, L) ids, or a dict of tensors whose first dimension is B."""

AudioContext = Literal["sound", "full"]
"""What an audio encoder sees of a segment: the sound and a second of silence, or its whole window."""


class BackboneError(ValueError):
    """A model that cannot be loaded: one line with what was asked for, why it failed and what to do."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Name, sizes and fingerprint of one encoder.

    Attributes:
        kind: What it encodes.
        name: As the user asked for it.
        width: F, of the tokens inside the trunk.
        depth: Transformer blocks; 0 for a convolutional trunk, which has no layers to name.
        embed_dim: D, of the embeddings.
        fingerprint: sha256 over the loaded weights, before any interpolation; for an encoder of a CLIP, over the whole
            CLIP, and empty if its text tower was left out.
    """

    kind: Literal["image", "text", "audio"]
    name: str
    width: int
    depth: int
    embed_dim: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ImageSpec(Spec):
    """Name, sizes and fingerprint of an image encoder.

    Attributes:
        image_size: Pixels a side.
        patch_size: Pixels a side that one patch token sees at the first layer.
        grid: Patch tokens (rows, columns).
    """

    kind: Literal["image"] = "image"
    image_size: int
    patch_size: int
    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TextSpec(Spec):
    """Name, sizes and fingerprint of a text encoder.

    Attributes:
        context_length: Most tokens of a text.
    """

    kind: Literal["text"] = "text"
    context_length: int


@dataclass(frozen=True, kw_only=True)
class AudioSpec(Spec):
    """Name, sizes and fingerprint of an audio encoder.

    Attributes:
        fingerprint: sha256 over the loaded weights and the context.
        sample_rate: Samples per second of its input.
        mels: Bands of its spectrogram.
        window_seconds: Longest segment that it encodes at once; a longer sound is cut into several.
        positions: Tokens of a whole window.
        context: `sound` or `full`, as for `load_audio`. Features of the two differ.
    """

    kind: Literal["audio"] = "audio"
    sample_rate: int
    mels: int
    window_seconds: float
    positions: int
    context: AudioContext


@dataclass(frozen=True, kw_only=True)
class LanguageSpec:
    """Name, sizes and fingerprint of a causal language model.

    Attributes:
        name: As the user asked for it.
        width: E, of its input embeddings.
        vocabulary: V, of its logits; not less than the number of the tokenizer's ids.
        context: Most tokens of a sequence.
        fingerprint: sha256 over the stored weights, see `fingerprint_files`: the same for every dtype and quantization.
            Without weights, a hash of the tokenizer.
        quantization: `none`, `4bit` or `8bit`, as loaded.
        stop_ids: Token ids that end an answer; the first is the tokenizer's end-of-text token.
    """

    name: str
    width: int
    vocabulary: int
    context: int
    fingerprint: str
    quantization: Literal["none", "4bit", "8bit"]
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """Where two encoders came from.

    Attributes:
        kind: `open_clip`, `siglip` (a SiglipModel of transformers), or `dual` (frozen trunks of two models under
            trainable heads).
        name: As the user asked for it.
        pretrained: Tag or file of the weights; `random` for towers from scratch; None if the name says everything.
        activation: `gelu` or `quick_gelu` of an open_clip tower, as it runs; None for the other kinds.
        fingerprint: sha256 over the loaded weights; of a dual, over those of its trunks as they are stored.
        config: What rebuilds the towers: an open_clip model configuration, a SiglipConfig, or the places of two trunks.
    """

    kind: Literal["open_clip", "siglip", "dual"]
    name: str
    pretrained: str | None
    activation: str | None
    fingerprint: str
    config: Mapping[str, Any]


def move(tokens: Tokens, device: torch.device | str) -> Tokens:
    """Return the tensors on `device`."""
    if isinstance(tokens, Tensor):
        return tokens.to(device, non_blocking=True)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tokens.items()}
