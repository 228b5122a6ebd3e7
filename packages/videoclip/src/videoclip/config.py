"""Every knob of videoclip, with its unit and default. `videoclip config` prints them; `section.field=value` sets one.

The names are those of the published description (`model.map_guided`, `loss.clip_weight`, …), whose command lines work
as they stand. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from clip_common.config import ConfigError, OptimConfig, TrainerConfig


def _require(name: str, value: float, *, least: float, most: float | None = None) -> None:
    if value < least or (most is not None and value > most):
        limits = f"from {least:g}" if most is None else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name}: expected a number {limits}, got {value}")


@dataclass
class AugmentConfig:
    """Random changes of training clips, drawn once a clip; geometry acts on the frames and on the map together."""

    flip: bool = True
    """Mirror left and right in every other clip."""
    crop: float = 0.85
    """Smallest share of height and width that a random crop keeps; 1 crops nothing."""
    colour: float = 0.2
    """Largest relative change of brightness and contrast; 0 changes nothing."""

    def __post_init__(self) -> None:
        _require("data.augment.crop", self.crop, least=0.1, most=1)
        _require("data.augment.colour", self.colour, least=0, most=1)


@dataclass
class DataConfig:
    """Where clips and maps come from, who is tested on, and how they become batches."""

    root: str | None = None
    """A folder with a manifest (CSV or JSONL), the manifest itself, or a folder of videos/ and attention_maps/."""
    frames: int = 8
    """Frames of a clip, evenly spread over it."""
    size: int = 224
    """Pixels a side that the model sees; frames are resized, not cropped, so that the map stays on them."""
    clip_seconds: float = 1.0
    """Length of the clips that a whole video is cut into, where no manifest says when they begin and end."""
    maps: Literal["auto", "file", "doctor1", "doctor2", "both"] = "auto"
    """Whose attention: the map files; maps drawn from keypoints and the regions of one doctor or of both; `auto` takes
    the file where a clip has one, and draws the regions of both doctors otherwise."""
    control: Literal["none", "shuffled", "centre", "uniform", "random", "absent"] = "none"
    """What stands in for the maps, to see what they are worth: another subject's, a Gaussian in the middle, ones, noise
    blobs, or nothing at all (`absent`)."""
    map_noise: float = 0.0
    """Standard deviation of noise that is added to the maps, whose largest value is 1."""
    map_scale: float = 1.0
    """Factor on the maps."""
    folds: int = 5
    """Parts into which subjects are dealt; a `fold` column of the manifest decides instead where there is one."""
    fold: int = 0
    """The part that is tested on; validation subjects are taken from the others."""
    split_seed: int = 0
    """Seed of dealing subjects to parts, to validation, and of `subjects` and `train_fraction`."""
    subjects: int | None = None
    """Training subjects kept, of each class its share; null keeps all."""
    train_fraction: float = 1.0
    """Share of the clips of each training subject that is kept, at least one."""
    batches: Literal["shuffled", "subject_unique"] = "shuffled"
    """Batches at random, or with at most one clip of a subject."""
    batch_size: int = 16
    """Clips per optimizer step and accumulation, over all devices together: a multiple of their number."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: bool = True
    """Decode each clip once into a uint8 cache under `cache_dir`."""
    cache_dir: str | None = None
    """Folder of decoded clips; default: `cache` among the run folders."""
    on_error: Literal["raise", "skip"] = "raise"
    """A clip that cannot be read stops the run, or is left out and counted in result.json."""
    workers: int = 0
    """Loader processes per device; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        for name, least in (
            ("frames", 2), ("size", 16), ("folds", 3), ("fold", 0), ("batch_size", 2), ("workers", 0), ("map_noise", 0),
        ):  # fmt: skip
            _require(f"data.{name}", getattr(self, name), least=least)
        if not self.clip_seconds > 0:
            raise ConfigError(f"data.clip_seconds: expected seconds above 0, got {self.clip_seconds}")
        if not self.map_scale > 0:
            raise ConfigError(f"data.map_scale: expected a factor above 0, got {self.map_scale}")
        if not 0 < self.train_fraction <= 1:
            raise ConfigError(f"data.train_fraction: expected a share above 0 and at most 1, got {self.train_fraction}")
        if self.fold >= self.folds:
            raise ConfigError(
                f"data.fold: expected 0 to {self.folds - 1} with data.folds={self.folds}, got {self.fold}"
            )
        if self.subjects is not None:
            _require("data.subjects", self.subjects, least=2)


@dataclass
class ModelConfig:
    """Which encoders, whether maps guide the pooling, and what is classified."""

    clip_feature_dim: int = 512
    """Width of an encoder's features, before projection."""
    clip_embed_dim: int = 256
    """Width of the space in which videos and maps are aligned."""
    model_class_num: int = 3
    """Classes; labels are 0 to one less."""
    attn_in_channels: int = 1
    """Channels of a map; 2 with data.maps=both gives each doctor one."""
    clip_backbone: Literal["3dcnn", "2dcnn", "cnn_lstm", "r3d_18", "mc3_18", "r2plus1d_18"] = "3dcnn"
    """Video encoder; the last three are torchvision's."""
    weights: str | None = None
    """A file of torchvision's weights (.pth, .safetensors) for its encoders; null starts from scratch."""
    map_guided: bool = False
    """Let the map guide the pooling of the video's tokens; of another backbone than 3dcnn, gate its feature."""
    map_guided_type: Literal["spatiotemporal", "channel", "weighted_pool"] = "spatiotemporal"
    """Pool and amplify where the map is; gate channels by the map's mean; pool where the map is, without a gate."""
    map_guided_hidden_dim: int = 64
    """Hidden width of the gate's MLP (`channel`, and the gate of other backbones)."""
    map_guided_sigmoid_gate: bool = False
    """`spatiotemporal`: a learned sigmoid of the map as the gate, in place of the map itself."""
    gate_channels: Literal["mean", "each"] = "mean"
    """A map of several channels guides by their mean, or each channel pools apart and the features are averaged."""
    clip_classifier_source: Literal["video", "attn", "fusion"] = "video"
    """Features that are classified: the video's, the map's, or the average of both."""
    map_dropout: float = 0.0
    """Share of training clips whose map is hidden from guidance, so that the model learns to do without one."""
    lambda_token: float = 0.0
    """Weight of the token loss, which asks the energy of the video's tokens to follow the map."""
    token_loss: Literal["corr", "kl", "mse"] = "corr"
    """1 − correlation; KL divergence of the two as distributions over tokens; mean squared error of both in 0 to 1."""
    token_source: Literal["ungated", "gated"] = "ungated"
    """Whose energy: `gated` tokens follow the map whatever the encoder does."""

    def __post_init__(self) -> None:
        for name, least in (
            ("clip_feature_dim", 1), ("clip_embed_dim", 1), ("model_class_num", 2), ("attn_in_channels", 1),
            ("map_guided_hidden_dim", 1), ("lambda_token", 0),
        ):  # fmt: skip
            _require(f"model.{name}", getattr(self, name), least=least)
        if not 0 <= self.map_dropout < 1:
            raise ConfigError(f"model.map_dropout: expected a share from 0 to below 1, got {self.map_dropout}")
        if self.lambda_token and self.clip_backbone != "3dcnn":
            raise ConfigError(
                f"model.lambda_token: the token loss needs the tokens of clip_backbone=3dcnn, "
                f"not {self.clip_backbone}: set model.lambda_token=0"
            )
        if self.weights and self.clip_backbone in ("3dcnn", "2dcnn", "cnn_lstm"):
            raise ConfigError(
                f"model.weights: {self.clip_backbone} has no published weights: leave it null, or take "
                "model.clip_backbone=r3d_18"
            )


@dataclass
class LossConfig:
    """Cross-entropy, plus clip_weight times the contrastive loss, plus model.lambda_token times the token loss."""

    clip_weight: float = 1.0
    """Weight of the contrastive loss between videos and maps; 0 leaves it out."""
    exclude: Literal["subject", "none"] = "subject"
    """`subject`: seconds of one patient are not each other's negatives."""
    positive: Literal["none", "regions"] = "none"
    """`regions`: clips in which the same regions were attended are each other's positives."""
    temperature: float | None = None
    """A fixed softmax temperature such as 0.07; null learns it from there."""

    def __post_init__(self) -> None:
        _require("loss.clip_weight", self.clip_weight, least=0)
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                f"loss.temperature: expected a temperature above 0, or null to learn it, got {self.temperature}"
            )


@dataclass
class Config:
    """A training run of videoclip."""

    name: str | None = None
    """Name of the run folder; default: the method, the fold, the seed and the time. Needed under torchrun and srun."""
    runs: str = "runs"
    """Folder that holds the run folders and their registry."""
    split: Literal["train", "val", "test", "all"] = "test"
    """What `videoclip test` scores; `all` is for a set that nothing was trained on. Training fits on `train` and
    selects on `val`, whatever this says."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(max_epochs=50, precision="bf16-mixed", early_stop=15)
    )

    @property
    def method(self) -> str:
        """Short name of the method, for folders and tables, e.g. `3dcnn-spatiotemporal-clip`."""
        model = self.model
        name: str = model.clip_backbone
        if model.map_guided:
            name += f"-{model.map_guided_type}" + ("-sigmoid" if model.map_guided_sigmoid_gate else "")
        return name + ("-clip" if self.loss.clip_weight else "") + ("-token" if model.lambda_token else "")

    def __post_init__(self) -> None:
        if self.model.lambda_token and self.model.clip_classifier_source == "attn" and not self.loss.clip_weight:
            raise ConfigError(
                "model.lambda_token: with clip_classifier_source=attn and loss.clip_weight=0 nothing reads the video "
                "whose tokens it trains: set model.lambda_token=0, or classify video or fusion"
            )


@dataclass
class AblateConfig:
    """What `videoclip ablate` takes besides the configuration of its runs."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of training; each tests on another part of the subjects."""


@dataclass
class CrossValidationConfig:
    """What `videoclip cv` takes besides the configuration of its run."""

    folds: int | None = None
    """Parts into which subjects are dealt, short for data.folds."""
