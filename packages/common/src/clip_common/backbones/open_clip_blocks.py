"""Blocks of open_clip's transformers, run whole or in parts, without an attention map.

Shapes: B batch, F width, M width of an MLP, H heads, d width of a head, T tokens, L length of a text.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from clip_common.backbones.trunk import Block

IN_CACHE = 1024
"""Tokens that a block takes at a time on a CPU, in whole images: what one operation writes is still in the cache when
the next reads it."""


@contextmanager
def without_attention_maps() -> Iterator[None]:
    """Keep nn.MultiheadAttention from its fast path without gradients, which writes out the map (B, H, T, T).

    At 1,765 patches `scaled_dot_product_attention` takes two fifths of the time.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


Update = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From normed tokens (B, T, F) to what is added to the queries and to the values of a block, (B, T, F) each."""


class AttentionBlock(Block):
    """A residual attention block of open_clip, run without its attention map (B, H, T, T), whole or in parts.

    Without gradients the block's own `nn.MultiheadAttention` writes the map out: 120 MB an image at ViT-L's 1,370
    tokens.

        attended_BHTd = attend(block.value(block.norm(x_BTF)))    # an attention of your own
        x_BTF = block.add_attention(x_BTF, block.project(block.join(attended_BHTd)))
        x_BTF = block.add_mlp(x_BTF)
    """

    module: ResidualAttentionBlock

    @property
    def heads(self) -> int:
        """H, the number of heads."""
        return self.module.attn.num_heads

    def __call__(self, x_BTF: Tensor, *, update: Update | None = None) -> Tensor:
        """Return the tokens (B, T, F) after the block; `update` adds to its own queries and values."""
        if x_BTF.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            images = max(1, IN_CACHE // x_BTF.shape[1])
            return torch.cat([self._run(part_BTF, update) for part_BTF in x_BTF.split(images)])
        return self._run(x_BTF, update)

    def _run(self, x_BTF: Tensor, update: Update | None) -> Tensor:
        attention, normed_BTF = self.module.attn, self.norm(x_BTF)
        mixed_BT3F = linear(normed_BTF, attention.in_proj_weight, attention.in_proj_bias)
        query_BTF, key_BTF, value_BTF = mixed_BT3F.chunk(3, dim=-1)
        if update is not None:
            more_query_BTF, more_value_BTF = update(normed_BTF)
            query_BTF, value_BTF = query_BTF + more_query_BTF, value_BTF + more_value_BTF
        query_BHTd, key_BHTd, value_BHTd = (self.split(part_BTF) for part_BTF in (query_BTF, key_BTF, value_BTF))
        mask_TT = self.mask(x_BTF.shape[1])
        attended_BHTd = scaled_dot_product_attention(query_BHTd, key_BHTd, value_BHTd, attn_mask=mask_TT)
        return self.add_mlp(self.add_attention(x_BTF, self.project(self.join(attended_BHTd))))

    def mask(self, length: int) -> Tensor | None:
        """Return the mask (T, T) of the attention among `length` tokens; None: every token sees all."""
        return None

    def norm(self, x_BTF: Tensor) -> Tensor:
        """Return the input of the attention: the tokens after the first layer norm."""
        return self.module.ln_1(x_BTF)

    def value(self, x_BTF: Tensor) -> Tensor:
        """Return the values (B, H, T, d) of normed tokens."""
        attention, width = self.module.attn, x_BTF.shape[-1]
        weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
        return self.split(linear(x_BTF, weight, bias))

    def split(self, x_BTF: Tensor) -> Tensor:
        """Return (B, H, T, d): the tokens of each head."""
        return x_BTF.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, attended_BHTd: Tensor) -> Tensor:
        """Return (B, T, F): the heads side by side again, the inverse of `split`."""
        return attended_BHTd.transpose(1, 2).flatten(2)

    def project(self, joined_BTF: Tensor) -> Tensor:
        """Return (B, T, F): joined heads through the output projection."""
        return self.module.attn.out_proj(joined_BTF)

    def add_attention(self, x_BTF: Tensor, attended_BTF: Tensor) -> Tensor:
        """Return the tokens plus the output of an attention, through the block's layer scale if it has one."""
        return x_BTF + self.module.ls_1(attended_BTF)

    def add_mlp(self, x_BTF: Tensor) -> Tensor:
        """Return the tokens plus the output of the MLP."""
        mlp = self.module.mlp
        recompute = x_BTF.requires_grad and torch.is_grad_enabled()
        # half of what autograd would keep of a frozen block is the hidden tokens (B, T, M): to compute them again costs
        # little where attention is most of a step, and a tenth of it at ViT-L's width
        if recompute and x_BTF.shape[1] > 4 * x_BTF.shape[2]:
            hidden_BTM = checkpoint(lambda x_BTF: mlp.gelu(self._hidden(x_BTF)), x_BTF, use_reentrant=False)
        elif recompute:  # autograd keeps both factors of QuickGELU, x · sigmoid(1.702 x); this keeps x alone
            hidden_BTM = checkpoint(mlp.gelu, self._hidden(x_BTF), use_reentrant=False)
        else:
            hidden_BTM = mlp.gelu(self._hidden(x_BTF))
        return x_BTF + self.module.ls_2(mlp.c_proj(hidden_BTM))

    def _hidden(self, x_BTF: Tensor) -> Tensor:
        """Return the hidden tokens (B, T, M) of the MLP, before its activation."""
        hidden_BTM: Tensor = self.module.mlp.c_fc(self.module.ln_2(x_BTF))
        return hidden_BTM


class MaskedBlock(Block):
    """A block of another kind in a causal text transformer, which knows no parts."""

    def __init__(self, module: nn.Module, mask_LL: Tensor) -> None:
        super().__init__(module)
        self.mask_LL = mask_LL

    def __call__(self, x_BLF: Tensor) -> Tensor:
        length = x_BLF.shape[1]
        return self.module(x_BLF, attn_mask=self.mask_LL[:length, :length])


class CausalBlock(AttentionBlock):
    """A block of a causal text transformer of open_clip, with its mask (L, L) cut to the length of its tokens."""

    def __init__(self, module: ResidualAttentionBlock, mask_LL: Tensor) -> None:
        super().__init__(module)
        self.mask_LL = mask_LL

    def __call__(self, x_BLF: Tensor, *, update: Update | None = None) -> Tensor:
        if update is None:
            return self.module(x_BLF, attn_mask=self.mask(x_BLF.shape[1]))
        return super().__call__(x_BLF, update=update)

    def mask(self, length: int) -> Tensor:
        return self.mask_LL[:length, :length]
