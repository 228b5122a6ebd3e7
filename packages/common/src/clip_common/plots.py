"""Plots of a run, drawn from its metrics.csv. matplotlib is imported when first needed, without a display."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_common.runs import read_rows, write_atomically

PALETTE = ("#3b6fb6", "#d9792b", "#3f9b6b", "#b8477d", "#7a68b5", "#8a6d4b")
GREY = "#6b6b6b"
MANY_POINTS = 60
"""Beyond this many, points are drawn thin under their moving mean."""


def curves(
    metrics: str | Path,
    columns: Sequence[str] | Mapping[str, str],
    path: str | Path,
    *,
    title: str = "",
    ylabel: str = "",
    band: tuple[str, str] | None = None,
) -> Path:
    """Draw columns of a metrics.csv over the optimizer step and save a PNG.

    A column with many points (a value of each step) is drawn thin, with its moving mean over it; one with few (a value
    of each epoch) as points on a line. The phases of a run follow one another, a dotted line between them.

    Args:
        metrics: The metrics.csv.
        columns: Names of columns, or column → label. Columns that the file does not have are left out.
        path: Where the PNG goes.
        title: Heading.
        ylabel: Name and unit of the values.
        band: Two columns (lower, upper) between which the plot is shaded, e.g. the 5th and 95th percentile.

    Raises:
        ValueError: None of the columns is in the file.
    """
    labels = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    rows = read_rows(metrics)
    steps, boundaries = _steps(rows)
    series = {name: _column(rows, steps, name) for name in labels}
    series = {name: points for name, points in series.items() if len(points[0])}
    if not series:
        raise ValueError(f"{metrics} has none of the columns {', '.join(labels)}")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if band is not None:
        lower, upper = (_column(rows, steps, name) for name in band)
        axes.fill_between(lower[0], lower[1], upper[1], color=PALETTE[0], alpha=0.15, linewidth=0)
    for index, (name, (x, y)) in enumerate(series.items()):
        style: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "linewidth": 1.8}
        label: str | None = labels[name]
        for part in _split(x, at=[step for step, _ in boundaries]):
            if len(x) > MANY_POINTS:
                axes.plot(x[part], y[part], color=style["color"], alpha=0.25, linewidth=0.7)
                axes.plot(x[part], _moving_mean(y[part]), label=label, **style)
            else:
                axes.plot(x[part], y[part], label=label, marker="o", markersize=4, **style)
            label = None
    for step, phase in boundaries:
        axes.axvline(step, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            phase,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
        )
    _dress(axes, title=title, ylabel=ylabel, legend=len(series) > 1)
    path = Path(path)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _steps(rows: Sequence[Mapping[str, str]]) -> tuple[list[float], list[tuple[float, str]]]:
    """The step of each row, counted on from phase to phase; and where each of several phases begins."""
    steps: list[float] = []
    begins: dict[str, float] = {}
    for row in rows:
        start = begins.setdefault(row.get("phase", ""), max(steps, default=0.0))
        steps.append(start + float(row["step"]))
    return steps, [(start, phase) for phase, start in begins.items()] if len(begins) > 1 else []


def _column(
    rows: Sequence[Mapping[str, str]], steps: Sequence[float], name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps and values of the rows that have the column."""
    points = [(step, float(row[name])) for step, row in zip(steps, rows, strict=True) if row.get(name)]
    x, y = np.array(points).reshape(-1, 2).T
    return x, y


def _split(x: np.ndarray[Any, Any], *, at: Sequence[float]) -> list[slice]:
    """The points of each phase: a phase begins after the step at which the one before ended."""
    edges = [0, *np.searchsorted(x, at[1:], side="right").tolist(), len(x)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _moving_mean(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over a centred window of a fortieth of the points; narrower at both ends."""
    half = max(2, len(y) // 80)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    means: np.ndarray[Any, Any] = (sums[last] - sums[first]) / (last - first)
    return means


def _dress(axes: Any, *, title: str, ylabel: str, legend: bool) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("optimizer step", color=GREY, fontsize=9)
    axes.set_ylabel(ylabel, color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=8, length=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8c8c8")
    if legend:
        # beside the curves: inside it would cover some, and looking for the best place is slow where they are long
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
