"""The frozen CLIP that a configuration names, and how its images are prepared."""

from torch import nn

from aaclip.config import BackboneConfig, PreprocessConfig
from clip_common.backbones import Bundle, fingerprint, load_clip
from clip_common.backbones.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def load_backbone(config: BackboneConfig, *, text: bool = True) -> Bundle:
    """The CLIP of a configuration; without `text` its text tower has shapes but no weights."""
    return load_clip(
        config.name,
        pretrained=config.pretrained,
        activation=config.activation,
        image_size=config.image_size,
        text=text,
    )


def make_preprocess(bundle: Bundle, config: PreprocessConfig) -> Preprocess:
    """The backbone's statistics or ImageNet's, on a square that keeps no aspect."""
    own = bundle.preprocess
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.statistics == "imagenet" else (own.mean, own.std)
    return Preprocess(
        size=bundle.image.spec.image_size, mean=mean, std=std, interpolation="bicubic", resize_mode="squash"
    )


def require_same(expected: str, tower: nn.Module, backbone: BackboneConfig, *, source: object) -> None:
    """Raise ValueError where a tower is not the one that a detector was trained with."""
    found = fingerprint(tower)
    if found != expected:
        raise ValueError(
            f"{source} was trained on other weights than those of {backbone.name} here (fingerprint {expected[:12]}…, "
            f"found {found[:12]}…): load the backbone that it names"
        )
