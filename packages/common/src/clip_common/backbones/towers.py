"""One idea of a tower, whatever library the weights come from: a trunk that yields features, and a head after it.

    tower(images, layers=(6, 12))      # pooled (B, D), patch tokens, and the tokens after blocks 6 and 12
    tower.pooled(images)               # (B, D) alone, cheaper: what a contrastive loss needs
    tower.trunk_features(images)       # (B, F): what a frozen trunk yields for good, and a cache can keep
    tower.head(features)               # (B, D): pooled == head(trunk_features)

Embeddings are not normalised. Attention runs through SDPA: no attention map is ever built.

Shapes: B batch, D shared width, F width of a trunk, T tokens of an image, L patch tokens among them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip_common.backbones.frozen import freeze
from clip_common.backbones.spec import BackboneError, Tokens


class VisionOutput(NamedTuple):
    """What an image tower yields.

    Attributes:
        pooled: (B, D) from a tower, (B, F) from a trunk.
        patches: (B, L, F) patch tokens as the trunk hands them on, row by row, without class token.
        layers: Tokens (B, T, F) after the named blocks, class token first where there is one.
    """

    pooled: Tensor
    patches: Tensor
    layers: dict[int, Tensor]


class VisionTrunk(nn.Module):
    """What an image model of any library is made into: `trunk(images, layers) -> VisionOutput`.

    Attributes:
        width: F of the patch tokens.
        patch_size: Pixels a side of what one patch token sees at the first layer.
        blocks: Transformer blocks, first to last; none in a convolutional model.
    """

    width: int
    patch_size: int

    @property
    def blocks(self) -> nn.ModuleList:
        raise NotImplementedError

    def features(self, images_B3HW: Tensor) -> Tensor:
        """(B, F): the pooled features alone, up to rounding; cheaper where the trunk knows how."""
        return self(images_B3HW, ()).pooled


class TextTrunk(nn.Module):
    """What a text model of any library is made into: `trunk(tokens) -> (B, F)`.

    Attributes:
        width: Width of the text tokens.
        depth: Transformer blocks.
    """

    width: int
    depth: int


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


@contextmanager
def recorded(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs (B, T, F) of the blocks with these numbers, from 1, while the body runs the model."""
    for number in layers:
        if not 1 <= number <= len(blocks):
            known = f"1 to {len(blocks)}" if len(blocks) else "none: it is not a transformer"
            raise BackboneError(f"layer {number} was asked for, but the blocks of this tower are {known}")
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[number] = output[0] if isinstance(output, tuple) else output

        return blocks[number - 1].register_forward_hook(hook)

    handles = [keep(number) for number in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def resized_positions(table_TF: Tensor, *, grid: int) -> Tensor:
    """Position embeddings of a square grid, interpolated to another (bicubic, antialiased).

    Rows before the grid (class token, registers) are kept. Equals what open_clip does when it loads weights into
    another image size.

    Args:
        table_TF: Class tokens' rows, then those of the old grid, row by row.
        grid: Patches a side of the new one.
    """
    old = int(len(table_TF) ** 0.5)
    first_PF, grid_LF = table_TF[: len(table_TF) - old**2], table_TF[len(table_TF) - old**2 :]
    if old == grid:
        return table_TF
    image_1Fhw = grid_LF.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image_1Fhw = nn.functional.interpolate(
        image_1Fhw.float(), size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    return torch.cat([first_PF, image_1Fhw[0].flatten(1).T.to(table_TF.dtype)])
