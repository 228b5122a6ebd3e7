"""The frozen text tower with adapters behind its first blocks, and a trained projection at its end.

Shapes: P prompts, T tokens, F width of the tower, D shared width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from aaclip.config import AdapterConfig
from aaclip.models.adapters import make_adapter, make_final_projection, mix
from clip_common.backbones import BackboneError, TextTower
from clip_common.backbones.open_clip_trunks import OpenClipText


class TextAdapter(nn.Module):
    """All that stage 1 trains.

    Args:
        tower: The frozen tower, of which only sizes and the projection are read here.
        config: Which blocks, which kind.

    Raises:
        BackboneError: A tower that is no causal text transformer of open_clip.
    """

    def __init__(self, tower: TextTower, config: AdapterConfig) -> None:
        super().__init__()
        text = text_of(tower)
        projection = text.text_projection
        if not isinstance(projection, nn.Parameter):
            raise BackboneError("aaclip needs a text tower that ends in a projection matrix, as OpenAI's CLIP does")
        blocks = len(text.transformer.resblocks) // 4 or 1 if config.text_blocks is None else config.text_blocks
        if not 0 <= blocks <= len(text.transformer.resblocks):
            raise ValueError(
                f"adapters.text_blocks={blocks}: the text tower has {len(text.transformer.resblocks)} blocks"
            )
        width, out = projection.shape
        self.layers = nn.ModuleList(make_adapter(config.kind, width) for _ in range(blocks))
        self.final = make_final_projection(width, out, start=projection if config.final_init == "clip" else None)
        self.weight = config.text_weight
        self.norm_preserving = config.norm_preserving

    def forward(self, tower: TextTower, tokens_PT: Tensor) -> Tensor:
        """(P, D) embeddings, not normalised; run only as far as the longest text, which is exact."""
        trunk: Any = tower.trunk
        text, ends_P = trunk.text, trunk.ends(tokens_PT)
        length = trunk.real_length(ends_P, tokens_PT.shape[1])
        x_PTF = text.token_embedding(tokens_PT[:, :length]).to(text.transformer.get_cast_dtype())
        x_PTF = x_PTF + text.positional_embedding[:length].to(x_PTF.dtype)
        for number, block in enumerate(text.transformer.resblocks):
            x_PTF = block(x_PTF, attn_mask=text.attn_mask[:length, :length])
            if number < len(self.layers):
                adapted_PTF = self.layers[number](x_PTF)
                x_PTF = mix(x_PTF, adapted_PTF, weight=self.weight, norm_preserving=self.norm_preserving)
        pooled_PF = text.ln_final(x_PTF[torch.arange(len(x_PTF), device=x_PTF.device), ends_P])
        return self.final(pooled_PF)


def text_of(tower: TextTower) -> Any:
    """open_clip's transformer inside a tower."""
    if not isinstance(tower.trunk, OpenClipText):
        raise BackboneError(
            f"aaclip adapts causal text towers of open_clip, such as CLIP's; this one is a {type(tower.trunk).__name__}"
        )
    return tower.trunk.text
