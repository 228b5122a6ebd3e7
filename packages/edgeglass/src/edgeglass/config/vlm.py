"""Settings of stage 2: a language model that answers questions about an image."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clip_common.config import ConfigError, OptimConfig, TrainerConfig
from edgeglass.config.checks import check_least


@dataclass
class PrefixConfig:
    """From an image to the tokens that the decoder reads before the text."""

    tokens: Literal["aligned", "patch"] = "aligned"
    """`aligned`: the sequence of the aligned image encoder: projected patch tokens, or the latents of its Perceiver.
    `patch`: the patch tokens of the image encoder itself."""
    name: str | None = None
    """Image encoder of a run without `align`: `tiny`, an open_clip name, or a folder or hub name. Its tokens are
    `patch`."""
    pretrained: str | None = None
    """Tag of the weights of an open_clip architecture."""
    image_size: int | None = None
    """Pixels per side; null: the encoder's own, or that of `align`."""
    select_layer: int | None = None
    """Block whose tokens are used, from 1, or from the end; null: the last one, or that of `align`."""
    merge: int = 1
    """Side of the squares of neighbouring patch tokens that become one, concatenated: 2 makes a quarter of the tokens.
    Only for tokens that form a grid, not for the latents of a Perceiver."""
    projector: Literal["linear", "mlp2x_gelu"] = "linear"
    """From a token to the decoder's width: one matrix, or two with a GELU between them."""
    start: Literal["random", "words"] = "random"
    """Of an untrained projector: random numbers, or (`projector=linear`) the ridge regression from image tokens to the
    words of the answers about them, with which a few hundred images are enough to see something."""
    lr: float | None = None
    """Peak learning rate of the projector; null: `optim.lr`. A step of Adam moves an image token by about its own size
    where the rate is one over the width of the merged tokens, so wide tokens need a lower one than adapters do."""

    def __post_init__(self) -> None:
        check_least(self, "prefix", merge=1, image_size=1)
        if self.lr is not None and not self.lr >= 0:
            raise ConfigError(f"prefix.lr: expected a learning rate from 0, or null, got {self.lr}")
        if self.start == "words" and self.projector != "linear":
            raise ConfigError(
                f"prefix.start=words has a closed form for one matrix only: set prefix.projector=linear, not "
                f"{self.projector}"
            )


@dataclass
class AdapterConfig:
    """Low-rank adapters of the decoder (peft)."""

    r: int = 64
    """Rank; 0 adds no adapters."""
    alpha: float = 128.0
    """Scale: the adapters' output is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapters, in training."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of the linear layers that get adapters; ["all-linear"] adapts all but the head."""

    def __post_init__(self) -> None:
        check_least(self, "decoder.lora", r=0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"decoder.lora.dropout: expected a share from 0 to below 1, got {self.dropout}")


@dataclass
class DecoderConfig:
    """The language model."""

    kind: Literal["qwen", "trm"] = "qwen"
    """`qwen`: a causal language model of transformers, with low-rank adapters. `trm`: a recursive decoder trained from
    scratch, with the tokenizer of `name`; its sizes are in `trm`."""
    name: str = "Qwen/Qwen2.5-3B-Instruct"
    """`tiny`, or a folder or hub name of a causal language model."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """`4bit`: nf4 with double quantization. `8bit`: int8. Both through bitsandbytes, also on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the frozen weights."""
    checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory and costs time."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass
class TrmConfig:
    """Recursive refinement: T loops of one small network over two latent states, y (the answer) and z (the reasoning).

    On a language model it refines the last hidden states (`steps` above 0). With `decoder.kind=trm` it is the decoder.
    """

    steps: int = 0
    """T: loops; 0 adds no recursion to a language model."""
    inner: int = 2
    """n: updates of z before each update of y."""
    layers: int = 1
    """Layers of the network, which all loops share."""
    width: int = 256
    """Width of the latent states."""
    heads: int = 4
    """Attention heads; they divide `width`."""
    ff_mult: float = 4.0
    """Width of the gated feed-forward layer, as a multiple of `width`."""
    glu: Literal["swiglu", "geglu", "reglu"] = "swiglu"
    """Gate of the feed-forward layer."""
    supervise: Literal["last", "all", "monotone"] = "last"
    """`last`: the loss after loop T. `all`: the mean of the losses after every loop, so that inference may stop at any.
    `monotone`: `all`, plus relu(loss of a loop - loss of the loop before it, which gets no gradient)."""
    halt: Literal["never", "steps", "threshold"] = "never"
    """`never`: answers take `steps` loops. `steps`: `max_steps`. `threshold`: each token stops at the first loop after
    which the halting head says that its prediction is right, at most `max_steps`."""
    max_steps: int | None = None
    """Most loops of an answer; null: `steps`."""
    threshold: float = 0.5
    """`halt=threshold`: probability from which a token stops."""

    def __post_init__(self) -> None:
        check_least(self, "trm", steps=0, inner=1, layers=1, width=1, heads=1, max_steps=1)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(
                f"trm: width={self.width} over heads={self.heads} must be an even whole number, which rotary positions "
                "need"
            )
        if self.halt == "threshold" and self.supervise == "last":
            raise ConfigError(
                "trm.halt=threshold: the halting head learns from supervised loops; set trm.supervise=all or monotone"
            )
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"trm.threshold: expected a probability from 0 to 1, got {self.threshold}")
        if not self.ff_mult > 0:
            raise ConfigError(f"trm.ff_mult: expected a multiple above 0, got {self.ff_mult}")


@dataclass
class QuestionDataConfig:
    """Source of questions, answers and captions, and how batches are made of them."""

    root: str | None = None
    """JSONL or parquet file, folder of VQAv2, GQA or TextVQA files, instruction pairs, or a set with captions."""
    format: str = "auto"
    """Format; `auto` detects it from the files. `edgeglass data check` prints the format found."""
    images: str | None = None
    """Folder of the images, where the files do not say; null: beside them."""
    hold_out: int = 0
    """Number of training images set aside for validation, for a set without a `val` split."""
    split_seed: int = 0
    """Seed of the split of a set without splits, and of `hold_out`."""
    caption_prompt: str = "Describe the image."
    """Question to which a caption is the answer."""
    layout: Literal["plain", "chat"] = "plain"
    """`plain`: prefix, question, answer. `chat`: the chat template of the decoder, with the image in the first turn of
    the user."""
    batch_size: int = 16
    """Images per batch, each with its conversations, over all devices together: a multiple of their number."""
    per_image: int | None = None
    """Conversations about an image that an epoch trains on, drawn anew each epoch; null: all."""
    packing: bool = True
    """Put the conversations of a batch into as few rows as `row_length` allows. Those about one image share its prefix,
    and none sees another: the loss is that of a padded batch. False: one conversation a row, of similar lengths."""
    row_length: int = 2048
    """`packing=true`: most tokens of a row; a longer conversation has its own."""
    max_length: int | None = None
    """Most tokens of a conversation, prefix included; longer texts are cut, never the prefix. null: the decoder's
    context."""
    cache_dir: str | None = None
    """Folder of frozen features, shared with stage 1; default: `cache` in the folder `runs`."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise`: an unreadable image stops the run. `skip`: its conversations are left out and counted in result.json."""
    workers: int = 0
    """Loader processes per device; 0 makes batches in the training process."""

    def __post_init__(self) -> None:
        check_least(self, "data", hold_out=0, batch_size=1, workers=0, per_image=1, row_length=1, max_length=1)

    @property
    def packed_length(self) -> int | None:
        """Most tokens of a packed row; None: padded rows."""
        return self.row_length if self.packing else None


@dataclass
class AnswerConfig:
    """How answers are generated, in validation, in `vlm-eval` and in `ask`."""

    max_new_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0: the most probable token each time; above 0: drawn, flatter with a higher temperature."""
    batch_size: int = 16
    """Questions that are answered together in `vlm-eval`."""

    def __post_init__(self) -> None:
        check_least(self, "answer", max_new_tokens=1, batch_size=1)
        if not self.temperature >= 0:
            raise ConfigError(f"answer.temperature: expected a temperature from 0, got {self.temperature}")


@dataclass
class VlmConfig:
    """Configuration of a run that teaches a language model to see."""

    name: str | None = None
    """Name of the run folder; default: decoder, seed and time. Required under torchrun and srun."""
    runs: str = "runs"
    """Folder of the run folders and their registry."""
    align: str | None = None
    """Run or saved model of `edgeglass align` whose image encoder is used, frozen; null: the encoder `prefix.name`."""
    start: str | None = None
    """Run or saved model of `edgeglass vlm` to start from: `phase=lora` after `phase=projector`."""
    phase: Literal["projector", "lora", "both"] = "both"
    """What trains: the projector (and the recursion) under a frozen decoder, the adapters too after a projector phase
    (`lora`, which needs `start`), or all at once."""
    split: Literal["train", "val", "test"] = "test"
    """The split that `edgeglass vlm-eval` scores. Training always fits on `train` and selects on `val`."""
    data: QuestionDataConfig = field(default_factory=QuestionDataConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    trm: TrmConfig = field(default_factory=TrmConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.0, betas=(0.9, 0.95), warmup_epochs=0.1)
    )
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=1, precision="bf16-mixed"))

    def __post_init__(self) -> None:
        if self.align is not None and self.prefix.name is not None:
            raise ConfigError("align and prefix.name both name an image encoder: leave one out")
        if self.phase == "lora" and self.start is None:
            raise ConfigError("phase=lora continues a projector phase: give start=RUN, or set phase=both")
        if self.phase != "projector" and self.decoder.kind == "qwen" and self.decoder.lora.r == 0:
            raise ConfigError(f"phase={self.phase} trains adapters: set decoder.lora.r above 0, or phase=projector")
        if self.decoder.kind == "trm":
            if self.phase != "both":
                raise ConfigError(f"decoder.kind=trm trains from scratch: phase={self.phase} would leave it untrained")
            if self.trm.steps == 0:
                raise ConfigError("decoder.kind=trm: set trm.steps, the number of loops, above 0")
            if self.prefix.start == "words":
                raise ConfigError("prefix.start=words: decoder.kind=trm has no words before it trains: leave it out")
            if self.decoder.quantization != "none":
                raise ConfigError("decoder.kind=trm trains all of its weights: set decoder.quantization=none")

    @property
    def label(self) -> str:
        """Short name of the decoder, for tables and run names."""
        name = Path(self.decoder.name).name
        return f"trm-{name}" if self.decoder.kind == "trm" else name

    @property
    def cache_folder(self) -> Path:
        """Folder of frozen features."""
        return Path(self.data.cache_dir or Path(self.runs) / "cache")
