"""The configuration that a run was trained with, and which overrides its trained model can take."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clip_common.config import apply_overrides, load_config
from clip_common.errors import DataError
from clip_common.runs import Run
from clip_common.runs.opening import check_made_by
from videoclip.config import Config

SPLIT_FIELDS = ("folds", "fold", "split_seed", "subjects", "train_fraction", "clip_seconds")
"""Fields of `data` that decide which clips are in which part."""


def load_run_config(run: Run, overrides: Sequence[str]) -> tuple[Config, Config]:
    """Return the configuration of a run, and the same with overrides.

    Raises:
        ValueError: A run of another package; an override that has no effect on a trained model, or needs another one.
    """
    check_made_by(run, package="videoclip")
    trained = load_config(Config, config=run.path / "config.yaml")
    config = apply_overrides(trained, overrides)
    trainer = replace(config.trainer, devices=trained.trainer.devices)
    if replace(config, data=trained.data, split=trained.split, trainer=trainer) != trained:
        raise ValueError(f"{run.path}: the model is trained: override data.…, split and trainer.devices only")
    return trained, config


def is_training_set(trained: Config, config: Config) -> bool:
    """Return whether `config` reads the data set that the run was trained on."""
    return Path(str(trained.data.root)).resolve() == Path(str(config.data.root)).resolve()


def check_same_split_fields(run: Run, trained: Config, config: Config) -> None:
    """Raise DataError if overrides would split the run's own data set otherwise than in training."""
    for name in SPLIT_FIELDS:
        given = getattr(config.data, name)
        if given != getattr(trained.data, name):
            raise DataError(
                f"data.{name}={given} would take clips that {run.path} was trained on: leave it out, or train anew"
            )
