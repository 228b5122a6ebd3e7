"""Layers without recursion, to put beside the recursive models at equal compute or at equal size.

`use_plain_layers` swaps the loops of a `LatentRecursion` or a `TRMDecoder`; all else, the interface and the cache with
it, stays. Shapes: B batch, Q tokens of this call, K tokens in the cache and of this call, D width of the layers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.rotary import compute_rotary
from edgeglass.models.vlm.trm import EPS, KeyValueCache, LatentRecursion, TRMLayer
from edgeglass.models.vlm.trm_cost import count_applications
from edgeglass.models.vlm.trm_decoder import TRMDecoder


class PlainLayers(nn.Module):
    """Layers with weights of their own and a final RMSNorm: `LatentLoops` without y, z and loops.

    Args:
        config: Sizes of a layer.
        layers: Number of layers.
    """

    def __init__(self, config: TrmConfig, layers: int) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.layers = nn.ModuleList(
            TRMLayer(config.width, heads=config.heads, ff_mult=config.ff_mult, glu=config.glu) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(config.width, eps=EPS)

    def forward(
        self,
        x_BQD: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: KeyValueCache | None,
        first_layer: int,
        steps: int,
        has_halted: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the output (B, Q, D) of all layers as the one entry of a list, and ones (B, Q) for the loops taken.

        `steps` and `has_halted` change nothing: there is one pass.
        """
        rotary = compute_rotary(positions_BQ, self.head_width, x_BQD.dtype)
        for index, layer in enumerate(self.layers):
            x_BQD = layer(x_BQD, mask_B1QK=mask_B1QK, rotary=rotary, cache=cache, layer=first_layer + index)
        return [self.norm(x_BQD)], torch.ones_like(positions_BQ)


def use_plain_layers(model: LatentRecursion | TRMDecoder, config: TrmConfig, layers: int | None = None) -> None:
    """Replace a model's loops by plain layers.

    Args:
        model: Changed in place; its `states` or its call return the state after the layers as loop 1.
        config: That of the model.
        layers: Number of layers; None: one for each virtual layer of the loops, which costs the same. `config.layers`
            of them have the recursion's parameters.
    """
    plain = PlainLayers(config, count_applications(config) if layers is None else layers)
    model.loops = plain.to(model.halting.linear.weight)  # type: ignore[assignment]
