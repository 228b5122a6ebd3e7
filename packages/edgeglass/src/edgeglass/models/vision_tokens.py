"""The tokens of one block of an image trunk, as a sequence: what `select_layer` and `select_feature` choose.

Shapes: B batch, F width, L tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from clip_common.backbones import VisionOutput
from clip_common.backbones.trunk import Block, TokenSequence, Trunk, VisionTrunk
from edgeglass.models.pooling import masked_mean


class SelectedTokens(Trunk):
    """An image trunk as a source of tokens.

    Args:
        trunk: Its weights are shared.
        layer: Block whose tokens are used, from 1, or from the end, from -1. The last block with `patch` gives the
            trunk's own patch tokens, which some trunks normalise once more.
        select: `patch`, or `cls_patch` for the class token (or registers) too.
        own_width: Makes `features` the trunk's own pooled output, of this width; None: the mean of the selected tokens.

    Raises:
        ValueError: A layer that the trunk does not have.
    """

    def __init__(
        self,
        trunk: VisionTrunk,
        *,
        layer: int = -1,
        select: Literal["patch", "cls_patch"] = "patch",
        own_width: int | None = None,
    ) -> None:
        super().__init__()
        depth = len(trunk.blocks)
        # a trunk without blocks, such as a ResNet, still has patch tokens
        if not (1 <= layer <= depth or -depth <= layer <= -1) and (layer, select) != (-1, "patch"):
            known = f"1 to {depth}, or -1 to -{depth} from the end" if depth else "-1 with select_feature=patch"
            raise ValueError(
                f"encoders.vision.select_layer={layer}: expected {known}, for a model of {depth} transformer blocks"
            )
        self.trunk = trunk
        self.width = own_width or trunk.width
        self.patch_size = trunk.patch_size
        self.layer = layer if layer > 0 else depth + 1 + layer
        self.own = own_width is not None
        self.select = select
        self.last = self.layer == depth and select == "patch"

    @property
    def blocks(self) -> list[Block]:
        """Transformer blocks of the trunk."""
        return list(self.trunk.blocks)

    def forward(self, images_B3HW: Tensor) -> TokenSequence:
        """Return the selected tokens (B, L, F)."""
        return self.sequence(images_B3HW)

    def sequence(self, images_B3HW: Tensor) -> TokenSequence:
        """Return the selected tokens (B, L, F), all of which count."""
        if self.last:
            tokens_BLF = self.trunk(images_B3HW, ()).patches
        else:
            output: VisionOutput = self.trunk(images_B3HW, (self.layer,))
            tokens_BLF = output.layers[self.layer]
            if self.select == "patch":
                tokens_BLF = tokens_BLF[:, -output.patches.shape[1] :]
        return TokenSequence(tokens_BLF, torch.ones(tokens_BLF.shape[:2], dtype=torch.bool, device=tokens_BLF.device))

    def features(self, images_B3HW: Tensor) -> Tensor:
        """Return the trunk's pooled output, or the mean of the selected tokens (B, F)."""
        return self.trunk.features(images_B3HW) if self.own else masked_mean(*self.sequence(images_B3HW))
