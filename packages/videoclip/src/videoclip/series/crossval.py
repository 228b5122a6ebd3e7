"""`videoclip cv`: cross-validation by subject, in one run of several fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from clip_common.devices import check_one_device
from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.files import write_text
from clip_common.runs.resolve import resolve
from clip_common.runs.series import Announce, split_options
from clip_common.tables import markdown_table
from videoclip.config import Config, CrossValidationConfig
from videoclip.data import Split, missing_classes
from videoclip.data.clip_set import ClipSet
from videoclip.data.records import known_labels
from videoclip.report.plots import draw_folds
from videoclip.scoring.evaluation import Evaluation, evaluate
from videoclip.scoring.predictions import Predictions, pool_predictions
from videoclip.scoring.score import draw_evaluation, score_records
from videoclip.training.experiment import check_run, check_setup, check_sizes, fit_split, load_training_clips, open_run

SHOWN = (
    "accuracy", "balanced_accuracy", "macro_f1", "majority_accuracy", "retrieval_r1_v2a", "retrieval_r5_v2a",
    "retrieval_r1_a2v", "retrieval_r5_a2v", "align_sim_gap", "align_sim_corr",
)  # fmt: skip
"""Metrics in the table."""


@dataclass(frozen=True)
class CrossValidated:
    """Result of `cross_validate`.

    Attributes:
        run: The run folder, with the checkpoints of every fold.
        folds: Metrics of each fold's test subjects.
        pooled: Classification metrics over the test subjects of all folds, with intervals over subjects.
        table: The Markdown file.
        plots: PNG files.
        notes: What else to tell a user, one line each.
    """

    run: Run
    folds: list[dict[str, float]]
    pooled: Evaluation
    table: Path
    plots: list[Path]
    notes: list[str]


def resolve_cross_validation(
    *, config: str | None, overrides: Sequence[str], resume: Path | None
) -> tuple[Config, CrossValidationConfig]:
    """Return the configuration of the run, and the options of the verb (`folds=` among the overrides).

    Raises:
        ValueError: An unknown key or a wrong value, or overrides for a run that is resumed.
    """
    options, rest = split_options(CrossValidationConfig, overrides, own=("folds",))
    if options.folds is not None:
        rest.append(f"data.folds={options.folds}")
    settings = resolve(Config, package="videoclip", config=config, overrides=rest, resume=resume)
    return settings, options


def cross_validate(
    config: Config,
    *,
    folds: int | None = None,
    resume: Path | None = None,
    reporter: Reporter = silent,
    announce: Announce = lambda line: None,
) -> CrossValidated:
    """Train on all parts but one, select on subjects held out of those and test on that one, for each part in turn.

    A killed run resumes inside the fold that was being trained and ends with the same metrics.

    Args:
        config: See `videoclip.config`; `data.fold` is ignored.
        folds: Replaces `data.folds`.
        resume: Run to continue, whose configuration `config` is.
        reporter: Shows progress outside training.
        announce: Called with one line as each fold begins.

    Raises:
        ValueError: One line for several devices, and for anything in any fold that cannot be used; nothing has been
            trained then.
    """
    if folds is not None:
        config = replace(config, data=replace(config.data, folds=folds))
    check_one_device(config.trainer, verb="cv")
    check_run(config, resume, verb="cv")
    check_setup(config)
    clips = load_training_clips(config, check=resume is None, reporter=reporter)
    splits = clips.splits(config.data)
    if folds is not None and len(splits) != folds:
        raise DataError(f"folds={folds}: the set's own fold column holds {len(splits)} parts: leave folds out")
    for split in splits:
        check_sizes(split, config)
    run = open_run(config, verb="cv", label=f"cv-{config.method}", resume=resume)
    with run.locked():
        scores = []
        for fold, split in enumerate(splits):
            announce(f"fold {fold} ({fold + 1} of {len(splits)}): {describe_split(split)}")
            scores.append(score_fold(fold, split, clips, config, run, resume=resume is not None, reporter=reporter))
        metrics = [evaluation.metrics for _, evaluation in scores]
        predictions = pool_predictions([part for part, _ in scores], clips.records)
        classes = config.model.model_class_num
        pooled = evaluate(predictions, train_labels=known_labels(clips.records), classes=classes)
        validated = CrossValidated(
            run=run,
            folds=metrics,
            pooled=pooled,
            table=write_text(run.path / "cross-validation.md", render_markdown(config, splits, metrics, pooled)),
            plots=[
                draw_folds(metrics, run.folder("plots") / "folds.png"),
                *draw_evaluation(
                    pooled, predictions, run.folder("plots"), prefix="pooled", classes=config.model.classes
                ),
            ],
            notes=clips.describe_cache(),
        )
        run.write_result({"folds": metrics, "pooled": pooled.as_dict(), "skipped_clips": len(clips.skipped)})
        means = {name: average for name, (average, _) in summarise_folds(metrics).items()}
        run.register_once({"method": config.method, "seed": config.trainer.seed, "split": "cv"} | means)
    return validated


def score_fold(
    fold: int, split: Split, clips: ClipSet, config: Config, run: Run, *, resume: bool, reporter: Reporter
) -> tuple[Predictions, Evaluation]:
    """Train one fold and test it, or load its predictions."""
    phase = f"fold{fold}"
    train_labels = known_labels(split.train)
    file = run.path / f"predictions-{phase}.npz"
    model, _ = fit_split(split, clips, config, run, phase=phase, resume=resume)
    if file.exists():
        predictions = Predictions.load(file)
        return predictions, evaluate(predictions, train_labels=train_labels, classes=config.model.model_class_num)
    predictions, evaluation = score_records(
        model, split.test, clips, config, train_labels=train_labels, reporter=reporter
    )
    predictions.save(file)
    return predictions, evaluation


def describe_split(split: Split) -> str:
    """Return the numbers of training, validation and test subjects as text."""
    parts = ((part, len({record.subject_id for record in records})) for part, records in split.parts().items())
    counts = ", ".join(f"{subjects} {part}" for part, subjects in parts)
    missing = "; ".join(
        f"{part} has no subject of class {', '.join(map(str, classes))}"
        for part, classes in missing_classes(split).items()
    )
    return f"subjects {counts}" + (f" ({missing})" if missing else "")


def summarise_folds(folds: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation over the folds of each metric that every fold has."""
    common = [name for name in folds[0] if all(name in fold for fold in folds)]
    return {name: (mean(fold[name] for fold in folds), stdev(fold[name] for fold in folds)) for name in common}


def render_markdown(
    config: Config, splits: Sequence[Split], folds: Sequence[Mapping[str, float]], pooled: Evaluation
) -> str:
    """Return the table as Markdown: a row per fold, mean ± sd, and the metrics of all test subjects together."""
    header = ["fold", "test subjects", "test clips", *SHOWN]
    rows = []
    for fold, (split, metrics) in enumerate(zip(splits, folds, strict=True)):
        counts = [str(len({record.subject_id for record in split.test})), str(len(split.test))]
        rows.append([str(fold), *counts, *(f"{metrics[name]:.3f}" if name in metrics else "" for name in SHOWN)])
    shared = {name: f"{average:.3f} ± {sd:.3f}" for name, (average, sd) in summarise_folds(folds).items()}
    rows.append(["mean ± sd", "", "", *(shared.get(name, "") for name in SHOWN)])
    return f"{compose_caption(config, len(folds))}\n\n{markdown_table(header, rows)}\n\n{describe_pooled(pooled)}\n"


def compose_caption(config: Config, folds: int) -> str:
    """Return what was trained, selected and tested, in a few sentences."""
    return (
        f"{config.method}: {folds} folds by subject, seed {config.trainer.seed}. Weights were selected on subjects "
        "held out of the training folds. No subject and no video of the same content was in two parts of a fold "
        "(splits.json)."
    )


def describe_pooled(pooled: Evaluation) -> str:
    """Return the metrics of all test subjects together, as a sentence."""
    intervals = "; ".join(
        f"{name} {pooled.metrics[name]:.3f} ({pooled.intervals[name][0]:.3f} to {pooled.intervals[name][1]:.3f})"
        for name in ("accuracy", "macro_f1", "subject_accuracy")
    )
    return (
        f"All {pooled.subjects} subjects together, each tested by a model that never saw them, with 95 % intervals "
        f"over subjects: {intervals}."
    )
