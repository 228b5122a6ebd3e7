"""The model that clipse trains: two towers and a temperature.

B images, T texts, D the shared width.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_common.backbones import Bundle, Tokens, load_bundle, load_clip, load_dual, save_bundle
from clip_common.losses import LogitScale
from clip_common.runs.opening import find_model, make_marker
from clipse.config import ModelConfig

FORMAT = 1
"""Version of what `RetrievalModel.save_pretrained` writes."""


class RetrievalModel(nn.Module):
    """Image tower, text tower and logit scale; with the SigLIP loss also a logit bias.

    Args:
        bundle: The towers with their preprocessing and tokenizer (`clip_common.backbones`).
        temperature: A fixed softmax temperature; None learns it, starting from the bundle's.
        bias: Add SigLIP's learned bias, starting from the bundle's or −10.
    """

    def __init__(self, bundle: Bundle, *, temperature: float | None = None, bias: bool = False) -> None:
        super().__init__()
        self.bundle = bundle
        self.image_tower = bundle.image_tower
        self.text_tower = bundle.text_tower
        self.logit_scale = LogitScale(
            init=bundle.logit_scale if temperature is None else -math.log(temperature), learned=temperature is None
        )
        start = -10.0 if bundle.logit_bias is None else bundle.logit_bias
        self.logit_bias = nn.Parameter(torch.tensor(start)) if bias else None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.logit_scale.logit_scale.device

    def embed_image(self, images: Tensor, *, rows: bool = False) -> Tensor:
        """Embed (B, 3, H, W) preprocessed pixels, or (B, F) feature rows of the trunk: (B, D), of any length."""
        return self.image_tower.head(images) if rows else self.image_tower.pooled(images)

    def embed_text(self, tokens: Tokens, *, rows: bool = False) -> Tensor:
        """Embed the tokenizer's output for T texts, or their (T, F) feature rows: (T, D), of any length."""
        return self.text_tower.head(tokens) if rows else self.text_tower(tokens)

    def encode_image(self, images: Tensor, *, rows: bool = False) -> Tensor:
        """Encode images to (B, D) unit vectors; arguments as for `embed_image`."""
        return nn.functional.normalize(self.embed_image(images, rows=rows).float(), dim=-1)

    def encode_text(self, tokens: Tokens, *, rows: bool = False) -> Tensor:
        """Encode texts to (T, D) unit vectors; arguments as for `embed_text`."""
        return nn.functional.normalize(self.embed_text(tokens, rows=rows).float(), dim=-1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors weights and a config.json that rebuild the model without a network."""
        bias = None if self.logit_bias is None else self.logit_bias.item()
        state = dataclasses.replace(self.bundle, logit_scale=self.logit_scale.logit_scale.item(), logit_bias=bias)
        save_bundle(state, Path(folder), marker=make_marker({}, package="clipse", format=FORMAT))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "RetrievalModel":
        """Load a run folder (its best weights) or a folder that `save_pretrained` wrote, in eval mode.

        Raises:
            ValueError: One line: neither of these, a run without a model yet, or a damaged or older model.
        """
        bundle = load_bundle(find_model(source, package="clipse", format=FORMAT))
        return cls(bundle, bias=bundle.logit_bias is not None).eval()


def load_towers(config: ModelConfig, *, seed: int) -> Bundle:
    """Load the two towers that the configuration names; `seed` initialises weights that start from scratch.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded, damaged or not fully named.
    """
    if config.kind == "dual":
        if config.vision is None or config.text is None:
            raise ValueError("model.kind=dual needs model.vision=… and model.text=… (a folder or a hub name each)")
        return load_dual(
            vision=config.vision,
            text=config.text,
            embed_dim=config.embed_dim,
            head=config.head,
            image_size=config.image_size,
            seed=seed,
        )
    bundle = load_clip(
        config.name,
        pretrained=config.pretrained,
        model=config.weights_of,
        model_config=config.architecture,
        image_size=config.image_size,
        activation=config.activation,
        seed=seed,
    )
    if config.lock_image:
        bundle.image_tower.freeze_trunk()
    if config.lock_text:
        bundle.text_tower.freeze_trunk()
    return bundle
