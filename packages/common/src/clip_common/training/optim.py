"""AdamW with decay of weight matrices only; a schedule per step: linear warmup, then cosine."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clip_common.config import OptimConfig

UNDECAYED = ("logit_scale", "logit_bias")
"""Name endings of scalars that are not decayed: decay would pull a temperature toward 1."""


def build_optimizer(
    parameters: nn.Module | Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    *,
    fused: bool = True,
    rates: Mapping[str, float] | None = None,
) -> AdamW:
    """Return AdamW over the trainable parameters, without decay of 1-D ones (biases, norms), logit scales and biases.

    Args:
        parameters: A module, or named parameters.
        config: Learning rate, decay, betas, eps.
        fused: Use the fused kernel; it does not work with gradient scaling and clipping together.
        rates: Learning rates of parameters whose names start with a key, instead of that of `config`.

    Raises:
        ValueError: Nothing is trainable.
    """
    named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trainable:
        raise ValueError("every parameter is frozen: there is nothing to train")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        rate = next((rate for start, rate in (rates or {}).items() if name.startswith(start)), config.lr)
        free = parameter.ndim < 2 or name.endswith(UNDECAYED)
        groups.setdefault((rate, 0.0 if free else config.weight_decay), []).append(parameter)
    return AdamW(
        [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


def warmup_cosine(optimizer: Optimizer, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Return a schedule over steps t = 0, 1, …: linear warmup to the peak learning rate, then cosine to 0.

    The factor is (t + 1)/warmup_steps while t < warmup_steps, then ½(1 + cos(π·(t − warmup_steps)/(total_steps −
    warmup_steps))): the peak at t = warmup_steps, 0 at t = total_steps, which is after the last step.

    Args:
        optimizer: Its learning rates are the peak values.
        warmup_steps: Steps of warmup.
        total_steps: Steps of the whole training.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def optimizer_and_schedule(
    module: L.LightningModule, config: OptimConfig, *, rates: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return what `configure_optimizers` needs in `fit`: AdamW, and `config.schedule` per optimizer step.

    Args:
        module: Its trainable parameters are optimised.
        config: See `OptimConfig`.
        rates: Peak learning rates of parameters whose names start with a key, instead of that of `config`.

    Example:
        def configure_optimizers(self):
            return optimizer_and_schedule(self, self.config.optim)
    """
    mixed = "mixed" in str(module.trainer.precision)  # Lightning refuses to clip gradients that a fused step unscales
    optimizer = build_optimizer(module, config, fused=not mixed, rates=rates)
    total = int(module.trainer.estimated_stepping_batches)
    warmup = round(config.warmup_epochs * total / (module.trainer.max_epochs or 1))
    if config.schedule == "cosine":
        scheduler = warmup_cosine(optimizer, warmup_steps=warmup, total_steps=total)
    else:
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
