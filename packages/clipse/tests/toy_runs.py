"""Helpers for tests of runs: configurations, weights and logged rows."""

from pathlib import Path

from helpers.runs import rows

from clip_common.config import load_config
from clipse import Config


def configured(small: list[str], *overrides: str) -> Config:
    return load_config(Config, overrides=[*small, *overrides], package="clipse")


def losses(run: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows(run / "metrics.csv") if row["train/loss"]]
