"""Every knob of aaclip, with its unit and default. `aaclip config` prints them; `section.field=value` sets one.

The defaults are the source documents' design with its slips corrected; `--config official` is the released code with
its slips, `--config reference` the documents' values literally, `--config tiny` the CLIP that clip_common ships.
Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from clip_common.config import ConfigError, TrainerConfig


def _require(name: str, value: float, *, least: float, what: str = "a number") -> None:
    if value < least:
        raise ConfigError(f"{name}: expected {what} from {least:g}, got {value}")


@dataclass
class DataConfig:
    """Where labelled images come from."""

    root: str | None = None
    """A folder in one of the known formats; `aaclip data check` prints what it found."""
    format: str = "auto"
    """`auto`, or one of mvtec, visa, btad, mpdd, bmad, polyp, jsonl, meta, folder."""
    classes: list[str] | None = None
    """Only these classes; null takes all of them."""
    mode: Literal["full_shot", "few_shot"] = "full_shot"
    """All labelled samples, or `shot` of each class."""
    shot: int = 32
    """Samples of each class in few-shot training: half of them normal, half anomalous."""
    labelled: Literal["all", "test"] = "all"
    """Full-shot trains on every labelled sample, train/good included, or on the test split alone (official)."""
    test_roots: list[str] = field(default_factory=list)
    """Sets that will be tested: training refuses images that are in them too, compared by content."""
    workers: int = 0
    """Loader processes; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        _require("data.workers", self.workers, least=0, what="a whole number")
        if self.shot < 2 or self.shot % 2:
            raise ConfigError(
                f"data.shot: expected an even number from 2 (half normal, half anomalous), got {self.shot}"
            )


@dataclass
class BackboneConfig:
    """The frozen CLIP."""

    name: str = "ViT-L-14-336"
    """`tiny`, an open_clip architecture, `hf-hub:org/name`, `local-dir:/folder` or a weights file."""
    pretrained: str | None = "openai"
    """Tag of the weights (`aaclip prefetch`); null where the name brings its own; `random` for trials of the code."""
    activation: Literal["quick_gelu", "gelu"] | None = "quick_gelu"
    """`quick_gelu`, with which OpenAI's weights were trained; `gelu`, official's slip; null keeps the weights' own."""
    image_size: int | None = 518
    """Pixels a side; position embeddings are interpolated. null keeps the weights' own."""


@dataclass
class PreprocessConfig:
    """Images to tensors: RGB, resized to a square (bicubic, aspect not kept), normalised."""

    statistics: Literal["clip", "imagenet"] = "clip"
    """Mean and deviation: those of the backbone, or ImageNet's (the reference document's slip)."""


@dataclass
class SurgeryConfig:
    """The frozen tower's second view, whose last blocks attend by V alone; stage 1 reads its patches."""

    axis: Literal["space", "batch"] = "space"
    """V-V attention among the patches of an image, or (official's slip) among the images of a batch, patch by patch."""
    blocks: int | None = None
    """How many of the last blocks; null: 19 of 24, the same share of another depth."""


@dataclass
class AdapterConfig:
    """Small trainable modules inside the frozen towers."""

    kind: Literal["bottleneck", "mlp", "linear"] = "bottleneck"
    """`bottleneck` d → d/2 → d (LeakyReLU 0.2), `mlp` d → d → d, `linear` one matrix without bias (LeakyReLU 0.01)."""
    text_blocks: int | None = field(default=None, metadata={"alias": "text_adapt_until"})
    """First text blocks that are followed by an adapter; null: a quarter of them (3 of 12)."""
    image_blocks: int | None = field(default=None, metadata={"alias": "image_adapt_until"})
    """First image blocks that are followed by an adapter; null: a quarter of them (6 of 24)."""
    text_weight: float = 0.1
    """Share of the adapter in x = w·a + (1 − w)·x, in the text tower."""
    image_weight: float = 0.1
    """The same in the image tower."""
    norm_preserving: bool = True
    """Scale each token of the adapter's output to the norm of its input."""
    final_init: Literal["clip", "xavier"] = "clip"
    """The map that replaces CLIP's text projection starts from it, or from random numbers (official)."""

    def __post_init__(self) -> None:
        for name in ("text_weight", "image_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"adapters.{name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass
class HeadConfig:
    """The maps from patches to the space of text."""

    activation: Literal["relu", "none"] = "relu"
    """`relu` is LeakyReLU 0.2 after the matrix; `none` is the matrix alone, without bias (official)."""
    class_token: bool = True
    """The image as a whole is the class token of the frozen tower, as stage 1 adds it to patches, at the price of a
    second pass when an image is scored; without it (official), the mean of the adapted patches through a head of its
    own, which learns the training classes by heart."""


@dataclass
class PromptConfig:
    """What is said about a class; see prompts.yaml."""

    set: str = "full"
    """`full` (112 prompts a class), `compact` (official's 16), or a YAML file with states, templates and names."""
    renormalise: bool = True
    """Scale the mean of the prompts' embeddings to unit length again."""


@dataclass
class AugmentConfig:
    """Augmentation in training; geometry acts on image and mask together, masks by nearest neighbour."""

    rotation: float = 5.0
    """Largest angle in degrees."""
    rotation_p: float = 1.0
    """Share of images that are rotated."""
    crop: float = 1.05
    """Resize to this many times the input, then crop the input's size at random; 1 crops nothing."""
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

    def __post_init__(self) -> None:
        for name in ("rotation_p", "translation_p", "flip_horizontal", "flip_vertical", "jitter_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        _require("augment.crop", self.crop, least=1)


@dataclass
class LossConfig:
    """Focal and Dice losses of the maps, and the angle between normal and abnormal."""

    focal_alpha: Literal["one", "dynamic"] = "one"
    """Weight of a pixel in the focal loss: one, or the inverse frequency of its class in the batch."""
    classification_scale: float = 100.0
    """Factor of the cosines in the cross-entropy of an image as a whole, where that is trained: as in CLIP; 1 in the
    released code, where a cosine can hardly move the loss."""
    orthogonal: float = field(default=0.1, metadata={"alias": "text_norm_weight"})
    """Weight of (mean of t_normal·t_abnormal)² in stage 1."""


@dataclass
class TextStageConfig:
    """Stage 1: text adapters learn, against the frozen tower's patches."""

    epochs: int = 5
    """Epochs; 0 leaves the stage out."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 1e-5
    """Learning rate of Adam(0.5, 0.999)."""
    levels_in_loss: Literal["all", "last"] = "all"
    """The loss sums the maps of all levels, or the last one overwrites the others (official's slip)."""
    classification: bool = False
    """Cross-entropy of the image's own embedding besides; the paper has it, the released code does not."""
    cache_features: int = 0
    """Augmented views of each image whose frozen features are computed once and kept; 0 draws new ones each epoch."""


@dataclass
class ImageStageConfig:
    """Stage 2: image adapters and heads learn, against fixed class embeddings."""

    epochs: int = 20
    """Epochs; 0 leaves the stage out."""
    batch_size: int = 2
    """Images per step."""
    lr: float = 5e-4
    """Learning rate of Adam(0.5, 0.999)."""
    milestones: list[int] = field(default_factory=lambda: [16000, 32000])
    """Steps at which the learning rate is halved."""
    learned_temperature: bool = False
    """Learn the factor of similarities, from 100; otherwise it stays 100."""
    learned_levels: bool = False
    """Learn a weight for each level's map, from equal ones."""


@dataclass
class StagesConfig:
    """The two stages."""

    text: TextStageConfig = field(default_factory=TextStageConfig)
    image: ImageStageConfig = field(default_factory=ImageStageConfig)

    def __post_init__(self) -> None:
        for name, stage in (("text", self.text), ("image", self.image)):
            _require(f"stages.{name}.epochs", stage.epochs, least=0, what="a whole number")
            _require(f"stages.{name}.batch_size", stage.batch_size, least=1, what="a whole number")


@dataclass
class ScoreConfig:
    """From maps to one number an image."""

    image: Literal["calibrated", "official"] = "calibrated"
    """Logistic of classification and the map's hottest 1 % of patches, fitted on training images; or min-max over the
    test class."""
    domain: Literal["industrial", "medical"] = "industrial"
    """Width of the blur: 7 pixels of the grid (σ 1), or 9 (σ 1.5)."""


@dataclass
class Config:
    """A training run of aaclip."""

    name: str | None = None
    """Name of the run folder; default: the data, the backbone, the seed and the time."""
    runs: str = "runs"
    """Folder that holds the run folders and their registry."""
    levels: list[int] | None = None
    """Image blocks, from 1, whose patches are read; null: quarters of the depth (6, 12, 18, 24 of 24)."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(grad_clip=None))
