"""A trunk: the image or text model of any library, with one way to run it whole or block by block.

    output = trunk(images, layers=(6, 12))     # pooled features, patch tokens, and the tokens after blocks 6 and 12

    tokens = trunk.embed(images)               # the same by hand: tokens before the first block
    for block in trunk.blocks:
        tokens = block(tokens)                 # change them here
    features = trunk.readout(tokens)           # == output.pooled

Attention runs through SDPA: no attention map is ever built.

Shapes: B batch, F width of a trunk, T tokens of an image, L patch tokens among them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clip_common.backbones.spec import BackboneError


class VisionOutput(NamedTuple):
    """Output of an image trunk or tower.

    Attributes:
        pooled: (B, D) from a tower, (B, F) from a trunk.
        patches: (B, L, F) patch tokens after the last block, row by row, without the class token.
        layers: Tokens (B, T, F) after the named blocks, class token first if the model has one.
    """

    pooled: Tensor
    patches: Tensor
    layers: dict[int, Tensor]


class TokenSequence(NamedTuple):
    """Tokens of B inputs of different lengths.

    Attributes:
        tokens: (B, L, F), padded to the longest.
        mask: (B, L) bool, true where a token belongs to its input.
    """

    tokens: Tensor
    mask: Tensor


class Block:
    """A transformer block, called on tokens (B, T, F) to give tokens (B, T, F).

    Attributes:
        module: The block as its library built it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x_BTF: Tensor) -> Tensor:
        return self.module(x_BTF)


class Trunk(nn.Module):
    """A model of any library that computes features of its inputs.

    Attributes:
        width: Of its tokens.
    """

    width: int

    @property
    def blocks(self) -> Sequence[Block]:
        """Transformer blocks, first to last; empty for a model that is not a transformer."""
        return ()

    def features(self, inputs: Any) -> Tensor:
        """Return the pooled features (B, F)."""
        return self(inputs)

    def sequence(self, inputs: Any) -> TokenSequence:
        """Return the tokens (B, L, F) of the last layer, and which of them belong to the input.

        Raises:
            BackboneError: A trunk that only gives pooled features.
        """
        raise BackboneError(f"{type(self).__name__} gives pooled features, no sequence: choose a pooling of its own")

    def no_walk(self) -> BackboneError:
        """Return the error of a trunk whose library has no public way to run it block by block."""
        return BackboneError(
            f"{type(self).__name__} cannot be run block by block: use a vision or causal text transformer of "
            "open_clip, or a CLIP, SigLIP or DINOv2 vision model of transformers"
        )


class VisionTrunk(Trunk):
    """An image model: `trunk(images, layers) -> VisionOutput`.

    Attributes:
        width: F of the patch tokens.
        patch_size: Pixels a side that one patch token sees at the first layer.
    """

    patch_size: int

    def features(self, images_B3HW: Tensor) -> Tensor:
        """Return the pooled features (B, F) alone, up to rounding; cheaper than a full forward where possible."""
        return self(images_B3HW, ()).pooled

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """Return the tokens (B, T, F) before the first block; class token first if the model has one.

        Raises:
            BackboneError: A trunk that cannot be run block by block.
        """
        raise self.no_walk()

    def readout(self, x_BTF: Tensor) -> Tensor:
        """Return the pooled features (B, F) of the tokens after the last block.

        Raises:
            BackboneError: A trunk that cannot be run block by block.
        """
        raise self.no_walk()


class TextTrunk(Trunk):
    """A text model: `trunk(tokens) -> (B, F)`.

    Attributes:
        width: F of the text tokens.
        depth: Number of transformer blocks.
    """

    depth: int

    def embed(self, tokens: Any) -> Tensor:
        """Return the tokens (B, L, F) before the first block.

        Raises:
            BackboneError: A trunk that cannot be run block by block.
        """
        raise self.no_walk()

    def readout(self, x_BLF: Tensor, tokens: Any) -> Tensor:
        """Return the pooled features (B, F) of the tokens after the last block; `tokens` are the input of `embed`.

        Raises:
            BackboneError: A trunk that cannot be run block by block.
        """
        raise self.no_walk()


@contextmanager
def record_outputs(blocks: Sequence[Block], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs (B, T, F) of the blocks with these numbers, from 1, while the body runs the model."""
    for number in layers:
        if not 1 <= number <= len(blocks):
            known = f"1 to {len(blocks)}" if len(blocks) else "none: it is not a transformer"
            raise BackboneError(f"layer {number} was asked for, but the blocks of this tower are {known}")
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[number] = output[0] if isinstance(output, tuple) else output

        return blocks[number - 1].module.register_forward_hook(hook)

    handles = [keep(number) for number in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def resize_positions(table_TF: Tensor, *, grid: int) -> Tensor:
    """Interpolate position embeddings of a square grid to another grid (bicubic, antialiased).

    Rows before the grid (class token, registers) are kept. Equals open_clip's interpolation when it loads weights at
    another image size.

    Args:
        table_TF: Rows of class tokens, then of the old grid, row by row.
        grid: Patches a side of the new grid.
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
