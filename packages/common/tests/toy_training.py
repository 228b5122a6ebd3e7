"""A small training in its own process that can kill itself at any moment. Run by test_training_resume.py.

`OPTIONS` is set in this script's globals, or given as JSON in its argument: root, name, resume, kill (moments such as
"inside step 7"), trainer (overrides), workers, environment, phases. It contains everything that could make two
trainings differ: dropout, batch statistics, Python's and numpy's generators, random augmentation, a validation that
draws numbers, columns that appear late.
"""

import json
import multiprocessing
import os
import random
import signal
import sys

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from clip_common.config import OptimConfig, TrainerConfig, load_config
from clip_common.runs import Run
from clip_common.training import ResumableLoader, ShuffledBatchSampler, fit, load_weights, optimizer_and_schedule

ROWS, BATCH = 40, 8


class Points(Dataset):
    """Noisy points around 4 centres; the noise is a function of (epoch, index)."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        return torch.eye(4)[index % 4] + 0.3 * torch.randn(4, generator=generator), index


class Data(L.LightningDataModule):
    def __init__(self, *, workers=0, seed=0):
        super().__init__()
        self.workers, self.seed = workers, seed

    def train_dataloader(self):
        sampler = ShuffledBatchSampler(ROWS, batch_size=BATCH, seed=self.seed)
        return ResumableLoader(Points(), batch_sampler=sampler, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(Points(), batch_size=BATCH, shuffle=True)  # draws from the global generator


class Toy(L.LightningModule):
    """Frozen features, then a trained head with dropout and batch statistics."""

    def __init__(self, *, kill=(), optim=None):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 16).requires_grad_(False)
        self.head = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4))
        self.optim = optim or OptimConfig(lr=0.05)
        self.kill = kill

    def die_at(self, moment):
        if moment in self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear_at(self, moment):
        for name in ("SIGTERM", "SIGUSR1"):
            if f"{name} {moment}" in self.kill:
                os.kill(os.getpid(), signal.Signals[name])

    def training_step(self, batch, batch_idx):
        points, index = batch
        jitter = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
        loss = F.cross_entropy(self.head(self.frozen(points * jitter)), index % 4)
        self.log("train/loss", loss)
        if self.global_step > 3:
            self.log("train/late", loss.detach() ** 2)
        self.die_at(f"inside step {self.global_step + 1}")
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        self.hear_at(f"in step {self.global_step + 1}")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.die_at(f"after step {self.global_step}")

    def validation_step(self, batch, batch_idx):
        points, index = batch
        self.die_at(f"validating after step {self.global_step}")
        self.hear_at(f"validating after step {self.global_step}")
        logits = self.head(self.frozen(points + 0.1 * torch.randn_like(points)))
        self.log("val/accuracy", (logits.argmax(1) == index % 4).float().mean())

    def on_save_checkpoint(self, checkpoint):
        self.die_at(f"saving at step {self.global_step}")

    def on_train_end(self):
        self.die_at("at the end")

    def describe_batch(self, batch):
        return f"rows {batch[1].tolist()}"

    def configure_optimizers(self):
        return optimizer_and_schedule(self, self.optim)


class Watched(Toy):
    """A toy that remembers what it was given."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.rows, self.saved, self.dtypes = [], [], set()
        self.head.register_forward_hook(lambda module, inputs, output: self.dtypes.add(output.dtype))

    def training_step(self, batch, batch_idx):
        self.rows.append((self.current_epoch, batch[1].tolist()))
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint):
        self.saved.append(self.global_step)


def fitter(root):
    """A function that fits a module with trainer overrides; it returns the run and the result."""
    names = iter("abcdefgh")

    def train(module, *overrides, name=None, resume=False, data=None, **arguments):
        config = load_config(TrainerConfig, overrides=("devices=cpu", "max_epochs=2", *overrides))
        run = Run.create("toy", config_yaml="toy", name=name or next(names), root=root, resume=resume)
        options = {"monitor": "val/accuracy", "mode": "max", "resume": resume} | arguments
        return run, fit(module, data or Data(), config, run, **options)

    return train


def rows_of(run, column="train/loss"):
    """The rows of metrics.csv that have a column."""
    return [row for row in run.metrics.rows() if row.get(column)]


def weights_of(module):
    """All trained weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.head.parameters()])


def train(*, root, name="toy", resume=False, kill=(), trainer=(), workers=0, environment=None, phases=("fit",)):
    """Fit the toy, phase after phase, and leave weights.pt."""
    torch.set_num_threads(1)
    os.environ.update(environment or {})
    config = load_config(TrainerConfig, overrides=("devices=cpu", "max_epochs=3", *trainer))
    run = Run.create("toy", config_yaml="toy", name=name, root=root, resume=resume)
    module = Toy(optim=OptimConfig(lr=0.05))
    data = Data(workers=workers)
    for phase in phases:
        module.kill = kill if phase == phases[-1] else ()
        result = fit(module, data, config, run, monitor="val/accuracy", mode="max", phase=phase, resume=resume)
        load_weights(module, result.last)
    torch.save(dict(module.state_dict()), run.path / "weights.pt")


if __name__ == "__main__":
    multiprocessing.set_start_method("fork", force=True)  # loader workers that need not import everything again
    train(**(globals().get("OPTIONS") or json.loads(sys.argv[1])))
