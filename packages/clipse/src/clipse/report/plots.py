"""Plots of a run, of a comparison and of a parameter search, from plain numbers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_common.plots import PALETTE, Dots, draw_curves, draw_dots, make_panels, save_figure, style_axes
from clip_common.runs import Run


def draw_run(run: Run) -> list[Path]:
    """Draw loss, validation retrieval, temperature, and a weighting's weights from metrics.csv; PNGs in RUN/plots."""
    folder = run.folder("plots")
    metrics = run.path / "metrics.csv"
    logged = {name for row in run.metrics.rows() for name, value in row.items() if value}
    plots = [
        draw_curves(
            metrics,
            {"train/loss": "training (each batch)", "val/loss": "validation"},
            folder / "loss.png",
            title="Contrastive loss",
            ylabel="nats",
        ),
        draw_curves(
            metrics,
            {f"val/{side}/R@{k}": f"{label} R@{k}" for side, label in SIDES.items() for k in (1, 5, 10)},
            folder / "retrieval.png",
            title="Validation retrieval",
            ylabel="recall",
        ),
        draw_curves(
            metrics, {"train/temperature": "temperature"}, folder / "temperature.png", title="Temperature", ylabel="τ"
        ),
    ]
    if "sanw/w_mean" in logged:
        plots.append(
            draw_curves(
                metrics,
                {"sanw/w_p50": "median", "sanw/w_mean": "mean"},
                folder / "weights.png",
                title="Weights of true negatives (5th to 95th percentile shaded)",
                ylabel="weight",
                band=("sanw/w_p05", "sanw/w_p95"),
            )
        )
    return plots


SIDES = {"i2t": "image to text", "t2i": "text to image"}
"""Directions of retrieval by their prefix in metrics.csv, and their names in legends."""


def draw_comparison(rows: Sequence[Dots], path: Path, *, split: str, seeds: int) -> None:
    """Draw the rsum of every seed with mean ± sd, and the paired difference to the first row with its interval.

    Args:
        rows: One per loss, the baseline first.
        path: The PNG.
        split: The split that was scored.
        seeds: Number of seeds of each loss.
    """
    spread = f"{seeds} seeds, mean ± sd" if seeds > 1 else "one seed"
    draw_dots(
        rows,
        path,
        titles=(f"rsum, {split} split", f"Difference to {rows[0].label}"),
        xlabels=(f"rsum of 600; {spread}", "rsum, 95 % interval (paired bootstrap)"),
    )


def draw_tuning(
    path: Path, *, rsums: Sequence[float], parameters: Mapping[str, Sequence[float]], logarithmic: Collection[str]
) -> None:
    """Draw the history of a search, and validation rsum over each parameter.

    Args:
        path: The PNG.
        rsums: Validation rsum of each trial, in order.
        parameters: Values of each searched parameter by its key in the section `loss`, in the order of `rsums`.
        logarithmic: Parameters to draw on a logarithmic axis.
    """
    figure, (history, *others) = make_panels(1, 1 + len(parameters), width=3.0 * (len(parameters) + 1), height=3.2)
    best = int(np.argmax(rsums))
    order = np.arange(1, len(rsums) + 1)
    history.scatter(order, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
    history.step(
        order, np.maximum.accumulate(rsums), where="post", color=PALETTE[1], linewidth=1.6, label="best so far"
    )
    history.legend(frameon=False, fontsize=8, loc="lower right")
    style_axes(history, title="Validation rsum", xlabel="trial", grid="y")
    for axes, (name, values) in zip(others, parameters.items(), strict=True):
        axes.scatter(values, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
        axes.scatter(values[best], rsums[best], s=70, facecolor="none", edgecolor=PALETTE[1], linewidth=1.8)
        axes.set_xscale("log" if name in logarithmic else "linear")
        style_axes(axes, title=SYMBOLS.get(name, name), xlabel=f"loss.{name}", grid="y")
    save_figure(figure, path)


SYMBOLS = {"alpha": "α", "delta": "δ", "lambda": "λ", "gamma": "γ"}
"""Greek letters of the SANW parameters, for titles."""
