"""Preemption: SIGTERM, and SLURM's signal before the time limit."""

import os
import signal
import subprocess
import threading
from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Preemption(Callback):
    """Records a request to end the process, and obeys it after the next checkpoint: at the end of a step or an epoch.

    Lightning's own handling may end the fit during validation, which loses the epoch, and requeues the job inside the
    signal handler, in the middle of a step. Under SLURM (`#SBATCH --signal=USR1@120`) the job is requeued.
    """

    def __init__(self) -> None:
        self.slurm = SLURMEnvironment.detect()
        self._noted: set[int] = set()
        self._requeued = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle SIGTERM, and SIGUSR1 under SLURM, until Lightning restores the handlers from before the fit."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            if self.slurm:
                signal.signal(signal.SIGUSR1, self._note)

    def asked(self, trainer: L.Trainer) -> bool:
        """Return whether any rank was asked to end, so that `answer` must follow the next checkpoint."""
        return self._any_rank(trainer, bool(self._noted))

    def answer(self, trainer: L.Trainer) -> None:
        """Requeue the SLURM job, once (SLURM then ends this process); on SIGTERM, end the fit."""
        if self._any_rank(trainer, signal.SIGUSR1 in self._noted):
            self._noted.discard(signal.SIGUSR1)
            if trainer.is_global_zero and not self._requeued:
                array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
                job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
                subprocess.run(["scontrol", "requeue", job], check=False)
            self._requeued = True
        if self._any_rank(trainer, signal.SIGTERM in self._noted):
            raise SIGTERMException

    def _any_rank(self, trainer: L.Trainer, mine: bool) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)
