"""`load_dual`: a frozen vision model and a frozen text model, each under a trainable head into one shared space."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clip_common.backbones.encoder import Bundle
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.preprocess import TRAIN_CROP
from clip_common.backbones.spec import BackboneError, BundleSpec
from clip_common.backbones.text_models import load_text
from clip_common.backbones.towers import TextTower, VisionTower
from clip_common.backbones.vision_models import load_vision

LOGIT_SCALE = math.log(1 / 0.07)


def load_dual(
    *,
    vision: str | Path,
    text: str | Path,
    embed_dim: int = 512,
    head: Literal["linear", "mlp"] = "linear",
    image_size: int | None = None,
    seed: int = 0,
) -> Bundle:
    """Load two independent models, frozen, under heads to train; in eval mode.

    Args:
        vision: Folder or hub name of a transformers vision model with patch tokens (CLIPVisionModel, SiglipVisionModel,
            Dinov2Model and their like). Its features are its own pooled output.
        text: Folder or hub name of a SentenceTransformer, or of a transformers text model: CLIP's and SigLIP's
            features are their pooled token, those of any other the mean over its tokens.
        embed_dim: D, width of the shared space.
        head: `linear`: features to zero mean and unit variance, then one matrix with bias; `mlp`: with a hidden GELU
            layer of width 2·D in between.
        image_size: Pixels a side, as for `load_vision`.
        seed: Draws the heads.

    Raises:
        BackboneError: One line: no such folder, nothing cached and no network, damaged weights, a model without patch
            tokens, an unknown head.

    Example:
        bundle = load_dual(vision="facebook/dinov2-small", text="sentence-transformers/all-MiniLM-L6-v2")
        bundle.image_tower.head(bundle.image_tower.trunk_features(images))     # the trunk is frozen, the head trains
    """
    image, texts = load_vision(vision, image_size=image_size), load_text(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image.tower.head = make_head(head, width=image.spec.embed_dim, embed_dim=embed_dim)
        texts.tower.head = make_head(head, width=texts.spec.embed_dim, embed_dim=embed_dim)
    for encoder in (image, texts):
        encoder.tower.eval().freeze_trunk()
    preprocess = image.feed.preprocess
    config: dict[str, Any] = {
        "vision": _place(vision),
        "text": _place(text),
        "embed_dim": embed_dim,
        "head": head,
        "image_size": preprocess.size,
        "vision_fingerprint": image.spec.fingerprint,
        "text_fingerprint": texts.spec.fingerprint,
    }
    spec = BundleSpec(
        kind="dual",
        name=f"{Path(vision).name}+{Path(text).name}",
        pretrained=None,
        activation=None,
        fingerprint=hashlib.sha256(f"{image.spec.fingerprint} {texts.spec.fingerprint}".encode()).hexdigest(),
        config=config,
    )
    return Bundle(
        image=replace(image, spec=replace(image.spec, embed_dim=embed_dim)),
        text=replace(texts, spec=replace(texts.spec, embed_dim=embed_dim)),
        train_preprocess=replace(preprocess, crop_scale=TRAIN_CROP),
        spec=spec,
        logit_scale=LOGIT_SCALE,
        # not the fingerprints in the configuration: position embeddings may have been interpolated since
        trunks=(fingerprint(image.tower.trunk), fingerprint(texts.tower.trunk)),
    )


def make_head(kind: str, *, width: int, embed_dim: int) -> nn.Module:
    """Return a head from features (B, F) to (B, D).

    It standardises them first, because trunks differ in scale by orders of magnitude.
    """
    standardise = nn.LayerNorm(width, elementwise_affine=False)
    if kind == "linear":
        return nn.Sequential(standardise, nn.Linear(width, embed_dim))
    if kind == "mlp":
        hidden = 2 * embed_dim
        return nn.Sequential(standardise, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))
    raise BackboneError(f"head {kind!r}: expected linear or mlp")


def collect_heads(image_tower: VisionTower, text_tower: TextTower) -> dict[str, torch.Tensor]:
    """Return the weights that a dual trains, by name."""
    return {
        f"{side}_head.{name}": tensor
        for side, tower in (("image", image_tower), ("text", text_tower))
        for name, tensor in tower.head.state_dict().items()
    }


def _place(name: str | Path) -> str:
    """Return how a saved bundle names a trunk: the full path of a folder, or the hub name."""
    return str(Path(name).absolute()) if Path(name).is_dir() else str(name)
