"""An exponential moving average of the trained weights."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class MovingAverage(Callback):
    """Moving average of the trainable parameters; validation and checkpoints use it, training uses the weights.

    After step t: average ← d·average + (1 − d)·weights with d = min(decay, (1 + t)/(10 + t)), so that the initial
    weights do not dominate a short training.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights, or from the checkpoint's average."""
        start = self._average or _trained(pl_module)
        self._average = {
            name: start[name].detach().to(weight.device, copy=True) for name, weight in _trained(pl_module).items()
        }

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after each optimizer step."""
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_(list(self._average.values()), list(_trained(pl_module).values()), 1 - decay)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from the resumed one."""
        self._step = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap in the average for validation."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the weights back in."""
        self._swap(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the checkpoint's weights, and the weights in training beside it."""
        trained = _trained(pl_module)
        average = {weight.data_ptr(): self._average[name] for name, weight in trained.items()}
        weights = checkpoint["state_dict"]
        checkpoint["weights_in_training"] = trained
        checkpoint["state_dict"] = {name: average.get(weight.data_ptr(), weight) for name, weight in weights.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the weights in training."""
        trained = _trained(pl_module)
        self._average = {name: checkpoint["state_dict"][name] for name in trained}
        for name, weight in trained.items():
            weight.copy_(checkpoint["weights_in_training"][name])

    def _swap(self, module: L.LightningModule) -> None:
        for name, weight in _trained(module).items():
            now = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(now)


def _trained(module: L.LightningModule) -> dict[str, Tensor]:
    """Return name → trainable parameter, detached but sharing memory; tied weights appear once."""
    return {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
