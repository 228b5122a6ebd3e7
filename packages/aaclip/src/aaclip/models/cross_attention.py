"""Cross-attention between the towers, after the first block of each: texts to patches, and images to tokens of texts.

Shapes: B texts or images, T tokens of each, F their width; G contexts, N tokens of each, C their width; H heads, d
width of a head, Q queries that share a context.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from aaclip.config import CrossAttentionConfig

TINY = 1e-6
"""Added to a norm before a division by it, as in the fork of the released code."""


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context, added to the tokens: x + s·c, where c has the norm of x.

    Matrices start Xavier-uniform, biases at zero; the names of the weights are those of the fork of the released code.

    Args:
        config: Heads, dropout, and how c is scaled.
        width: F.
        context_width: C.
        inner: H·d, width of queries, keys and values.

    Raises:
        ValueError: `inner` is no multiple of the number of heads.
    """

    def __init__(self, config: CrossAttentionConfig, *, width: int, context_width: int, inner: int) -> None:
        super().__init__()
        if inner % config.heads:
            raise ValueError(
                f"cross_attention.heads={config.heads}: must divide {inner}, the width of the text tower: for example 8"
            )
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(context_width, inner)
        self.v_proj = nn.Linear(context_width, inner)
        self.out_proj = nn.Linear(inner, width)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.gate = nn.Parameter(torch.zeros(())) if config.scale == "gate" else None
        self.heads, self.dropout = config.heads, config.dropout
        self.weight, self.norm_match = config.weight, config.norm_match

    def forward(
        self, x_BTF: Tensor, context_GNC: Tensor, *, mask_GN: Tensor | None = None, rows_B: Tensor | None = None
    ) -> Tensor:
        """Return the tokens (B, T, F) with what they read from their context.

        Keys and values are computed once for each context, however many texts or images share it.

        Args:
            x_BTF: Tokens.
            context_GNC: Contexts. Without `rows_B`, the first B/G rows read the first one, and so on.
            mask_GN: True on tokens of a context, False on padding; None: nothing is padded.
            rows_B: Number of the context that each row reads.
        """
        key_GHNd, value_GHNd = self._split(self.k_proj(context_GNC)), self._split(self.v_proj(context_GNC))
        # The fused kernels for CPUs have no dropout, so attention weights are dropped for a head's context token as a
        # whole, which is the same as dropping its value.
        if self.training:
            value_GHNd = value_GHNd * dropout(torch.ones_like(value_GHNd[..., :1]), self.dropout)
        if rows_B is not None:
            key_GHNd, value_GHNd = key_GHNd[rows_B], value_GHNd[rows_B]
            mask_GN = None if mask_GN is None else mask_GN[rows_B]
        # rows that share a context are one long row of queries
        query_GHQd = self._split(self.q_proj(x_BTF).unflatten(0, (len(key_GHNd), -1)).flatten(1, 2))
        seen_G11N = None if mask_GN is None else mask_GN[:, None, None, :]
        attended_GHQd = scaled_dot_product_attention(query_GHQd, key_GHNd, value_GHNd, attn_mask=seen_G11N)
        c_BTF = self.out_proj(attended_GHQd.transpose(1, 2).flatten(2)).view_as(x_BTF)
        if self.norm_match:
            c_BTF = c_BTF * x_BTF.norm(dim=-1, keepdim=True) / (c_BTF.norm(dim=-1, keepdim=True) + TINY)
        return x_BTF + (self.weight if self.gate is None else self.gate) * c_BTF

    @property
    def is_no_op(self) -> bool:
        """True if the tokens come out as they went in: weight 0, or a gate that is still closed."""
        return (self.weight if self.gate is None else self.gate.item()) == 0

    def _split(self, x_GQF: Tensor) -> Tensor:
        return x_GQF.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossAttentionModule(CrossAttention):
    """Tokens of texts attend to patches of images in the shared space: 768 to 768 at ViT-L's widths."""

    def __init__(self, config: CrossAttentionConfig, *, width: int, context_width: int) -> None:
        super().__init__(config, width=width, context_width=context_width, inner=width)


class ImageCrossAttentionModule(CrossAttention):
    """Tokens of images attend to tokens of texts in the texts' width: 1024 to 768 and back at ViT-L's widths."""

    def __init__(self, config: CrossAttentionConfig, *, width: int, context_width: int) -> None:
        super().__init__(config, width=width, context_width=context_width, inner=context_width)
