"""Settings of the model: the frozen CLIP, what is trained in it, its prompts and its score."""

from dataclasses import dataclass, field
from typing import Literal

from aaclip.config.checks import check_least
from clip_common.config import ConfigError


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

    kind: Literal["bottleneck", "mlp", "linear", "lora", "conv"] = "bottleneck"
    """`bottleneck` d → d/2 → d (LeakyReLU 0.2), `mlp` d → d → d, `linear` one matrix without bias (LeakyReLU 0.01).
    `conv`: bottleneck with a depthwise 3 x 3 convolution over the grid of patches, which starts as the identity; the
    class token passes it by, and in the text tower, which has no grid, it is `bottleneck`. `lora`: a low-rank update of
    the block's own query and value matrices, which starts at zero; weights, `position` and `norm` do not apply."""
    rank: int = 8
    """Rank of `lora`."""
    placement: Literal["first", "last", "spread"] = "first"
    """Blocks that are adapted, given their number n: the first, the last, or block ⌊k·depth/n⌋ for k = 1 … n. The depth
    of the image tower ends at the last of `levels`, behind which nothing is read."""
    position: Literal["after", "parallel"] = "after"
    """The adapter reads the block's output, or (`parallel`) its input; it is mixed into the output."""
    text_blocks: int | None = field(default=None, metadata={"alias": "text_adapt_until"})
    """Number of text blocks with an adapter; null: a quarter of all (3 of 12)."""
    image_blocks: int | None = field(default=None, metadata={"alias": "image_adapt_until"})
    """Number of image blocks with an adapter; null: a quarter of all (6 of 24), at most the last of `levels`. More of
    the first than that have no effect, and stay untrained; more of the others are refused."""
    text_weight: float = 0.1
    """Share of the adapter in x = w·a + (1 − w)·x, in the text tower."""
    image_weight: float = 0.1
    """The same in the image tower."""
    norm: Literal["tokens", "none", "layer", "learned"] = "tokens"
    """Scale of the adapter's output: to the norm of the token that it is mixed into (`tokens`), that times a learned
    factor that starts at 1 (`learned`), its own (`none`), or a layer norm with its parameters (`layer`)."""
    final_init: Literal["clip", "xavier"] = "clip"
    """Start of the map that replaces CLIP's text projection: that projection, or random numbers (official)."""

    def __post_init__(self) -> None:
        for name in ("text_weight", "image_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"adapters.{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        check_least("adapters.rank", self.rank, least=1, what="a whole number")
        if self.kind == "lora" and self.position == "parallel":
            raise ConfigError("adapters.position=parallel: lora changes the block itself: set adapters.position=after")


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
        check_least("cross_attention.heads", self.heads, least=1, what="a whole number")
        check_least("cross_attention.weight", self.weight, least=0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"cross_attention.dropout: expected a share from 0 to below 1, got {self.dropout}")


@dataclass
class HeadConfig:
    """The maps from patches to the embedding space of texts."""

    activation: Literal["relu", "leaky", "none"] = "relu"
    """`relu`: matrix with bias, then LeakyReLU 0.2; `leaky`: matrix without bias, then LeakyReLU 0.01 (`--relu` of the
    released code); `none`: matrix without bias (official)."""
    detection: Literal["class_token", "mean", "attention", "levels"] = "class_token"
    """Embedding of the image as a whole. `class_token`: of the frozen tower, which stage 1 adds to patches; it takes a
    second pass when an image is scored. `mean` (official): of the adapted patches of the last level through a head of
    its own, which memorises the training classes; `attention`: the same, weighted by a softmax over patches of their
    product with a learned query, which starts at 0; `levels`: mean over the patches of all levels."""


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
    learned_tokens: int = 0
    """Learned token embeddings between the start token and the words of every prompt (CoOp, Zhou et al. 2022), trained
    in stage 1, shared by all prompts. They take places of the 77 that a prompt has."""

    def __post_init__(self) -> None:
        check_least("prompts.learned_tokens", self.learned_tokens, least=0, what="a whole number")


@dataclass
class ScoreConfig:
    """From maps to one score for each image."""

    image: Literal["calibrated", "official"] = "calibrated"
    """`calibrated`: logistic of the classification and the map's hottest 1 % of patches, fitted on training images;
    `official`: min-max over the tested class."""
    domain: Literal["industrial", "medical"] = "industrial"
    """Width of the blur: 7 patches (σ 1), or 9 (σ 1.5)."""
