"""The trained modules: adapters of frozen blocks, the walk through a tower with them, and the maps after it.

`aaclip-reference.md` describes the adapter `bottleneck`, the overview document `mlp`, and the released code of AA-CLIP
(CVPR 2025, arXiv 2503.06661) is `linear`.

Shapes: B images or prompts, T tokens (class token first in the image tower), F, D widths, g patches a side, r rank.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from aaclip.config import AdapterConfig
from clip_common.backbones import BackboneError
from clip_common.backbones.open_clip_blocks import AttentionBlock
from clip_common.backbones.trunk import Block

SLOPE = 0.2
"""Negative slope of LeakyReLU in the source documents."""
OFFICIAL_SLOPE = 0.01
"""Negative slope in the released code: torch's default."""


ALPHA = 8
"""α of low-rank updates, W + (α/r)·B·A: their scale is 1 at the default rank."""


class GridConvolution(nn.Module):
    """A depthwise 3 x 3 convolution over the grid of patches (B, 1 + g·g, F), zeros around it; the class token passes.

    It starts as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.dirac_(torch.empty(width, 1, 3, 3), groups=width))

    def forward(self, x_BTF: Tensor) -> Tensor:
        side = int((x_BTF.shape[1] - 1) ** 0.5)
        grid_BFgg = x_BTF[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid_BFgg = conv2d(grid_BFgg, self.weight, padding=1, groups=len(self.weight))
        return torch.cat([x_BTF[:, :1], grid_BFgg.flatten(2).transpose(1, 2)], dim=1)


class Adapter(nn.Sequential):
    """A small map from tokens to tokens (B, T, F) beside a block, whose output is mixed into the block's.

    Its matrices start Xavier-uniform.

    Args:
        config: Kind, position and norm.
        width: F.
        weight: Share of the adapter in the mix.
        grid: Tokens are a class token and a grid of patches.
    """

    def __init__(self, config: AdapterConfig, width: int, *, weight: float, grid: bool) -> None:
        layers: list[nn.Module]
        if config.kind == "linear":
            layers = [nn.Linear(width, width, bias=False), nn.LeakyReLU(OFFICIAL_SLOPE)]
        else:
            inner = width if config.kind == "mlp" else width // 2
            layers = [nn.Linear(width, inner), nn.LeakyReLU(SLOPE), nn.Linear(inner, width)]
        init_xavier(nn.Sequential(*layers))
        if config.kind == "conv" and grid:
            layers.insert(1, GridConvolution(width // 2))
        if config.norm == "layer":
            layers.append(nn.LayerNorm(width))
        super().__init__(*layers)
        self.factor = nn.Parameter(torch.ones(())) if config.norm == "learned" else None
        self.follows_norm = config.norm in ("tokens", "learned")
        self.parallel = config.position == "parallel"
        self.weight = weight

    def mix(self, x_BTF: Tensor, adapted_BTF: Tensor) -> Tensor:
        """Return w·a + (1 − w)·x, the output a of the adapter scaled as `adapters.norm` says."""
        if self.follows_norm:
            # an adapter that outputs zero for a token leaves its direction undefined, not infinite
            norm = adapted_BTF.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(adapted_BTF.dtype).tiny)
            adapted_BTF = adapted_BTF * x_BTF.norm(dim=-1, keepdim=True) / norm
        if self.factor is not None:
            adapted_BTF = self.factor * adapted_BTF
        return self.weight * adapted_BTF + (1 - self.weight) * x_BTF


class LowRankUpdate(nn.Module):
    """Low-rank updates of a block's query and value matrices, W + (α/r)·B·A, which start at zero (B = 0).

    The frozen matrices stay, because other views of the tower use them; only the products are added.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query, self.value = (
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)) for _ in range(2)
        )
        self.scale = ALPHA / rank
        for pair in (self.query, self.value):
            for parameter in pair[1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to queries and to values, (B, T, F) each, for normed tokens."""
        return self.scale * self.query(x_BTF), self.scale * self.value(x_BTF)


class Adapters(nn.ModuleList):
    """The adapters of a tower, and the walk through its blocks with them.

    Args:
        config: Kind, placement, position and norm.
        tower: For messages, and because image tokens have a grid.
        blocks: Of the tower, those that are read alone.
        depth: Number of blocks in the tower.
        width: F.

    Raises:
        ValueError: More adapters than blocks.
        BackboneError: Low-rank updates of blocks of another kind than CLIP's.

    Attributes:
        places: Number of each adapter's block, from 1.
    """

    def __init__(
        self, config: AdapterConfig, *, tower: Literal["text", "image"], blocks: Sequence[Block], depth: int, width: int
    ) -> None:
        text = tower == "text"
        count = config.text_blocks if text else config.image_blocks
        if count is None:
            count = min(depth // 4 or 1, len(blocks))
        most = depth if config.placement == "first" else len(blocks)  # released files may hold some that are not read
        if not 0 <= count <= most:
            raise ValueError(
                f"adapters.{tower}_blocks={count}: the {tower} tower has {depth} blocks"
                + (f", of which the first {most} are read" if most < depth else "")
            )
        if config.kind == "lora":
            if not all(isinstance(block, AttentionBlock) for block in blocks):
                raise BackboneError(
                    f"adapters.kind=lora: the {tower} tower's blocks are not CLIP's: choose another kind"
                )
            super().__init__(LowRankUpdate(width, config.rank) for _ in range(count))
        else:
            weight = config.text_weight if text else config.image_weight
            super().__init__(Adapter(config, width, weight=weight, grid=not text) for _ in range(count))
        self.places = choose_places(config.placement, count, depth=len(blocks))

    def walk(
        self, blocks: Sequence[Block], x_BTF: Tensor, *, attend: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the tokens (B, T, F) after each block and its adapter.

        Args:
            blocks: The first blocks of the tower.
            x_BTF: Tokens before the first.
            attend: Cross-attention (B, T, F) -> (B, T, F) between the first block and its adapter.
        """
        placed = dict(zip(self.places, self, strict=False))  # without places, none is used
        for number, block in enumerate(blocks, start=1):
            adapter, before_BTF = placed.get(number), x_BTF
            if isinstance(adapter, LowRankUpdate):
                assert isinstance(block, AttentionBlock)
                x_BTF = block(x_BTF, update=adapter)
            else:
                x_BTF = block(x_BTF)
            if number == 1 and attend is not None:
                x_BTF = attend(x_BTF)
            if isinstance(adapter, Adapter):
                x_BTF = adapter.mix(x_BTF, adapter(before_BTF if adapter.parallel else x_BTF))
            yield x_BTF

    def run(
        self, blocks: Sequence[Block], x_BTF: Tensor, *, attend: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the tokens (B, T, F) after the last of the blocks; see `walk`."""
        return deque(self.walk(blocks, x_BTF, attend=attend), maxlen=1).pop()

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Walk without adapters while the body runs."""
        kept, self.places = self.places, []
        try:
            yield
        finally:
            self.places = kept


def choose_places(placement: Literal["first", "last", "spread"], count: int, *, depth: int) -> list[int]:
    """Return the numbers of `count` of `depth` blocks, from 1: the first, the last, or ⌊k·depth/count⌋, k = 1 … count.

    6 of 24 are 1 … 6, 19 … 24, or 4, 8 … 24.
    """
    if placement == "spread":
        return [k * depth // count for k in range(1, count + 1)]
    first = 1 if placement == "first" else depth - count + 1
    return list(range(first, first + count))


def make_head(width: int, out: int, *, activation: Literal["relu", "leaky", "none"]) -> nn.Sequential:
    """Return a map (…, F) -> (…, D), Xavier-uniform: the documents' `relu`, or the released `leaky` or `none`."""
    layers: list[nn.Module] = [nn.Linear(width, out, bias=activation == "relu")]
    if activation != "none":
        layers.append(nn.LeakyReLU(SLOPE if activation == "relu" else OFFICIAL_SLOPE))
    return init_xavier(nn.Sequential(*layers))


def make_final_projection(width: int, out: int, *, start: Tensor | None) -> nn.Sequential:
    """Return the map (…, F) -> (…, D) that replaces CLIP's text projection.

    Args:
        width, out: F and D.
        start: CLIP's own projection (F, D) as initial value, with nothing after it: untrained, the map equals CLIP's.
            None: random numbers followed by LeakyReLU, as in the released code.
    """
    if start is None:
        return init_xavier(nn.Sequential(nn.Linear(width, out, bias=False), nn.LeakyReLU(OFFICIAL_SLOPE)))
    linear = nn.Linear(width, out, bias=False)
    if not start.is_meta:  # a tower without weights: trained ones are loaded next
        with torch.no_grad():
            linear.weight.copy_(start.T)
    return nn.Sequential(linear)


def init_xavier(module: nn.Sequential) -> nn.Sequential:
    """Initialise matrices Xavier-uniform, in place; biases keep torch's own initialisation."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return module
