"""The two sections of a configuration that every system has: optimizer and trainer."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from clip_common.errors import ConfigError


@dataclass
class OptimConfig:
    """AdamW and its schedule; see `clip_common.training.build_optimizer` and `warmup_cosine`."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled decay of weight matrices; biases, norms (1-D parameters), logit scales and logit biases are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    warmup_epochs: float = 1.0
    """Epochs (or a fraction of one) of linear warmup from 0 to `lr`, counted in steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warmup: cosine to 0 at the last step, or constant."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps", "warmup_epochs"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"optim.{name}: expected a number from 0, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas: expected two decays from 0 to below 1, got {list(self.betas)}")


@dataclass
class TrainerConfig:
    """How `clip_common.training.fit` runs; the same names in every system."""

    max_epochs: int = 10
    """Epochs of training."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Number format of weights and autocast, by Lightning's names; a CPU without bf16 is fastest with 32-true."""
    devices: str = "auto"
    """`auto` (all accelerators, else the CPU), `cpu`, `cpu:2` (two CPU processes), a count `4`, or indices `0,1`."""
    nodes: int = 1
    """Number of machines; start one process per device with torchrun or srun."""
    strategy: str = "auto"
    """`auto`, `ddp`, `fsdp`, or another of Lightning's strategies."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    grad_clip: float | None = 1.0
    """Largest L2 norm of all gradients together (unscaled first under AMP); null: no clipping."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints inside an epoch; null: only at the end of each epoch."""
    early_stop: int | None = None
    """Stop after this many validations without a better monitored value; null: never."""
    ema: float | None = None
    """Decay per step of a moving average of the trained weights, which is validated and saved; null: none."""
    compile: bool = False
    """torch.compile the forward of each direct child module."""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """`tensorboard` or `wandb` log in addition to metrics.csv, which is always written."""
    fast_dev_run: bool = False
    """Train and validate on one batch, then do everything else as usual: a quick check that it runs."""
    overfit_batches: int | None = None
    """Train every epoch on the same first N batches and validate on N, to check that the loss goes to 0."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Lightning's profiler; its report is written into the run folder."""
    seed: int = 0
    """Seed of everything random; with epoch and index it determines data order, augmentation and dropout."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "nodes", "accumulate", "checkpoint_every", "early_stop", "overfit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"trainer.{name}: expected a whole number from 1, got {value}")
        if self.seed < 0:
            raise ConfigError(f"trainer.seed: expected a whole number from 0, got {self.seed}")
        if not re.fullmatch(r"auto|cpu(:[1-9]\d*)?|[1-9]\d*|\d+(,\d+)+", self.devices):
            raise ConfigError(
                f"trainer.devices: expected auto, cpu, cpu:2, a count or indices 0,1, got {self.devices!r}"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"trainer.ema: expected a decay between 0 and 1 such as 0.999, got {self.ema}")
        if self.ema is not None and self.strategy.startswith(("fsdp", "deepspeed")):
            raise ConfigError(f"trainer.ema: the average needs whole weights, which {self.strategy} splits; use ddp")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(
                f"trainer.grad_clip: expected a norm above 0, or null for no clipping, got {self.grad_clip}"
            )
