"""Training with Lightning: a run that is killed and resumed ends like one that was not killed.

result = fit(module, data, config.trainer, run, monitor="val/rsum", mode="max")
load_weights(module, result.best)
"""

from clip_common.loader import ResumableLoader, ShuffledBatchSampler, original_errors
from clip_common.training.checkpoint import CheckpointError, load_weights
from clip_common.training.fit import FitResult, check_trainer, fit
from clip_common.training.optim import build_optimizer, optimizer_and_schedule, warmup_cosine

__all__ = [
    "CheckpointError",
    "FitResult",
    "ResumableLoader",
    "ShuffledBatchSampler",
    "build_optimizer",
    "check_trainer",
    "fit",
    "load_weights",
    "optimizer_and_schedule",
    "original_errors",
    "warmup_cosine",
]
