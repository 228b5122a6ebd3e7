"""The frozen CLIP that a configuration names, how its images are prepared, and the model around it."""

from dataclasses import replace
from pathlib import Path

from aaclip.config import AdapterConfig, BackboneConfig, Config, PreprocessConfig
from aaclip.models.anomaly import AnomalyModel
from clip_common.backbones import Bundle, TextTower, fingerprint, load_clip
from clip_common.backbones.origins import is_architecture
from clip_common.backbones.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from clip_common.tensors import check_fingerprint


def load_backbone(config: BackboneConfig, *, image: bool = True, text: bool = True) -> Bundle:
    """Load the CLIP of a configuration; without `image` or `text` that tower has shapes but no weights."""
    return load_clip(
        config.name,
        pretrained=config.pretrained,
        activation=config.activation,
        image_size=config.image_size,
        image=image,
        text=text,
    )


def read_backbone(source: str) -> BackboneConfig:
    """Return the CLIP that a command names in the place of a run.

    Args:
        source: ARCHITECTURE:PRETRAINED, such as `ViT-L-14-336:openai`, at the size and with the activation that
            training has by default, so that plain CLIP is compared with its trained self; or `tiny`,
            `hf-hub:org/name` and `local-dir:/folder`, as their weights say.

    Raises:
        ValueError: An architecture without its weights.
    """
    name, colon, pretrained = source.partition(":")
    if colon and name not in ("hf-hub", "local-dir"):
        return BackboneConfig(name=name, pretrained=pretrained)
    if not colon and is_architecture(source):
        raise ValueError(f"{source} is an architecture: name its weights too, such as {source}:openai")
    return BackboneConfig(name=source, pretrained=None, activation=None, image_size=None)


def check_activation(bundle: Bundle, expected: str | None, *, source: Path) -> None:
    """Raise ValueError unless a CLIP runs with the activation that `source` was made with."""
    if bundle.spec.activation != expected:
        raise ValueError(
            f"{source} was made with activation {expected}, but {bundle.spec.name} now runs with "
            f"{bundle.spec.activation}: put the CLIP's configuration back, or train again"
        )


def load_text_tower(config: BackboneConfig, *, expected: str, source: str) -> TextTower:
    """Load the text tower of a configuration, without the image tower's weights.

    Args:
        config: Names the CLIP.
        expected: Fingerprint of the text tower.
        source: What was made with it, for the message.

    Raises:
        ValueError: The CLIP is gone, or has another text tower by now.
    """
    tower = load_backbone(config, image=False).text_tower
    check_fingerprint(fingerprint(tower), expected, source=source, what=f"a text tower {config.name}")
    return tower


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
        learned_tokens=choose_learned_tokens(config),
    )


def choose_learned_tokens(config: Config) -> int:
    """Return the number of learned tokens of a configuration.

    Raises:
        ValueError: There are some, and no text stage trains or loads them.
    """
    count = config.prompts.learned_tokens
    if count and config.stages.text.epochs == 0 and config.start is None:
        raise ValueError(
            f"prompts.learned_tokens={count} with stages.text.epochs=0: stage 1 trains them: give it epochs, or a "
            "start=RUN that has them"
        )
    return count


def choose_adapters(config: Config) -> AdapterConfig:
    """Return the adapters of a configuration; if no text stage trains or loads any, the text tower is plain CLIP's."""
    if config.stages.text.epochs == 0 and config.start is None:
        return replace(config.adapters, text_blocks=0, final_init="clip")
    return config.adapters
