"""Rotary positions of attention.

Shapes: B batch, H heads, Q tokens, d width of a head.
"""

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines (B, 1, Q, d) of the angles by which queries and keys turn."""


def compute_rotary(positions_BQ: Tensor, width: int, dtype: torch.dtype) -> Rotary:
    """Return the cosines and sines of the angles position · 10000^(-2i/d), i from 0 to d/2 - 1, each of them twice.

    They are float32 at least: bfloat16 cannot tell position 257 from 256.

    Args:
        positions_BQ: Positions of the tokens.
        width: d, an even number.
        dtype: Number format of the model.

    Reference:
        Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, section 3.2.2.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions_BQ.device, dtype=dtype) / width
    angles_BQd = (positions_BQ[..., None] * 10000.0**-exponents).repeat(1, 1, 2)
    return angles_BQd.cos()[:, None], angles_BQd.sin()[:, None]


def rotate(x_BHQd: Tensor, rotary: Rotary) -> Tensor:
    """Return queries or keys with each pair (i, i + d/2) of features turned by its angle, in their own dtype."""
    cos, sin = rotary
    first, second = x_BHQd.chunk(2, dim=-1)
    return (x_BHQd * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHQd.dtype)
