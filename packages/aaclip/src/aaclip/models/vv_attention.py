"""A second view of the frozen image tower, whose last blocks attend by V alone (CLIP Surgery): stage 1's patches.

Shapes: B images, T tokens (class token first), L patches, F width of the tower, D shared width, H heads, d width of a
head.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from aaclip.models.vision import get_image_trunk
from clip_common.backbones import VisionTower
from clip_common.backbones.open_clip_blocks import AttentionBlock


@torch.no_grad()
def read_vv_patches(
    tower: VisionTower, images_B3HW: Tensor, *, levels: Sequence[int], blocks: int, axis: Literal["space", "batch"]
) -> list[Tensor]:
    """Return the frozen tower's patches (B, L, D) for stage 1: unit patches by V-V attention, plus the unit class
    embedding.

    A view of the same weights, not a copy; the blocks before the last `blocks` run once for both views.

    Args:
        tower: Frozen.
        images_B3HW: Preprocessed pixels.
        levels: Blocks, from 1, whose patches are read.
        blocks: How many of the last blocks attend by V-V.
        axis: Among the patches of an image, or (official's slip) among the images of a batch.

    Reference:
        Li et al., CLIP Surgery for Better Explainability, 2023.
    """
    trunk = get_image_trunk(tower)
    shared = len(trunk.blocks) - blocks
    plain_BTF = trunk.embed(images_B3HW)
    patches: dict[int, Tensor] = {}
    for number, block in enumerate(trunk.blocks[:shared], start=1):
        plain_BTF = block(plain_BTF)
        if number in levels:
            patches[number] = normalize(trunk.project(plain_BTF[:, 1:]), dim=-1)
    x_BTF = plain_BTF
    for number, block in enumerate(trunk.blocks[shared : max(levels)], start=shared + 1):
        assert isinstance(block, AttentionBlock)
        x_BTF = block.add_attention(x_BTF, attend_by_values(block, block.norm(x_BTF), axis=axis))
        x_BTF = block.add_mlp(x_BTF)
        if number in levels:
            patches[number] = normalize(trunk.project(x_BTF[:, 1:]), dim=-1)
    for block in trunk.blocks[shared:]:
        plain_BTF = block(plain_BTF)
    class_B1D = normalize(trunk.project(plain_BTF[:, 0]), dim=-1)[:, None]
    return [patches[level] + class_B1D for level in levels]


def attend_by_values(block: AttentionBlock, x_BTF: Tensor, *, axis: Literal["space", "batch"]) -> Tensor:
    """Return (B, T, F): self-attention with values as queries and keys, softmax(V·Vᵀ/√d)·V, and the block's own output
    map.

    Args:
        block: Its value and output maps are used.
        x_BTF: Normed tokens.
        axis: Among the tokens of an image, or (official's slip) among the images of a batch, token by token.
    """
    if axis == "batch":
        x_BTF = x_BTF.transpose(0, 1)
    value_BHTd = block.value(x_BTF)
    joined_BTF = block.join(scaled_dot_product_attention(value_BHTd, value_BHTd, value_BHTd))
    if axis == "batch":
        joined_BTF = joined_BTF.transpose(0, 1)
    return block.project(joined_BTF)


def choose_vv_blocks(tower: VisionTower) -> int:
    """Return 19 of 24 blocks, and the same share of another depth (6 of 8)."""
    return round(len(get_image_trunk(tower).blocks) * 19 / 24)
