"""Every setting of clipse, with its unit and default. `clipse config` prints them; `section.field=value` sets one.

Nothing here imports torch, so that `clipse --help` and `clipse config` are quick. Weightings, which need torch, are
imported only when one of their parameters is set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clip_common.config import ConfigError, OptimConfig, TrainerConfig


@dataclass
class TopicalConfig:
    """Batches with a share of images from one topic: k-means over the mean text features of each image's captions."""

    fraction: float = 0.0
    """Share of a batch (over all devices) from one topic, the rest mixed; 0 shuffles plainly, 1 takes all from it."""
    clusters: int = 100
    """Number of topics, at most the number of training images."""
    every: int = 0
    """Find topics again every so many epochs, from the current model's text features; 0 keeps the first topics."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"data.topical.fraction: expected a share from 0 to 1, got {self.fraction}")
        for name, least in (("clusters", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"data.topical.{name}: expected a whole number from {least}, got {getattr(self, name)}"
                )


@dataclass
class ColumnsConfig:
    """Columns of a table, or keys of JSON, that hold captions, for a set whose names are not among the known ones."""

    image: str | None = None
    """Column of the image's path; null takes the first known one, such as image, file_name or filepath."""
    caption: str | None = None
    """Column of the caption; null takes the first known one, such as caption, comment, text or title."""
    split: str | None = None
    """Column of the split; null takes `split`, if there is one."""

    @property
    def given(self) -> dict[str, str]:
        """The columns that are set, by role."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}


@dataclass
class DataConfig:
    """Source of the image-caption pairs, and how batches are made of them."""

    root: str | None = None
    """Folder of the images and captions, or one captions file (Flickr8k, Flickr30k, COCO, CSV, shards, …)."""
    format: str = "auto"
    """Caption format; `auto` detects it from the files. `clipse data check` prints the format found."""
    files: list[str] = field(default_factory=list)
    """Caption files in the root to read together, such as [train.csv,val.csv]; empty finds them by their names."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    hold_out: int = 0
    """Number of training images set aside for validation, for a set without a `val` split."""
    split_seed: int = 0
    """Seed of the split by image for a set without splits, and of `hold_out`."""
    captions: Literal["one", "all"] = "one"
    """Captions of an image in a batch: a random one each epoch, or all of them with the image encoded once."""
    together: str | None = None
    """CSV file (image,group) in the root: training images of one group share a batch, such as contrast pairs."""
    topical: TopicalConfig = field(default_factory=TopicalConfig)
    batch_size: int = 64
    """Images per batch, over all devices together: a multiple of their number."""
    mini_batch: int | None = None
    """Images that a device encodes at a time (GradCache), for batches larger than memory; null: the whole batch."""
    augment: bool = True
    """Random resized crop in training (open_clip's, scale 0.9 to 1). Not applied to cached features."""
    cache: bool = False
    """Decode each image once, into a uint8 cache under `cache_dir`."""
    cache_dir: str | None = None
    """Folder of decoded images, frozen features and search indexes; default: `cache` in the folder `runs`."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise`: a missing or broken image stops the run. `skip`: it is left out and counted in result.json."""
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
    """The two towers."""

    kind: Literal["open_clip", "dual"] = "open_clip"
    """`open_clip`: a CLIP. `dual`: a locked vision model and a locked text model under trainable heads."""
    name: str = "ViT-B-32"
    """open_clip architecture, `tiny`, `hf-hub:org/name`, `local-dir:/folder`, or a weights file (with `weights_of`).

    The repository or folder holds open_clip's files, or a CLIPModel or SiglipModel of transformers."""
    pretrained: str | None = None
    """Tag of the pretrained weights (`clipse prefetch NAME TAG`); `random` starts from scratch."""
    weights_of: str | None = None
    """The open_clip architecture of a weights file given as `name`."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """Of a weights file: `quick_gelu` for weights derived from OpenAI's; null: that of the architecture or the tag."""
    architecture: dict[str, Any] | None = None
    """open_clip model configuration of a CLIP from scratch (embed_dim, vision_cfg, text_cfg)."""
    image_size: int | None = None
    """Pixels per side; for a size other than the pretrained one, position embeddings are interpolated."""
    vision: str | None = None
    """`dual`: folder or hub name of a transformers vision model (DINOv2, CLIP, SigLIP)."""
    text: str | None = None
    """`dual`: folder or hub name of a SentenceTransformer or transformers text model."""
    embed_dim: int = 512
    """`dual`: width of the shared space."""
    head: Literal["linear", "mlp"] = "linear"
    """`dual`: the trainable head from a tower's features to the shared space."""
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
    """Range of a weighting's parameter for `clipse tune`, given in the metadata of its field.

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


def find_weightings() -> dict[str, EntryPoint]:
    """Return the weightings that installed packages register under the entry-point group `clipse.weightings`."""
    return {entry.name: entry for entry in sorted(entry_points(group="clipse.weightings"))}


def load_weighting(name: str) -> Any:
    """Import a registered weighting: a dataclass whose fields are its parameters, with a method `log_weight`.

    Raises:
        ValueError: An unknown name, or a package that cannot be imported.
    """
    registered = find_weightings()
    if name not in registered:
        raise ValueError(f"loss.name={name}: unknown loss; known: clip, siglip, {', '.join(registered)}")
    try:
        return registered[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"loss.name={name}: {registered[name].value} cannot be imported ({error}): reinstall its package"
        ) from error


def list_parameter_keys(weighting: Any) -> dict[str, str]:
    """Return the parameters of a weighting by field name, each with the key that a user types (its alias, if any)."""
    own = fields(weighting) if is_dataclass(weighting) else ()
    return {field.name: field.metadata.get("alias", field.name) for field in own}


def list_parameter_types() -> Mapping[str, tuple[str, Any]]:
    """Return the keys that weightings add to the section `loss`: name or alias → name and type, or null.

    Raises:
        ValueError: A weighting that cannot be imported, or a parameter named like a field of `LossConfig`.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name in find_weightings():
        weighting = load_weighting(name)
        hints = get_type_hints(weighting)
        for parameter, key in list_parameter_keys(weighting).items():
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
    """Values of the weighting's parameters that are not set; `conservative` and `aggressive` are nearly CLIP."""
    parameters: dict[str, Any] = field(default_factory=dict, metadata={"fields": list_parameter_types})
    """Parameters of the weighting, each a key of this section: alpha, delta, lambda, kernel, mix of sanw_debias; alpha,
    m1, m2, gamma, mix of sanw_bandpass; the fields of a registered weighting. One that is not set, or is null, has the
    preset's value."""
    references: Literal["online", "frozen", "ema"] = "online"
    """Features from which similarities are computed: of the model in training, of the model before training, or of a
    moving average."""
    ema_decay: float = 0.99
    """Decay per step of the moving average (`references=ema`)."""
    form: Literal["infonce", "decoupled", "boosted"] = "infonce"
    """How the weights enter the denominator of the loss."""
    beta: float = 1.0
    """Strength of the weighted negatives (`form=boosted`)."""
    normalise: Literal["none", "mean1"] = "mean1"
    """`mean1` scales the weights of each row and column to mean 1; `none` leaves them."""
    positive: Literal["pair", "caption"] = "pair"
    """`pair`: an image and its own caption. `caption`: also every caption in the batch with the same text, apart from
    upper case, whitespace and punctuation. CLIP's loss stays the same where equal captions have equal embeddings."""
    exclude: Literal["image", "caption"] = "image"
    """Pairs that are no negatives: of one image, or also those whose captions have the same text."""
    temperature: float | None = None
    """A fixed softmax temperature such as 0.07; null learns it, starting from the model's."""

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
    """Configuration of a training run."""

    name: str | None = None
    """Name of the run folder; default: loss, model, seed and time. Required under torchrun and srun."""
    runs: str = "runs"
    """Folder of the run folders and their registry."""
    results: str = "results"
    """Folder of training_*.csv and run_registry.csv, which `clipse train` and `clipse eval` write."""
    split: Literal["train", "val", "test"] = "test"
    """The split that `clipse eval` scores. Training always fits on `train` and selects on `val`."""
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
    """Options of `clipse compare` beside the configuration of its runs."""

    losses: list[str] = field(default_factory=lambda: ["clip", "sanw_debias", "sanw_bandpass"])
    """`NAME` or `NAME:PRESET` each; the first is the baseline."""
    seeds: list[int] = field(default_factory=lambda: [13, 17, 23])
    """Seeds of training."""
    split: Literal["train", "val", "test"] = "val"
    """The split to score; weights are selected on `val`, so score `test` once, at the end."""


@dataclass
class TuneConfig:
    """Options of `clipse tune` beside the configuration of its runs."""

    loss: str = "sanw_bandpass"
    """The weighting to tune: `sanw_debias`, `sanw_bandpass` or a registered one."""
    trials: int = 40
    """Number of runs, including those of earlier calls."""
