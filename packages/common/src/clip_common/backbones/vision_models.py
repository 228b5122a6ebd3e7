"""Image trunks: vision models of transformers; `load_vision`.

Shapes: B batch, F width, T tokens, L patch tokens among them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clip_common.backbones.encoder import ImageEncoder, ImageFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.huggingface import find_folder, load_model
from clip_common.backbones.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from clip_common.backbones.spec import BackboneError, ImageSpec
from clip_common.backbones.towers import VisionTower
from clip_common.backbones.trunk import Block, VisionOutput, VisionTrunk, record_outputs, resize_positions

PARTS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
"""Class to load from a folder that holds both an image and a text model."""
STATISTICS = {
    "clip_vision_model": (CLIP_MEAN, CLIP_STD),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
WALKED = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
"""Kinds of models that can be run block by block."""
SHORTEST: Literal["shortest"] = "shortest"
SQUASH: Literal["squash"] = "squash"


class UnmaskedBlock(Block):
    """A block of a vision model of transformers, called without an attention mask."""

    def __call__(self, x_BTF: Tensor) -> Tensor:
        output = self.module(x_BTF, attention_mask=None)
        return output[0] if isinstance(output, tuple) else output


class TransformersVision(VisionTrunk):
    """A vision model of transformers; its features are its own pooled output, or else the first token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size
        self.patch_size = model.config.patch_size

    @property
    def blocks(self) -> list[Block]:
        depth = self.model.config.num_hidden_layers
        lists = (part for part in self.model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
        return [UnmaskedBlock(module) for module in next(lists)]

    def embed(self, images_B3HW: Tensor) -> Tensor:
        if self.model.config.model_type not in WALKED:
            raise self.no_walk()
        x_BTF = self.model.embeddings(images_B3HW)
        return self.model.pre_layrnorm(x_BTF) if self.model.config.model_type == "clip_vision_model" else x_BTF

    def readout(self, x_BTF: Tensor) -> Tensor:
        model, kind = self.model, self.model.config.model_type
        if kind not in WALKED:
            raise self.no_walk()
        if kind == "clip_vision_model":
            return model.post_layernorm(x_BTF[:, 0])
        if kind == "siglip_vision_model":
            x_BTF = model.post_layernorm(x_BTF)
            return model.head(x_BTF) if model.use_head else x_BTF[:, 0]
        return model.layernorm(x_BTF)[:, 0]

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        with record_outputs(self.blocks, layers) as outputs:
            output = self.model(pixel_values=images_B3HW)
        tokens_BTF = output.last_hidden_state
        height, width = (side // self.patch_size for side in images_B3HW.shape[2:])
        pooled_BF = output.pooler_output if output.pooler_output is not None else tokens_BTF[:, 0]
        return VisionOutput(pooled_BF, tokens_BTF[:, -height * width :], outputs)


def load_vision(name: str | Path, *, image_size: int | None = None) -> ImageEncoder:
    """Load a vision model of transformers, in eval mode, without a head: its features are its embeddings.

    Args:
        name: Folder or hub name of a model with patch tokens (CLIPVisionModel, SiglipVisionModel, Dinov2Model and their
            like). Its features are its own pooled output.
        image_size: Pixels a side; a size other than the model's own interpolates the position embeddings. None: the
            size in the folder's preprocessor_config.json, else 224 for DINOv2 (its 518 px cost six times as much), else
            the model's own.

    Raises:
        BackboneError: No such model, one without patch tokens, damaged or incomplete weights.
    """
    folder = find_folder(name)
    model = load_model(folder, parts=PARTS, optional=("mask_token",))
    config = model.config
    if not (hasattr(model, "embeddings") and hasattr(config, "patch_size") and model.main_input_name == "pixel_values"):
        raise BackboneError(f"{folder} holds a {type(model).__name__}: expected a vision model with patch tokens")
    stored = fingerprint(model)
    preprocess = read_preprocess(folder, config, image_size=image_size)
    if preprocess.size != config.image_size:
        resize_model(model, preprocess.size)
    trunk = TransformersVision(model)
    cells = preprocess.size // trunk.patch_size
    spec = ImageSpec(
        name=str(name),
        width=trunk.width,
        depth=len(trunk.blocks),
        embed_dim=trunk.width,
        fingerprint=stored,
        image_size=preprocess.size,
        patch_size=trunk.patch_size,
        grid=(cells, cells),
    )
    return ImageEncoder(VisionTower(trunk).eval(), ImageFeed(preprocess), spec)


def read_preprocess(folder: Path, config: Any, *, image_size: int | None) -> Preprocess:
    """Return the preprocessing of preprocessor_config.json, or the usual one of such models."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        usual = 224 if config.model_type.startswith("dinov2") else config.image_size
        mean, std = STATISTICS.get(config.model_type, (IMAGENET_MEAN, IMAGENET_STD))
        squash = config.model_type == "siglip_vision_model"
        size, mode = image_size or usual, SQUASH if squash else SHORTEST
        return Preprocess(size=size, mean=mean, std=std, resize_mode=mode, corner="down")
    settings = json.loads(file.read_text(encoding="utf-8"))
    whole = _read_side(settings.get("size")) or config.image_size
    crop = _read_side(settings.get("crop_size")) if settings.get("do_center_crop") else None
    squash = crop is None and "shortest_edge" not in (settings.get("size") or {})
    size = image_size or crop or whole
    return Preprocess(
        size=size,
        mean=tuple(settings.get("image_mean", IMAGENET_MEAN)),
        std=tuple(settings.get("image_std", IMAGENET_STD)),
        interpolation="bilinear" if settings.get("resample") == 2 else "bicubic",
        resize_mode=SQUASH if squash else SHORTEST,
        resize=round(size * whole / crop) if crop else None,  # the margin that the crop leaves, to scale
        corner="down",
    )


def resize_model(model: Any, image_size: int) -> None:
    """Replace the position embeddings of the model by those of another image size.

    Raises:
        BackboneError: A kind of model with unknown position embeddings.
    """
    embeddings, grid = model.embeddings, image_size // model.config.patch_size
    if isinstance(table := getattr(embeddings, "position_embeddings", None), nn.Parameter):  # DINOv2, ViT: (1, T, F)
        embeddings.position_embeddings = nn.Parameter(resize_positions(table.detach()[0], grid=grid)[None])
    elif isinstance(table := getattr(embeddings, "position_embedding", None), nn.Embedding):  # CLIP, SigLIP
        positions = resize_positions(table.weight.detach(), grid=grid)
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
        embeddings.position_ids = torch.arange(len(positions))[None]
        embeddings.num_positions = len(positions)
    else:
        raise BackboneError(f"image_size={image_size}: position embeddings of {type(model).__name__} cannot be resized")
    embeddings.image_size = model.config.image_size = image_size
    if hasattr(embeddings, "patch_embeddings"):
        embeddings.patch_embeddings.image_size = (image_size, image_size)
        embeddings.patch_embeddings.num_patches = grid**2


def _read_side(size: Any) -> int | None:
    """Return the pixels of a side, in any of the forms of preprocessor_config.json."""
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size
