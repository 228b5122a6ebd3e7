"""From the features of a frozen image encoder to the tokens that a decoder reads before the text.

Shapes: G images, L tokens of the encoder, F its width, P prefix tokens, C their width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from clip_common.backbones import Encoder, freeze
from clip_common.backbones.trunk import TokenSequence
from edgeglass.models.encoders import ProjectionHead


class VisionPrefix(nn.Module):
    """Frozen image tokens: those of the encoder, or those of its aligned head, merged into fewer.

    Args:
        encoder: Image encoder whose trunk has a `sequence` of tokens; its feed makes the input.
        head: Aligned head, whose sequence is used; None: the encoder's own tokens.
        merge: Side of the squares of neighbouring tokens that are concatenated into one.

    Attributes:
        width: C.

    Raises:
        ValueError: `merge` above 1 with a Perceiver, whose latents form no grid.
    """

    def __init__(self, encoder: Encoder, *, head: ProjectionHead | None = None, merge: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk: Any = freeze(encoder.tower.trunk)
        self.head = None if head is None else freeze(head)
        self.merge = merge
        if merge > 1 and head is not None and head.perceiver is not None:
            raise ValueError(f"prefix.merge={merge}: the latents of a Perceiver form no grid: set prefix.merge=1")
        self.width = self.trunk.width if head is None else head.width
        self.width *= merge**2

    @torch.no_grad()
    def forward(self, features: TokenSequence) -> TokenSequence:
        """Return prefix tokens (G, P, C) and their mask (G, P) for features (G, L, F) of the trunk."""
        tokens_GLF, mask_GL = features
        if self.head is not None:
            _, tokens_GLF, mask_GL = self.head(tokens_GLF, mask_GL)
        if self.merge == 1:
            return TokenSequence(tokens_GLF, mask_GL)
        tokens_GPC = merge_squares(tokens_GLF, merge=self.merge)
        return TokenSequence(tokens_GPC, mask_GL[:, : tokens_GPC.shape[1]])

    def count(self, length: int) -> int:
        """Return P for an image of `length` tokens of the trunk.

        Raises:
            ValueError: Tokens that `merge` does not divide.
        """
        if self.head is not None and self.head.perceiver is not None:
            return len(self.head.perceiver.latents_KD)
        return length if self.merge == 1 else find_cells(length, merge=self.merge) ** 2


def merge_squares(tokens_GLF: Tensor, *, merge: int) -> Tensor:
    """Return tokens (G, L / merge², merge² · F): each the concatenation of a square of neighbours, row by row.

    Raises:
        ValueError: The tokens form no square grid, or one whose side `merge` does not divide.
    """
    images, count, width = tokens_GLF.shape
    cells = find_cells(count, merge=merge)
    squares = tokens_GLF.reshape(images, cells, merge, cells, merge, width).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(images, cells * cells, merge * merge * width)


def find_cells(count: int, *, merge: int) -> int:
    """Return the number of squares of `merge` x `merge` tokens along a side of a grid of `count` tokens.

    Raises:
        ValueError: The tokens form no square grid, or one whose side `merge` does not divide.
    """
    side = math.isqrt(count)
    if side * side != count or side % merge:
        raise ValueError(
            f"prefix.merge={merge}: {count} tokens an image form no square grid whose side it divides: set it to 1, or "
            "another prefix.image_size"
        )
    return side // merge


class VisionProjector(nn.Module):
    """The projector of prefix tokens (…, C) to the decoder's width (…, E).

    Tokens are standardised first, without learned weights: encoders differ in scale. An untrained projector gives
    tokens of the size of the decoder's own; larger ones would drown them in its residual stream. That size is a
    constant factor and not a matter of the weights: the words of Qwen2.5 have a root mean square of .016, and a step of
    Adam, which is as long for small weights as for large ones, would be larger than weights that small.

    Args:
        kind: `linear`, or `mlp2x_gelu` as LLaVA-1.5 has it (arXiv:2310.03744); its hidden layer is as wide as the wider
            side.
        width: C.
        decoder_width: E.
        size: Root mean square of the numbers in the decoder's token embeddings.
    """

    factor: Tensor

    def __init__(self, kind: str, *, width: int, decoder_width: int, size: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        layers: list[nn.Module] = []
        inside = width
        if kind == "mlp2x_gelu":
            inside = max(width, decoder_width)  # a decoder narrower than the tokens would be a bottleneck
            layers += [nn.Linear(width, inside), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(inside, decoder_width))
        with torch.no_grad():
            given = self.layers(torch.randn(256, width)).square().mean().sqrt()
        self.register_buffer("factor", size / given)

    @property
    def last(self) -> nn.Linear:
        """The last matrix, whose output times `factor` are the tokens."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, tokens_PC: Tensor) -> Tensor:
        """Return tokens (…, E)."""
        projected: Tensor = self.factor * self.layers(self.norm(tokens_PC))
        return projected
