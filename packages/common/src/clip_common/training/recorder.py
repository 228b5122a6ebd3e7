"""Rows and checkpoints of a fit, in the order that makes a kill harmless.

A checkpoint of step k is written after the rows up to step k. So a resumed fit drops the rows after the step of the
checkpoint it starts from, and writes them again.
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
"""Rows kept before they are written together: reading a value from a GPU waits for it."""


class Recorder(Checkpoint):
    """Writes metrics.csv, `best.ckpt` and `last.ckpt`, and stops a fit that no longer improves.

    A Checkpoint for Lightning, which calls those last: whatever other callbacks change is in what is saved.

    Args:
        run: The run; rows go to its metrics.csv.
        folder: Where the two checkpoints go.
        phase: First column of every row.
        monitor: Logged value that decides which weights are best.
        mode: Whether more or less of it is better.
        every: Optimizer steps between checkpoints inside an epoch; None: none inside.
        patience: Epochs without a better value after which training stops; None: never.
        preemption: Tells when the process has been asked to end.
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
        """Best value so far, and for how many epochs it has stood."""
        return {"best_score": self.best_score, "epochs_without_better": self._epochs_without_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best_score = state_dict["best_score"]
        self._epochs_without_better = state_dict["epochs_without_better"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows that will be written again."""
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self.run.metrics.truncate_after(self._step, phase=self.phase)
        self._stop_without_better(trainer)  # killed between its last checkpoint and its end

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of this step; at the end of the batch the schedule has moved on."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One row an optimizer step; a checkpoint where one is due, but for the end of the epoch, which has its own."""
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
        """One row a validation."""
        self._add_row(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What training logs per epoch, then the best and the last checkpoint."""
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
        """Leave the rows up to the failure."""
        self._write_rows(trainer)

    def _add_row(self, trainer: L.Trainer, values: Mapping[str, Any] | None = None) -> None:
        # Lightning's own loggers get these values only after the checkpoint callbacks: too late for a row that a
        # checkpoint must not outrun
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
    """Numbers to 7 significant digits, which is what float32 holds."""
    value = value.item() if isinstance(value, Tensor) else value
    return float(f"{value:.7g}") if isinstance(value, float) else value
