"""Helpers for tests of runs: configurations, weights and logged rows."""

import csv
from pathlib import Path

import torch
from safetensors.torch import load_file

from clip_common.config import load_config
from clipse import Config


def configured(small: list[str], *overrides: str) -> Config:
    return load_config(Config, overrides=[*small, *overrides], package="clipse")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def losses(run: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows(run / "metrics.csv") if row["train/loss"]]
