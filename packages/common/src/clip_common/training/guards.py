"""Alarms: stop at a loss that is not finite, warn about a contrastive loss that stays at chance."""

import math
import warnings
from collections import deque
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

CHANCE_MARGIN = 0.02
CHANCE_STEPS = 200
"""Steps over which the contrastive loss is averaged; half of the fit if that is fewer."""
LEAST_STEPS = 50
"""A mean over fewer steps says nothing: a model that will learn may still be at chance."""


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
    """Warns once if the mean contrastive loss of many steps is that of equal scores for all candidates.

    The mean, because single losses scatter around chance by more than the margin, also when nothing is learned.
    """

    def __init__(self) -> None:
        self._above: deque[float] | None = deque()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the mean of the last steps with chance."""
        chance = getattr(pl_module, "contrastive_chance", None)
        if self._above is None or not chance:  # ln 1: a batch without a second candidate
            return
        metrics = trainer.callback_metrics
        loss = metrics.get("train/loss_contrastive", metrics.get("train/loss", math.nan))
        self._above.append(float(loss) - float(chance))
        steps = min(CHANCE_STEPS, max(LEAST_STEPS, int(trainer.estimated_stepping_batches) // 2))
        if len(self._above) > steps:
            self._above.popleft()
        if len(self._above) == steps and abs(fmean(self._above)) < CHANCE_MARGIN:
            self._above = None
            warnings.warn(
                f"step {trainer.global_step}: over the last {steps} steps the mean contrastive loss is within"
                f" {CHANCE_MARGIN} of {float(chance):.3f}, its value when all candidates have the same score."
                " Embeddings may have collapsed: lower optim.lr, warm up longer, or look at the data.",
                stacklevel=1,
            )
