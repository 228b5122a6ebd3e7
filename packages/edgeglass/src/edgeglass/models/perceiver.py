"""The Perceiver resampler: a sequence of any length to a fixed number of tokens.

Shapes: B batch, L tokens of the sequence, K latents, D width, H heads, d width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edgeglass.models.pooling import zero_masked


class PerceiverResampler(nn.Module):
    """K learned latents that attend, in each block, to the sequence and to themselves.

    Keys and values are those of the sequence and of the latents joined; both have layer norms of their own. Positions
    that the mask leaves out change nothing.

    Args:
        width: D.
        latents: K.
        layers: Blocks of cross-attention and feed-forward.
        heads: H; it divides D.
        ff_mult: Width of the feed-forward layer, as a multiple of D.

    Reference:
        Alayrac et al., Flamingo: a Visual Language Model for Few-Shot Learning, 2022, appendix A.1.1.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, *, latents: int = 64, layers: int = 4, heads: int = 8, ff_mult: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"perceiver.heads={heads} does not divide the width {width}: choose a divisor of {width}")
        self.latents_KD = nn.Parameter(torch.randn(latents, width) * width**-0.5)
        self.blocks = nn.ModuleList(PerceiverBlock(width, heads=heads, ff_mult=ff_mult) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Return the latents (B, K, D) after all blocks.

        Args:
            x_BLD: The sequence.
            mask_BL: True where a position counts; None: everywhere. A row without any gives what the latents alone do.
        """
        if mask_BL is not None:
            x_BLD = zero_masked(x_BLD, mask_BL)  # attention to a NaN is a NaN even with weight 0
        latents_BKD = self.latents_KD.expand(len(x_BLD), -1, -1)  # float32 under autocast, as the residuals then are
        for block in self.blocks:
            latents_BKD = block(latents_BKD, x_BLD, mask_BL)
        return self.norm(latents_BKD)


class PerceiverBlock(nn.Module):
    """Attention of the latents to the sequence and to themselves, then a feed-forward layer; both with residuals."""

    def __init__(self, width: int, *, heads: int, ff_mult: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, ff_mult * width), nn.GELU(), nn.Linear(ff_mult * width, width)
        )

    def forward(self, latents_BKD: Tensor, x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return the new latents (B, K, D)."""
        normed_BKD = self.norm_latents(latents_BKD)
        joined_BSD = torch.cat([self.norm_media(x_BLD), normed_BKD], dim=1)
        query_BHKd = self._split(self.to_query(normed_BKD))
        key_BHSd, value_BHSd = (self._split(part) for part in self.to_key_value(joined_BSD).chunk(2, dim=-1))
        mask_B11S = None
        if mask_BL is not None:
            own_BK = mask_BL.new_ones(latents_BKD.shape[:2])
            mask_B11S = torch.cat([mask_BL, own_BK], dim=1)[:, None, None]
        attended_BHKd = scaled_dot_product_attention(query_BHKd, key_BHSd, value_BHSd, attn_mask=mask_B11S)
        latents_BKD = latents_BKD + self.to_out(attended_BHKd.transpose(1, 2).flatten(2))
        return latents_BKD + self.feed_forward(latents_BKD)

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
