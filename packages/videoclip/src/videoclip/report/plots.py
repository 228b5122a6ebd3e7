"""Plots of a run, from its metrics.csv and its scores, and of a series of runs.

N clips, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_common.metrics import Paired
from clip_common.plots import GREY, PALETTE, Dots, draw_curves, draw_dots, make_panels, save_figure, style_axes
from clip_common.runs.table import read_rows

LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "subject_accuracy": "accuracy, subjects",
    "subject_balanced_accuracy": "balanced accuracy, subjects",
    "subject_macro_f1": "macro F1, subjects",
    "retrieval_r1_v2a": "R@1, video to map",
    "retrieval_r5_v2a": "R@5, video to map",
    "retrieval_r1_a2v": "R@1, map to video",
    "retrieval_r5_a2v": "R@5, map to video",
}
"""Metric → its label in a plot."""
ROOM = 1.25
"""Height of a histogram relative to its highest bar, which leaves room for the legend."""


def draw_training(metrics: Path, folder: Path) -> list[Path]:
    """Plot a run's metrics.csv into a folder: cross-entropy, validation metrics and, if several, the parts of the loss.

    Returns:
        The PNG files.
    """
    weighted = {
        name for row in read_rows(metrics) for name, value in row.items() if name in PARTS and float(value or 0)
    }
    plots = [
        draw_curves(
            metrics,
            {"train/loss_classification": "training (each batch)", "val/loss": "validation"},
            folder / "loss.png",
            title="Cross-entropy",
            ylabel="nats",
        ),
        draw_curves(
            metrics,
            {f"val/{name}": label for name, label in LABELS.items()},
            folder / "validation.png",
            title="Validation",
            ylabel="share",
        ),
    ]
    if len(weighted) > 1:  # a part without weight is always 0
        parts = {name: label for name, label in PARTS.items() if name in weighted} | {"train/loss": "weighted sum"}
        parts |= {CHANCE: "contrastive, all maps alike (ln B)"}
        file, title = folder / "parts.png", "Parts of the training loss"
        plots.append(draw_curves(metrics, parts, file, title=title, reference=CHANCE))
    return plots


PARTS = {
    "train/loss_classification": "cross-entropy",
    "train/loss_contrastive": "contrastive",
    "train/loss_token": "token",
    "train/loss_guide": "predicted map",
    "train/loss_distillation": "distillation",
}
CHANCE = "train/loss_contrastive_chance"


def draw_scores(
    folder: Path,
    *,
    prefix: str,
    classes: Sequence[str],
    confusion_KK: NDArray[np.int64],
    subject_confusion_KK: NDArray[np.int64],
    similarity_N: NDArray[np.floating],
    correct_N: NDArray[np.bool_],
) -> list[Path]:
    """Plot a scored set into a folder as PREFIX-….png: confusion of clips and of subjects, similarity to the maps.

    Args:
        folder: Where the PNG files go.
        prefix: Beginning of their names.
        classes: How each class is called.
        confusion_KK, subject_confusion_KK: Counts; rows are true classes, columns predicted ones.
        similarity_N, correct_N: Of the clips with a map and a label; without any, similarity has no plot.

    Returns:
        The PNG files.
    """
    plots = [
        draw_confusion(confusion_KK, folder / f"{prefix}-confusion.png", names=classes),
        draw_confusion(subject_confusion_KK, folder / f"{prefix}-confusion-subjects.png", names=classes, of="subjects"),
    ]
    if len(similarity_N):
        plots.append(draw_similarity(similarity_N, correct_N, folder / f"{prefix}-similarity.png"))
    return plots


def draw_confusion(
    confusion_KK: NDArray[np.int64], path: Path, *, names: Sequence[str] | None = None, of: str = "clips"
) -> Path:
    """Plot a confusion matrix: counts of true classes (rows) by predicted ones, coloured by their share of the row.

    Args:
        confusion_KK: Counts.
        path: The PNG file.
        names: Names of the classes; default: their numbers.
        of: What is counted.
    """
    K = len(confusion_KK)
    names = [str(label) for label in range(K)] if names is None else list(names)
    rows_K = confusion_KK.sum(1)
    shares_KK = confusion_KK / np.maximum(rows_K, 1)[:, None]
    side = max(3.4, 1.6 + 0.62 * K)
    figure, axes = make_panels(width=side + 1.2, height=side)
    image = axes.imshow(shares_KK, cmap=_blue_colours(), vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(confusion_KK):
        share = shares_KK[true, predicted]
        text = f"{count:,}\n{100 * share:.0f} %" if count else "0"
        axes.text(
            predicted, true, text, ha="center", va="center", fontsize=9, color="white" if share > 0.45 else "#333333"
        )
    exist_K = rows_K > 0
    balanced = f", balanced accuracy {100 * shares_KK.diagonal()[exist_K].mean():.0f} %" if exist_K.any() else ""
    style_axes(
        axes,
        title=f"{confusion_KK.sum():,} {of if confusion_KK.sum() != 1 else of[:-1]}{balanced}",
        xlabel="predicted class",
        ylabel="true class",
    )
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(range(K), names)
    axes.set_yticks(range(K), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=8, length=0)
    bar.set_label("share of the true class", color=GREY, fontsize=8)
    return save_figure(figure, path)


def draw_similarity(similarity_N: NDArray[np.floating], correct_N: NDArray[np.bool_], path: Path) -> Path:
    """Plot histograms of the similarity of at least one clip to its map, for correct and for incorrect clips."""
    figure, axes = make_panels(width=6.4, height=3.8)
    margin = max(0.02, 0.05 * float(np.ptp(similarity_N)))
    bins = np.linspace(similarity_N.min() - margin, similarity_N.max() + margin, 31)
    for kept_N, name, color in ((correct_N, "correct", PALETTE[0]), (~correct_N, "incorrect", PALETTE[1])):
        if not kept_N.any():
            continue
        own = similarity_N[kept_N]
        # shares of their own number, so that few incorrect clips stay visible
        weights = np.full(len(own), 1 / len(own))
        axes.hist(own, bins=bins, weights=weights, color=color, alpha=0.25)
        label = f"{name}: {len(own):,} clips, mean {own.mean():.2f}"
        axes.hist(own, bins=bins, weights=weights, color=color, histtype="step", linewidth=1.6, label=label)
        axes.axvline(own.mean(), ymax=1 / ROOM, color=color, linewidth=1.4, linestyle="--")
    style_axes(
        axes,
        title="Similarity of a clip to its own map",
        xlabel="cosine; dashed: mean",
        ylabel="share of its clips",
    )
    axes.set_ylim(0, ROOM * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return save_figure(figure, path)


def draw_folds(folds: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Plot the metrics of a cross-validation: a dot per fold, mean ± sd, and the majority class or chance.

    Args:
        folds: Metrics of each fold; those in `LABELS` that every fold has are drawn.
        path: The PNG file.
    """
    common = [name for name in LABELS if all(name in fold for fold in folds)]
    return draw_dots(
        [
            _dots(LABELS[name], [fold[name] for fold in folds], mark=mean(fold[find_baseline(name)] for fold in folds))
            for name in common
        ],
        path,
        titles=(f"Cross-validation, {len(folds)} folds", ""),
        xlabels=("share; mean ± sd over the folds; grey: majority class, chance", ""),
    )


def find_baseline(name: str) -> str:
    """Return the metric of the baseline that a metric in `LABELS` has to beat."""
    return f"{name[: len('retrieval_r1')]}_chance" if name.startswith("retrieval") else f"majority_{name}"


def draw_ablation(
    rows: Mapping[str, Sequence[float]],
    path: Path,
    *,
    figure: str = "macro_f1",
    against: Mapping[str, Paired] | None = None,
    mark: float | None = None,
) -> Path:
    """Plot one metric of several methods: a dot per run, mean ± sd, and beside it the paired difference to the first.

    Args:
        rows: Method → the metric of each of its runs; the others are compared with the first.
        path: The PNG file.
        figure: Name of the metric.
        against: Method → paired difference to the first.
        mark: The metric of the majority class or of chance.
    """
    differences, label = against or {}, LABELS.get(figure, figure)
    several = max(map(len, rows.values())) > 1
    grey = "" if mark is None else f"; grey: {'chance' if figure.startswith('retrieval') else 'majority class'}"
    return draw_dots(
        [_dots(name, values, against=differences.get(name), mark=mark) for name, values in rows.items()],
        path,
        titles=(label[0].upper() + label[1:], f"Difference to {next(iter(rows))}"),
        xlabels=(
            f"share{'; mean ± sd over the runs' if several else ''}{grey}",
            "95 % interval (paired bootstrap over subjects)",
        ),
    )


def _dots(label: str, values: Sequence[float], *, against: Paired | None = None, mark: float | None = None) -> Dots:
    centre = mean(values)
    spread = stdev(values) if len(values) > 1 else None
    return Dots(
        label=label,
        values=values,
        centre=centre,
        whisker=None if spread is None else (centre - spread, centre + spread),
        against=None if against is None else (against.difference, against.low, against.high),
        mark=mark,
    )


def _blue_colours() -> Any:
    """Return colours from near white to a dark shade of the palette's blue."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#f3f6fa", PALETTE[0], "#1f4476"])
