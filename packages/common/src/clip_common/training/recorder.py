"""Rows and checkpoints of a fit, written in an order that survives a kill.

The checkpoint of step k is written after the rows up to step k. A resumed fit drops the rows after its checkpoint's
step and writes them again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from clip_common.runs import Run
from clip_common.training.checkpoint import BEST, LAST
from clip_common.training.preemption import Preemption

ROWS_HELD = 64
"""Rows held before they are written together, because reading a value from a GPU waits for the GPU."""


class Recorder(Checkpoint):
    """Writes metrics.csv, `best.ckpt` and `last.ckpt`, and stops a fit that no longer improves.

    It is a Lightning `Checkpoint`, which runs after all other callbacks, so that checkpoints include their changes.

    Args:
        run: The run; rows go to its metrics.csv.
        folder: Folder of the two checkpoints.
        phase: First column of every row.
        monitor: Name of the logged value that selects the best weights.
        mode: Whether a higher or a lower value is better.
        every: Optimizer steps between checkpoints inside an epoch; None: only at its end.
        patience: Stop after this many epochs without a better value; None: never.
        preemption: Records requests to end the process.
    """

    def __init__(
        self,
        *,
        run: Run,
        folder: Path,
        phase: str,
        monitor: str,
        mode: Literal["max", "min"],
        every: int | None,
        patience: int | None,
        preemption: Preemption,
    ) -> None:
        self.run, self.folder, self.phase = run, folder, phase
        self.monitor, self.mode, self.every, self.patience = monitor, mode, every, patience
        self.preemption = preemption
        self.best_score: float | None = None
        self._epochs_without_better = 0
        self._rows: list[dict[str, Any]] = []
        self._step = 0
        self._lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of epochs since it was reached."""
        return {"best_score": self.best_score, "epochs_without_better": self._epochs_without_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and the number of epochs since."""
        self.best_score = state_dict["best_score"]
        self._epochs_without_better = state_dict["epochs_without_better"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows after the resumed step."""
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self.run.metrics.truncate_after(self._step, phase=self.phase)
        self._stop_without_better(trainer)  # it may have been killed after its last checkpoint

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Store the learning rate of this step; at the end of the batch it is already that of the next step."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a row per optimizer step; save a checkpoint if one is due before the end of the epoch."""
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        self._add_row(trainer, {"lr": self._lr})
        due = self.every is not None and self._step % self.every == 0
        asked = self.preemption.asked(trainer)
        if (due or asked) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer, LAST)
            if asked:
                self.preemption.answer(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row per validation."""
        self._add_row(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row of values logged per epoch, then save the best and the last checkpoint."""
        self._add_row(trainer)
        if self._is_better(trainer):
            self._epochs_without_better = 0
            self._save(trainer, BEST)
        else:
            self._epochs_without_better += 1
        self._save(trainer, LAST)
        self._stop_without_better(trainer)
        if self.preemption.asked(trainer):
            self.preemption.answer(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the rows up to the failure."""
        self._write_rows(trainer)

    def _add_row(self, trainer: L.Trainer, values: Mapping[str, Any] | None = None) -> None:
        # Lightning's own loggers receive these values after the checkpoint callbacks, but a row must be written before
        # its checkpoint
        logged = trainer._logger_connector.metrics["log"]
        if values or logged:
            where = {"phase": self.phase, "epoch": trainer.current_epoch + 1, "step": self._step}
            self._rows.append(where | dict(values or {}) | logged)
        if len(self._rows) >= ROWS_HELD:
            self._write_rows(trainer)

    def _write_rows(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self._rows:
            self.run.metrics.extend({name: _number(value) for name, value in row.items()} for row in self._rows)
        self._rows = []

    def _is_better(self, trainer: L.Trainer) -> bool:
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"monitor {self.monitor!r} was not logged by the end of the epoch; logged: {logged}")
        score = trainer.strategy.broadcast(_number(trainer.callback_metrics[self.monitor]))
        best = self.best_score
        if best is None or (score > best if self.mode == "max" else score < best):
            self.best_score = score if score == score else None  # NaN is never the best
            return True
        return False

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self._write_rows(trainer)
        trainer.save_checkpoint(self.folder / name)

    def _stop_without_better(self, trainer: L.Trainer) -> None:
        if self.patience is not None and self._epochs_without_better >= self.patience:
            trainer.should_stop = True


def _number(value: Any) -> Any:
    """Return a float rounded to 7 significant digits, the precision of float32; anything else unchanged."""
    value = value.item() if isinstance(value, Tensor) else value
    return float(f"{value:.7g}") if isinstance(value, float) else value
