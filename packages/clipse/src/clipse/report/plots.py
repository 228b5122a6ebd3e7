"""The pictures of a run, drawn from its metrics.csv, of a comparison and of a search."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_common.plots import PALETTE, Dots, curves, dot_plot, dress, panels, save
from clip_common.runs import Run

if TYPE_CHECKING:
    from clipse.series.compare import Comparison
    from clipse.series.tune import Tuning


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
    seeds = f"{len(comparison.seeds)} seeds, mean ± sd" if len(comparison.seeds) > 1 else "one seed"
    dot_plot(
        [
            Dots(
                label=row.label,
                values=row.rsums,
                centre=row.mean,
                whisker=None if row.sd is None else (row.mean - row.sd, row.mean + row.sd),
                against=None if row.against is None else (row.against.difference, row.against.low, row.against.high),
            )
            for row in comparison.rows
        ],
        path,
        titles=(f"rsum, {comparison.split} split", f"Difference to {comparison.rows[0].label}"),
        xlabels=(f"rsum of 600; {seeds}", "rsum, 95 % interval (paired bootstrap)"),
    )


def draw_tuning(tuning: "Tuning", path: Path, *, spaces: Mapping[str, tuple[float, float, bool]]) -> None:
    """The history of a search, and validation rsum over each parameter."""
    figure, (history, *others) = panels(1, 1 + len(spaces), width=3.0 * (len(spaces) + 1), height=3.2)
    rsums = np.array([trial.rsum for trial in tuning.trials])
    best = int(rsums.argmax())
    order = np.arange(1, len(rsums) + 1)
    history.scatter(order, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
    history.step(
        order, np.maximum.accumulate(rsums), where="post", color=PALETTE[1], linewidth=1.6, label="best so far"
    )
    history.legend(frameon=False, fontsize=8, loc="lower right")
    dress(history, title="Validation rsum", xlabel="trial", grid="y")
    for axes, (name, (_, _, log)) in zip(others, spaces.items(), strict=True):
        values = [trial.parameters[name] for trial in tuning.trials]
        axes.scatter(values, rsums, s=18, color=PALETTE[0], alpha=0.6, linewidth=0)
        axes.scatter(values[best], rsums[best], s=70, facecolor="none", edgecolor=PALETTE[1], linewidth=1.8)
        axes.set_xscale("log" if log else "linear")
        dress(axes, title=SYMBOLS.get(name, name), xlabel=f"loss.{'lambda' if name == 'lam' else name}", grid="y")
    save(figure, path)


SYMBOLS = {"alpha": "α", "delta": "δ", "lam": "λ", "gamma": "γ"}
