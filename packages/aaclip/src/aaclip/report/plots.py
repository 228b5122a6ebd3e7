"""Plots of a training run, and of several detectors compared."""

from collections.abc import Sequence
from pathlib import Path

from clip_common.plots import Dots, draw_curves, draw_dots

LOSSES = {
    "train/loss": "all parts",
    "train/orthogonal": "normal against abnormal",
    "train/classification": "images as a whole",
}


def draw_losses(metrics: Path, folder: Path) -> list[Path]:
    """Draw the losses of both stages over the optimizer step, in loss.png.

    Args:
        metrics: The run's metrics.csv; nothing is drawn if no stage was trained.
        folder: Gets the plot.
    """
    if not metrics.exists():
        return []
    return [draw_curves(metrics, LOSSES, folder / "loss.png", title="training losses, text stage, then image stage")]


def draw_comparison(rows: Sequence[Dots], file: Path, *, metric: str) -> Path:
    """Draw a metric of several detectors: every class, the mean with its interval, and differences from the first.

    Args:
        rows: One for each detector.
        file: The PNG.
        metric: The metric's name.
    """
    return draw_dots(
        rows,
        file,
        titles=(metric, f"difference from {rows[0].label}"),
        xlabels=("each class; mean with 95 % interval", "of the mean, 95 % interval (paired bootstrap)"),
    )
