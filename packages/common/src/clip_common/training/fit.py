"""`fit`: a LightningModule and its data, through the shared TrainerConfig, into a run folder."""

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
    """What a fit left behind."""

    best: Path
    """Checkpoint of the best monitored value: trained weights only (`load_weights`)."""
    last: Path
    """Checkpoint of the end: weights and everything needed to go on."""
    best_score: float | None
    """The best monitored value; None where it was never a number."""
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

    What the module does: `training_step` logs per step (Lightning's default there), validation logs per epoch,
    `monitor` among it. `data.train_dataloader()` is a `ResumableLoader`. Everything logged becomes a cell of
    metrics.csv, in rows keyed by phase, epoch (from 1) and step (from 1); training rows have `lr` besides. With
    gradient accumulation a training row is that of the last batch of its step. A mean over the epoch that training
    logs (`on_epoch=True`) covers only what ran since a resume: Lightning does not save it.

    Submodules that were frozen by `clip_common.backbones.freeze` stay in eval mode; everything else is set to train.
    Afterwards the module holds the last weights; `load_weights(module, result.best)` gives the best ones (with `ema`:
    the averaged ones, which are what was validated).

    What the module may offer besides:
        describe_batch(batch) -> str: names the batch's samples in the error of a loss that is not finite.
        contrastive_log_b: float attribute, ln B of the contrastive loss (B candidates a row). Where
            `train/loss_contrastive`, or else `train/loss`, stays within 0.02 of it for 200 steps, one warning says that
            embeddings may have collapsed.

    Args:
        module: The model, its losses and `configure_optimizers` (see `optimizer_and_schedule`).
        data: Its loaders.
        config: The shared trainer section.
        run: Where everything goes: metrics.csv, `checkpoints/<phase>/{best,last}.ckpt`, the phase ledger.
        monitor: Name of the logged value that decides which weights are best.
        mode: Whether more or less of it is better.
        phase: Name of this fit in the ledger; several fits of a run need different ones.
        resume: Go on from this phase's `last.ckpt` if there is one; a phase that is done returns its result at once.

    Raises:
        ValueError: A loss that is not finite (names the samples), a checkpoint of another architecture, a logger
            that is not installed, settings that do not go together, `monitor` not logged, a run in which another
            process is training.
        KeyboardInterrupt: Ctrl-C; `last.ckpt` is as it was.
        SystemExit: SIGTERM, with code 143, after `last.ckpt` was written behind the step that was running, or behind
            the validation that ends its epoch.
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
            for stale in folder.glob(".*.tmp" if resume else "*"):  # half-written when a kill came
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
    """Raise ValueError where `fit` would for these settings on this machine, before long preparations."""
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
    """The logger besides metrics.csv."""
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
    """Let Ctrl-C and SIGTERM end the fit as they end other programs; Lightning would exit with 1 and 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)  # Lightning has it ignored by now
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence what Lightning says about itself: tips, devices found, workers, steps it stopped after."""
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
