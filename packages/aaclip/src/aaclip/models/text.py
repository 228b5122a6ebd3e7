"""The frozen text tower with adapters after its first blocks, and a trained projection at its end.

Shapes: P prompts, T tokens, N tokens of all prompts, F width of the tower, D shared width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from aaclip.config import AdapterConfig
from aaclip.models.adapters import make_adapter, make_final_projection, mix
from clip_common.backbones import BackboneError, TextTower
from clip_common.backbones.open_clip_trunks import OpenClipText


class TextAdapter(nn.Module):
    """Everything that stage 1 trains.

    Args:
        tower: The frozen tower; only its sizes and its projection are read here.
        config: Which blocks, which kind.

    Raises:
        ValueError: More adapters than the tower has blocks.
        BackboneError: The tower is not a causal text transformer of open_clip with a projection matrix.
    """

    def __init__(self, tower: TextTower, config: AdapterConfig) -> None:
        super().__init__()
        trunk = get_text_trunk(tower)
        projection, depth = trunk.projection, len(trunk.blocks)
        if not isinstance(projection, nn.Parameter):
            raise BackboneError("aaclip needs a text tower that ends in a projection matrix, as OpenAI's CLIP does")
        blocks = depth // 4 or 1 if config.text_blocks is None else config.text_blocks
        if not 0 <= blocks <= depth:
            raise ValueError(f"adapters.text_blocks={blocks}: the text tower has {depth} blocks")
        width, out = projection.shape
        self.layers = nn.ModuleList(make_adapter(config.kind, width) for _ in range(blocks))
        self.final = make_final_projection(width, out, start=projection if config.final_init == "clip" else None)
        self.weight = config.text_weight
        self.norm_preserving = config.norm_preserving

    def forward(
        self, tower: TextTower, tokens_PT: Tensor, *, attend: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return (P, D) embeddings, not normalised; run up to the longest text only, which is exact.

        Args:
            tower: The frozen tower.
            tokens_PT: Of the texts.
            attend: Cross-attention (P, T, F) -> (P, T, F) between the first block and its adapter.
        """
        trunk = get_text_trunk(tower)
        x_PTF = trunk.embed(tokens_PT)
        for number, block in enumerate(trunk.blocks):
            x_PTF = block(x_PTF)
            if number == 0 and attend is not None:
                x_PTF = attend(x_PTF)
            x_PTF = self._adapt(x_PTF, number)
        return trunk.readout(x_PTF, tokens_PT, projection=self.final)

    def first_tokens(self, tower: TextTower, tokens_PT: Tensor, *, padding: bool) -> Tensor:
        """Return the (N, F) unit tokens of all texts after the first block and its adapter: a text context.

        Args:
            tower: The frozen tower.
            tokens_PT: Of the texts.
            padding: Keep all T tokens of each text (the fork), instead of those up to its end.
        """
        trunk = get_text_trunk(tower)
        x_PTF = trunk.embed(tokens_PT, whole=padding)
        x_PTF = normalize(self._adapt(trunk.blocks[0](x_PTF), 0), dim=-1)
        if padding:
            return x_PTF.flatten(0, 1)
        places_T = torch.arange(x_PTF.shape[1], device=x_PTF.device)
        return x_PTF[places_T <= trunk.ends(tokens_PT)[:, None]]

    def _adapt(self, x_PTF: Tensor, number: int) -> Tensor:
        if number >= len(self.layers):
            return x_PTF
        return mix(x_PTF, self.layers[number](x_PTF), weight=self.weight, norm_preserving=self.norm_preserving)


def get_text_trunk(tower: TextTower) -> OpenClipText:
    """Return the trunk of a text tower.

    Raises:
        BackboneError: It is not a causal text transformer of open_clip.
    """
    if not isinstance(tower.trunk, OpenClipText):
        raise BackboneError(
            f"aaclip adapts causal text towers of open_clip, such as CLIP's; this one is a {type(tower.trunk).__name__}"
        )
    return tower.trunk
