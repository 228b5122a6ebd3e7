"""Every knob of videoclip, with its unit and default. `videoclip config` prints them; `section.field=value` sets one.

The names are those of the published description (`model.map_guided`, `loss.clip_weight`, …), whose command lines work
unchanged. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from clip_common.config import ConfigError, OptimConfig, TrainerConfig
from videoclip.config.upstream import UPSTREAM


def _check_range(name: str, value: float, *, least: float, most: float | None = None) -> None:
    """Raise ConfigError unless a number is within its limits."""
    if value < least or (most is not None and value > most):
        limits = f"from {least:g}" if most is None else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name}: expected a number {limits}, got {value}")


@dataclass
class AugmentConfig:
    """Random changes of training clips, drawn once per clip; flips and crops act on the frames and the map together."""

    flip: bool = True
    """Mirror left and right with probability 0.5."""
    crop: float = 0.85
    """Smallest share of height and width that a random crop keeps; 1 disables cropping."""
    colour: float = 0.2
    """Largest relative change of brightness and contrast; 0 disables both."""

    def __post_init__(self) -> None:
        _check_range("data.augment.crop", self.crop, least=0.1, most=1)
        _check_range("data.augment.colour", self.colour, least=0, most=1)


@dataclass
class DataConfig:
    """Where clips and maps come from, which subjects are tested, and how clips become batches."""

    root: str | None = None
    """A folder with a manifest (CSV or JSONL), the manifest itself, or a folder of videos/ and attention_maps/."""
    frames: int = 8
    """Frames of a clip, evenly spread over it."""
    size: int = 224
    """Height and width of the model's input, in pixels; frames are resized, not cropped, so that maps fit them."""
    clip_seconds: float = 1.0
    """Length of the clips that a video is cut into if no manifest gives their start and end."""
    maps: Literal["auto", "file", "doctor1", "doctor2", "both"] = "auto"
    """Which maps: the files; maps drawn from keypoints and the regions of one doctor or of both; or `auto`, the file
    of a clip that has one, otherwise a map drawn from the regions of both doctors."""
    region_joints: Literal["maximum", "mean"] = "maximum"
    """How a drawn map combines the joints of the attended regions: the strongest one at each pixel, so that every
    joint reaches its confidence, or the mean of all (the source's), where one joint of many is faint."""
    control: Literal["none", "shuffled", "centre", "uniform", "random", "absent", "hidden"] = "none"
    """Replacement for the maps, to measure what they are worth: another subject's map, a Gaussian in the centre, ones,
    noise blobs, or no map (`absent`); `hidden` keeps the map for retrieval, but hides it from guidance."""
    map_noise: float = 0.0
    """Standard deviation of noise added to the maps, which range from 0 to 1."""
    map_scale: float = 1.0
    """Factor by which the maps are multiplied."""
    folds: int = 5
    """Number of parts that subjects are split into; a `fold` column of the manifest takes precedence."""
    fold: int = 0
    """The part to test on; validation subjects are taken from the other parts."""
    split_seed: int = 0
    """Seed of the choice of subjects for each part, for validation, for `subjects` and for `train_fraction`."""
    subjects: int | None = None
    """Number of training subjects to keep, each class in proportion; null keeps all."""
    train_fraction: float = 1.0
    """Share of each training subject's clips to keep, at least one clip."""
    batches: Literal["shuffled", "subject_unique"] = "shuffled"
    """Random batches, or batches with at most one clip per subject."""
    batch_size: int = 16
    """Clips per step (before `trainer.accumulate`) over all devices together: a multiple of their number."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: bool = True
    """Decode each clip once, into a uint8 cache in `cache_dir`."""
    cache_dir: str | None = None
    """Folder of decoded clips; default: `cache` in the folder `runs`."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at a clip that cannot be read, or skip it and count it in result.json."""
    workers: int = 0
    """Loader processes per device; 0 loads in the training process."""

    def __post_init__(self) -> None:
        for name, least in (
            ("frames", 2), ("size", 16), ("folds", 3), ("fold", 0), ("batch_size", 2), ("workers", 0), ("map_noise", 0),
        ):  # fmt: skip
            _check_range(f"data.{name}", getattr(self, name), least=least)
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
            _check_range("data.subjects", self.subjects, least=2)


@dataclass
class ModelConfig:
    """Which encoders, whether maps guide the pooling, and which feature is classified."""

    clip_feature_dim: int = 512
    """Width of the encoders' features, before projection."""
    clip_embed_dim: int = 256
    """Width of the shared space in which videos and maps are aligned."""
    model_class_num: int = 3
    """Number of classes; labels run from 0 to model_class_num − 1."""
    class_names: list[str] = field(default_factory=list)
    """Names of the classes in the order of their labels, for answers, tables and pictures; empty: their numbers."""
    attn_in_channels: int = 1
    """Channels of a map; 2 with data.maps=both gives each doctor one channel."""
    clip_backbone: Literal["3dcnn", "2dcnn", "cnn_lstm", "r3d_18", "mc3_18", "r2plus1d_18"] = "3dcnn"
    """Video encoder; the last three come from torchvision."""
    weights: str | None = None
    """File of pretrained weights (.pth, .safetensors) for an encoder from torchvision; null starts from scratch."""
    map_guided: bool = False
    """Let the map guide the pooling of the video's tokens; with a backbone other than 3dcnn, gate its feature."""
    map_guided_type: Literal["spatiotemporal", "channel", "weighted_pool"] = "spatiotemporal"
    """Pool and amplify by the map; gate channels by the map's mean; or pool by the map without a gate."""
    map_guided_hidden_dim: int = 64
    """Hidden width of the gate's MLP (`channel`, and backbones other than 3dcnn)."""
    map_guided_sigmoid_gate: bool = False
    """For `spatiotemporal`: gate by a learned sigmoid of the map instead of the map itself."""
    gate_channels: Literal["mean", "each"] = "mean"
    """Guide by the mean of a map's channels, or pool by each channel and average the features."""
    clip_classifier_source: Literal["video", "attn", "fusion"] = "video"
    """Feature to classify: the video's, the map's, or the average of both."""
    video_input: Literal["frames", "changes"] = "frames"
    """The video encoder sees the frames, or the change from each to the next, which shows less of who and where."""
    class_pool: Literal["mean", "grid"] = "mean"
    """Tokens that make the feature of a small 3D or 2D CNN: the mean of all, as published, or of each cell of a grid, 2
    in time and 4 × 4 in space, which keeps places for the classifier."""
    map_dropout: float = 0.0
    """Share of training clips whose map does not guide, so that the model also learns to work without one."""
    align_pool: Literal["grid", "mean"] = "grid"
    """Tokens before each projection: the mean of each cell of a grid, 2 in time and 4 × 4 in space, which keeps places;
    or the mean of all, as published, which throws them away."""
    align_tokens: Literal["ungated", "gated"] = "ungated"
    """Tokens of the video's embedding, with align_pool=mean. `gated`, as published, are weighted by the very map that
    the embedding is to find."""
    guide: Literal["map", "predicted", "mixed"] = "map"
    """Guide by the clinician's map; by a map that the model predicts from the video; or by the clinician's where there
    is one and it is not hidden (`map_dropout`), else by the predicted one."""
    lambda_guide: float = 1.0
    """Weight of the guide loss, which makes the predicted map follow the clinician's."""
    guide_loss: Literal["corr", "kl", "mse"] = "kl"
    """As for `token_loss`, of the predicted map instead of the energy."""
    map_dropout_warmup: float = 0.0
    """Share of the training over which `map_dropout` rises from 0 to its value, linearly; 0 has it from the start."""
    lambda_token: float = 0.0
    """Weight of the token loss, which makes the energy of the video's tokens follow the map."""
    token_loss: Literal["corr", "kl", "mse"] = "corr"
    """1 − correlation; KL divergence of both as distributions over tokens; or mean squared error, both in 0 to 1."""
    token_source: Literal["ungated", "gated"] = "ungated"
    """Tokens whose energy is compared: `gated` ones follow the map whatever the encoder does."""

    @property
    def classes(self) -> list[str]:
        """How each class is called: by its name, or its number."""
        return self.class_names or [str(label) for label in range(self.model_class_num)]

    def __post_init__(self) -> None:
        for name, least in (
            ("clip_feature_dim", 1), ("clip_embed_dim", 1), ("model_class_num", 2), ("attn_in_channels", 1),
            ("map_guided_hidden_dim", 1), ("lambda_token", 0), ("lambda_guide", 0),
        ):  # fmt: skip
            _check_range(f"model.{name}", getattr(self, name), least=least)
        _check_range("model.map_dropout_warmup", self.map_dropout_warmup, least=0, most=1)
        if self.class_names and len({*self.class_names}) != self.model_class_num:
            raise ConfigError(
                f"model.class_names: expected {self.model_class_num} different names (model.model_class_num), got "
                f"{', '.join(self.class_names)}"
            )
        if not 0 <= self.map_dropout < 1:
            raise ConfigError(f"model.map_dropout: expected a share from 0 to below 1, got {self.map_dropout}")
        if self.class_pool == "grid" and self.align_pool != "grid":
            raise ConfigError(
                f"model.class_pool=grid needs model.align_pool=grid: {self.align_pool} aligns the feature of the mean"
            )
        if self.align_tokens == "gated" and self.align_pool != "mean":
            raise ConfigError(
                f"model.align_tokens=gated pools as published: set model.align_pool=mean, got {self.align_pool}"
            )
        if self.guide != "map" and not (
            self.map_guided and self.clip_backbone == "3dcnn" and self.map_guided_type != "channel"
        ):
            raise ConfigError(
                f"model.guide={self.guide}: a predicted map guides the tokens of clip_backbone=3dcnn: set "
                "model.map_guided=true and model.map_guided_type=spatiotemporal or weighted_pool, or model.guide=map"
            )
        if self.lambda_token and self.clip_backbone != "3dcnn":
            raise ConfigError(
                f"model.lambda_token: the token loss needs the tokens of clip_backbone=3dcnn, "
                f"not {self.clip_backbone}: set model.lambda_token=0"
            )
        if self.weights and self.clip_backbone in ("3dcnn", "2dcnn", "cnn_lstm"):
            raise ConfigError(
                f"model.weights: {self.clip_backbone} has no published weights: leave it null, or set "
                "model.clip_backbone=r3d_18"
            )


@dataclass
class LossConfig:
    """Cross-entropy, plus clip_weight times the contrastive loss, plus lambda_token and lambda_guide times theirs, plus
    distill_weight times the distillation."""

    clip_weight: float = 1.0
    """Weight of the contrastive loss between videos and maps; 0 disables it."""
    exclude: Literal["subject", "none"] = "subject"
    """`subject`: clips of one subject are not negatives of each other."""
    positive: Literal["none", "regions"] = "none"
    """`regions`: clips in which the same regions were attended are positives of each other."""
    teacher: str | None = None
    """Run folder of a model that is guided by maps, whose answers are taught beside the labels (distillation); it must
    have been trained on no subject that this run validates or tests on."""
    distill_weight: float = 1.0
    """Weight of the distillation from `teacher`."""
    temperature: float | None = None
    """A fixed softmax temperature such as 0.07; null learns it, starting at 0.07."""

    def __post_init__(self) -> None:
        _check_range("loss.clip_weight", self.clip_weight, least=0)
        if not self.distill_weight > 0:
            raise ConfigError(f"loss.distill_weight: expected a weight above 0, got {self.distill_weight}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                f"loss.temperature: expected a temperature above 0, or null to learn it, got {self.temperature}"
            )


@dataclass
class Config:
    """A training run of videoclip."""

    explained_keys: ClassVar[Mapping[str, str]] = UPSTREAM
    """Advice for keys that are no fields, see `load_config`."""

    name: str | None = None
    """Name of the run folder; default: method, fold, seed and time. Required under torchrun and srun."""
    runs: str = "runs"
    """Folder of all run folders and their registry."""
    select: Literal["macro_f1", "accuracy", "balanced_accuracy", "retrieval_r1", "retrieval_r5"] = "macro_f1"
    """Validation metric that selects the weights and stops early; retrieval is the mean of both ways."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Split that `videoclip test` scores; `all` needs a data set that the run was not trained on. Training ignores it:
    it fits on `train` and selects on `val`."""
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
        name += "" if model.guide == "map" else f"-{model.guide}"
        return name + ("-clip" if self.loss.clip_weight else "") + ("-token" if model.lambda_token else "")

    def __post_init__(self) -> None:
        if self.select.startswith("retrieval") and not self.loss.clip_weight:
            raise ConfigError(f"select={self.select}: nothing is aligned with loss.clip_weight=0: set select=macro_f1")
        if self.model.lambda_token and self.model.clip_classifier_source == "attn" and not self.loss.clip_weight:
            raise ConfigError(
                "model.lambda_token: with clip_classifier_source=attn and loss.clip_weight=0 nothing reads the video "
                "tokens that it trains: set model.lambda_token=0, or classify video or fusion"
            )


@dataclass
class AblateConfig:
    """Options of `videoclip ablate` beside the configuration of its runs."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Training seeds; each tests on another part of the subjects."""


@dataclass
class CrossValidationConfig:
    """Options of `videoclip cv` beside the configuration of its run."""

    folds: int | None = None
    """Number of parts that subjects are split into; short for data.folds."""
