"""Score a run on a labelled set: numbers of each class, the files that hold them, and a row in the registry."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aaclip.config import Config
from aaclip.data import DataError, Record, read_dataset
from aaclip.data.records import group_by_class
from aaclip.data.selection import check_not_trained_on
from aaclip.detector.detector import Detector
from aaclip.detector.files import is_saved
from aaclip.detector.fitting import note_unfitted
from aaclip.models.backbone import read_backbone
from aaclip.models.names import find_domain
from aaclip.models.prompts import note_unnamed
from aaclip.scoring.evaluation import Evaluation, evaluate
from aaclip.scoring.metrics import average_classes
from clip_common.config import apply_overrides
from clip_common.errors import check_list, printable
from clip_common.reporting import Reporter, silent
from clip_common.runs import MetricsCsv, Run, write_atomically, write_json
from clip_common.runs.files import write_text
from clip_common.runs.folder import is_run
from clip_common.tables import markdown_table

LABELS = {
    "image/auroc": "image AUROC",
    "image/ap": "image AP",
    "image/f1_max": "image F1-max",
    "pixel/auroc": "pixel AUROC",
    "pixel/ap": "pixel AP",
    "pixel/f1_max": "pixel F1-max",
    "pixel/aupro": "AUPRO@0.3",
}
JUDGED = ("image/auroc", "pixel/auroc", "pixel/aupro")
"""Metrics that printed tables and plots show, and whose mean tells which of two detectors is better."""
MISSING = "n/a"
PLAIN = ("backbone.", "levels=", "preprocess.", "prompts.", "score.")
"""Starts of the overrides that a test of plain CLIP takes; of a saved detector, the last one."""

Values = Mapping[str, float | None]
Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Scored:
    """Result of `score`.

    Attributes:
        evaluation: The numbers, and the images that could not be read.
        title: Of the run on the set.
        images: Images of the set's test split, those that could not be read included.
        files: results.json, results.csv and results.md.
        notes: Lines about how the set was scored.
    """

    evaluation: Evaluation
    title: str
    images: int
    files: list[Path]
    notes: tuple[str, ...] = ()


def score(
    source: str | Path,
    root: Path,
    *,
    overrides: Sequence[str] = (),
    format: str = "auto",
    out: Path | None = None,
    batch_size: int = 8,
    memory: int = 0,
    reporter: Reporter = silent,
) -> Scored:
    """Score every class of a set's test split, and write the results.

    Args:
        source: A run, a saved detector, or the name of a CLIP, which is scored without training.
        root: The set's folder.
        overrides: `score.FIELD=value` each, over the detector's own configuration, for this test. Plain CLIP takes
            those of `backbone`, `levels`, `preprocess` and `prompts` too.
        format: `auto`, or one of `aaclip.data.FORMATS`.
        out: Folder of the results; default: inside the run, or results/ for a CLIP.
        batch_size: Images at a time; changes no score.
        memory: Remember this many normal images of each class first, from the set's training split.
        reporter: Shows progress.

    Raises:
        ValueError: Images that the run learned from are in the set, no image that can be read, too few normal images
            to remember, or an override of another section; nothing has been written then.
    """
    check_list(overrides, "overrides")
    records = read_test_records(root, format=format)
    check_not_trained_on(Path(source), [record.image for record in records])
    detector = open_for_test(source, overrides=overrides)
    overrides = [text for text in overrides if text.startswith("score.")]
    classes = sorted(group_by_class(records))
    detector.config = choose_score(detector.config, classes, overrides=overrides)
    if memory:
        remember_training_split(detector, root, images=memory, format=format)
    with reporter(f"scoring {len(records):,} images") as progress:
        evaluation = evaluate(detector, records, batch_size=batch_size, progress=progress)
    home = Path(source) if is_saved(source) else Path("results") / source
    home = home.with_suffix("") if home.is_file() else home  # beside the file of a loop
    title = f"{detector.name} on {root.resolve().name}"
    note = f"{sum(evaluation.images.values()):,} images, {detector.size} pixels."
    notes = note_unnamed(detector.config.prompts, detector.prompts, classes) + note_unfitted(source, detector.score)
    if detector.config.score.image == "official":
        domain = detector.config.score.domain
        note += f" Domain {domain}."
        notes.append(f"domain of the set: {domain}; score.domain=… sets another")
    if memory:
        note += f" {memory} normal images of each class remembered."
    if evaluation.failures:
        note += f" {len(evaluation.failures):,} more could not be read."
    files = write_results(
        out or home / f"test-{root.resolve().name}", evaluation.classes, evaluation.intervals, title=title, note=note
    )
    if is_run(Path(source)):
        run = Run.open(source)
        register(run, detector.config, {"split": "test", "set": root.resolve().name, **evaluation.mean})
    return Scored(evaluation, title, len(records), files, notes=tuple(notes))


def open_for_test(source: str | Path, *, overrides: Sequence[str]) -> Detector:
    """Open a saved detector, or plain CLIP with the settings of one test.

    Raises:
        ValueError: An override that this test does not depend on, or that is part of a run.
    """
    plain = not is_saved(source)
    known = PLAIN if plain else PLAIN[-1:]
    if other := [text for text in overrides if not text.startswith(known)]:
        reason = "because plain CLIP is not trained" if plain else "because the rest is part of the run"
        listed = ", ".join(name.rstrip(".=") for name in known)
        raise ValueError(f"{other[0]}: this test takes overrides of {listed} alone, {reason}")
    if not plain:
        return Detector.from_pretrained(source)
    config = apply_overrides(Config(backbone=read_backbone(str(source))), overrides)
    return Detector.plain(config.backbone, config=config)


def choose_score(config: Config, classes: Sequence[str], *, overrides: Sequence[str] = ()) -> Config:
    """Return a detector's configuration with the settings of one test.

    The released image scores depend on the domain of the tested set, not of the training set: it is told from the
    classes of the published sets. A set without any of them, and scores of other kinds, keep `score.domain`.

    Args:
        config: Of the detector.
        classes: Of the tested set.
        overrides: `score.FIELD=value` each; they win.

    Raises:
        ValueError: Classes of two domains.
    """
    config = apply_overrides(config, overrides)
    if config.score.image == "official" and not any(text.startswith("score.domain=") for text in overrides):
        domain = find_domain(classes) or config.score.domain
        config = replace(config, score=replace(config.score, domain=domain))
    return config


def register(run: Run, config: Config, row: Mapping[str, str | int | float | None]) -> None:
    """Append a row to the registry of the runs folder; a run that `--save_path` put elsewhere has none."""
    if run.path.resolve().parent == (Path(config.runs) / "aaclip").resolve():
        run.register({"model": config.backbone.name, "seed": config.trainer.seed} | dict(row))


def read_test_records(root: Path, *, format: str = "auto", classes: Sequence[str] | None = None) -> list[Record]:
    """Read the records of a set's test split."""
    return read_dataset(root, format=format, classes=classes).of(split="test")


def remember_training_split(detector: Detector, root: Path, *, images: int, format: str = "auto") -> None:
    """Let a detector remember the first normal images, by name, of each class of a set's training split.

    Raises:
        DataError: A class whose training split has fewer.
    """
    dataset = read_dataset(root, format=format)
    normal = group_by_class(record for record in dataset.of(split="train") if not record.anomalous)
    for name in sorted(group_by_class(dataset.of(split="test"))):
        own = sorted(normal.get(name, []), key=lambda record: str(record.image))
        if len(own) < images:
            raise DataError(
                f"--memory {images}: the training split of {root} has {len(own)} normal images of {name}: ask for fewer"
            )
        detector.remember([record.image for record in own[:images]], name=name)


def write_results(
    folder: Path, per_class: Mapping[str, Values], intervals: Mapping[str, Intervals], *, title: str, note: str
) -> list[Path]:
    """Write results.json, results.csv and results.md, each whole or not at all.

    Args:
        folder: Made if missing.
        per_class: Class → metric → value in [0, 1], or None if the class lacks what the metric needs.
        intervals: Class → metric → (low, high); classes and metrics may be absent.
        title: Heading of the Markdown.
        note: What was tested, in a line or more of Markdown.

    Returns:
        The three files.

    Raises:
        ValueError: No class.
    """
    if not per_class:
        raise ValueError(f"{folder}: there are no results to write; expected one class or more")
    per_class = {printable(name): values for name, values in per_class.items()}
    intervals = {printable(name): values for name, values in intervals.items()}
    files = [folder / f"results.{suffix}" for suffix in ("json", "csv", "md")]
    means = {name: mean._asdict() for name, mean in average_classes(per_class).items()}
    whole = {"title": title, "note": note, "classes": per_class, "mean": means, "intervals": intervals}
    write_json(files[0], whole)
    with write_atomically(files[1]) as temporary:
        MetricsCsv(temporary).extend({"class": name, **values} for name, values in per_class.items())
    write_text(files[2], _markdown(per_class, intervals, title=title, note=note))
    return files


def format_table(per_class: Mapping[str, Values]) -> list[list[str]]:
    """Return rows of text, the heading first and the mean last: percent with one decimal, "n/a" without a value.

    A mean over some of the classes says how many.
    """
    means = average_classes(per_class)
    rows = [["class", *(LABELS.get(name, name) for name in means)]]
    rows += [[name, *(format_percent(values.get(metric)) for metric in means)] for name, values in per_class.items()]
    partial = {name: f" ({mean.classes} of {len(per_class)})" for name, mean in means.items()}
    whole = {name for name, mean in means.items() if mean.classes in (0, len(per_class))}
    return [
        *rows,
        [
            "mean",
            *(format_percent(mean.value) + ("" if name in whole else partial[name]) for name, mean in means.items()),
        ],
    ]


def _markdown(per_class: Mapping[str, Values], intervals: Mapping[str, Intervals], *, title: str, note: str) -> str:
    heading, *classes, mean = format_table(per_class)
    rows = [heading, *([escape_markdown(name), *cells] for name, *cells in classes), [f"**{cell}**" for cell in mean]]
    parts = [
        f"# {escape_markdown(title)}",
        note.strip(),
        markdown_table(rows[0], rows[1:], align=True),
        "In percent. n/a: the class has no normal images, no anomalous images, or no masks.",
    ]
    if intervals:
        metrics = [name for name in average_classes(per_class) if any(name in values for values in intervals.values())]
        ranges = [
            [escape_markdown(name), *(_range(values.get(metric)) for metric in metrics)]
            for name, values in intervals.items()
        ]
        titles = ["class", *(LABELS.get(name, name) for name in metrics)]
        parts += [
            "## 95 % intervals",
            "Bootstrap over the images of a class.",
            markdown_table(titles, ranges, align=True),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_percent(value: float | None) -> str:
    """Return a value from 0 to 1 in percent with one decimal, "n/a" without one."""
    return MISSING if value is None else f"{100 * value:.1f}"


def _range(interval: tuple[float, float] | None) -> str:
    return MISSING if interval is None else "–".join(map(format_percent, interval))


def escape_markdown(name: str) -> str:
    """Escape a name for one line of Markdown. The _ of metal_nut needs no escape."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(name.splitlines()))
