"""A tower: a trunk that computes features, and a head that maps them into the shared space.

    tower(images, layers=(6, 12))      # pooled (B, D), patch tokens, and the tokens after blocks 6 and 12
    tower.pooled(images)               # (B, D) alone, cheaper: all that a contrastive loss needs
    tower.trunk_features(images)       # (B, F): constant for a frozen trunk, so a cache can keep them
    tower.head(features)               # (B, D): pooled == head(trunk_features)

Embeddings are not normalised.

Shapes: B batch, D shared width, F width of a trunk, T tokens of an image, L patch tokens among them.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from clip_common.backbones.frozen import freeze
from clip_common.backbones.spec import Tokens
from clip_common.backbones.trunk import TextTrunk, VisionOutput, VisionTrunk


class VisionTower(nn.Module):
    """Images to embeddings.

    Args:
        trunk: The image model.
        head: Features (B, F) to (B, D); None where the trunk ends in the shared space.
    """

    def __init__(self, trunk: VisionTrunk, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head or nn.Identity()

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        """Embed preprocessed images.

        Args:
            images_B3HW: Pixels as `Bundle.preprocess` makes them.
            layers: Numbers of the blocks, from 1, whose output is wanted besides.

        Raises:
            BackboneError: A layer that the trunk does not have.
        """
        output = self.trunk(images_B3HW, layers)
        return output._replace(pooled=self.head(output.pooled))

    def pooled(self, images_B3HW: Tensor) -> Tensor:
        """(B, D): the embeddings alone; cheaper than `forward`, which makes the patch tokens besides."""
        return self.head(self.trunk_features(images_B3HW))

    def trunk_features(self, images_B3HW: Tensor) -> Tensor:
        """(B, F): what `head` takes."""
        return self.trunk.features(images_B3HW)

    def freeze_trunk(self) -> None:
        """No gradients in the trunk, eval mode for good; the head still trains."""
        freeze(self.trunk)


class TextTower(nn.Module):
    """Tokens to embeddings.

    Args:
        trunk: The text model.
        head: Features (B, F) to (B, D); None where the trunk ends in the shared space.
    """

    def __init__(self, trunk: TextTrunk, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head or nn.Identity()

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, D) embeddings of what the bundle's tokenizer returned."""
        return self.head(self.trunk(tokens))

    def trunk_features(self, tokens: Tokens) -> Tensor:
        """(B, F): what `head` takes."""
        return self.trunk(tokens)

    def freeze_trunk(self) -> None:
        """No gradients in the trunk, eval mode for good; the head still trains."""
        freeze(self.trunk)
