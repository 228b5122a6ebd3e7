"""Loss curves of a training run."""

from pathlib import Path

from clip_common.plots import draw_curves

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
