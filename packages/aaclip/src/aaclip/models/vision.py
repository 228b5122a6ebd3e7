"""The frozen image tower with adapters and heads (stage 2).

Shapes: B images, T tokens (class token first), L patches, F width of the tower, D shared width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import skip_init

from aaclip.config import AdapterConfig, HeadConfig
from aaclip.models.adapters import Adapters, make_head
from clip_common.backbones import BackboneError, VisionTower
from clip_common.backbones.open_clip_blocks import AttentionBlock
from clip_common.backbones.open_clip_trunks import OpenClipVision


class ImageFeatures(NamedTuple):
    """Features of images before any class is named.

    Attributes:
        levels: Unit patch embeddings (B, L, D), one tensor for each level.
        detection: (B, D) of the image as a whole: the frozen tower's unit class embedding, or a mean over patches of
            unit embeddings (`HeadConfig.detection`), whose own length is not one.
    """

    levels: list[Tensor]
    detection: Tensor


class ImageAdapter(nn.Module):
    """Everything that stage 2 trains: adapters of some blocks, a head for each level, and if configured one for
    detection.

    Args:
        tower: The frozen tower; only its sizes are read here.
        levels: Blocks, from 1, whose patches are read.
        adapters, heads: Which blocks, which kinds.

    Raises:
        ValueError: Levels or blocks that the tower does not have.
        BackboneError: The tower is not a CLIP vision transformer of open_clip.
    """

    def __init__(
        self, tower: VisionTower, *, levels: Sequence[int], adapters: AdapterConfig, heads: HeadConfig
    ) -> None:
        super().__init__()
        trunk = get_image_trunk(tower)
        depth, width, out = len(trunk.blocks), trunk.width, trunk.embed_dim
        self.levels = check_levels(levels, depth=depth)
        read = trunk.blocks[: self.levels[-1]]
        self.layers = Adapters(adapters, tower="image", blocks=read, depth=depth, width=width)
        self.segmentation = nn.ModuleList(make_head(width, out, activation=heads.activation) for _ in self.levels)
        self.pools_levels = heads.detection == "levels"
        own = heads.detection != "class_token"
        self.detection = make_head(width, out, activation=heads.activation) if own else None
        self.query: nn.Linear | None = None
        if heads.detection == "attention":
            self.query = skip_init(nn.Linear, out, 1, bias=False)
            nn.init.zeros_(self.query.weight)

    def forward(
        self, tower: VisionTower, images_B3HW: Tensor, *, attend: Callable[[Tensor], Tensor] | None = None
    ) -> ImageFeatures:
        """Return the patches of the levels, and the embedding of the image as a whole; see `patches`."""
        patches = self.patches(tower, images_B3HW, attend=attend)
        if self.detection is None:
            detection_BD = embed_class_token(tower, images_B3HW)
        else:
            pooled_BLF = torch.cat(patches, dim=1) if self.pools_levels else patches[-1]
            detection_BD = self._pool(normalize(self.detection(pooled_BLF), dim=-1))
        return ImageFeatures(self.embed_patches(patches), detection_BD)

    def _pool(self, embedded_BLD: Tensor) -> Tensor:
        """Return (B, D): the mean of patches, weighted if there is a query."""
        if self.query is None:
            return embedded_BLD.mean(dim=1)
        weights_BL1 = self.query(embedded_BLD).softmax(dim=1)
        return (weights_BL1 * embedded_BLD).sum(dim=1)

    def patches(
        self, tower: VisionTower, images_B3HW: Tensor, *, attend: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Return the patches (B, L, F) of each level, after the tower's last norm.

        Args:
            tower: The frozen tower.
            images_B3HW: Preprocessed pixels.
            attend: Cross-attention (B, T, F) -> (B, T, F) between the first block and its adapter.
        """
        norm = get_image_trunk(tower).norm
        walk = self.walk(tower, images_B3HW, depth=max(self.levels), attend=attend)
        return [norm(x_BTF[:, 1:]) for number, x_BTF in enumerate(walk, start=1) if number in self.levels]

    def walk(
        self,
        tower: VisionTower,
        images_B3HW: Tensor,
        *,
        depth: int,
        attend: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Return the tokens (B, T, F) after each of the first `depth` blocks and its adapter; see `patches`."""
        trunk = get_image_trunk(tower)
        return self.layers.walk(trunk.blocks[:depth], trunk.embed(images_B3HW), attend=attend)

    def embed_patches(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """Return unit embeddings (B, L, D) of the patches of each level."""
        return [normalize(head(x_BLF), dim=-1) for head, x_BLF in zip(self.segmentation, patches, strict=True)]


@torch.no_grad()
def embed_class_token(tower: VisionTower, images_B3HW: Tensor) -> Tensor:
    """Return the (B, D) unit class embedding of the frozen tower: CLIP's own embedding of the image as a whole."""
    return normalize(tower.pooled(images_B3HW), dim=-1)


def choose_levels(tower: VisionTower) -> list[int]:
    """Return the blocks at quarters of the depth: 6, 12, 18, 24 of 24."""
    depth = len(get_image_trunk(tower).blocks)
    return sorted({max(1, round(depth * quarter / 4)) for quarter in (1, 2, 3, 4)})


def check_levels(levels: Sequence[int], *, depth: int) -> list[int]:
    """Return the levels, or raise ValueError unless they are different blocks in rising order."""
    if not levels or sorted(set(levels)) != list(levels) or not 1 <= levels[0] <= levels[-1] <= depth:
        raise ValueError(f"levels={list(levels)}: expected different blocks in rising order, from 1 to {depth}")
    return list(levels)


def get_image_trunk(tower: VisionTower) -> OpenClipVision:
    """Return the trunk of an image tower.

    Raises:
        BackboneError: It is not a CLIP vision transformer of open_clip.
    """
    trunk = tower.trunk
    if (
        isinstance(trunk, OpenClipVision)
        and trunk.projects_patches
        and all(isinstance(block, AttentionBlock) for block in trunk.blocks)
    ):
        return trunk
    raise BackboneError(
        f"aaclip reads patches of CLIP's vision transformers (open_clip); this tower is a {type(trunk).__name__}"
    )
