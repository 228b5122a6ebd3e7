"""Alarms: stop at a loss that is not finite, warn about a contrastive loss that stays at chance."""

import math
import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

CHANCE_MARGIN = 0.02
CHANCE_STEPS = 200


class LossNotFiniteError(ValueError):
    """The training loss is NaN or infinite; the message names the samples of the batch."""


class FiniteLoss(Callback):
    """Stops the fit before a NaN or infinite loss reaches the weights."""

    def __init__(self) -> None:
        self._batch: tuple[Any, int] = (None, 0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch."""
        self._batch = (batch, batch_idx)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Raise LossNotFiniteError if the loss is NaN or infinite."""
        if bool(torch.isfinite(loss).all()):
            return
        batch, index = self._batch
        describe = getattr(pl_module, "describe_batch", None)
        samples = f", samples: {' '.join(str(describe(batch)).split())}" if describe else ""
        raise LossNotFiniteError(
            f"the loss is {float(loss.detach())} at step {trainer.global_step + 1}"
            f" (epoch {trainer.current_epoch + 1}, batch {index}){samples}; lower optim.lr or look at the samples"
        )


class CollapseAlarm(Callback):
    """Warns once if the contrastive loss stays at ln B, the loss of equal scores for all B candidates."""

    def __init__(self) -> None:
        self._steps = 0
        self._warned = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count consecutive steps at chance."""
        chance = getattr(pl_module, "contrastive_log_b", None)
        if self._warned or chance is None:
            return
        metrics = trainer.callback_metrics
        loss = metrics.get("train/loss_contrastive", metrics.get("train/loss", math.nan))
        at_chance = abs(float(loss) - chance) < CHANCE_MARGIN
        self._steps = self._steps + 1 if at_chance else 0
        if self._steps == CHANCE_STEPS:
            self._warned = True
            warnings.warn(
                f"step {trainer.global_step}: for {CHANCE_STEPS} steps the contrastive loss has been within"
                f" {CHANCE_MARGIN} of {chance:.3f} = ln B, so all B candidates get the same score. Embeddings may have"
                " collapsed: lower optim.lr, warm up longer, or look at the data.",
                stacklevel=1,
            )
