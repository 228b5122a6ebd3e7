"""Configuration of aaclip: every field with its unit and default. `aaclip config` prints them.

The defaults are the source documents' design with its slips corrected. `--config official` is the released code with
its slips, `--config reference` has the documents' values literally, `--config tiny` uses the CLIP that clip_common
ships. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from clip_common.config import ConfigError, TrainerConfig


def _check(name: str, value: float, *, least: float, what: str = "a number") -> None:
    if value < least:
        raise ConfigError(f"{name}: expected {what} from {least:g}, got {value}")


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
        _check("data.workers", self.workers, least=0, what="a whole number")
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
    """Tag of the weights (`aaclip prefetch`); null if the name implies them; `random` for trials of the code."""
    activation: Literal["quick_gelu", "gelu"] | None = "quick_gelu"
    """`quick_gelu`: as OpenAI's weights were trained; `gelu`: official's slip; null: as the weights say."""
    image_size: int | None = 518
    """Pixels a side; position embeddings are interpolated. null: as the weights say."""


@dataclass
class PreprocessConfig:
    """From images to tensors: RGB, resized to a square (bicubic, aspect not kept), normalised."""

    statistics: Literal["clip", "imagenet"] = "clip"
    """Mean and deviation: the backbone's, or ImageNet's (the reference document's slip)."""


@dataclass
class SurgeryConfig:
    """The second view of the frozen tower, whose last blocks attend by V alone. Stage 1 reads its patches."""

    axis: Literal["space", "batch"] = "space"
    """V-V attention among the patches of an image, or (official's slip) among the images of a batch, patch by patch."""
    blocks: int | None = None
    """Number of last blocks; null: 19 of 24, and the same share of another depth."""


@dataclass
class AdapterConfig:
    """Small trainable modules inside the frozen towers."""

    kind: Literal["bottleneck", "mlp", "linear"] = "bottleneck"
    """`bottleneck` d → d/2 → d (LeakyReLU 0.2), `mlp` d → d → d, `linear` one matrix without bias (LeakyReLU 0.01)."""
    text_blocks: int | None = field(default=None, metadata={"alias": "text_adapt_until"})
    """Number of first text blocks with an adapter after them; null: a quarter of all (3 of 12)."""
    image_blocks: int | None = field(default=None, metadata={"alias": "image_adapt_until"})
    """Number of first image blocks with an adapter after them; null: a quarter of all (6 of 24)."""
    text_weight: float = 0.1
    """Share of the adapter in x = w·a + (1 − w)·x, in the text tower."""
    image_weight: float = 0.1
    """The same in the image tower."""
    norm_preserving: bool = True
    """Scale each token of the adapter's output to the norm of its input."""
    final_init: Literal["clip", "xavier"] = "clip"
    """Start of the map that replaces CLIP's text projection: that projection, or random numbers (official)."""

    def __post_init__(self) -> None:
        for name in ("text_weight", "image_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"adapters.{name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass
class CrossAttentionConfig:
    """Attention between the towers after the first block of each: prompts to an image context of their class, and
    images to the tokens of their class's prompts."""

    enabled: bool = False
    """Train both, and use them wherever the model is used."""
    heads: int = 8
    """Attention heads; they divide the width of the text tower."""
    dropout: float = 0.1
    """Share of a context's tokens that each head leaves out in a training step."""
    scale: Literal["fixed", "gate"] = "fixed"
    """s in x + s·c: `weight`, or a learned number that starts at 0, so that the model starts as the one without."""
    weight: float = 0.1
    """s of `fixed`; 0 leaves the model as it is without cross-attention."""
    norm_match: bool = True
    """Scale c to the norm of x, token by token. False with `weight` 1 is the fork's first version, which starves the
    adapters of gradient."""
    context: Literal["class", "batch"] = "class"
    """Images whose mean the prompts of a class attend to in training: the class's own in the batch, or all of the batch
    (the fork)."""
    padding: Literal["masked", "kept"] = "masked"
    """Tokens of prompts that images attend to: the real ones, or all 77 of each prompt (the fork)."""
    at_test: bool = True
    """False (the fork): training alone uses them; neither stage 2's class embeddings nor any test does."""

    def __post_init__(self) -> None:
        _check("cross_attention.heads", self.heads, least=1, what="a whole number")
        _check("cross_attention.weight", self.weight, least=0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"cross_attention.dropout: expected a share from 0 to below 1, got {self.dropout}")


@dataclass
class HeadConfig:
    """The maps from patches to the embedding space of texts."""

    activation: Literal["relu", "leaky", "none"] = "relu"
    """`relu`: matrix with bias, then LeakyReLU 0.2; `leaky`: matrix without bias, then LeakyReLU 0.01 (`--relu` of the
    released code); `none`: matrix without bias (official)."""
    class_token: bool = True
    """Embedding of the image as a whole. True: the class token of the frozen tower, which stage 1 adds to patches; it
    takes a second pass when an image is scored. False (official): the mean of the adapted patches through a head of its
    own, which memorises the training classes."""


@dataclass
class PromptConfig:
    """The prompts about a class; see models/prompts.yaml."""

    set: str = "full"
    """`full` (112 prompts a class), `compact` (official's 16), or a YAML file with states, templates and names."""
    names: str | None = None
    """File of names that win over the built-in ones: YAML of `class: name`, or dataset/constants.py of the release,
    whose REAL_NAMES is read and never executed."""
    renormalise: bool = True
    """Scale the mean of the prompts' embeddings to unit length again."""


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
        _check("augment.crop", self.crop, least=1)


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

    text: TextStageConfig = field(default_factory=TextStageConfig)
    image: ImageStageConfig = field(default_factory=ImageStageConfig)

    def __post_init__(self) -> None:
        for name, stage in (("text", self.text), ("image", self.image)):
            _check(f"stages.{name}.epochs", stage.epochs, least=0, what="a whole number")
            _check(f"stages.{name}.batch_size", stage.batch_size, least=1, what="a whole number")


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
        _check("feedback.loops", self.loops, least=1, what="a whole number")
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
            _check("feedback.plateau_patience", self.plateau_patience, least=1, what="null or a whole number")
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
class ScoreConfig:
    """From maps to one score for each image."""

    image: Literal["calibrated", "official"] = "calibrated"
    """`calibrated`: logistic of the classification and the map's hottest 1 % of patches, fitted on training images;
    `official`: min-max over the tested class."""
    domain: Literal["industrial", "medical"] = "industrial"
    """Width of the blur: 7 patches (σ 1), or 9 (σ 1.5)."""


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
