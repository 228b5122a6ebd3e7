"""From a sequence of tokens to one vector: the masked mean, and attention pooling.

Shapes: B batch, L tokens, D width. Masks (B, L) are true where a token counts.
"""

import torch
from torch import Tensor, nn


def masked_mean(tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean (B, D) of the tokens that count; zeros for a row in which none does."""
    weights_BL1 = mask_BL[..., None].to(tokens_BLD.dtype)
    # where, not a product: a masked token may hold a NaN, and 0 · NaN is NaN
    total_BD = torch.where(mask_BL[..., None], tokens_BLD, 0.0).sum(dim=1)
    return total_BD / weights_BL1.sum(dim=1).clamp_min(1.0)


class AttentionPooling(nn.Module):
    """A learned query that weighs the tokens: softmax(q · k(x) / √D) over those that count, applied to v(x).

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
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, D); zeros for a row in which no token counts."""
        tokens_BLD = torch.where(mask_BL[..., None], tokens_BLD, 0.0)
        normed_BLD = self.norm(tokens_BLD)
        logits_BL = self.key(normed_BLD) @ self.query * self.query.shape[0] ** -0.5
        # a row without tokens keeps finite logits, so that its softmax and gradient are finite; its weights become 0
        weights_BL = logits_BL.masked_fill(~mask_BL & mask_BL.any(dim=1, keepdim=True), float("-inf")).softmax(dim=1)
        weights_BL = weights_BL * mask_BL.any(dim=1, keepdim=True)
        return (weights_BL[:, None] @ self.value(normed_BLD))[:, 0]
