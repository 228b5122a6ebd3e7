"""`fit`: train a LightningModule with the shared trainer settings, into a run folder."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from clip_common.config import TrainerConfig
from clip_common.loader import original_errors
from clip_common.runs import Run
from clip_common.training.attention import float32_cpu_attention
from clip_common.training.average import MovingAverage
from clip_common.training.checkpoint import BEST, LAST, TrainedWeightsIO
from clip_common.training.determinism import DataOrder, RandomState, seed_everything
from clip_common.training.display import Display
from clip_common.training.guards import CollapseAlarm, FiniteLoss
from clip_common.training.preemption import Preemption
from clip_common.training.recorder import Recorder


@dataclass(frozen=True)
class FitResult:
    """Result of `fit`."""

    best: Path
    """Checkpoint of the best monitored value: trained weights only (`load_weights`)."""
    last: Path
    """Checkpoint of the last step: weights and everything needed to resume."""
    best_score: float | None
    """The best monitored value; None if it was never a number."""
    epochs: int
    """Epochs that ran."""
    steps: int
    """Optimizer steps that ran."""


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    config: TrainerConfig,
    run: Run,
    *,
    monitor: str,
    mode: Literal["max", "min"],
    phase: str = "fit",
    resume: bool = False,
) -> FitResult:
    """Train `module` on `data`; a killed fit that is resumed ends with the same weights, bit for bit on a CPU.

    The module logs per step in `training_step` (Lightning's default) and per epoch in validation, `monitor` included.
    `data.train_dataloader()` returns a `ResumableLoader`. Every logged value becomes a cell of metrics.csv, in rows
    keyed by phase, epoch (from 1) and step (from 1); training rows also have `lr`. With gradient accumulation a
    training row holds the values of the last batch of its step. An epoch mean that training logs (`on_epoch=True`)
    covers only the steps since a resume, because Lightning does not save it.

    Submodules frozen by `clip_common.backbones.freeze` stay in eval mode; all others are set to train mode. Afterwards
    the module holds the last weights; `load_weights(module, result.best)` loads the best ones (with `ema`, the average
    that was validated).

    Optional members of the module:
        describe_batch(batch) -> str: names the batch's samples, for the error about a loss that is not finite.
        contrastive_chance: float attribute, the contrastive loss if all candidates have the same score (ln B for
            InfoNCE with B candidates per row), which each step may set anew; None: unknown. If the mean of
            `train/loss_contrastive` (else `train/loss`) over 200 steps, or over half of the fit, is within 0.02 of it,
            one warning says that embeddings may have collapsed.

    Args:
        module: The model, its losses and `configure_optimizers` (see `optimizer_and_schedule`).
        data: The loaders.
        config: The shared trainer section.
        run: Receives metrics.csv, `checkpoints/<phase>/{best,last}.ckpt` and the entry in the phase ledger.
        monitor: Name of the logged value that selects the best weights.
        mode: Whether a higher or a lower value is better.
        phase: Name of this fit in the ledger; unique within the run.
        resume: Continue from this phase's `last.ckpt` if it exists; return the result at once if the phase is done.

    Raises:
        ValueError: The loss is not finite (the message names the samples), the checkpoint is of another architecture,
            the logger is not installed, settings contradict each other, `monitor` was not logged, or another process is
            training in the run.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` is unchanged.
        SystemExit: SIGTERM, with code 143, after `last.ckpt` was written at the end of the current step, or of the
            epoch if it was validating.
    """
    if resume and run.ledger.done(phase):
        return _result(run, run.ledger.payload(phase))
    folder = run.path / "checkpoints" / phase
    preemption = Preemption()
    recorder = Recorder(
        run=run,
        folder=folder,
        phase=phase,
        monitor=monitor,
        mode=mode,
        every=config.checkpoint_every,
        patience=config.early_stop,
        preemption=preemption,
    )
    callbacks: list[Callback] = [
        DataOrder(same=config.overfit_batches is not None),
        FiniteLoss(),
        CollapseAlarm(),
        *([MovingAverage(config.ema)] if config.ema is not None else []),
        preemption,
        Display(monitor=monitor),
        RandomState(),
        recorder,
    ]
    with run.locked(), _without_chatter(), _own_interrupts(), original_errors():
        trainer = _trainer(
            config,
            logger=_logger(config, run),
            profiler=_profiler(config, run),
            callbacks=callbacks,
            plugins=[TrainedWeightsIO(module)],
            default_root_dir=folder,
        )
        if trainer.is_global_zero:
            for stale in folder.glob(".*.tmp" if resume else "*"):  # left half-written by a kill
                stale.unlink(missing_ok=True)
        seed_everything(config.seed)
        module.train()
        module.strict_loading = False  # frozen weights are not in checkpoints; TrainedWeightsIO checks the trained ones
        if config.compile:
            for child in module.children():
                child.compile()
        last = folder / LAST if resume and (folder / LAST).exists() else None
        if trainer.is_global_zero:
            run.ledger.start(phase)
        in_float32 = config.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu"
        try:
            with float32_cpu_attention() if in_float32 else nullcontext():
                trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        except MisconfigurationException as error:
            raise ValueError(" ".join(str(error).split())) from error
        payload = {
            "best": f"checkpoints/{phase}/{BEST}",
            "last": f"checkpoints/{phase}/{LAST}",
            "best_score": recorder.best_score,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
        }
        if trainer.is_global_zero:
            run.ledger.finish(phase, payload)
    return _result(run, payload)


def check_trainer(config: TrainerConfig) -> None:
    """Raise ValueError if `fit` cannot use these settings on this machine; call before slow work."""
    _check_logger(config)
    with _without_chatter():
        _trainer(config, logger=False)


def _result(run: Run, payload: dict[str, Any]) -> FitResult:
    paths = {name: run.path / payload[name] for name in ("best", "last")}
    return FitResult(**(payload | paths))


def _trainer(config: TrainerConfig, *, plugins: Sequence[Any] = (), **arguments: Any) -> L.Trainer:
    kind, _, count = config.devices.partition(":")
    cpu = kind == "cpu"
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    limits: dict[str, Any] = {"max_epochs": config.max_epochs}
    if config.fast_dev_run:
        limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    try:
        return L.Trainer(
            **limits,
            accelerator="cpu" if cpu else "auto",
            devices=int(count or 1) if cpu else config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=config.precision,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.grad_clip,
            overfit_batches=config.overfit_batches or 0,
            log_every_n_steps=1,
            plugins=[*plugins, *slurm],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **arguments,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


def _logger(config: TrainerConfig, run: Run) -> Logger | Literal[False]:
    """Return the logger used in addition to metrics.csv."""
    _check_logger(config)
    if config.logger == "csv":
        return False
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    if config.logger == "wandb":
        return WandbLogger(name=run.name, project=run.package, save_dir=run.path)
    return TensorBoardLogger(save_dir=run.path, name="tensorboard", version="")


def _check_logger(config: TrainerConfig) -> None:
    packages = {"csv": (), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}[config.logger]
    if packages and not any(find_spec(package) for package in packages):
        raise ValueError(f"trainer.logger={config.logger}: not installed; install it with: pip install {packages[0]}")


def _profiler(config: TrainerConfig, run: Run) -> Profiler | None:
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return kinds[config.profiler](dirpath=run.path, filename="profile") if config.profiler else None


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """End the fit on Ctrl-C and SIGTERM with the usual exit codes; Lightning would exit with 1 and 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)  # Lightning ignores it by now
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence Lightning's own messages: tips, devices, workers, the step limit."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
