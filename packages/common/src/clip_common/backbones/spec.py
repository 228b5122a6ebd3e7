"""What a loaded pair of towers is: the bundle, its specification, and the error every loader raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clip_common.backbones.preprocess import Preprocess
    from clip_common.backbones.tokenizers import Tokenizer
    from clip_common.backbones.towers import TextTower, VisionTower

Tokens = Tensor | dict[str, Tensor]
"""What a tokenizer returns and a text tower takes: (B, L) ids, or a dict of tensors whose first dimension is B."""


class BackboneError(ValueError):
    """A model that cannot be had: one line that says what was asked for, why it failed and what to do."""


@dataclass(frozen=True)
class Spec:
    """What there is to know about two towers without looking inside.

    Attributes:
        kind: `open_clip`, or `dual` (frozen trunks of two models under trainable heads).
        name: As it was asked for.
        pretrained: Tag or file of the weights; `random` for towers from scratch; None where the name says it all.
        image_size: Pixels a side.
        patch_size: Pixels a side of what one patch token sees at the first layer.
        grid: Patch tokens (rows, columns).
        embed_dim: D, the shared width.
        vision_width: F, width of the patch tokens.
        vision_depth: Transformer blocks of the image tower; 0 for a convolutional one, which has no layers to name.
        text_width: Width of the text tokens.
        text_depth: Transformer blocks of the text tower.
        context_length: Most tokens of a text; None where the tokenizer alone knows.
        activation: `gelu` or `quick_gelu` of an open_clip tower, as it runs.
        fingerprint: sha256 over the weights that were loaded; of a dual, over those of its trunks as they are stored.
        config: What rebuilds the towers: an open_clip model configuration, or the places of two trunks.
    """

    kind: Literal["open_clip", "dual"]
    name: str
    pretrained: str | None
    image_size: int
    patch_size: int
    grid: tuple[int, int]
    embed_dim: int
    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    context_length: int | None
    activation: str | None
    fingerprint: str
    config: Mapping[str, Any]


@dataclass
class Bundle:
    """Two towers with everything needed to feed them.

    Attributes:
        image_tower: Pixels to embeddings.
        text_tower: Tokens to embeddings.
        preprocess: An image to the pixels of evaluation.
        train_preprocess: An image to the pixels of training (random resized crop).
        tokenizer: Texts to tokens.
        spec: What the towers are.
        logit_scale: ln of the scale that the loaded model was trained with, or ln(1/0.07) to start from.
        logit_bias: SigLIP's bias; None for a model without one.
        trunks: Fingerprints of the trunks of a dual as it runs them, image and text; None for a CLIP.
    """

    image_tower: VisionTower
    text_tower: TextTower
    preprocess: Preprocess
    train_preprocess: Preprocess
    tokenizer: Tokenizer
    spec: Spec
    logit_scale: float
    logit_bias: float | None = None
    trunks: tuple[str, str] | None = None


def move(tokens: Tokens, device: torch.device | str) -> Tokens:
    """`tokens` on `device`."""
    if isinstance(tokens, Tensor):
        return tokens.to(device, non_blocking=True)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tokens.items()}
