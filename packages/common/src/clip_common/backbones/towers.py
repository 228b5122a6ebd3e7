"""A tower: a trunk that computes features, and a head that maps them into the shared space.

    tower(images, layers=(6, 12))      # pooled (B, D), patch tokens, and the tokens after blocks 6 and 12
    tower.pooled(images)               # (B, D) alone, cheaper: all that a contrastive loss needs
    tower.trunk_features(images)       # (B, F): constant for a frozen trunk, so a cache can keep them
    tower.head(features)               # (B, D): pooled == head(trunk_features)

Embeddings are not normalised.

Shapes: B batch, D shared width, F width of a trunk, T tokens of an image, L patch tokens among them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clip_common.backbones.frozen import freeze
from clip_common.backbones.spec import Tokens
from clip_common.backbones.trunk import TextTrunk, Trunk, VisionOutput, VisionTrunk


class Tower(nn.Module):
    """Inputs of one kind to embeddings.

    Args:
        trunk: The model that computes features.
        head: Features (B, F) to (B, D); None for a trunk that ends in the shared space.
    """

    def __init__(self, trunk: Trunk, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head or nn.Identity()

    def forward(self, inputs: Any) -> Any:
        """Return embeddings (B, D) of what the encoder's feed made."""
        return self.head(self.trunk_features(inputs))

    def trunk_features(self, inputs: Any) -> Tensor:
        """Return (B, F): the head's input."""
        return self.trunk.features(inputs)

    def freeze_trunk(self) -> None:
        """Freeze the trunk: no gradients, and always eval mode. The head still trains."""
        freeze(self.trunk)


class VisionTower(Tower):
    """Images to embeddings."""

    trunk: VisionTrunk

    def __init__(self, trunk: VisionTrunk, head: nn.Module | None = None) -> None:
        super().__init__(trunk, head)

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        """Embed preprocessed images.

        Args:
            images_B3HW: Pixels from the bundle's `preprocess`.
            layers: Numbers of the blocks, from 1, whose output is also returned.

        Raises:
            BackboneError: A layer that the trunk does not have.
        """
        output = self.trunk(images_B3HW, layers)
        return output._replace(pooled=self.head(output.pooled))

    def pooled(self, images_B3HW: Tensor) -> Tensor:
        """Return the embeddings (B, D) alone; cheaper than `forward`, which also makes the patch tokens."""
        return self.head(self.trunk_features(images_B3HW))


class TextTower(Tower):
    """Tokens to embeddings."""

    trunk: TextTrunk

    def __init__(self, trunk: TextTrunk, head: nn.Module | None = None) -> None:
        super().__init__(trunk, head)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return embeddings (B, D) of the tokens that the bundle's tokenizer made."""
        return self.head(self.trunk_features(tokens))
