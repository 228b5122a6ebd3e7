"""From a sequence of tokens to one vector: the masked mean, and attention pooling.

Shapes: B batch, L tokens, D width. Masks (B, L) are true where a token counts.
"""

import torch
from torch import Tensor, nn


def masked_mean(tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean (B, D) of the tokens that count; zeros for a row in which none does."""
    # summed in float32: a sum of 1,500 float16 tokens can overflow, and bfloat16 has no 1,500 to divide by
    wide = torch.promote_types(tokens_BLD.dtype, torch.float32)
    total_BD = zero_masked(tokens_BLD, mask_BL).sum(dim=1, dtype=wide)
    return (total_BD / mask_BL.sum(dim=1, keepdim=True).clamp_min(1)).to(tokens_BLD.dtype)


def zero_masked(tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the tokens with zeros where the mask is false, and no gradient there."""
    # not a product: a masked token may hold a NaN, and 0 · NaN is NaN
    return torch.where(mask_BL[..., None], tokens_BLD, 0.0)


class AttentionPooling(nn.Module):
    """A learned query that weighs the tokens: Σ_l softmax_l(q · K n(x_l) / √D) · V n(x_l), with a layer norm n.

    The sum is over the tokens that count. It starts near their mean, because q · K n(x) / √D is small at first.

    Args:
        width: D.

    Example:
        >>> AttentionPooling(8)(tokens_BLD, mask_BL).shape
        torch.Size([2, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would add the same to every logit
        self.value = nn.Linear(width, width)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, D); zeros for a row in which no token counts."""
        normed_BLD = self.norm(zero_masked(tokens_BLD, mask_BL))
        logits_BL = self.key(normed_BLD) @ self.query * self.query.shape[0] ** -0.5
        # a row without tokens keeps finite logits, so that its softmax and gradient are finite; its weights become 0
        any_B1 = mask_BL.any(dim=1, keepdim=True)
        weights_BL = logits_BL.masked_fill(~mask_BL & any_B1, float("-inf")).softmax(dim=1) * any_B1
        return (weights_BL[:, None] @ self.value(normed_BLD))[:, 0]
