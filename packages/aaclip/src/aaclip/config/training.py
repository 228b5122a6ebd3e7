"""Settings of a training run: its losses, stages and loops, and `Config`, which holds all sections."""

from dataclasses import dataclass, field
from typing import Literal

from aaclip.config.checks import check_least
from aaclip.config.data import AugmentConfig, DataConfig
from aaclip.config.model import (
    AdapterConfig,
    BackboneConfig,
    CrossAttentionConfig,
    HeadConfig,
    PreprocessConfig,
    PromptConfig,
    ScoreConfig,
    SurgeryConfig,
)
from clip_common.config import ConfigError, TrainerConfig


@dataclass
class LossConfig:
    """Focal and Dice losses of the maps, and the angle between normal and abnormal."""

    focal_alpha: Literal["one", "dynamic"] = "one"
    """Weight of a pixel in the focal loss: one, or the inverse frequency of its class in the batch."""
    classification_scale: float = 100.0
    """Factor of the cosines in the cross-entropy of an image as a whole, if that is trained: 100 as in CLIP; 1 in the
    released code, with which a cosine hardly changes the loss."""
    orthogonal: float = field(default=0.1, metadata={"alias": "text_norm_weight"})
    """Weight of (mean of t_normal·t_abnormal)² in stage 1."""
    infonce: float = 0.0
    """Weight in stage 1 of InfoNCE: each prompt of a class against the normal and the abnormal embedding of the class.
    It takes the place of the angle with `orthogonal` 0."""
    infonce_temperature: float = 0.07
    """What cosines are divided by in InfoNCE."""

    def __post_init__(self) -> None:
        check_least("loss.infonce", self.infonce, least=0)
        if self.infonce_temperature <= 0:
            raise ConfigError(f"loss.infonce_temperature: expected a number above 0, got {self.infonce_temperature:g}")


@dataclass
class TextStageConfig:
    """Stage 1: trains the text adapters against the frozen tower's patches."""

    epochs: int = 5
    """Epochs; 0 skips the stage: without a `start`, stage 2 is then trained against plain CLIP's text embeddings."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 1e-5
    """Learning rate of Adam(0.5, 0.999)."""
    levels_in_loss: Literal["all", "last"] = "all"
    """Levels whose losses are summed; `last`: the last one overwrites the others (official's slip)."""
    classification: bool = False
    """Add the cross-entropy of the image's own embedding, as in the paper but not in the released code."""
    cache_features: int = 0
    """Augmented views of each image whose frozen features are computed once and cached; 0: new views each epoch. Not
    with surgery.axis=batch."""


@dataclass
class ImageStageConfig:
    """Stage 2: trains the image adapters and heads against fixed class embeddings."""

    epochs: int = 20
    """Epochs; 0 skips the stage."""
    batch_size: int = 2
    """Images per step."""
    lr: float = 5e-4
    """Learning rate of Adam(0.5, 0.999)."""
    milestones: list[int] = field(default_factory=lambda: [16000, 32000])
    """Steps at which the learning rate is halved."""
    learned_temperature: bool = False
    """Learn the factor of similarities, starting from 100; otherwise it stays 100."""
    learned_levels: bool = False
    """Learn a weight for each level's map, starting from equal ones."""


@dataclass
class StagesConfig:
    """The two stages."""

    order: Literal["separate", "joint"] = "separate"
    """`separate`: stage 1, then stage 2; `joint`: both at once, end to end, with the epochs, batch size and milestones
    of `image` and a learning rate for each. `aaclip feedback cross_attention.enabled=false` alternates: text, image,
    text, …"""

    text: TextStageConfig = field(default_factory=TextStageConfig)
    image: ImageStageConfig = field(default_factory=ImageStageConfig)

    def __post_init__(self) -> None:
        for name, stage in (("text", self.text), ("image", self.image)):
            check_least(f"stages.{name}.epochs", stage.epochs, least=0, what="a whole number")
            check_least(f"stages.{name}.batch_size", stage.batch_size, least=1, what="a whole number")
        if self.order == "joint" and self.text.cache_features:
            raise ConfigError(
                f"stages.text.cache_features={self.text.cache_features} with stages.order=joint: images are computed "
                "anyway: set cache_features=0"
            )


@dataclass
class FeedbackConfig:
    """Loops of both stages (`aaclip feedback`): stage 1 of a later loop reads patches that the loop before trained."""

    loops: int = 3
    """Loops, unless a plateau ends them earlier."""
    text_epochs: list[int] = field(default_factory=lambda: [5, 3, 2])
    """Epochs of stage 1 by loop, instead of `stages.text.epochs`; loops beyond the list take its last number."""
    image_epochs: list[int] = field(default_factory=lambda: [20, 10, 5])
    """Epochs of stage 2 by loop, instead of `stages.image.epochs`."""
    epochs_decay: float | None = None
    """d: loop n has max(1, ⌊a·dⁿ⁻¹⌋) and max(2, ⌊b·dⁿ⁻¹⌋) epochs; a and b begin the two lists. null: the lists."""
    lr_decay: float = 0.5
    """Factor of both stages' learning rates from one loop to the next."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Fresh in each stage of each loop. `adam`: (0.5, 0.999), stage 2's rate halved at `milestones`; `adamw`: (0.9,
    0.999), linear warmup, then cosine to 0."""
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.8])
    """Shares of the steps of a loop's stage 2 at which the rate of `adam` is halved."""
    weight_decay: float = 0.01
    """Of `adamw`; biases are exempt."""
    warmup_epochs: float = 2.0
    """Of `adamw`, in each stage of each loop."""
    freeze: Literal["none", "adapters", "variant_b"] = "none"
    """`adapters`: cross-attention alone is trained; `variant_b`: the first text adapter, the first image adapter, the
    first head and cross-attention. Both need `start`."""
    cross_attention_start_loop: int = 1
    """First loop with cross-attention."""
    held_out: float = 0.2
    """Share of the images of each class and label that no loop learns from, on which every loop is scored; 0: none."""
    plateau_threshold: float = 0.01
    """Least gain of a loop in the mean of image AUROC, pixel AUROC and AUPRO on the held-out images."""
    plateau_patience: int | None = 2
    """End after this many loops in a row without that gain; null: never."""

    def __post_init__(self) -> None:
        check_least("feedback.loops", self.loops, least=1, what="a whole number")
        for name in ("text_epochs", "image_epochs"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"feedback.{name}: expected whole numbers from 1, got {getattr(self, name)}")
        for name in ("epochs_decay", "lr_decay"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ConfigError(f"feedback.{name}: expected a factor above 0, up to 1, got {value}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"feedback.held_out: expected a share from 0 to below 1, got {self.held_out}")
        if not 1 <= self.cross_attention_start_loop <= self.loops:
            raise ConfigError(
                f"feedback.cross_attention_start_loop: expected a loop from 1 to {self.loops}, got "
                f"{self.cross_attention_start_loop}"
            )
        if self.plateau_patience is not None:
            check_least("feedback.plateau_patience", self.plateau_patience, least=1, what="null or a whole number")
            if not self.held_out:
                raise ConfigError(
                    "feedback.held_out: expected a share above 0, because feedback.plateau_patience needs images to "
                    "judge loops by, got 0: set feedback.plateau_patience=null too"
                )
        shortest = min(min(self.epochs(loop)) for loop in range(1, self.loops + 1))
        if self.optimizer == "adamw" and shortest <= self.warmup_epochs:
            raise ConfigError(
                f"feedback.warmup_epochs: expected fewer than the {shortest} epochs of the shortest stage, got "
                f"{self.warmup_epochs:g}"
            )

    def epochs(self, loop: int) -> tuple[int, int]:
        """Return the epochs of stage 1 and of stage 2 in a loop, counted from 1."""
        if self.epochs_decay is not None:
            share = self.epochs_decay ** (loop - 1)
            return max(1, int(self.text_epochs[0] * share)), max(2, int(self.image_epochs[0] * share))
        text, image = (given[min(loop, len(given)) - 1] for given in (self.text_epochs, self.image_epochs))
        return text, image


@dataclass
class Config:
    """A training run of aaclip."""

    name: str | None = None
    """Name of the run folder; default: the data, the backbone, the seed and the time."""
    runs: str = "runs"
    """Folder that holds the run folders and their registry."""
    start: str | None = None
    """A run or saved detector whose trained weights are the start of this training; null: untrained modules. One
    without cross-attention may start a training with it, and the text stage alone (`aaclip import`) one of stage 2."""
    levels: list[int] | None = None
    """Image blocks, from 1, whose patches are read; null: quarters of the depth (6, 12, 18, 24 of 24)."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(grad_clip=None))

    def __post_init__(self) -> None:
        if self.surgery.axis == "batch" and self.stages.text.cache_features:
            raise ConfigError(
                f"stages.text.cache_features={self.stages.text.cache_features} with surgery.axis=batch: patches depend "
                "on the other images of a batch, which change from epoch to epoch: set cache_features=0 or axis=space"
            )


AblationArea = Literal["placement", "adapter", "norm", "prompts", "levels", "detection", "loss", "order"]
"""Parts of the training that `aaclip ablate` changes."""


@dataclass
class AblateConfig:
    """Options of `aaclip ablate` beside the configuration of its runs."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Training seeds of each arm."""
