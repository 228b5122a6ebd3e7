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
        layer: Block whose tokens are used, from 1, or from the end. -1 with `patch` takes the trunk's own patch tokens,
            after its final norm.
        select: `patch`, or `cls_patch` for the class token (or registers) too.
        own: `features` are the trunk's pooled output; otherwise the mean of the selected tokens.

    Raises:
        ValueError: A layer that the trunk does not have.
    """

    def __init__(
        self, trunk: VisionTrunk, *, layer: int = -1, select: Literal["patch", "cls_patch"] = "patch", own: bool = False
    ) -> None:
        super().__init__()
        depth = len(trunk.blocks)
        if not (1 <= layer <= depth or -depth <= layer <= -1):
            raise ValueError(
                f"encoders.vision.select_layer={layer}: expected 1 to {depth}, or -1 to -{depth} from the end"
            )
        self.trunk = trunk
        self.width = trunk.width
        self.patch_size = trunk.patch_size
        self.layer = layer if layer > 0 else depth + 1 + layer
        self.own = own
        self.select = select
        self.last = layer == -1 and select == "patch"

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
