"""Encoders from a configuration: which model a name means, whether it trains, and the heads over it."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from clip_common.backbones import (
    Encoder,
    ImageEncoder,
    Tower,
    fingerprint,
    freeze,
    load_audio,
    load_clip,
    load_text,
    load_vision,
)
from clip_common.backbones.origins import is_architecture
from edgeglass.config import Config, EncoderConfig, VisionConfig
from edgeglass.models.adapters import inject_adapters, list_linear_names
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.encoders import AudioEncoder, ModalityEncoder, TextEncoder, VisionEncoder
from edgeglass.models.fusion import MultimodalFusion
from edgeglass.models.vision_tokens import SelectedTokens


def build_model(config: Config, *, loss: nn.Module | None = None) -> MultimodalAlignmentModel:
    """Return the model of a configuration, with encoders loaded and heads and fusion drawn from `trainer.seed`.

    Args:
        config: Its sections `encoders`, `audio`, `mrl` and `fusion` are used.
        loss: See `MultimodalAlignmentModel`.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded or damaged, or sizes that do not go together.
    """
    encoders = build_encoders(config)
    fusion = None
    if config.fusion.kind != "none":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed + 1)
            fusion = MultimodalFusion(
                config.fusion.kind,
                width=config.mrl.width,
                modalities=config.fusion.inputs,
                heads=config.fusion.heads,
            )
    return MultimodalAlignmentModel(encoders, loss=loss, fusion=fusion)


def build_encoders(config: Config) -> dict[str, ModalityEncoder]:
    """Load the encoders of a configuration and put heads over them, by modality.

    Heads are drawn from `trainer.seed`; frozen trunks get no gradient and stay in eval mode.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded or damaged, or sizes that do not go together.
    """
    encoders = config.encoders
    loaded = {modality: load_encoder(config, modality) for modality in encoders.modalities}
    built: dict[str, ModalityEncoder] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trainer.seed)
        for modality, encoder in loaded.items():
            prepare_trunk(encoder, encoders.of(modality))
            if modality == "image":
                built[modality] = VisionEncoder(encoder, encoders.vision, widths=config.mrl.widths)
            elif modality == "text":
                built[modality] = TextEncoder(encoder, encoders.text, widths=config.mrl.widths)
            else:
                built[modality] = AudioEncoder(encoder, encoders.audio, widths=config.mrl.widths)
    return built


def load_encoder(config: Config, modality: str) -> Encoder:
    """Load the encoder of one modality, without a head.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded or damaged.
    """
    encoders = config.encoders
    if modality == "text":
        return load_text(str(encoders.text.name))
    if modality == "audio":
        return load_audio(str(encoders.audio.name), context=config.audio.context)
    return load_image_encoder(encoders.vision)


def load_image_encoder(vision: VisionConfig) -> Encoder:
    """Load the encoder of images, without a head; its trunk gives the tokens that `select_layer` chooses.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded or damaged, or a layer that it does not have.
    """
    image = _load_image_bundle(vision)
    tokens = SelectedTokens(
        image.tower.trunk,
        layer=vision.select_layer,
        select=vision.select_feature,
        own_width=image.spec.embed_dim if vision.pooling == "own" else None,
    )
    # the encoder of a CLIP without its text tower has no fingerprint yet
    identity = image.spec.fingerprint or fingerprint(image.tower.trunk)
    return Encoder(Tower(tokens).eval(), image.feed, replace(image.spec, embed_dim=tokens.width, fingerprint=identity))


def prepare_trunk(encoder: Encoder, config: EncoderConfig) -> None:
    """Freeze the trunk, let it train, or freeze it under low-rank adapters.

    Raises:
        ValueError: Adapters for layers that the trunk does not have.
    """
    trunk: nn.Module = encoder.tower.trunk
    if config.freeze or config.lora.rank:
        freeze(trunk)
    if config.lora.rank:
        add_adapters(trunk, config)


def add_adapters(trunk: nn.Module, config: EncoderConfig) -> None:
    """Put low-rank adapters (peft) into the linear layers of a trunk whose names `lora.targets` lists.

    Raises:
        ValueError: The trunk has no such layer.
    """
    lora = config.lora
    names = list_linear_names(trunk)
    targets = [name for name in names if name in lora.targets]
    if not targets:
        raise ValueError(
            f"lora.targets={list(lora.targets)}: this encoder has none of them; its linear layers are "
            f"{', '.join(names) or 'none'}"
        )
    inject_adapters(trunk, targets, r=lora.rank, alpha=lora.alpha)
    for part in trunk.children():  # new layers start in training mode, and a frozen trunk ignores `eval`
        part.eval()


def _load_image_bundle(config: VisionConfig) -> ImageEncoder:
    name = str(config.name)
    of_open_clip = name == "tiny" or name.startswith(("local-dir:", "hf-hub:")) or config.pretrained is not None
    if of_open_clip or (not Path(name).is_dir() and "/" not in name and is_architecture(name)):
        bundle = load_clip(name, pretrained=config.pretrained, image_size=config.image_size, text=False)
        return bundle.image
    return load_vision(name, image_size=config.image_size)
