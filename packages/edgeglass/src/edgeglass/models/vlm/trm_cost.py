"""Parameters and floating-point operations of the recursive models, for tables of equal compute.

Operations are those of matrix products in a forward pass, two for each multiplication with its addition, per token.
Norms, gates, rotary angles and the halting head are left out: below 1 % at common sizes.
"""

from torch import nn

from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.trm import feed_forward_width


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; a tied one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_applications(config: TrmConfig, steps: int | None = None) -> int:
    """Return the number of virtual layers: applications of a layer in `steps` loops (None: those of the settings)."""
    return (config.steps if steps is None else steps) * (config.inner + 1) * config.layers


def count_layer_flops(config: TrmConfig, context: int) -> int:
    """Return the operations of one application of a `TRMLayer` to a token that attends to `context` tokens."""
    projections = 4 * config.width**2 + 3 * config.width * feed_forward_width(config.width, config.ff_mult)
    return 2 * (projections + 2 * context * config.width)


def count_recursion_flops(config: TrmConfig, hidden: int, context: int, *, steps: int | None = None) -> int:
    """Return the operations per token of a `LatentRecursion` on hidden states of this width, read out once.

    The refined states of the loops before the last cost 2 · `hidden` · `config.width` more each, in training.
    """
    steps = config.steps if steps is None else steps
    if steps == 0:
        return 0
    return count_applications(config, steps) * count_layer_flops(config, context) + 4 * hidden * config.width


def count_decoder_flops(config: TrmConfig, vocabulary: int, context: int, *, steps: int | None = None) -> int:
    """Return the operations per token of a `TRMDecoder`, with one pass of its head."""
    return count_applications(config, steps) * count_layer_flops(config, context) + 2 * vocabulary * config.width
