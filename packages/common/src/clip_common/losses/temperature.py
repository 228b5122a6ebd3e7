"""The temperature of a contrastive loss, kept as the logarithm of the scale that multiplies cosines."""

import math

import torch
from torch import Tensor, nn


class LogitScale(nn.Module):
    """exp of a learned log-scale, as in CLIP: starts at 1/0.07, held in [1, 100] by `clamp_` after each optimizer step.

    The parameter is called `logit_scale`; leave it out of weight decay.

    Args:
        init: The log-scale to start from.
        learned: False fixes it: a buffer, saved with the model, without gradient.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.5.

    Example:
        >>> scale = LogitScale()
        >>> round(scale().item(), 3)
        14.286
    """

    maximum = math.log(100.0)

    def __init__(self, *, init: float = math.log(1 / 0.07), learned: bool = True) -> None:
        super().__init__()
        if learned:
            self.logit_scale = nn.Parameter(torch.tensor(init))
        else:
            self.register_buffer("logit_scale", torch.tensor(init))

    def forward(self) -> Tensor:
        """Return the scale as a scalar tensor."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp a learned log-scale to [0, ln 100]; a fixed one keeps its value."""
        if isinstance(self.logit_scale, nn.Parameter):
            self.logit_scale.clamp_(0.0, self.maximum)
