"""The `results/` files of the original CLIPSE, beside the common run folder: one CSV a run, one registry of runs.

Column names are the documented ones: method, seed, epoch, model, pretrained, R1_I2T … mAP10_T2I.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_common.runs import MetricsCsv, Run, append_row, write_atomically
from clipse.config import Config

DIRECTIONS = {"i2t": "I2T", "t2i": "T2I"}
METRICS = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "MedR": "MR", "mAP@10": "mAP10"}


def documented_row(config: Config, metrics: Mapping[str, float], *, epoch: int) -> dict[str, Any]:
    """One row under the documented names; `metrics` are `image_text_retrieval`'s, by their own names."""
    row: dict[str, Any] = {
        "method": config.loss.name,
        "seed": config.trainer.seed,
        "epoch": epoch,
        "model": model_label(config),
        "pretrained": config.model.pretrained or "",
    }
    for side, direction in DIRECTIONS.items():
        row |= {f"{short}_{direction}": metrics[f"{side}/{name}"] for name, short in METRICS.items()}
    return row | {"rsum": metrics["rsum"]}


def write_training(config: Config, run: Run) -> Path:
    """Write results/training_RUN.csv: one row for each validation in the run's metrics.csv."""
    file = Path(config.results) / f"training_{run.name}.csv"
    rows = []
    for row in run.metrics.rows():
        values = {
            key.removeprefix("val/"): float(value) for key, value in row.items() if key.startswith("val/") and value
        }
        if values:
            documented = documented_row(config, values, epoch=int(row["epoch"]))
            rows.append(documented | {"val_loss": values["loss"], "step": int(row["step"])})
    with write_atomically(file) as temporary:
        MetricsCsv(temporary).extend(rows)
    return file


def write_registry(config: Config, name: str, metrics: Mapping[str, float], *, epoch: int) -> Path:
    """Append one evaluation to results/run_registry.csv; `epoch` counts those trained, of which the best is scored."""
    file = Path(config.results) / "run_registry.csv"
    append_row(file, {"run": name, "split": config.split} | documented_row(config, metrics, epoch=epoch))
    return file


def model_label(config: Config) -> str:
    """What the towers are called in tables and run names."""
    model = config.model
    if model.kind == "dual":
        return f"{Path(str(model.vision)).name}+{Path(str(model.text)).name}"
    return "scratch" if model.architecture else Path(model.name.removeprefix("local-dir:")).name
