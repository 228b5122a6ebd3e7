"""Compare detectors on one labelled set: metrics of each, and paired differences from the first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aaclip.data import Record
from aaclip.data.records import group_by_class
from aaclip.data.selection import HELD_OUT_LIST, check_not_trained_on, load_list
from aaclip.detector.detector import Detector
from aaclip.detector.files import list_loops, read_detector
from aaclip.detector.fitting import note_unfitted
from aaclip.report.plots import draw_comparison
from aaclip.scoring.bootstrap import Differences, compare_scores, interval_of_mean
from aaclip.scoring.evaluation import Evaluation, evaluate
from aaclip.scoring.score import (
    JUDGED,
    LABELS,
    choose_score,
    escape_markdown,
    format_percent,
    format_table,
    read_test_records,
)
from aaclip.scoring.stored import hash_scoring, load_scores, save_scores
from clip_common.errors import printable
from clip_common.metrics import Paired
from clip_common.plots import Dots
from clip_common.reporting import Reporter, silent
from clip_common.runs import MetricsCsv, Run, write_atomically, write_json
from clip_common.runs.files import write_text
from clip_common.runs.folder import is_run
from clip_common.tables import markdown_table

BATCH = 8
"""Images at a time. It changes no score."""


@dataclass(frozen=True)
class Compared:
    """One detector of a comparison.

    Attributes:
        label: Name of the run or of the CLIP.
        evaluation: Its metrics.
        means: 95 % interval of the mean over classes of each metric.
        against: Differences from the first detector; None for the first one itself.
        losses: Of a loop's training, by name; empty for other detectors.
    """

    label: str
    evaluation: Evaluation
    means: dict[str, tuple[float, float]]
    against: Differences | None
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        title: What was compared.
        rows: One for each detector, in the given order.
        images: Images of the set's test split, those that could not be read included.
        failures: Image that was not scored → what is wrong with it or with its mask.
        files: comparison.json, comparison.csv and comparison.md.
        plots: One PNG for each of `JUDGED` that exists.
        notes: Lines about how the detectors scored.
    """

    title: str
    rows: list[Compared]
    images: int
    failures: dict[str, str]
    files: list[Path]
    plots: list[Path]
    notes: tuple[str, ...] = ()


def compare(
    sources: Sequence[str | Path],
    root: Path,
    *,
    format: str = "auto",
    out: Path | None = None,
    samples: int = 1000,
    reporter: Reporter = silent,
) -> Comparison:
    """Score detectors on the test split of one set, and compare each with the first.

    Each detector sees each image once. Its scores are kept in the folder of the results; a later comparison there uses
    them again if everything that they depend on is the same (`hash_scoring`).

    Args:
        sources: Runs, saved detectors, or names of CLIPs, which are scored without training; at least two.
        root: The set's folder.
        format: `auto`, or one of `aaclip.data.FORMATS`.
        out: Folder of the results; default: results/compare-SET.
        samples: Resamples of the intervals.
        reporter: Shows progress.

    Raises:
        ValueError: Fewer than two detectors or one given twice, images that one of them learned from, or no image that
            can be read; no results have been written then.
    """
    check_sources(sources)
    records = read_test_records(root, format=format)
    for source in sources:
        check_not_trained_on(Path(source), [record.image for record in records])
    name = root.resolve().name
    folder = out or Path("results") / f"compare-{name}"
    labels = label_sources(sources)
    title = f"{', '.join(labels)} on {name}"
    return compare_on(sources, labels, records, folder, title=title, samples=samples, reporter=reporter)


def compare_loops(
    run: str | Path,
    root: Path | None = None,
    *,
    format: str = "auto",
    out: Path | None = None,
    samples: int = 1000,
    reporter: Reporter = silent,
) -> Comparison:
    """Score every loop of a feedback run, and compare each with the first.

    Args:
        run: A run of `aaclip feedback`, finished or not.
        root: Folder of a labelled set, whose test split is scored; None: the images that the run held out.
        format: `auto`, or one of `aaclip.data.FORMATS`.
        out: Folder of the results; default: inside the run.
        samples: Resamples of the intervals.
        reporter: Shows progress.

    Raises:
        ValueError: No run of `aaclip feedback`, fewer than two finished loops, images of the set that the run learned
            from, or held-out images that have changed.
    """
    run = Path(run)
    if not is_run(run) or Run.open(run).verb != "feedback":
        raise ValueError(f"{run} is no run of `aaclip feedback`: name a second run or a CLIP to compare it with")
    loops = list_loops(run)
    if len(loops) < 2:
        raise ValueError(
            f"{run} has {len(loops)} finished loop(s), expected two or more: resume it with --resume {run}"
        )
    if root is None:
        stored = read_detector(loops[1])
        records = load_list(run / HELD_OUT_LIST, root=Path(str(stored.config.data.root)))
        if not records:
            raise ValueError(f"{run} held out no images: name a labelled set to compare its loops on")
    else:
        records = read_test_records(root, format=format)
        check_not_trained_on(run, [record.image for record in records])
    name = "held-out" if root is None else root.resolve().name
    labels = [f"loop {loop}" for loop in loops]
    folder = out or run / f"compare-{name}"
    ledger = Run.open(run).ledger
    figures = {label: ledger.payload(f"loop{loop}-score") for label, loop in zip(labels, loops, strict=True)}
    losses = {
        label: {f"{stage} loss": of[f"{stage}/loss"] for stage in ("text", "image")} for label, of in figures.items()
    }
    return compare_on(
        list(loops.values()),
        labels,
        records,
        folder,
        title=f"{run.name}, loop by loop, on {name}",
        samples=samples,
        reporter=reporter,
        losses=losses,
    )


def compare_on(
    sources: Sequence[str | Path],
    labels: Sequence[str],
    records: Sequence[Record],
    folder: Path,
    *,
    title: str,
    samples: int,
    reporter: Reporter,
    losses: Mapping[str, Mapping[str, float]] | None = None,
) -> Comparison:
    """Score detectors on the same images, compare each with the first, and write the results.

    Args:
        sources: Runs, saved detectors, files of loops, or names of CLIPs.
        labels: Their names in the results.
        records: The images.
        folder: Of the results.
        title: Of the results.
        samples: Resamples of the intervals.
        reporter: Shows progress.
        losses: By label, the training losses of a loop by name; None: no column for them.
    """
    keys = [hash_scoring(source, records) for source in sources]  # before any is scored: each must be a detector
    found = {
        label: score_source(source, records, file=folder / "scores" / f"{key}.npz", label=label, reporter=reporter)
        for label, source, key in zip(labels, sources, keys, strict=True)
    }
    rows = compare_evaluations(found, samples=samples)
    if losses is not None:
        rows = [replace(row, losses=losses[row.label]) for row in rows]
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    notes = [line for place in folders for line in note_unfitted(place, read_detector(place).score)]
    return replace(write_comparison(rows, folder, title=title, images=len(records)), notes=tuple(notes))


def check_sources(sources: Sequence[str | Path]) -> None:
    """Raise ValueError unless there are two detectors or more, each given once."""
    if len(sources) < 2:
        raise ValueError(f"compare: got {len(sources)} detector(s), expected two or more: name more runs or a CLIP")
    places = Counter(str(Path(source).resolve()) if Path(source).is_dir() else str(source) for source in sources)
    twice = [place for place, count in places.items() if count > 1]
    if twice:
        raise ValueError(f"compare: {twice[0]} is given twice: name each detector once")


def label_sources(sources: Sequence[str | Path]) -> list[str]:
    """Return the name of each run or CLIP; the whole path where two names are equal."""
    names = [Path(source).name for source in sources]
    count = Counter(names)
    return [printable(name if count[name] == 1 else str(source)) for name, source in zip(names, sources, strict=True)]


def score_source(
    source: str | Path, records: Sequence[Record], *, file: Path, label: str, reporter: Reporter
) -> Evaluation:
    """Score a detector, or read the scores that `file` keeps."""
    if not file.exists():
        detector = Detector.open(source)
        detector.config = choose_score(detector.config, sorted(group_by_class(records)))
        with reporter(f"{label}: scoring {len(records):,} images") as progress:
            evaluation = evaluate(detector, records, batch_size=BATCH, progress=progress)
        save_scores(file, evaluation)
    return load_scores(file)


def compare_evaluations(found: Mapping[str, Evaluation], *, samples: int = 1000, seed: int = 0) -> list[Compared]:
    """Compare each evaluation with the first, over resamples of the images that all of them share.

    Args:
        found: By label.
        samples: Number of resamples.
        seed: Of the draws.

    Raises:
        ValueError: They scored different images.
    """
    first = next(iter(found.values()))
    return [
        Compared(
            label=label,
            evaluation=one,
            means=interval_of_mean(one.scores, samples=samples, seed=seed),
            against=None if one is first else compare_scores(one.scores, first.scores, samples=samples, seed=seed),
        )
        for label, one in found.items()
    ]


def write_comparison(rows: Sequence[Compared], folder: Path, *, title: str, images: int) -> Comparison:
    """Write comparison.json, comparison.csv, comparison.md and the plots, each whole or not at all."""
    files = [folder / f"comparison.{suffix}" for suffix in ("json", "csv", "md")]
    write_json(files[0], {"title": title, "runs": {row.label: _to_json(row) for row in rows}})
    with write_atomically(files[1]) as temporary:
        MetricsCsv(temporary).extend(line for row in rows for line in _to_lines(row))
    write_text(files[2], to_markdown(rows, title=title))
    plots = []
    for metric in JUDGED:
        if rows[0].evaluation.mean[metric] is not None:
            file = folder / f"comparison-{metric.replace('/', '-')}.png"
            plots.append(draw_comparison([to_dots(row, metric) for row in rows], file, metric=LABELS[metric]))
    return Comparison(title, list(rows), images, dict(rows[0].evaluation.failures), files, plots)


def format_means(rows: Sequence[Compared], *, metrics: Sequence[str] = JUDGED) -> list[list[str]]:
    """Return the means over classes as rows of text, the heading first: a row for each detector, metrics in percent."""
    heading = ["run", *rows[0].losses, *(LABELS[metric] for metric in metrics)]
    losses = [[f"{loss:.4f}" for loss in row.losses.values()] for row in rows]
    means = [_cells(row.evaluation.mean, row, None, metrics) for row in rows]
    return [heading, *([row.label, *own, *of] for row, own, of in zip(rows, losses, means, strict=True))]


def format_classes(row: Compared, *, metrics: Sequence[str] = JUDGED) -> list[list[str]]:
    """Return one detector as rows of text, the heading first and the mean last: one row for each class, in percent."""
    heading = ["class", *(LABELS[metric] for metric in metrics)]
    classes = [[name, *_cells(values, row, name, metrics)] for name, values in row.evaluation.classes.items()]
    return [heading, *classes, ["mean", *_cells(row.evaluation.mean, row, None, metrics)]]


def format_difference(paired: Paired) -> str:
    """Return a difference of two shares with its 95 % interval, in points of a percent."""
    return f"{100 * paired.difference:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})"


def to_markdown(rows: Sequence[Compared], *, title: str) -> str:
    """Return the comparison as Markdown: means, then each detector class by class, with all metrics."""
    first = rows[0]
    metrics = list(LABELS)
    failures = len(first.evaluation.failures)
    note = f"{sum(first.evaluation.images.values()):,} images. In percent; differences from {first.label} in points."
    if failures:
        note += f" {failures:,} more could not be read."
    note += " In brackets 95 % intervals of the differences: a paired bootstrap over images, the same ones for both."
    parts = [f"# {escape_markdown(title)}", escape_markdown(note), _markdown(format_means(rows, metrics=metrics))]
    for row in rows:
        table = format_table(row.evaluation.classes) if row.against is None else format_classes(row, metrics=metrics)
        parts += [f"## {escape_markdown(row.label)}", _markdown(table)]
    return "\n\n".join(parts) + "\n"


def to_dots(row: Compared, metric: str) -> Dots:
    """Return a detector as the plot of a metric shows it: each class, the mean with its interval, the difference."""
    mean = row.evaluation.mean[metric]
    assert mean is not None
    values = [value for values in row.evaluation.classes.values() if (value := values[metric]) is not None]
    against = None if row.against is None else row.against.mean[metric]
    return Dots(
        label=row.label,
        values=values,
        centre=mean,
        whisker=row.means[metric],
        against=None if against is None else (against.difference, against.low, against.high),
    )


def _cells(values: Mapping[str, float | None], row: Compared, name: str | None, metrics: Sequence[str]) -> list[str]:
    """Return cells of a class, or of the mean if `name` is None: the value, and its difference from the first run."""
    differences: Mapping[str, Paired] = {}
    if row.against is not None:
        differences = row.against.mean if name is None else row.against.classes[name]
    return [
        format_percent(values[metric])
        + (f"  {format_difference(differences[metric])}" if metric in differences else "")
        for metric in metrics
    ]


def _markdown(table: Sequence[Sequence[str]]) -> str:
    heading, *rows = table
    return markdown_table(heading, [[escape_markdown(row[0]), *row[1:]] for row in rows], align=True)


def _to_json(row: Compared) -> dict[str, Any]:
    against = None
    if row.against is not None:
        against = {
            "mean": {metric: vars(paired) for metric, paired in row.against.mean.items()},
            "classes": {
                printable(name): {metric: vars(paired) for metric, paired in of.items()}
                for name, of in row.against.classes.items()
            },
        }
    return {
        "classes": {printable(name): values for name, values in row.evaluation.classes.items()},
        "mean": row.evaluation.mean,
        "losses": dict(row.losses),
        "mean_intervals": row.means,
        "against_first": against,
    }


def _to_lines(row: Compared) -> list[dict[str, Any]]:
    against = row.against
    parts: list[tuple[str, Mapping[str, float | None], Mapping[str, Paired]]] = [
        (printable(name), values, {} if against is None else against.classes[name])
        for name, values in row.evaluation.classes.items()
    ]
    parts.append(("mean", row.evaluation.mean, {} if against is None else against.mean))
    lines = []
    for name, values, differences in parts:
        line: dict[str, Any] = {"run": row.label, "class": name, **values}
        for metric, paired in differences.items():
            line |= {f"{metric} {what}": getattr(paired, what) for what in ("difference", "low", "high")}
        lines.append(line)
    return lines
