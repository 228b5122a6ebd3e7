"""A second view of the frozen image tower, whose last blocks attend by V alone (CLIP Surgery): stage 1's patches.

Shapes: B images, T tokens (class token first), L patches, F width of the tower, D shared width, H heads.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from aaclip.models.vision import run_block, visual_of
from clip_common.backbones import VisionTower


@torch.no_grad()
def read_vv_patches(
    tower: VisionTower, images_B3HW: Tensor, *, levels: Sequence[int], blocks: int, axis: Literal["space", "batch"]
) -> list[Tensor]:
    """The frozen tower's patches (B, L, D) for stage 1: unit patches by V-V attention, plus the unit class embedding.

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
    visual = visual_of(tower)
    resblocks = list(visual.transformer.resblocks)
    shared = len(resblocks) - blocks
    plain_BTF = visual._embeds(images_B3HW)
    patches: dict[int, Tensor] = {}
    for number, block in enumerate(resblocks[:shared], start=1):
        plain_BTF = run_block(block, plain_BTF)
        patches[number] = plain_BTF
    surgery_BTF = plain_BTF
    for number, block in enumerate(resblocks[shared : max(levels)], start=shared + 1):
        surgery_BTF = surgery_BTF + block.ls_1(attend_by_values(block.attn, block.ln_1(surgery_BTF), axis=axis))
        surgery_BTF = surgery_BTF + block.ls_2(block.mlp(block.ln_2(surgery_BTF)))
        patches[number] = surgery_BTF
    for block in resblocks[shared:]:
        plain_BTF = run_block(block, plain_BTF)
    class_B1D = normalize(visual.ln_post(plain_BTF[:, 0]) @ visual.proj, dim=-1)[:, None]
    return [normalize(visual.ln_post(patches[level][:, 1:]) @ visual.proj, dim=-1) + class_B1D for level in levels]


def attend_by_values(attention: nn.MultiheadAttention, x_BTF: Tensor, *, axis: Literal["space", "batch"]) -> Tensor:
    """Self-attention whose queries and keys are its values: softmax(V·Vᵀ/√d)·V, and the block's own output map."""
    width = x_BTF.shape[-1]
    if axis == "batch":
        x_BTF = x_BTF.transpose(0, 1)
    value_BTF = linear(x_BTF, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    value_BHTd = value_BTF.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mixed_BTF = scaled_dot_product_attention(value_BHTd, value_BHTd, value_BHTd).transpose(1, 2).flatten(2)
    if axis == "batch":
        mixed_BTF = mixed_BTF.transpose(0, 1)
    return attention.out_proj(mixed_BTF)


def choose_vv_blocks(tower: VisionTower) -> int:
    """19 of 24, and the same share of another depth (6 of 8)."""
    depth = len(visual_of(tower).transformer.resblocks)
    return round(depth * 19 / 24)
