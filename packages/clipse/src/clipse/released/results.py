"""Files of the original CLIPSE under `results/`: one CSV per training run, one registry of evaluations.

Column names are the documented ones: method, seed, epoch, model, pretrained, R1_I2T … mAP10_T2I.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_common.config import load_config
from clip_common.runs import MetricsCsv, Run, append_row, write_atomically
from clipse.config import Config
from clipse.scoring.score import Scored

DIRECTIONS = {"i2t": "I2T", "t2i": "T2I"}
METRICS = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "MedR": "MR", "mAP@10": "mAP10"}


def make_documented_row(config: Config, metrics: Mapping[str, float], *, epoch: int) -> dict[str, Any]:
    """Return one row under the documented names; `metrics` are those of `image_text_retrieval`."""
    row: dict[str, Any] = {
        "method": config.loss.name,
        "seed": config.trainer.seed,
        "epoch": epoch,
        "model": config.model.label,
        "pretrained": config.model.pretrained or "",
    }
    for side, direction in DIRECTIONS.items():
        row |= {f"{short}_{direction}": metrics[f"{side}/{name}"] for name, short in METRICS.items()}
    return row | {"rsum": metrics["rsum"]}


def write_training(config: Config, run: Run) -> Path:
    """Write training_RUN.csv into the folder `config.results`: one row per validation in the run's metrics.csv."""
    file = Path(config.results) / f"training_{run.name}.csv"
    rows = []
    for row in run.metrics.rows():
        values = {
            key.removeprefix("val/"): float(value) for key, value in row.items() if key.startswith("val/") and value
        }
        if values:
            documented = make_documented_row(config, values, epoch=int(row["epoch"]))
            rows.append(documented | {"val_loss": values["loss"], "step": int(row["step"])})
    with write_atomically(file) as temporary:
        MetricsCsv(temporary).extend(rows)
    return file


def write_series(folder: Path) -> list[Path]:
    """Write training_RUN.csv of each finished run of a comparison or a search, into `results` in its folder."""
    runs = [Run(file.parent) for file in sorted(folder.glob("clipse/[!.]*/result.json"))]
    return [write_training(load_config(Config, config=run.path / "config.yaml"), run) for run in runs]


def write_registry(scored: Scored) -> Path:
    """Append one evaluation to run_registry.csv in `config.results`; `epoch` is the number of trained epochs."""
    config = scored.config
    row = make_documented_row(config, scored.evaluation.result.metrics, epoch=scored.epochs)
    file = Path(config.results) / "run_registry.csv"
    append_row(file, {"run": scored.name, "split": config.split} | row)
    return file
