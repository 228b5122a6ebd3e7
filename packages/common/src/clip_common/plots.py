"""Plots of one run and of several runs, in one style. matplotlib is imported when first needed, without a display."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_common.runs import read_rows, write_atomically

PALETTE = ("#3b6fb6", "#d9792b", "#3f9b6b", "#b8477d", "#7a68b5", "#8a6d4b")
GREY = "#6b6b6b"
MANY_POINTS = 60
"""Curves of more points are drawn thin, with their moving mean on top."""


def draw_curves(
    metrics: str | Path,
    columns: Sequence[str] | Mapping[str, str],
    path: str | Path,
    *,
    title: str = "",
    ylabel: str = "",
    band: tuple[str, str] | None = None,
    reference: str | None = None,
) -> Path:
    """Draw columns of a metrics.csv over the optimizer step and save a PNG.

    A column with many points (one for each step) is drawn thin, with its moving mean on top; a column with few (one for
    each epoch) as dots on a line. The phases of a run follow one another, separated by dotted lines.

    Args:
        metrics: The metrics.csv.
        columns: Names of columns, or column → label. Columns that are not in the file are skipped.
        path: The PNG.
        title: Heading.
        ylabel: Name and unit of the values.
        band: Two columns (lower, upper); the area between them is shaded, e.g. the 5th to the 95th percentile.
        reference: One of `columns` that is a dashed grey line, such as the loss of chance.

    Returns:
        `path`.

    Raises:
        ValueError: The file has none of the columns.
    """
    labels = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    rows = read_rows(metrics)
    steps, boundaries = _steps(rows)
    series = {name: _column(rows, steps, name) for name in labels}
    series = {name: points for name, points in series.items() if len(points[0])}
    if not series:
        raise ValueError(f"{metrics} has none of the columns {', '.join(labels)}: name columns that it has")

    figure, axes = make_panels(width=7.2, height=4.2)
    if band is not None:
        lower, upper = (_column(rows, steps, name) for name in band)
        axes.fill_between(lower[0], lower[1], upper[1], color=PALETTE[0], alpha=0.15, linewidth=0)
    for index, (name, (x, y)) in enumerate(series.items()):
        dashed = index // len(PALETTE) % 2  # the second use of a colour
        style: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "linewidth": 1.8,
            "linestyle": "--" if dashed else "-",
        }
        label: str | None = labels[name]
        for part in _split_phases(x, at=[step for step, _ in boundaries]):
            if name == reference:
                axes.plot(x[part], _moving_mean(y[part]), label=label, color=GREY, linewidth=1.2, linestyle="--")
            elif len(x) > MANY_POINTS:
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
    style_axes(axes, title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.margins(x=0.02)
    if len(series) > 1:
        # beside the curves: inside it would cover some, and the search for the best place is slow for long curves
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, Path(path))


def _steps(rows: Sequence[Mapping[str, str]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the step of each row, counted through all phases, and where each phase begins if there are several."""
    steps: list[float] = []
    begins: dict[str, float] = {}
    for row in rows:
        start = begins.setdefault(row.get("phase", ""), max(steps, default=0.0))
        steps.append(start + float(row["step"]))
    return steps, [(start, phase) for phase, start in begins.items()] if len(begins) > 1 else []


def _column(
    rows: Sequence[Mapping[str, str]], steps: Sequence[float], name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return steps and values of the rows that have the column."""
    points = [(step, float(row[name])) for step, row in zip(steps, rows, strict=True) if row.get(name)]
    x, y = np.array(points).reshape(-1, 2).T
    return x, y


def _split_phases(x: np.ndarray[Any, Any], *, at: Sequence[float]) -> list[slice]:
    """Return the slice of points of each phase; a phase begins after the last step of the phase before."""
    edges = [0, *np.searchsorted(x, at[1:], side="right").tolist(), len(x)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _moving_mean(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the mean over a centred window of a fortieth of the points, narrower at both ends."""
    half = max(2, len(y) // 80)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    means: np.ndarray[Any, Any] = (sums[last] - sums[first]) / (last - first)
    return means


@dataclass(frozen=True)
class Dots:
    """A row of `draw_dots`.

    Attributes:
        label: Name of the row.
        values: Positions of the small dots, such as one for each seed.
        centre: Position of the diamond, such as the mean of the values.
        whisker: Ends of the line through the diamond; None draws no line.
        against: Difference from the first row and the ends of its interval; None for the first row itself.
        mark: Position of a grey line, such as the chance level; None draws no line.
    """

    label: str
    values: Sequence[float]
    centre: float
    whisker: tuple[float, float] | None
    against: tuple[float, float, float] | None = None
    mark: float | None = None


def draw_dots(
    rows: Sequence[Dots],
    path: Path,
    *,
    titles: tuple[str, str],
    xlabels: tuple[str, str],
) -> Path:
    """Draw the values of each row on the left, and differences from the first row on the right; save a PNG.

    The right side is left out if no row has a difference.

    Args:
        rows: From the top down.
        path: The PNG.
        titles, xlabels: Headings and axis labels of the left and the right side.

    Returns:
        `path`.
    """
    compared = any(row.against for row in rows)
    height = 1.7 + 0.5 * len(rows)
    if compared:
        figure, (left, right) = make_panels(1, 2, width=9.6, height=height)
    else:
        figure, left = make_panels(width=6.4, height=height)
    places = np.arange(len(rows))[::-1]
    for index, (place, row) in enumerate(zip(places, rows, strict=True)):
        color = PALETTE[index % len(PALETTE)]
        spread = np.linspace(-0.14, 0.14, len(row.values)) if len(row.values) > 1 else np.zeros(len(row.values))
        left.scatter(row.values, place + spread, s=16, color=color, alpha=0.55, linewidth=0)
        _draw_diamond(left, row.centre, place, row.whisker, color=color)
        if row.mark is not None:
            left.plot((row.mark, row.mark), (place - 0.4, place + 0.4), color=GREY, linewidth=1.4, zorder=1)
        if row.against is not None:
            _draw_diamond(right, row.against[0], place, row.against[1:], color=color)
    for axes in (left, right) if compared else (left,):
        axes.set_yticks(places, [row.label for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
    style_axes(left, title=titles[0], xlabel=xlabels[0], grid="x")
    if compared:
        right.axvline(0, color=GREY, linewidth=1, linestyle=":")
        right.annotate(
            rows[0].label, (0, places[0]), xytext=(5, -3), textcoords="offset points", color=GREY, fontsize=8
        )
        right.tick_params(labelleft=False)
        style_axes(right, title=titles[1], xlabel=xlabels[1], grid="x")
    return save_figure(figure, path)


def _draw_diamond(axes: Any, x: float, y: float, whisker: tuple[float, float] | None, *, color: str) -> None:
    # a plain line: a skewed bootstrap interval need not contain the value, but an error bar must
    if whisker is not None:
        axes.plot(whisker, (y, y), color=color, linewidth=1.8, marker="|", markersize=7, markeredgewidth=1.8)
    axes.plot(x, y, color=color, marker="D", markersize=6)


def make_panels(rows: int = 1, columns: int = 1, *, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure of `width` by `height` inches and its axes: one, or an array, as from `Figure.subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def style_axes(axes: Any, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: str = "y") -> None:
    """Style axes in the way of all plots; `grid` is "x", "y" or "both"."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(xlabel, color=GREY, fontsize=9)
    axes.set_ylabel(ylabel, color=GREY, fontsize=9)
    axes.tick_params(axis="both", which="both", colors=GREY, labelsize=8, length=0)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8c8c8")


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as a PNG, whole or not at all; return `path`."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
