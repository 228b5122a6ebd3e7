"""Progress of a fit on stderr: a bar on a terminal, plain lines in a pipe."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_DRAWINGS = 0.2


class Display(Callback):
    """Prints one line per epoch (loss, values logged for the progress bar, monitored value), and progress in between.

    Args:
        monitor: Name of the monitored value, shown once it is logged.
    """

    def __init__(self, *, monitor: str) -> None:
        self.monitor = monitor
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._began = self._shown = time.monotonic()
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and, on a terminal, the bar."""
        self._began = self._shown = time.monotonic()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and self._first_step:
            self.console.print(f"resumed after step {self._first_step}", markup=False)
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
            )
            # without rich's refresh thread, because worker processes are forked meanwhile
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._bar.add_task("", values="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the bar."""
        self._draw(trainer, done=0, values="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar, or print a line every 15 seconds."""
        elapsed = time.monotonic() - self._shown
        if trainer.is_global_zero and elapsed > (SECONDS_BETWEEN_DRAWINGS if self._bar else SECONDS_BETWEEN_LINES):
            self._shown = time.monotonic()
            if self._bar:
                self._draw(trainer, done=batch_idx + 1, values=f"{self._values(trainer)}  {self._left(trainer)}")
            else:
                self._print_line(trainer, values=self._values(trainer), clock=self._left(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the bar."""
        self._draw(trainer, done=int(trainer.num_training_batches), values="validating")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        if trainer.is_global_zero:
            self._shown = time.monotonic()
            clock = _clock(time.monotonic() - self._began)
            self._print_line(trainer, values=self._values(trainer, self.monitor), clock=clock)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, trainer: L.Trainer, *, done: int, values: str) -> None:
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                description=self._epoch(trainer),
                completed=done,
                total=int(trainer.num_training_batches),
                values=values,
                refresh=True,
            )

    def _print_line(self, trainer: L.Trainer, *, values: str, clock: str) -> None:
        steps = str(int(trainer.estimated_stepping_batches))
        step = f"step {trainer.global_step:{len(steps)}d}/{steps}"
        self.console.print("  ".join((self._epoch(trainer), step, values, clock)), markup=False)

    def _epoch(self, trainer: L.Trainer) -> str:
        last = str(trainer.max_epochs)
        return f"epoch {trainer.current_epoch + 1:{len(last)}d}/{last}"

    def _values(self, trainer: L.Trainer, *names: str) -> str:
        """Return the loss, the values logged for the progress bar, and the metrics of these names."""
        metrics = trainer.callback_metrics
        chosen = dict.fromkeys(("train/loss", *trainer.progress_bar_metrics, *names))
        return "  ".join(f"{name} {float(metrics[name]):.4g}" for name in chosen if name in metrics)

    def _left(self, trainer: L.Trainer) -> str:
        done = trainer.global_step - self._first_step
        rest = trainer.estimated_stepping_batches - trainer.global_step
        return f"{_clock((time.monotonic() - self._began) / max(1, done) * rest)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
