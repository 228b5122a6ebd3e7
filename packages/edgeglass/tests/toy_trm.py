"""Small recursive models with weights that matter everywhere, their masks, and a cache of ten lines."""

import torch
from torch import Tensor

from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.trm import LatentRecursion
from edgeglass.models.vlm.trm_decoder import TRMDecoder

HIDDEN, VOCABULARY = 12, 11


class ListCache:
    """Keys and values by layer, joined along the sequence."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (keys, values), strict=True))
        self.layers[layer] = (keys, values)
        return keys, values


def config(**settings) -> TrmConfig:
    return TrmConfig(**{"steps": 3, "inner": 2, "layers": 2, "width": 8, "heads": 2, "ff_mult": 1.5} | settings)


def recursion(seed: int = 0, **settings) -> LatentRecursion:
    torch.manual_seed(seed)
    model = shake(LatentRecursion(HIDDEN, config(**settings)))
    return halt_half(model, lambda places: model(inputs(HIDDEN), **places)[1:])


def decoder(seed: int = 0, **settings) -> TRMDecoder:
    torch.manual_seed(seed)
    model = shake(TRMDecoder(VOCABULARY, config(**settings), 32))
    embeds_BQD = model.embed(torch.randint(VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1)))
    return halt_half(model, lambda places: model.states(embeds_BQD, **places))


def shake(model):
    """Move norms, gates and the halting head from their start."""
    model.double()
    for name, parameter in model.named_parameters():
        parameter.data += (1.0 if "embedding" in name else 0.3) * torch.randn_like(parameter)
    return model


def halt_half(model, states):
    """Sharpen the halting head, and set its bias so that it stops half of the tokens at a loop."""
    model.halting.linear.weight.data *= 10
    mask_B1QK, positions_BQ = layout([7, 7], 7)
    with torch.no_grad():
        states = torch.stack(states({"mask_B1QK": mask_B1QK, "positions_BQ": positions_BQ}))
        model.halting.linear.bias -= model.halt_logits(states).median()
    return model


def layout(lengths: list[int], total: int) -> tuple[Tensor, Tensor]:
    """Return the causal mask (B, 1, Q, Q) and the positions (B, Q) of rows padded on the left to `total` tokens."""
    places_Q = torch.arange(total)
    starts_B1 = total - torch.tensor(lengths)[:, None]
    real_BQ = places_Q >= starts_B1
    mask_BQQ = (places_Q[:, None] >= places_Q) & real_BQ[:, None] | torch.eye(total, dtype=torch.bool)
    return mask_BQQ[:, None], (places_Q - starts_B1).clamp(min=0)


def inputs(width: int, shape: tuple[int, ...] = (2, 7), seed: int = 1) -> Tensor:
    return torch.randn(*shape, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
