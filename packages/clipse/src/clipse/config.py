"""Every knob of clipse, with its unit and default. `clipse config` prints them; `section.field=value` sets one.

Nothing here imports torch, so that `clipse --help` and `clipse config` answer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clip_common.config import ConfigError, OptimConfig, TrainerConfig


@dataclass
class TopicalConfig:
    """Batches of which a share is about one topic: k-means over the mean text features of each image's captions."""

    fraction: float = 0.0
    """Share of a batch (over all devices) from one topic, the rest mixed; 0 shuffles plainly, 1 is all of it."""
    clusters: int = 100
    """Topics; at most as many as training images."""
    every: int = 0
    """Epochs after which topics are found again, from the model's text features of then; 0 keeps the first ones."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"data.topical.fraction: expected a share from 0 to 1, got {self.fraction}")
        for name, least in (("clusters", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"data.topical.{name}: expected a whole number from {least}, got {getattr(self, name)}"
                )


@dataclass
class DataConfig:
    """Where the pairs come from and how they become batches."""

    root: str | None = None
    """Folder of the images and captions (Flickr8k, Flickr30k, COCO Karpathy, CSV/TSV, webdataset shards)."""
    format: str = "auto"
    """Caption format; `auto` looks for the known files. `clipse data check` prints what it found."""
    hold_out: int = 0
    """Training images set aside for selection, for a set without a `val` split; 0 sets none aside."""
    split_seed: int = 0
    """Seed of the split by image, where the set brings none, and of `hold_out`."""
    captions: Literal["one", "all"] = "one"
    """Captions of an image in a batch: one at random each epoch, or all of them with the image encoded once."""
    together: str | None = None
    """A CSV file (image,group) in the root: training images of one group stand in one batch, as contrast pairs do."""
    topical: TopicalConfig = field(default_factory=TopicalConfig)
    batch_size: int = 64
    """Images per optimizer step and accumulation, over all devices together: a multiple of their number."""
    mini_batch: int | None = None
    """Images a device encodes at a time (GradCache), for batches that memory does not hold; null: a batch whole."""
    augment: bool = True
    """Random resized crop in training (open_clip's, scale 0.9 to 1). Not applied where features are cached."""
    cache: bool = False
    """Decode each image once into a uint8 cache under `cache_dir`."""
    cache_dir: str | None = None
    """Folder of decoded images and of frozen features; default: `cache` among the run folders."""
    on_error: Literal["raise", "skip"] = "raise"
    """A missing or broken image stops the run, or is left out and counted in result.json."""
    workers: int = 0
    """Loader processes per device; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        for name, least in (("hold_out", 0), ("batch_size", 2), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}: expected a whole number from {least}, got {getattr(self, name)}")
        if self.mini_batch is not None and self.mini_batch < 1:
            raise ConfigError(f"data.mini_batch: expected a whole number from 1, or null, got {self.mini_batch}")


@dataclass
class ModelConfig:
    """Which two towers."""

    kind: Literal["open_clip", "dual"] = "open_clip"
    """`open_clip`: a CLIP. `dual`: a locked vision model and a locked text model under trainable heads."""
    name: str = "ViT-B-32"
    """open_clip architecture, `hf-hub:org/name`, `local-dir:/folder`, or a weights file (then `weights_of`)."""
    pretrained: str | None = None
    """Tag of the pretrained weights (`clipse prefetch NAME TAG`); `random` starts from scratch."""
    weights_of: str | None = None
    """The open_clip architecture of a weights file given as `name`."""
    architecture: dict[str, Any] | None = None
    """A small CLIP from scratch: an open_clip model configuration (embed_dim, vision_cfg, text_cfg)."""
    image_size: int | None = None
    """Pixels a side; other than the pretrained size, position embeddings are interpolated."""
    vision: str | None = None
    """`dual`: folder or hub name of a transformers vision model (DINOv2, CLIP, SigLIP)."""
    text: str | None = None
    """`dual`: folder or hub name of a SentenceTransformer or transformers text model."""
    embed_dim: int = 512
    """`dual`: width of the shared space."""
    head: Literal["linear", "mlp"] = "linear"
    """`dual`: the trainable map from a tower's features to the shared space."""
    lock_image: bool = False
    """Freeze the image tower (LiT); its features are then computed once."""
    lock_text: bool = False
    """Freeze the text tower; its features are then computed once."""

    @property
    def label(self) -> str:
        """The towers' short name, for tables and run names."""
        if self.kind == "dual":
            return f"{Path(str(self.vision)).name}+{Path(str(self.text)).name}"
        return "scratch" if self.architecture else Path(self.name.removeprefix("local-dir:")).name


@dataclass(frozen=True)
class SearchRange:
    """Values of a weighting's parameter among which `clipse tune` searches, given in the metadata of its field.

    Example:
        tau: float = field(default=1.0, metadata={"search": SearchRange(0.1, 10.0, log=True)})
    """

    low: float
    high: float
    log: bool = False
    """Search the logarithm of the value."""

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self}: expected low below high, and low above 0 if log")


def registered_weightings() -> dict[str, EntryPoint]:
    """Return the weightings that installed packages register under the entry-point group `clipse.weightings`."""
    return {entry.name: entry for entry in sorted(entry_points(group="clipse.weightings"))}


def load_weighting(name: str) -> Any:
    """Import a registered weighting: a dataclass whose fields are its parameters, with a method `log_weight`.

    Raises:
        ValueError: An unknown name, or a package that cannot be imported.
    """
    registered = registered_weightings()
    if name not in registered:
        raise ValueError(f"loss.name={name}: unknown loss; known: clip, siglip, {', '.join(registered)}")
    try:
        return registered[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"loss.name={name}: {registered[name].value} cannot be imported ({error}): reinstall its package"
        ) from error


def parameter_keys(weighting: Any) -> dict[str, str]:
    """Return the parameters of a weighting by field name, each with the key that a user types (its alias, if any)."""
    own = fields(weighting) if is_dataclass(weighting) else ()
    return {field.name: field.metadata.get("alias", field.name) for field in own}


def parameter_types() -> Mapping[str, tuple[str, Any]]:
    """Return the keys that weightings add to the section `loss`: name or alias → name and type, or null.

    Raises:
        ValueError: A weighting that cannot be imported, or a parameter named like a field of `LossConfig`.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name in registered_weightings():
        weighting = load_weighting(name)
        hints = get_type_hints(weighting)
        for parameter, key in parameter_keys(weighting).items():
            if {parameter, key} & {field.name for field in fields(LossConfig)}:
                raise ValueError(f"loss.{key} is a field of every loss: rename this parameter of the weighting {name}")
            hint = hints[parameter] | None
            if found.get(key, (parameter, hint)) != (parameter, hint):
                hint |= found[key][1]  # two weightings with a parameter of one name and different types
            found |= {parameter: (parameter, hint), key: (parameter, hint)}
    return found


@dataclass
class LossConfig:
    """The contrastive loss and the weighting of its negatives."""

    name: str = "clip"
    """`clip`, `siglip`, `sanw_debias`, `sanw_bandpass`, or a weighting registered under `clipse.weightings`."""
    preset: Literal["default", "conservative", "aggressive"] = "default"
    """Values of the weighting's parameters; `conservative` and `aggressive` are nearly CLIP (see docs/clipse.md)."""
    parameters: dict[str, Any] = field(default_factory=dict, metadata={"fields": parameter_types})
    """Parameters of the weighting. Each is a key of this section: alpha, delta, lambda, kernel and mix of sanw_debias,
    alpha, m1, m2, gamma and mix of sanw_bandpass, or the fields of a registered one. A parameter that is not set, or is
    null, has the preset's value."""
    references: Literal["online", "frozen", "ema"] = "online"
    """Whose features A is computed from: the model in training, the model before training, or a moving average."""
    ema_decay: float = 0.99
    """Decay per step of the moving average (`references=ema`)."""
    form: Literal["infonce", "decoupled", "boosted"] = "infonce"
    """The denominator that the weights enter."""
    beta: float = 1.0
    """Boost of weighted negatives (`form=boosted`)."""
    normalise: Literal["none", "mean1"] = "mean1"
    """Scale a row's negative weights to mean 1, or leave them."""
    temperature: float | None = None
    """A fixed softmax temperature such as 0.07; null learns it from the model's own."""

    def __post_init__(self) -> None:
        self.parameters = {name: value for name, value in self.parameters.items() if value is not None}
        if not 0 < self.ema_decay <= 1:
            raise ConfigError(f"loss.ema_decay: expected a decay above 0 and at most 1, got {self.ema_decay}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                f"loss.temperature: expected a temperature above 0, or null to learn it, got {self.temperature}"
            )


@dataclass
class Config:
    """A training run of clipse."""

    name: str | None = None
    """Name of the run folder; default: the loss, the model, the seed and the time. Needed under torchrun and srun."""
    runs: str = "runs"
    """Folder that holds the run folders and their registry."""
    results: str = "results"
    """Folder of the training_*.csv files and run_registry.csv."""
    split: Literal["train", "val", "test"] = "test"
    """The split that `clipse eval` scores. Training fits on `train` and selects on `val`, whatever this says."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5, weight_decay=0.01))
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=10))

    @property
    def cache_folder(self) -> Path:
        """Folder of decoded images, frozen features and search indexes."""
        return Path(self.data.cache_dir or Path(self.runs) / "cache")


@dataclass
class CompareConfig:
    """What `clipse compare` takes besides the configuration of its runs."""

    losses: list[str] = field(default_factory=lambda: ["clip", "sanw_debias", "sanw_bandpass"])
    """`NAME` or `NAME:PRESET` each; the first is the baseline."""
    seeds: list[int] = field(default_factory=lambda: [13, 17, 23])
    """Seeds of training."""
    split: Literal["train", "val", "test"] = "val"
    """The split that is scored; weights are selected on `val`, so score `test` once, at the end."""


@dataclass
class TuneConfig:
    """What `clipse tune` takes besides the configuration of its runs."""

    loss: str = "sanw_bandpass"
    """The weighting whose parameters are searched: `sanw_debias`, `sanw_bandpass` or a registered one."""
    trials: int = 40
    """Runs in all, those of earlier calls included."""
