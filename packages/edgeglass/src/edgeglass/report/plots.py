"""Plots of a run, of accuracy against width, and of the gap between modalities, from plain numbers."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_common.plots import GREY, PALETTE, draw_curves, make_panels, save_figure, style_axes
from clip_common.runs import Run

NAMES = {"i": "image", "t": "text", "a": "sound"}
"""Letters of the directions in metrics.csv, such as `i2t`, and their names in legends."""


def draw_run(run: Run) -> list[Path]:
    """Draw losses, validation retrieval and temperatures from metrics.csv; PNGs in RUN/plots.

    Losses of pairs, retrieval and temperatures each get a plot only if they were logged: a run may have a single pair,
    no validation split, or fixed temperatures.
    """
    folder = run.folder("plots")
    logged = {name: None for row in run.metrics.rows() for name, value in row.items() if value}
    plots = [
        (
            "loss.png",
            {"train/loss": "training (each batch)", "val/loss": "validation"},
            "Alignment loss",
            "weighted sum, nats",
        ),
        ("pairs.png", _name_pairs(logged, "train/loss/"), "Training loss of each pair", "nats"),
        ("retrieval.png", _name_directions(logged), "Validation retrieval", "R@1"),
        ("temperature.png", _name_pairs(logged, "train/temperature/"), "Temperature of each pair", "τ"),
    ]
    return [
        draw_curves(run.path / "metrics.csv", columns, folder / name, title=title, ylabel=ylabel)
        for name, columns, title, ylabel in plots
        if columns
    ]


def draw_vlm_run(run: Run) -> list[Path]:
    """Draw loss and exact answers of a run of `edgeglass vlm`, and the loss after each loop if it has loops.

    PNGs in RUN/plots. A run that is supervised after its last loop only has no plot of loops.
    """
    folder = run.folder("plots")
    logged = {name: None for row in run.metrics.rows() for name, value in row.items() if value}
    loops = {name: f"after loop {name.rpartition('_')[2]}" for name in logged if name.startswith("train/loss/loop_")}
    both = {"train/{}": "training (each batch)", "val/{}": "validation"}
    plots = [
        (
            "loss.png",
            {name.format("loss"): label for name, label in both.items()},
            "Loss of the answers",
            "nats a token",
        ),
        ("accuracy.png", {name.format("accuracy"): label for name, label in both.items()}, "Exact answers", "share"),
        ("loops.png", loops, "Training loss after each loop", "nats a token"),
    ]
    return [
        draw_curves(run.path / "metrics.csv", columns, folder / name, title=title, ylabel=ylabel)
        for name, columns, title, ylabel in plots
        if columns
    ]


def _name_pairs(logged: Mapping[str, None], prefix: str) -> dict[str, str]:
    """Return the columns that start with `prefix`, and the pair of each as its label."""
    return {name: _label(name.removeprefix(prefix)) for name in logged if name.startswith(prefix)}


def _name_directions(logged: Mapping[str, None]) -> dict[str, str]:
    """Return the columns of R@1, and the direction of each in words: `ia(sum)2t` is image + sound (sum) to text."""
    labels = {}
    for name in logged:
        if match := re.fullmatch(r"val/([ita]+)(\(\w+\))?2([ita])/R@1", name):
            asked = " + ".join(NAMES[letter] for letter in match[1])
            labels[name] = f"{asked}{f' {match[2]}' if match[2] else ''} to {NAMES[match[3]]}"
    return labels


def _label(pair: str) -> str:
    """Return a pair such as `image+audio-text` as people read it: image + sound – text."""
    return pair.replace("audio", "sound").replace("+", " + ").replace("-", " – ")


@dataclass(frozen=True)
class WidthCurve:
    """Accuracy of one direction of retrieval at several widths.

    Attributes:
        pair: Name of its panel, such as `image-text`, or `image+audio-text` for fused queries.
        direction: Label, such as "image to text".
        recalls: Width → R@1.
        ceiling: Highest R@1 that a perfect model reaches, such as 1 / 5 texts an image; None draws none.
    """

    pair: str
    direction: str
    recalls: Mapping[int, float]
    ceiling: float | None = None


def draw_widths(path: Path, table: Sequence[WidthCurve]) -> Path:
    """Draw R@1 against width: a panel per pair, a curve per direction, ceilings as dashed lines.

    Args:
        path: The PNG.
        table: Curves, in the order of panels and legends.

    Returns:
        `path`.

    Raises:
        ValueError: `table` is empty.
    """
    if not table:
        raise ValueError("got no curve of accuracy against width, expected at least one: evaluate a pair of modalities")
    pairs = list(dict.fromkeys(curve.pair for curve in table))
    # wider for a single panel, so that its legend has room
    figure, panels = make_panels(1, len(pairs), width=1.6 + 3.2 * len(pairs), height=3.6)
    widths = sorted({width for curve in table for width in curve.recalls})
    for axes, pair in zip(panels.ravel() if len(pairs) > 1 else [panels], pairs, strict=True):
        _draw_curves_of_pair(axes, [curve for curve in table if curve.pair == pair])
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [str(width) for width in widths], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1.03)
        style_axes(axes, title=_label(pair), xlabel="width", ylabel="R@1" if axes is figure.axes[0] else "")
        axes.legend(frameon=False, fontsize=8, loc="best")
    return save_figure(figure, path)


def _draw_curves_of_pair(axes: Any, curves: Sequence[WidthCurve]) -> None:
    """Draw curves and their ceilings; a ceiling of several curves is grey, others have the colour of their curve."""
    ceilings = Counter(curve.ceiling for curve in curves)
    for color, curve in zip(itertools.cycle(PALETTE), curves):
        x = sorted(curve.recalls)
        y = [curve.recalls[width] for width in x]
        axes.plot(x, y, color=color, linewidth=1.8, marker="o", markersize=4, label=curve.direction)
        if curve.ceiling is not None and ceilings[curve.ceiling] == 1:
            axes.axhline(curve.ceiling, color=color, linewidth=1.2, linestyle="--", label=f"{curve.direction}, ceiling")
    for ceiling, count in ceilings.items():
        if ceiling is not None and count > 1:
            axes.axhline(ceiling, color=GREY, linewidth=1.2, linestyle="--", label="ceiling")


@dataclass(frozen=True)
class TopTen:
    """Modalities among the ten nearest of queries in a mixed gallery.

    Attributes:
        query: Modality of the queries.
        truth: Modality → its share of what should be found, from 0 to 1.
        shares: Label, such as "as trained" and "centred" → modality → its share of the top ten.
    """

    query: str
    truth: Mapping[str, float]
    shares: Mapping[str, Mapping[str, float]]


def draw_gap(path: Path, queries: Sequence[TopTen]) -> Path:
    """Draw each modality's share of the top ten beside the truth: a panel per modality of the queries.

    Args:
        path: The PNG.
        queries: Panels from left to right, all with the same labels of shares.

    Returns:
        `path`.

    Raises:
        ValueError: `queries` is empty.
    """
    if not queries:
        raise ValueError("got no shares of the top ten, expected at least one modality of queries: evaluate some")
    figure, panels = make_panels(1, len(queries), width=1.2 + 3.2 * len(queries), height=3.4)
    for axes, asked in zip(panels.ravel() if len(queries) > 1 else [panels], queries, strict=True):
        bars = {"truth": asked.truth, **asked.shares}
        _draw_bars(axes, bars, modalities=list(asked.truth))
        first = axes is figure.axes[0]
        style_axes(axes, title=f"Queries: {_label(asked.query)}", ylabel="share of the top ten" if first else "")
        axes.tick_params(axis="x", labelsize=9)
    # below the panels: above the bars it would cover those near 1
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return save_figure(figure, path)


def _draw_bars(axes: Any, bars: Mapping[str, Mapping[str, float]], *, modalities: Sequence[str]) -> None:
    """Draw a group of bars per modality, each bar with its value in percent."""
    thickness = 0.8 / len(bars)
    for index, (label, shares) in enumerate(bars.items()):
        color = GREY if label == "truth" else PALETTE[(index - 1) % len(PALETTE)]
        places = [place + (index - (len(bars) - 1) / 2) * thickness for place in range(len(modalities))]
        heights = [shares[modality] for modality in modalities]
        drawn = axes.bar(places, heights, width=0.9 * thickness, color=color, label=label)
        axes.bar_label(drawn, [f"{100 * height:.0f}" for height in heights], fontsize=7, color=GREY, padding=1)
    axes.set_xticks(range(len(modalities)), [_label(modality) for modality in modalities])
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
