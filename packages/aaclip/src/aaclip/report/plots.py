"""Plots of a training run, and of several detectors compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_common.plots import GREY, PALETTE, Dots, draw_curves, draw_dots, make_panels, save_figure, style_axes

LOSSES = {
    "train/loss": "all parts",
    "train/orthogonal": "normal against abnormal",
    "train/infonce": "prompts against both sides",
    "train/classification": "images as a whole",
    "train/text": "both stages at once: of texts",
    "train/image": "both stages at once: of images",
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


def draw_comparison(
    rows: Sequence[Dots],
    file: Path,
    *,
    metric: str,
    xlabels: tuple[str, str] = (
        "each class; mean with 95 % interval",
        "of the mean, 95 % interval (paired bootstrap)",
    ),
) -> Path:
    """Draw a metric of several detectors on the left, and differences from the first on the right.

    Args:
        rows: One for each detector.
        file: The PNG.
        metric: The metric's name.
        xlabels: What dots and lines of the left and the right side show.
    """
    return draw_dots(
        rows,
        file,
        titles=(metric, f"difference from {rows[0].label}"),
        xlabels=xlabels,
    )


def draw_gradients(shares: Mapping[str, Mapping[str, float | None]], file: Path) -> Path:
    """Draw which share of its gradient each module keeps beside the others, as bars.

    Args:
        shares: Way to scale cross-attention → module → share; None draws no bar.
        file: The PNG.
    """
    modules = list(next(iter(shares.values())))
    figure, axes = make_panels(width=7.6, height=1.4 + 0.5 * len(modules))
    places, height = np.arange(len(modules))[::-1], 0.8 / len(shares)
    for index, (mode, of_mode) in enumerate(shares.items()):
        values = [np.nan if (share := of_mode[module]) is None else share for module in modules]
        offset = height * ((len(shares) - 1) / 2 - index)
        axes.barh(places + offset, values, height=0.9 * height, color=PALETTE[index], label=mode)
    axes.axvline(1, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(places, modules)
    style_axes(axes, title="gradient with all modules / alone", xlabel="1: nothing is lost to the others", grid="x")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, file)
