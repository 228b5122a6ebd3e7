"""A vision-language model from a configuration: the image tokens of an aligned encoder, a decoder, a recursion."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clip_common.backbones.language import LanguageModel, load_language
from edgeglass.aligner.files import load_model, place_encoder
from edgeglass.config import VisionConfig, VlmConfig
from edgeglass.models.building import load_image_encoder
from edgeglass.models.encoders import ProjectionHead
from edgeglass.models.vlm.prefix import VisionPrefix, VisionProjector
from edgeglass.models.vlm.qwen import QwenDecoder
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.trm import LatentRecursion
from edgeglass.models.vlm.trm_decoder import TRMDecoder


@dataclass(frozen=True)
class Sight:
    """The image side of a model.

    Attributes:
        vision: Settings of the image encoder.
        width: D of its aligned head; None for the encoder's own tokens.
    """

    vision: VisionConfig
    width: int | None


def load_prefix(config: VlmConfig) -> tuple[VisionPrefix, Sight]:
    """Load the frozen image tokens that a configuration asks for: of an aligned model, or of an encoder alone.

    Raises:
        ValueError: One line: no such run or encoder, one that does not read images, or an aligned head without tokens.
    """
    wanted = config.prefix
    if config.align is None:
        vision = VisionConfig(
            name=wanted.name,
            pretrained=wanted.pretrained,
            image_size=wanted.image_size,
            select_layer=-1 if wanted.select_layer is None else wanted.select_layer,
        )
        sight = Sight(place_encoder(vision), None)
        return make_prefix(sight, merge=wanted.merge), sight
    model, aligned, _, _ = load_model(config.align)
    if "image" not in model.modalities:
        raise ValueError(f"align={config.align}: this model reads {', '.join(model.modalities)}, and no images")
    vision = aligned.encoders.vision
    if vision.trains:
        raise ValueError(
            f"align={config.align} trained its image encoder (freeze=false or lora), and this stage reads frozen ones, "
            "which it loads by name: align with a frozen encoder, or name one with prefix.name"
        )
    if wanted.tokens == "aligned":
        for name in ("select_layer", "image_size"):
            if getattr(wanted, name) is not None:
                raise ValueError(
                    f"prefix.{name} belongs to prefix.tokens=patch: aligned tokens are those that the head was trained "
                    "on; leave it out"
                )
        if vision.pooling == "own":
            raise ValueError(
                f"align={config.align} was aligned with encoders.vision.pooling=own, whose head knows no tokens, only "
                "pooled images: set prefix.tokens=patch, or align with pooling=mean, attention or perceiver"
            )
        sight = Sight(vision, aligned.mrl.width)
        prefix = make_prefix(sight, merge=wanted.merge)
        assert prefix.head is not None
        prefix.head.load_state_dict(model.encoder_of("image").head.state_dict())
        return prefix, sight
    vision = replace(
        vision,
        pooling="mean",
        select_layer=vision.select_layer if wanted.select_layer is None else wanted.select_layer,
        image_size=vision.image_size if wanted.image_size is None else wanted.image_size,
    )
    sight = Sight(vision, None)
    return make_prefix(sight, merge=wanted.merge), sight


def make_prefix(sight: Sight, *, merge: int) -> VisionPrefix:
    """Load the image encoder, with an untrained head if it has one.

    Raises:
        ValueError: One line: an encoder that is unknown, not downloaded or damaged.
    """
    encoder = load_image_encoder(sight.vision)
    if sight.width is None:
        return VisionPrefix(encoder, merge=merge)
    head = ProjectionHead(
        width=encoder.tower.trunk.width,
        embed_dim=sight.width,
        config=sight.vision,
        pooling=sight.vision.pooling,
        perceiver=sight.vision.perceiver,
    )
    return VisionPrefix(encoder, head=head, merge=merge)


def load_decoder(config: VlmConfig) -> LanguageModel:
    """Load the language model of a configuration, or its tokenizer alone for `decoder.kind=trm`.

    Raises:
        ValueError: One line: a model that is unknown, not downloaded or damaged, or 4-bit where it cannot run.
    """
    wanted = config.decoder
    return load_language(
        wanted.name,
        quantization=wanted.quantization,
        dtype=getattr(torch, wanted.dtype),
        weights=wanted.kind == "qwen",
    )


def build_vlm(config: VlmConfig, *, prefix: VisionPrefix, language: LanguageModel) -> QwenVLM:
    """Return the model of a configuration; all that trains is drawn from `trainer.seed`, in float32.

    Args:
        config: Its sections `prefix`, `decoder` and `trm`, and its phase, are used.
        prefix: Of `load_prefix`.
        language: Of `load_decoder`.

    Raises:
        ValueError: Adapters for layers that the decoder does not have.
    """
    settings = config.decoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trainer.seed)
        decoder: QwenDecoder | TRMDecoder
        if settings.kind == "trm":
            decoder = TRMDecoder(language.spec.vocabulary, config.trm, config.data.max_length or language.spec.context)
            recursion = None
        else:
            adapters = settings.lora if config.phase != "projector" else None
            decoder = QwenDecoder(language.model, lora=adapters, checkpointing=settings.checkpointing)
            recursion = LatentRecursion(decoder.width, config.trm) if config.trm.steps else None
        vision_proj = VisionProjector(
            config.prefix.projector,
            width=prefix.width,
            decoder_width=decoder.width,
            size=measure_embeddings(decoder, language.spec.vocabulary),
        )
    return QwenVLM(decoder, prefix, vision_proj, recursion=recursion, trm=config.trm)


@torch.no_grad()
def measure_embeddings(decoder: QwenDecoder | TRMDecoder, vocabulary: int) -> float:
    """Return the root mean square of the numbers in a decoder's token embeddings, of a thousand tokens."""
    ids = torch.linspace(0, vocabulary - 1, min(vocabulary, 1000)).long()
    return float(decoder.embed(ids[None]).float().square().mean().sqrt())


def place_decoder(config: VlmConfig) -> VlmConfig:
    """Return the configuration with the full path of the decoder's folder."""
    path = Path(config.decoder.name)
    name = str(path.absolute()) if path.is_dir() else config.decoder.name
    return replace(config, decoder=replace(config.decoder, name=name))
