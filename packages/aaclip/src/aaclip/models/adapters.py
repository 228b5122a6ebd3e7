"""The trained modules: adapters between frozen blocks, and the maps after them. F, D widths.

Three kinds of adapter are in use: `aaclip-reference.md` describes `bottleneck`, the overview document `mlp`, and the
released code of AA-CLIP (CVPR 2025, arXiv 2503.06661) is `linear`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["bottleneck", "mlp", "linear"]

SLOPE = 0.2
"""Negative slope of LeakyReLU in the source documents."""
OFFICIAL_SLOPE = 0.01
"""Negative slope in the released code: torch's default."""


def make_adapter(kind: Kind, width: int) -> nn.Sequential:
    """Return an adapter (…, F) -> (…, F), Xavier-uniform."""
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(width, width, bias=False), nn.LeakyReLU(OFFICIAL_SLOPE)]
    else:
        inner = width // 2 if kind == "bottleneck" else width
        layers = [nn.Linear(width, inner), nn.LeakyReLU(SLOPE), nn.Linear(inner, width)]
    return init_xavier(nn.Sequential(*layers))


def make_head(width: int, out: int, *, activation: Literal["relu", "leaky", "none"]) -> nn.Sequential:
    """Return a map (…, F) -> (…, D), Xavier-uniform: the documents' `relu`, or the released `leaky` or `none`."""
    layers: list[nn.Module] = [nn.Linear(width, out, bias=activation == "relu")]
    if activation != "none":
        layers.append(nn.LeakyReLU(SLOPE if activation == "relu" else OFFICIAL_SLOPE))
    return init_xavier(nn.Sequential(*layers))


def make_final_projection(width: int, out: int, *, start: Tensor | None) -> nn.Sequential:
    """Return the map (…, F) -> (…, D) that replaces CLIP's text projection.

    Args:
        width, out: F and D.
        start: CLIP's own projection (F, D) as initial value, with nothing after it: untrained, the map equals CLIP's.
            None: random numbers followed by LeakyReLU, as in the released code.
    """
    if start is None:
        return init_xavier(nn.Sequential(nn.Linear(width, out, bias=False), nn.LeakyReLU(OFFICIAL_SLOPE)))
    linear = nn.Linear(width, out, bias=False)
    if not start.is_meta:  # a tower without weights: trained ones are loaded next
        with torch.no_grad():
            linear.weight.copy_(start.T)
    return nn.Sequential(linear)


def init_xavier(module: nn.Sequential) -> nn.Sequential:
    """Initialise matrices Xavier-uniform, in place; biases keep torch's own initialisation."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return module


def mix(x_BTF: Tensor, adapted_BTF: Tensor, *, weight: float, norm_preserving: bool) -> Tensor:
    """Return w·a + (1 − w)·x; with `norm_preserving`, a is first scaled to the norm of x, token by token."""
    if norm_preserving:
        # an adapter that outputs zero for a token leaves its direction undefined, not infinite
        norm = adapted_BTF.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(adapted_BTF.dtype).tiny)
        adapted_BTF = adapted_BTF * x_BTF.norm(dim=-1, keepdim=True) / norm
    return weight * adapted_BTF + (1 - weight) * x_BTF
