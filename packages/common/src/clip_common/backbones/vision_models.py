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
from clip_common.backbones.hub import find_folder
from clip_common.backbones.huggingface import load_model
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
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files with the settings of an image processor; transformers 5 writes those of a processor with a tokenizer into the
second."""
FILTERS: dict[int, Literal["bicubic", "bilinear", "lanczos"]] = {3: "bicubic", 2: "bilinear", 1: "lanczos"}
"""Filters of an image processor, by the number that PIL gives them."""
CONVNEXT_SQUASHED = 384
"""Sides from which the image processor of ConvNeXt resizes without a crop."""
WALKED = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
"""Kinds of models that can be run block by block."""
SHORTEST: Literal["shortest"] = "shortest"
SQUASH: Literal["squash"] = "squash"


class StagedVision(VisionTrunk):
    """A vision model of transformers in stages (Swin, ConvNeXt, ResNet), without blocks to name.

    The cells of its last map are the patch tokens; its features are its own pooled output, or else their mean.

    Args:
        model: Of transformers.
        image_size: Pixels a side of an image, from which the size of a cell is learned.
    """

    def __init__(self, model: Any, *, image_size: int) -> None:
        super().__init__()
        self.model = model.eval()
        with torch.no_grad():
            _, patches_1LF, _ = self(torch.zeros(1, 3, image_size, image_size))
        self.width = patches_1LF.shape[2]
        self.patch_size = round(image_size / patches_1LF.shape[1] ** 0.5)

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        with record_outputs(self.blocks, layers) as outputs:
            output = self.model(pixel_values=images_B3HW)
        map_BF = output.last_hidden_state  # (B, F, h, w), or (B, L, F) of a Swin
        patches_BLF = map_BF.flatten(2).transpose(1, 2) if map_BF.ndim == 4 else map_BF
        pooled = output.pooler_output
        return VisionOutput(patches_BLF.mean(dim=1) if pooled is None else pooled.flatten(1), patches_BLF, outputs)


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
    model = load_model(
        folder, parts=PARTS, optional=("mask_token",), takes="pixel_values", expected="a vision model with patch tokens"
    )
    config = model.config
    staged = hasattr(config, "depths")
    if not staged and not (hasattr(model, "embeddings") and hasattr(config, "patch_size")):
        raise BackboneError(f"{folder} holds a {type(model).__name__}: expected a vision model with patch tokens")
    stored = fingerprint(model)
    preprocess = read_preprocess(folder, config, image_size=image_size)
    if preprocess.size != getattr(config, "image_size", preprocess.size) and not staged:
        resize_model(model, preprocess.size)
    trunk = StagedVision(model, image_size=preprocess.size) if staged else TransformersVision(model)
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
    """Return the preprocessing of the folder's image processor, or the usual one of such models.

    Raises:
        BackboneError: Damaged settings, or a filter that `Preprocess` lacks.
    """
    settings = _read_processor(folder)
    own = getattr(config, "image_size", 224)
    if settings is None:
        usual = 224 if config.model_type.startswith("dinov2") else own
        mean, std = STATISTICS.get(config.model_type, (IMAGENET_MEAN, IMAGENET_STD))
        squash = config.model_type == "siglip_vision_model"
        size, mode = image_size or usual, SQUASH if squash else SHORTEST
        return Preprocess(size=size, mean=mean, std=std, resize_mode=mode, corner="down")
    number = settings.get("resample", 3)
    if number not in FILTERS:
        known = ", ".join(f"{code} ({name})" for code, name in FILTERS.items())
        raise BackboneError(f"{folder}: its image processor has resample {number}: expected one of {known}")
    whole = _read_side(settings.get("size")) or own
    crop = _read_side(settings.get("crop_size")) if settings.get("do_center_crop") else None
    shortest = isinstance(settings.get("size"), dict) and "shortest_edge" in settings["size"]
    if shortest and "crop_pct" in settings:  # ConvNeXt's processor: its size is that of the crop
        shortest = whole < CONVNEXT_SQUASHED
        if shortest:
            crop, whole = whole, int(whole / settings["crop_pct"])
    size = image_size or crop or whole
    return Preprocess(
        size=size,
        mean=tuple(settings.get("image_mean", IMAGENET_MEAN)),
        std=tuple(settings.get("image_std", IMAGENET_STD)),
        interpolation=FILTERS[number],
        resize_mode=SHORTEST if crop or shortest else SQUASH,
        resize=round(size * whole / crop) if crop else None,  # the margin that the crop leaves, to scale
        corner="down",
    )


def _read_processor(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the folder's image processor; None if it has none."""
    for file in (folder / name for name in PROCESSORS):
        if file.is_file():
            try:
                settings = json.loads(file.read_text(encoding="utf-8"))
                found = settings.get("image_processor", settings)
            except (ValueError, AttributeError) as error:
                raise BackboneError(f"{file} is damaged: get it again ({error})") from error
            if {"size", "image_mean", "image_processor_type", "crop_size"} & found.keys():
                return found
    return None


def make_image_processor(feed: ImageFeed) -> Any:
    """Return an image processor of transformers with the preprocessing of a feed.

    Raises:
        BackboneError: `resize_mode="longest"`, which has no counterpart.
    """
    import transformers

    preprocess = feed.preprocess
    if preprocess.resize_mode == "longest":
        raise BackboneError("pictures are padded to a square, which no image processor does in the same way")
    square = {"height": preprocess.size, "width": preprocess.size}
    crops = preprocess.resize_mode == "shortest"
    return transformers.CLIPImageProcessorPil(
        size={"shortest_edge": preprocess.resize or preprocess.size} if crops else square,
        do_center_crop=crops,
        crop_size=square,
        resample=next(code for code, name in FILTERS.items() if name == preprocess.interpolation),
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
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
