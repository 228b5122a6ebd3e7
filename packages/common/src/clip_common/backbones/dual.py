"""`load_dual`: a frozen vision model and a frozen text model, each under a trainable head into one shared space."""

import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.huggingface import fetch_folder
from clip_common.backbones.open_clip import TRAIN_CROP
from clip_common.backbones.spec import BackboneError, Bundle, Spec
from clip_common.backbones.towers import TextTower, VisionTower

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
    """Load two models that know nothing of each other, frozen, with heads to train; in eval mode.

    Args:
        vision: Folder or hub name of a transformers vision model with patch tokens (CLIPVisionModel, SiglipVisionModel,
            Dinov2Model and their like). Its features are its own pooled output.
        text: Folder or hub name of a SentenceTransformer, or of a transformers text model: CLIP's and SigLIP's at their
            pooled token, any other at the mean over its tokens.
        embed_dim: D, width of the shared space.
        head: `linear`: features to zero mean and unit variance, then one matrix with bias; `mlp`: a hidden GELU layer
            of 2·D besides.
        image_size: Pixels a side; another than the model's own interpolates the position embeddings. None: what the
            folder's preprocessor_config.json says, else 224 for DINOv2 (its 518 px cost six times as much), else the
            model's own.
        seed: Draws the heads.

    Raises:
        BackboneError: One line: no such folder, nothing cached and no network, damaged weights, a model without patch
            tokens, an unknown head.

    Example:
        bundle = load_dual(vision="facebook/dinov2-small", text="sentence-transformers/all-MiniLM-L6-v2")
        bundle.image_tower.head(bundle.image_tower.trunk_features(images))     # the trunk is frozen, the head trains
    """
    from clip_common.backbones.text_models import load_text
    from clip_common.backbones.vision_models import load_vision

    vision_folder, text_folder = place(vision), place(text)
    seen = load_vision(vision_folder, image_size=image_size)
    read = load_text(text_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_tower = VisionTower(seen.trunk, make_head(head, width=seen.features, embed_dim=embed_dim))
        text_tower = TextTower(read.trunk, make_head(head, width=read.trunk.width, embed_dim=embed_dim))
    for tower in (image_tower.eval(), text_tower.eval()):
        tower.freeze_trunk()
    cells = seen.preprocess.size // seen.trunk.patch_size
    config: dict[str, Any] = {
        "vision": reference(vision),
        "text": reference(text),
        "embed_dim": embed_dim,
        "head": head,
        "image_size": seen.preprocess.size,
        "vision_fingerprint": seen.fingerprint,
        "text_fingerprint": read.fingerprint,
    }
    spec = Spec(
        kind="dual",
        name=f"{Path(vision).name}+{Path(text).name}",
        pretrained=None,
        image_size=seen.preprocess.size,
        patch_size=seen.trunk.patch_size,
        grid=(cells, cells),
        embed_dim=embed_dim,
        vision_width=seen.trunk.width,
        vision_depth=len(seen.trunk.blocks),
        text_width=read.trunk.width,
        text_depth=read.trunk.depth,
        context_length=read.context_length,
        activation=None,
        fingerprint=hashlib.sha256(f"{seen.fingerprint} {read.fingerprint}".encode()).hexdigest(),
        config=config,
    )
    return Bundle(
        image_tower=image_tower,
        text_tower=text_tower,
        preprocess=seen.preprocess,
        train_preprocess=replace(seen.preprocess, crop_scale=TRAIN_CROP),
        tokenizer=read.tokenizer,
        spec=spec,
        logit_scale=LOGIT_SCALE,
        # not those of the configuration: position embeddings may have been interpolated since
        trunks=(fingerprint(image_tower.trunk), fingerprint(text_tower.trunk)),
    )


def make_head(kind: str, *, width: int, embed_dim: int) -> nn.Module:
    """(B, F) features to (B, D). They are standardised first: trunks differ in scale by orders of magnitude."""
    standardise = nn.LayerNorm(width, elementwise_affine=False)
    if kind == "linear":
        return nn.Sequential(standardise, nn.Linear(width, embed_dim))
    if kind == "mlp":
        hidden = 2 * embed_dim
        return nn.Sequential(standardise, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))
    raise BackboneError(f"head {kind!r}: expected linear or mlp")


def heads_state(image_tower: VisionTower, text_tower: TextTower) -> dict[str, torch.Tensor]:
    """All that a dual trains, by name."""
    return {
        f"{side}_head.{name}": tensor
        for side, tower in (("image", image_tower), ("text", text_tower))
        for name, tensor in tower.head.state_dict().items()
    }


def place(name: str | Path) -> Path:
    """The folder of a model: itself, or that of a hub name in the cache.

    Raises:
        BackboneError: Neither; or not cached, and no network.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and re.fullmatch(r"(hf-hub:)?[\w.-]+(/[\w.-]+)?", name):
        return fetch_folder(name.removeprefix("hf-hub:"))
    raise BackboneError(f"{name}: no such folder, and no name of a model on the hub (org/name)")


def reference(name: str | Path) -> str:
    """How a saved bundle names a trunk: the full path of a folder, or the hub name."""
    return str(Path(name).absolute()) if Path(name).is_dir() else str(name)
