"""Settings of stage 1, alignment."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clip_common.config import ConfigError, OptimConfig, TrainerConfig
from edgeglass.config.checks import check_least

MODALITIES = ("image", "text", "audio")
"""In this order everywhere: in files, tables and the names of pairs."""


@dataclass
class PerceiverConfig:
    """A Perceiver resampler: learned latents that attend to a sequence (`pooling=perceiver`)."""

    latents: int = 64
    """Number of learned latents: tokens after the resampler."""
    layers: int = 4
    """Blocks of cross-attention and feed-forward."""
    heads: int = 8
    """Attention heads; they divide `mrl.width`."""
    ff_mult: int = 4
    """Width of the feed-forward layer, as a multiple of `mrl.width`."""

    def __post_init__(self) -> None:
        check_least(self, "perceiver", latents=1, layers=1, heads=1, ff_mult=1)


@dataclass
class LoraConfig:
    """Low-rank adapters of an encoder (`lora.rank` above 0); its cached features are then not used."""

    rank: int = 0
    """Rank r; 0 adds no adapters."""
    alpha: float = 16.0
    """Scale: the adapters' output is multiplied by alpha / r."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "query", "key", "value"])
    """Names of the linear layers that get adapters; those that the encoder does not have are ignored."""

    def __post_init__(self) -> None:
        check_least(self, "lora", rank=0)


@dataclass
class EncoderConfig:
    """What the encoders of all modalities share."""

    projector: Literal["linear", "mlp"] = "mlp"
    """From the encoder's features to the shared width: one matrix, or two with a GELU between them."""
    hidden: int | None = None
    """`projector=mlp`: width of its hidden layer; null: twice `mrl.width`."""
    dropout: float = 0.0
    """Dropout before the projector's last matrix, in training."""
    freeze: bool = True
    """Keep the encoder's weights and compute its features once; false trains it whole."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        check_least(self, "encoders.*", hidden=1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"encoders.*.dropout: expected a share from 0 to below 1, got {self.dropout}")
        if self.lora.rank and not self.freeze:
            raise ConfigError(
                f"encoders.*: lora.rank={self.lora.rank} adapts a frozen encoder: set freeze=true, or lora.rank=0"
            )

    @property
    def trains(self) -> bool:
        """Whether weights of the encoder change, so that its features cannot be cached."""
        return not self.freeze or self.lora.rank > 0


@dataclass
class VisionConfig(EncoderConfig):
    """The encoder of images."""

    name: str | None = "openai/clip-vit-large-patch14-336"
    """`tiny`, an open_clip name, or a folder or hub name of CLIPVisionModel, SiglipVisionModel or Dinov2Model; null:
    no images."""
    pretrained: str | None = None
    """Tag of the weights of an open_clip architecture."""
    image_size: int | None = None
    """Pixels per side; null: the encoder's own."""
    pooling: Literal["own", "mean", "attention", "perceiver"] = "mean"
    """`own`: the encoder's pooled output. `mean`: mean of its patch tokens, then the projector. `attention` (a learned
    query) and `perceiver`: the projector for each token, then the pooling."""
    select_layer: int = -1
    """Block whose tokens are used, from 1, or from the end: -1 is the last one. `pooling=own` uses the model's own."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """Tokens of the patches, or of the class token too."""
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)


@dataclass
class TextConfig(EncoderConfig):
    """The encoder of texts; its features are its sentence embeddings."""

    name: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    """`tiny`, or a folder or hub name of a SentenceTransformer or a transformers text model; null: no texts."""


@dataclass
class AudioConfig(EncoderConfig):
    """The encoder of sounds."""

    name: str | None = "openai/whisper-base"
    """`tiny`, or a folder or hub name of a Whisper model; null: no sounds."""
    pooling: Literal["mean", "attention", "perceiver"] = "mean"
    """`mean`: mean of the frames that hold sound, then the projector. `attention` (a learned query) and `perceiver`:
    the projector for each frame, then the pooling."""
    perceiver: PerceiverConfig = field(default_factory=PerceiverConfig)


@dataclass
class EncodersConfig:
    """The encoders; at least two have a name."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)

    def __post_init__(self) -> None:
        if len(self.modalities) < 2:
            raise ConfigError("encoders: alignment needs at least two of encoders.{vision,text,audio}.name")

    def of(self, modality: str) -> EncoderConfig:
        """Return the encoder of `image`, `text` or `audio`."""
        return {"image": self.vision, "text": self.text, "audio": self.audio}[modality]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that have an encoder."""
        names = {"image": self.vision.name, "text": self.text.name, "audio": self.audio.name}
        return tuple(modality for modality in MODALITIES if names[modality] is not None)


@dataclass
class SoundConfig:
    """How sounds are cut for their encoder. A cache or an index of one choice is refused by the other."""

    context: Literal["sound", "full"] = "sound"
    """`sound`: the encoder sees the sound and one second of silence, with its position table cut. `full`: always its
    whole window (30 s for Whisper), as it was trained; many times slower on short sounds."""


@dataclass
class MrlConfig:
    """The shared space and its Matryoshka widths."""

    width: int = 4096
    """D, of the embeddings."""
    dims: list[int] = field(default_factory=lambda: [2048, 1024, 512, 256, 128])
    """Widths below D that are trained too, decreasing; [] trains D alone."""

    def __post_init__(self) -> None:
        check_widths(self.dims, width=self.width)

    @property
    def widths(self) -> tuple[int, ...]:
        """D and the widths below it, decreasing, each once."""
        return (self.width, *(dim for dim in self.dims if dim < self.width))


@dataclass
class FusionConfig:
    """One embedding of several modalities, to search texts by an image with its sound."""

    kind: Literal["none", "concat", "gated", "cross_attention"] = "none"
    """`concat`: an MLP over all embeddings. `gated`: their weighted sum, with learned weights per sample.
    `cross_attention`: a learned query that attends to them."""
    inputs: list[Literal["image", "text", "audio"]] = field(default_factory=lambda: ["image", "audio"])
    """The two modalities to fuse, which are aligned with the third; a learned embedding stands in for one that a sample
    lacks."""
    weight: float = 1.0
    """Weight of that pair in the loss."""
    heads: int = 4
    """`kind=cross_attention`: attention heads."""

    def __post_init__(self) -> None:
        if self.kind != "none":
            if len(self.inputs) != 2 or len(set(self.inputs)) != 2:
                raise ConfigError(f"fusion.inputs: expected two different modalities, got {list(self.inputs)}")
            if not self.weight > 0:
                raise ConfigError(f"fusion.weight: expected a weight above 0, got {self.weight}")
        check_least(self, "fusion", heads=1)

    @property
    def target(self) -> str:
        """Modality that fused embeddings are aligned with: the one that is not fused."""
        return next(name for name in MODALITIES if name not in self.inputs)


@dataclass
class LossConfig:
    """Σ over pairs of weight · (clip · InfoNCE at D + mrl · Σ over the widths below D)."""

    image_text: float = 1.0
    """Weight of the pair; 0 leaves it out."""
    audio_text: float = 1.0
    """Weight of the pair; 0 leaves it out."""
    image_audio: float = 0.5
    """Weight of the pair; 0 leaves it out."""
    clip: float = 1.0
    """Weight of the full width."""
    mrl: float = 1.0
    """Weight of the sum over the widths below it."""
    dims_per_step: int | None = None
    """Widths below D that are drawn per step, reweighted to the same expectation; null: all."""
    temperature: float | None = None
    """A fixed temperature such as 0.07; null learns one for each pair, from 0.07."""
    negatives: Literal["batch", "corpus"] = "batch"
    """`batch`: other samples of the batch. `corpus`: all samples of the training set, embedded from cached features."""
    corpus_every: int = 1
    """`negatives=corpus`: steps between embeddings of the whole set; above 1 its embeddings are up to that many steps
    old, and without gradient."""
    corpus_widths: Literal["all", "full"] = "all"
    """`negatives=corpus`: at all widths, or only at D; then those below D use the batch."""

    def __post_init__(self) -> None:
        for name in ("image_text", "audio_text", "image_audio", "clip", "mrl"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"loss.{name}: expected a weight from 0, got {getattr(self, name)}")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"loss.temperature: expected a temperature above 0, or null, got {self.temperature}")
        check_least(self, "loss", corpus_every=1, dims_per_step=1)

    def pairs(self, modalities: Sequence[str]) -> dict[tuple[str, str], float]:
        """Return the weight of each pair of these modalities that takes part."""
        weights = {
            ("image", "text"): self.image_text,
            ("audio", "text"): self.audio_text,
            ("image", "audio"): self.image_audio,
        }
        return {pair: weight for pair, weight in weights.items() if weight > 0 and set(pair) <= set(modalities)}


@dataclass
class EmbeddingsConfig:
    """How embeddings leave the model, in an index and in queries."""

    centre: bool = False
    """Subtract the mean of each modality over the training set, which narrows the gap between modalities."""


@dataclass
class DataConfig:
    """Source of the samples, and how batches are made of them."""

    root: str | None = None
    """JSONL or parquet file, folder with one, Flickr8k or paired folders, or a folder of Hugging Face `datasets`."""
    format: str = "auto"
    """Format; `auto` detects it from the files. `edgeglass data check` prints the format found."""
    hold_out: int = 0
    """Number of training samples set aside for validation, for a set without a `val` split."""
    split_seed: int = 0
    """Seed of the split of a set without splits, and of `hold_out`."""
    batch_size: int = 128
    """Samples per batch, over all devices together: a multiple of their number."""
    cache_dir: str | None = None
    """Folder of frozen features; default: `cache` in the folder `runs`."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise`: an unreadable image or sound stops the run. `skip`: it is left out and counted in result.json."""
    workers: int = 0
    """Loader processes per device; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        check_least(self, "data", hold_out=0, batch_size=2, workers=0)


@dataclass
class Config:
    """Configuration of an alignment run."""

    name: str | None = None
    """Name of the run folder; default: encoders, seed and time. Required under torchrun and srun."""
    runs: str = "runs"
    """Folder of the run folders and their registry."""
    split: Literal["train", "val", "test"] = "test"
    """The split that `edgeglass eval` scores. Training always fits on `train` and selects on `val`."""
    data: DataConfig = field(default_factory=DataConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    audio: SoundConfig = field(default_factory=SoundConfig)
    mrl: MrlConfig = field(default_factory=MrlConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.01, betas=(0.9, 0.95), warmup_epochs=1.0)
    )
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=10, precision="bf16-mixed"))

    def __post_init__(self) -> None:
        modalities = self.encoders.modalities
        if self.fusion.kind != "none":
            lacking = [name for name in (*self.fusion.inputs, self.fusion.target) if name not in modalities]
            if lacking:
                raise ConfigError(
                    f"fusion: no encoder of {', '.join(lacking)}: this configuration has {', '.join(modalities)}"
                )
        training = [name for name in modalities if self.encoders.of(name).trains]
        if self.loss.negatives == "corpus" and training:
            raise ConfigError(
                f"loss.negatives=corpus embeds cached features, and the encoder of {', '.join(training)} trains: "
                "set loss.negatives=batch, or freeze it"
            )

    @property
    def label(self) -> str:
        """Short name of the encoders, for tables and run names."""
        encoders = self.encoders
        names = (encoders.vision.name, encoders.text.name, encoders.audio.name)
        return "+".join(Path(name.removeprefix("local-dir:")).name for name in names if name is not None)

    @property
    def cache_folder(self) -> Path:
        """Folder of frozen features."""
        return Path(self.data.cache_dir or Path(self.runs) / "cache")

    @property
    def pairs(self) -> dict[tuple[str, str], float]:
        """Weight of each pair of modalities in the loss."""
        return self.loss.pairs(self.encoders.modalities)


def check_widths(dims: Sequence[int], *, width: int) -> None:
    """Raise ConfigError unless `dims` are whole numbers from 1, decreasing, and at most `width`."""
    if width < 1:
        raise ConfigError(f"mrl.width: expected a whole number from 1, got {width}")
    if list(dims) != sorted(set(dims), reverse=True) or min(dims, default=1) < 1:
        raise ConfigError(f"mrl.dims: expected whole numbers from 1, each below the one before, got {list(dims)}")
    if dims and dims[0] > width:
        raise ConfigError(f"mrl.dims: {dims[0]} is wider than the embeddings, mrl.width={width}")
