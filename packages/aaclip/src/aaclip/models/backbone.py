"""The frozen CLIP that a configuration names, how its images are prepared, and the model around it."""

from dataclasses import replace

from aaclip.config import AdapterConfig, BackboneConfig, Config, PreprocessConfig
from aaclip.models.anomaly import AnomalyModel
from clip_common.backbones import Bundle, load_clip
from clip_common.backbones.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def load_backbone(config: BackboneConfig, *, text: bool = True) -> Bundle:
    """Load the CLIP of a configuration; without `text` its text tower has shapes but no weights."""
    return load_clip(
        config.name,
        pretrained=config.pretrained,
        activation=config.activation,
        image_size=config.image_size,
        text=text,
    )


def make_preprocess(bundle: Bundle, config: PreprocessConfig) -> Preprocess:
    """Return the preparation of images: squashed to a square, with the backbone's statistics or ImageNet's."""
    own = bundle.preprocess
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.statistics == "imagenet" else (own.mean, own.std)
    return Preprocess(
        size=bundle.image.spec.image_size, mean=mean, std=std, interpolation="bicubic", resize_mode="squash"
    )


def make_model(bundle: Bundle, config: Config) -> AnomalyModel:
    """Return an untrained model from the sections of a configuration."""
    return AnomalyModel(
        bundle,
        levels=config.levels,
        surgery=config.surgery,
        adapters=choose_adapters(config),
        heads=config.heads,
        cross_attention=config.cross_attention,
    )


def choose_adapters(config: Config) -> AdapterConfig:
    """Return the adapters of a configuration; if no text stage trains or loads any, the text tower is plain CLIP's."""
    if config.stages.text.epochs == 0 and config.start is None:
        return replace(config.adapters, text_blocks=0, final_init="clip")
    return config.adapters
