"""The frozen text tower with adapters, and a trained projection at its end.

Shapes: P prompts, T tokens, N tokens of all prompts, F width of the tower, D shared width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from aaclip.config import AdapterConfig
from aaclip.models.adapters import Adapters, make_final_projection
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
        projection, blocks = trunk.projection, trunk.blocks
        if not isinstance(projection, nn.Parameter):
            raise BackboneError("aaclip needs a text tower that ends in a projection matrix, as OpenAI's CLIP does")
        width, out = projection.shape
        self.layers = Adapters(config, tower="text", blocks=blocks, depth=len(blocks), width=width)
        self.final = make_final_projection(width, out, start=projection if config.final_init == "clip" else None)

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
        x_PTF = self.layers.run(trunk.blocks, trunk.embed(tokens_PT), attend=attend)
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
        x_PTF = normalize(self.layers.run(trunk.blocks[:1], x_PTF), dim=-1)
        if padding:
            return x_PTF.flatten(0, 1)
        places_T = torch.arange(x_PTF.shape[1], device=x_PTF.device)
        return x_PTF[places_T <= trunk.ends(tokens_PT)[:, None]]


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
