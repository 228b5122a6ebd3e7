"""A machine that is taken away: SIGTERM, and SLURM's signal before its time limit."""

import os
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment


class Preemption(Callback):
    """Notes that the process was asked to end, so that a checkpoint is written between two steps, never inside one.

    Lightning's own requeueing saves inside the signal handler, in the middle of whatever the step is doing. Under SLURM
    (`#SBATCH --signal=USR1@120`) the job is put back into its queue once the checkpoint is there.
    """

    def __init__(self) -> None:
        self.slurm = SLURMEnvironment.detect()
        self._signalled = False
        self._requeued = False
        self._former: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to SIGUSR1 under SLURM."""
        if self.slurm:
            self._former = signal.signal(signal.SIGUSR1, self._note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening."""
        if self.slurm:
            signal.signal(signal.SIGUSR1, self._former)

    def asked(self, trainer: L.Trainer) -> bool:
        """Whether any rank was asked to end, by SIGTERM (Lightning ends the fit after this step) or by SLURM."""
        mine = trainer.received_sigterm or (self._signalled and not self._requeued)
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))

    def requeue(self, trainer: L.Trainer) -> None:
        """Put the SLURM job back into its queue, once; SLURM then ends this process."""
        if not self._signalled or self._requeued:
            return
        self._requeued = True
        if trainer.is_global_zero:
            array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
            subprocess.run(["scontrol", "requeue", job], check=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
