"""The pictures of a run, drawn from its metrics.csv, of a comparison and of a search."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_common.plots import GREY, PALETTE, curves
from clip_common.runs import Run, write_atomically

if TYPE_CHECKING:
    from clipse.compare import Comparison
    from clipse.tune import Tuning


def draw_run(run: Run) -> list[Path]:
    """Loss, validation retrieval, temperature, and a weighting's distribution of weights: PNGs in RUN/plots."""
    folder = run.folder("plots")
    metrics = run.path / "metrics.csv"
    logged = {name for row in run.metrics.rows() for name, value in row.items() if value}
    plots = [
        curves(
            metrics,
            {"train/loss": "training (each batch)", "val/loss": "validation"},
            folder / "loss.png",
            title="Contrastive loss",
            ylabel="nats",
        ),
        curves(
            metrics,
            {f"val/{side}/R@{k}": f"{label} R@{k}" for side, label in SIDES.items() for k in (1, 5, 10)},
            folder / "retrieval.png",
            title="Validation retrieval",
            ylabel="recall",
        ),
        curves(
            metrics, {"train/temperature": "temperature"}, folder / "temperature.png", title="Temperature", ylabel="τ"
        ),
    ]
    if "sanw/w_mean" in logged:
        plots.append(
            curves(
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


def draw_comparison(comparison: "Comparison", path: Path) -> None:
    """Left the rsum of every seed with mean ± sd, right the paired difference to the baseline with its interval."""
    rows = comparison.rows
    figure, (left, right) = _figure(width=9.6, height=1.7 + 0.5 * len(rows), panels=2)
    places = np.arange(len(rows))[::-1]
    for place, row, color in zip(places, rows, _colors(len(rows)), strict=True):
        spread = np.linspace(-0.14, 0.14, len(row.rsums)) if len(row.rsums) > 1 else np.zeros(1)
        left.scatter(row.rsums, place + spread, s=16, color=color, alpha=0.55, linewidth=0)
        left.errorbar(row.mean, place, xerr=row.sd, color=color, marker="D", markersize=6, capsize=3, linewidth=1.8)
        if row.against is not None:
            low, high = row.against.difference - row.against.low, row.against.high - row.against.difference
            right.errorbar(
                row.against.difference, place, xerr=[[low], [high]], color=color, marker="D", markersize=6, capsize=3
            )
    right.axvline(0, color=GREY, linewidth=1, linestyle=":")
    right.annotate("baseline", (0, places[0]), xytext=(5, -3), textcoords="offset points", color=GREY, fontsize=8)
    for axes in (left, right):
        axes.set_yticks(places, [row.label for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
    right.tick_params(labelleft=False)
    seeds = f"{len(comparison.seeds)} seeds, mean ± sd" if len(comparison.seeds) > 1 else "one seed"
    _dress(left, title=f"rsum, {comparison.split} split", xlabel=f"rsum of 600; {seeds}", grid="x")
    _dress(right, title=f"Difference to {rows[0].label}", xlabel="rsum, 95 % interval (paired bootstrap)", grid="x")
    _save(figure, path)


def draw_tuning(tuning: "Tuning", path: Path, *, spaces: Mapping[str, tuple[float, float, bool]]) -> None:
    """The history of a search, and validation rsum over each parameter."""
    figure, panels = _figure(width=3.0 * (len(spaces) + 1), height=3.2, panels=1 + len(spaces))
    rsums = np.array([trial.rsum for trial in tuning.trials])
    best = int(rsums.argmax())
    order = np.arange(1, len(rsums) + 1)
    panels[0].scatter(order, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
    panels[0].step(
        order, np.maximum.accumulate(rsums), where="post", color=PALETTE[1], linewidth=1.6, label="best so far"
    )
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    _dress(panels[0], title="Validation rsum", xlabel="trial", grid="y")
    for axes, (name, (_, _, log)) in zip(panels[1:], spaces.items(), strict=True):
        values = [trial.parameters[name] for trial in tuning.trials]
        axes.scatter(values, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
        axes.scatter(values[best], rsums[best], s=70, facecolor="none", edgecolor=PALETTE[1], linewidth=1.8)
        axes.set_xscale("log" if log else "linear")
        _dress(axes, title=SYMBOLS.get(name, name), xlabel=f"loss.{'lambda' if name == 'lam' else name}", grid="y")
    _save(figure, path)


SYMBOLS = {"alpha": "α", "delta": "δ", "lam": "λ", "gamma": "γ"}


def _figure(*, width: float, height: float, panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels)


def _colors(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _dress(axes: Any, *, title: str, xlabel: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, color=GREY, fontsize=9)
    axes.tick_params(axis="both", which="both", colors=GREY, labelsize=8, length=0)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8c8c8")


def _save(figure: Any, path: Path) -> None:
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png")
