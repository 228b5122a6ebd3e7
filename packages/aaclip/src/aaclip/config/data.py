"""Settings of the labelled images and of their augmentation."""

from dataclasses import dataclass, field
from typing import Literal

from aaclip.config.checks import check_least
from clip_common.config import ConfigError


@dataclass
class DataConfig:
    """The labelled images."""

    root: str | None = None
    """A folder in one of the known formats; `aaclip data check` lists its contents."""
    format: str = "auto"
    """`auto`, or one of mvtec, visa, btad, mpdd, bmad, polyp, jsonl, meta, folder."""
    classes: list[str] | None = None
    """Only these classes; null takes all of them."""
    mode: Literal["full_shot", "few_shot"] = "full_shot"
    """All labelled samples, or `shot` of each class."""
    shot: int = 32
    """Samples of each class in few-shot training: half of them normal, half anomalous."""
    labelled: Literal["all", "test"] = "all"
    """Full-shot training takes every labelled sample, train/good included, or the test split alone (official)."""
    drop_last: bool = True
    """Leave out an epoch's last batch if it is not full; false (official) trains it."""
    test_roots: list[str] = field(default_factory=list)
    """Sets that will be tested. Training refuses images that are in one of them, compared by content."""
    workers: int = 0
    """Loader processes; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        check_least("data.workers", self.workers, least=0, what="a whole number")
        if self.shot < 2 or self.shot % 2:
            raise ConfigError(
                f"data.shot: expected an even number from 2 (half normal, half anomalous), got {self.shot}"
            )


@dataclass
class AugmentConfig:
    """Augmentation in training. Geometry acts on image and mask together, on masks by nearest neighbour."""

    rotation: float = 5.0
    """Largest angle in degrees."""
    rotation_p: float = 1.0
    """Share of images that are rotated."""
    crop: float = 1.05
    """Resize to this multiple of the input size, then crop the input size at random; 1: no crop."""
    translation: float = 0.0
    """Largest shift as a share of the side."""
    translation_p: float = 0.5
    """Share of images that are shifted."""
    flip_horizontal: float = 0.5
    """Share of images that are mirrored left to right."""
    flip_vertical: float = 0.0
    """Share of images that are mirrored top to bottom."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation, in stage 2 only."""
    jitter_p: float = 0.7
    """Share of images whose colours are changed."""
    jitter_coins: Literal["one", "each"] = "one"
    """`one`: all three colour changes or none, in random order, after the geometry; `each` (official): brightness,
    contrast and saturation in this order, each by its own coin, before the resize."""
    fill: Literal["edge", "mean"] = "edge"
    """Colour of areas from outside the picture: the nearest pixel's, or (official) the mean of
    `preprocess.statistics`."""
    resampling: Literal["bicubic", "nearest"] = "bicubic"
    """Of rotations, in images; nearest (official) moves pixels whole, so that it does not matter that the released code
    rotates after normalising."""

    def __post_init__(self) -> None:
        for name in ("rotation_p", "translation_p", "flip_horizontal", "flip_vertical", "jitter_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        check_least("augment.crop", self.crop, least=1)
