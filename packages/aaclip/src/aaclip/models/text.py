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
        learned_tokens: Embeddings between the start token and the words of every text, normal(0, 0.02) as in CoOp.

    Raises:
        ValueError: More adapters than the tower has blocks.
        BackboneError: The tower is not a causal text transformer of open_clip with a projection matrix.
    """

    def __init__(self, tower: TextTower, config: AdapterConfig, *, learned_tokens: int = 0) -> None:
        super().__init__()
        trunk = get_text_trunk(tower)
        projection, blocks = trunk.projection, trunk.blocks
        if not isinstance(projection, nn.Parameter):
            raise BackboneError("aaclip needs a text tower that ends in a projection matrix, as OpenAI's CLIP does")
        width, out = projection.shape
        self.layers = Adapters(config, tower="text", blocks=blocks, depth=len(blocks), width=width)
        self.final = make_final_projection(width, out, start=projection if config.final_init == "clip" else None)
        self.tokens: nn.Embedding | None = None
        if learned_tokens:
            with torch.random.fork_rng(devices=[]):  # later modules start from the same numbers with and without
                self.tokens = nn.Embedding(learned_tokens, width)
                nn.init.normal_(self.tokens.weight, std=0.02)

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
        tokens_PT = self.make_room(tower, tokens_PT)
        x_PTF = self.layers.run(trunk.blocks, self._embed(trunk, tokens_PT), attend=attend)
        return trunk.readout(x_PTF, tokens_PT, projection=self.final)

    def first_tokens(self, tower: TextTower, tokens_PT: Tensor, *, padding: bool) -> Tensor:
        """Return the (N, F) unit tokens of all texts after the first block and its adapter: a text context.

        Args:
            tower: The frozen tower.
            tokens_PT: Of the texts.
            padding: Keep all T tokens of each text (the fork), instead of those up to its end.
        """
        trunk = get_text_trunk(tower)
        tokens_PT = self.make_room(tower, tokens_PT)
        x_PTF = self._embed(trunk, tokens_PT, whole=padding)
        x_PTF = normalize(self.layers.run(trunk.blocks[:1], x_PTF), dim=-1)
        if padding:
            return x_PTF.flatten(0, 1)
        places_T = torch.arange(x_PTF.shape[1], device=x_PTF.device)
        return x_PTF[places_T <= trunk.ends(tokens_PT)[:, None]]

    def make_room(self, tower: TextTower, tokens_PT: Tensor) -> Tensor:
        """Return token ids (P, T) with places for the learned tokens after the start token, which they repeat.

        Raises:
            ValueError: A text that does not fit the context with them.
        """
        if self.tokens is None:
            return tokens_PT
        count, context = self.tokens.num_embeddings, tokens_PT.shape[1]
        longest = int(get_text_trunk(tower).ends(tokens_PT).max()) + 1
        if longest + count > context:
            raise ValueError(
                f"prompts.learned_tokens={count}: a prompt of {longest} tokens and these do not fit the {context} of "
                "the text tower: use fewer learned tokens, or shorter prompts or names"
            )
        start_P1 = tokens_PT[:, :1]
        return torch.cat([start_P1, start_P1.expand(-1, count), tokens_PT[:, 1 : context - count]], dim=1)

    def _embed(self, trunk: OpenClipText, tokens_PT: Tensor, *, whole: bool = False) -> Tensor:
        """Return the tokens (P, T, F) before the first block, the learned ones in the places of `make_room`."""
        x_PTF = trunk.embed(tokens_PT, whole=whole)
        if self.tokens is None:
            return x_PTF
        after = 1 + self.tokens.num_embeddings
        learned_NF = self.tokens.weight + trunk.text.positional_embedding[1:after]
        learned_PNF = learned_NF.to(x_PTF.dtype).expand(len(x_PTF), -1, -1)
        return torch.cat([x_PTF[:, :1], learned_PNF, x_PTF[:, after:]], dim=1)


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
