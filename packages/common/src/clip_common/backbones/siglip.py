"""A SiglipModel of transformers as a bundle: its own two models, which end in the shared space, its scale and bias."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.encoder import Bundle, ImageEncoder, ImageFeed, TextEncoder, TextFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.hub import find_missing_of_tokenizer
from clip_common.backbones.huggingface import load_model, load_tokenizer
from clip_common.backbones.preprocess import TRAIN_CROP
from clip_common.backbones.spec import BundleSpec, ImageSpec, TextSpec
from clip_common.backbones.text_models import TransformersText
from clip_common.backbones.tokenizers import MissingTokenizer, Tokenizer, TransformersTokenizer
from clip_common.backbones.towers import TextTower, VisionTower
from clip_common.backbones.vision_models import TransformersVision, read_preprocess, resize_model


def load_siglip(
    folder: Path, *, name: str, image_size: int | None = None, image: bool = True, text: bool = True
) -> Bundle:
    """Load a SiglipModel, in eval mode.

    Args:
        folder: config.json and weights; without a tokenizer, the bundle's refuses texts.
        name: As the user asked for it.
        image_size, image, text: As for `load_clip`.

    Raises:
        BackboneError: Damaged or incomplete.
    """
    model = load_model(folder, parts={"siglip": "SiglipModel"}, optional=())
    stored = fingerprint(model) if image and text else ""
    preprocess = read_preprocess(folder, model.config.vision_config, image_size=image_size)
    if preprocess.size != model.config.vision_config.image_size:
        resize_model(model.vision_model, preprocess.size)
    vision, words = TransformersVision(model.vision_model), TransformersText(model.text_model)
    cells = preprocess.size // vision.patch_size
    image_spec = ImageSpec(
        name=name,
        width=vision.width,
        depth=len(vision.blocks),
        embed_dim=vision.width,
        fingerprint=stored,
        image_size=preprocess.size,
        patch_size=vision.patch_size,
        grid=(cells, cells),
    )
    text_spec = TextSpec(
        name=name,
        width=words.width,
        depth=words.depth,
        embed_dim=vision.width,
        fingerprint=stored,
        context_length=model.config.text_config.max_position_embeddings,
    )
    config = model.config.to_dict()
    bundle = Bundle(
        image=ImageEncoder(VisionTower(vision).eval(), ImageFeed(preprocess), image_spec),
        text=TextEncoder(TextTower(words).eval(), TextFeed(load_siglip_tokenizer(folder, config)), text_spec),
        train_preprocess=replace(preprocess, crop_scale=TRAIN_CROP),
        spec=BundleSpec(kind="siglip", name=name, pretrained=None, activation=None, fingerprint=stored, config=config),
        logit_scale=model.logit_scale.item(),
        logit_bias=model.logit_bias.item(),
    )
    for tower, used in ((bundle.image_tower, image), (bundle.text_tower, text)):
        if not used:
            tower.to("meta")
    return bundle


def load_siglip_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer beside a SiglipModel, padding to its context length; one that refuses texts if absent.

    Args:
        folder: Of the model.
        config: Content of its config.json.
    """
    if find_missing_of_tokenizer(folder) is not None:
        return MissingTokenizer(folder)
    context = config["text_config"]["max_position_embeddings"]
    return TransformersTokenizer(load_tokenizer(folder), context_length=context, pad_to_context=True)


def collect_weights(bundle: Bundle) -> dict[str, Tensor]:
    """Return the weights of a SiglipModel; a bundle without a bias is given one of 0, since a SiglipModel has one."""
    vision, text = bundle.image_tower.trunk, bundle.text_tower.trunk
    assert isinstance(vision, TransformersVision)
    assert isinstance(text, TransformersText)
    models = {"vision_model": vision.model, "text_model": text.model}
    state = {f"{part}.{name}": weight for part, model in models.items() for name, weight in model.state_dict().items()}
    scalars = {"logit_scale": bundle.logit_scale, "logit_bias": bundle.logit_bias or 0.0}
    return state | {name: torch.tensor([value]) for name, value in scalars.items()}
