"""The command `videoclip`: its verbs parse, call one function and print."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Column, Table
from rich.text import Text

from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume, console
from videoclip.cli.data import data

if TYPE_CHECKING:
    from videoclip.scoring.evaluation import Evaluation

app = cli.Application(
    "videoclip",
    help="Clinical gait video, aligned with clinicians' attention maps and classified. "
    "Without a verb, `section.field=value …` trains.",
    default_verb="train",
)
app.add_typer(data, name="data")


class AblationTable(StrEnum):
    """Rows of `videoclip ablate`."""

    all = "all"
    B = "B"
    C = "C"
    controls = "controls"
    nomap = "nomap"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]


@app.command()
def train(overrides: Overrides = None, config: ConfigName = None, resume: Resume = None) -> None:
    """Train on some subjects and select on others; the rest is left for `videoclip test`.

    Examples:

        videoclip train --config walking data.root=walks/

        videoclip train data.root=gait/ model.map_guided=true model.map_guided_type=spatiotemporal loss.clip_weight=1.0

        videoclip data.root=gait/ model.map_guided=false loss.clip_weight=1.0 model.lambda_token=0

        videoclip train --resume runs/videoclip/first
    """
    from clip_common.runs.resolve import resolve
    from videoclip.config import Config

    settings = resolve(Config, package="videoclip", config=config, overrides=overrides or [], resume=resume)
    from videoclip.training.experiment import train as run_training  # slow, so import it after the options are checked

    trained = run_training(settings, resume=resume, reporter=cli.progress)
    if trained.validation is None:  # another rank reports
        return
    print_evaluation(
        trained.validation, title=f"{trained.run.name}: validation subjects", classes=settings.model.classes
    )
    cli.print_files("run", [trained.run.path])
    cli.print_files("plot", trained.plots)
    print_notes(trained.notes)
    console.print(f"\nScore it:  videoclip test {trained.run.path}", soft_wrap=True)


@app.command("test")
def score(run: RunFolder, overrides: Overrides = None) -> None:
    """Score subjects that the run never saw: classification, retrieval of maps, alignment against correctness.

    By default these are the test subjects of its own data set; data.root=… scores another set, which may not contain
    a training video.

    Examples:

        videoclip test runs/videoclip/first

        videoclip test runs/videoclip/first data.maps=doctor2

        videoclip test runs/videoclip/first data.control=absent

        videoclip test runs/videoclip/first data.root=elsewhere/ split=all
    """
    from videoclip.scoring.score import score as score_run

    tested = score_run(run, overrides=overrides or [], reporter=cli.progress)
    print_evaluation(
        tested.evaluation,
        title=f"{run.name}: {tested.name} of {tested.config.data.root}",
        classes=tested.config.model.classes,
    )
    cli.print_files("written to", tested.files)


@app.command()
def cv(overrides: Overrides = None, config: ConfigName = None, resume: Resume = None) -> None:
    """Cross-validate by subject: folds=… fits, each tested on subjects that it never saw; mean ± sd.

    Validation subjects are taken from the training folds. The run's splits.json records the subjects of each part.

    Examples:

        videoclip cv folds=5 --config walking data.root=walks/

        videoclip cv --resume runs/videoclip/cv-first
    """
    from videoclip.series.crossval import (
        compose_caption,
        cross_validate,
        describe_pooled,
        resolve_cross_validation,
        summarise_folds,
    )

    settings, options = resolve_cross_validation(config=config, overrides=overrides or [], resume=resume)
    validated = cross_validate(
        settings, folds=options.folds, resume=resume, reporter=cli.progress, announce=cli.announce
    )
    across = summarise_folds(validated.folds)
    rows = []
    for name, label, baseline in FIGURES:
        if name in across:
            values = [fold[name] for fold in validated.folds]
            cells = ["{:.3f} ± {:.3f}".format(*across[name]), f"{min(values):.3f} to {max(values):.3f}"]
            rows.append((label, *cells, f"{across[baseline][0]:.3f}" if baseline in across else ""))
    cli.print_table(["", "mean ± sd", "least to most", "baseline"], rows)
    console.print(compose_caption(settings, len(validated.folds)))
    console.print(f"{describe_pooled(validated.pooled)}\n")
    cli.print_files("run", [validated.run.path])
    cli.print_files("table", [validated.table])
    cli.print_files("plot", validated.plots)
    print_notes(validated.notes)


@app.command()
def ablate(
    overrides: Overrides = None,
    config: ConfigName = None,
    table: Annotated[
        AblationTable,
        typer.Option(help="Rows: B0 to B4, C1 to C3, wrong maps, no map in the test; or all of the first."),
    ] = (AblationTable.all),
) -> None:
    """Fill the experiment table: train each row with each of seeds=…, test it on unseen subjects, compare with row B0.

    Run the same command again to continue, or to add seeds or another table.

    Examples:

        videoclip ablate --table all --config walking data.root=walks/

        videoclip ablate --table controls seeds=[0,1,2,3,4] --config walking data.root=walks/ data.subjects=12
    """
    from videoclip.series.ablation import COLUMNS, FIGURE, compose_caption, format_difference, resolve_ablation
    from videoclip.series.ablation import ablate as run_ablation

    settings, options = resolve_ablation(config=config, overrides=overrides or [])
    ablation = run_ablation(
        settings, table=table.value, seeds=options.seeds, reporter=cli.progress, announce=cli.announce
    )
    whole = [Column(header, no_wrap=True) for header in ("", "macro F1", "minus B0 (95 % interval)")]
    compared = Table(whole[0], "method", *whole[1:], box=box.SIMPLE, padding=(0, 1, 0, 0))
    others = [name for name in COLUMNS if name != FIGURE]
    halves = others[:5], others[5:]  # one table would not fit a terminal
    means = [Table("means", *(COLUMNS[name] for name in half), box=box.SIMPLE, padding=(0, 1, 0, 0)) for half in halves]
    for result in ablation.results:
        compared.add_row(result.row.id, result.row.what, result.cell(FIGURE), format_difference(result.against))
        for half, table_of_means in zip(halves, means, strict=True):
            table_of_means.add_row(result.row.id, *(result.cell(name, spread=False) for name in half))
    compared.add_row("", "always the most frequent class", f"{ablation.majority[FIGURE]:.3f}", "")
    console.print(compared)
    for table_of_means in means:
        console.print(table_of_means)
    console.print(f"{compose_caption(ablation, settings)}\n")
    cli.print_files("table", [ablation.table])
    cli.print_files("plot", [ablation.plot])
    print_notes(ablation.notes)


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(metavar="RUN-or-MODEL", help="Run folder or saved model.")],
    videos: Annotated[list[Path], typer.Argument(help="Videos; a long one is cut into clips.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of predictions.jsonl and of the overlays.")] = Path("predictions"),
    start: Annotated[float, typer.Option(help="Start of the part to classify, in seconds.")] = 0.0,
    end: Annotated[float | None, typer.Option(help="End of that part, in seconds; default: the video's end.")] = None,
    map: Annotated[Path | None, typer.Option(help="Attention map (.npy, video, folder of pictures).")] = None,
    keypoints: Annotated[Path | None, typer.Option(help="COCO joints (.npy) from which --regions are drawn.")] = None,
    regions: Annotated[str, typer.Option(help="Attended regions, separated by commas: foot,shoulder.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to answer without a map that the model needs.")] = (
        False
    ),
) -> None:
    """Predict the classes of videos and draw where the model looked.

    Videos that cannot be read are skipped and listed; the exit code is 2 then. A model that was trained with maps alone
    says so if it gets none; one trained with model.guide=predicted needs none.

    Examples:

        videoclip predict runs/videoclip/first clip.mp4

        videoclip predict runs/videoclip/first clip.mp4 --keypoints clip.npy --regions foot

        videoclip predict runs/videoclip/first videos/*.mp4 --out answers/
    """
    from videoclip.classifier.predict import predict_videos

    answers, problems = predict_videos(
        source,
        videos,
        out=out,
        start_s=start,
        end_s=end,
        map=map,
        keypoints=keypoints,
        regions=[name.strip() for name in regions.split(",") if name.strip()],
        strict=strict,
        reporter=cli.progress,
    )
    if answers:
        classes = answers[0].prediction.classes
        rows = []
        for answer in answers:
            prediction = answer.prediction
            cells = (f"{value:.3f}" for value in prediction.probabilities)
            rows.append((str(answer.video), str(len(prediction.clips)), prediction.name, *cells))
        cli.print_table(["video", "clips", "class", *(f"p({label})" for label in classes)], rows)
        cli.print_files("picture", [answer.files[0] for answer in answers if answer.files])
        cli.print_files("written to", [out / "predictions.jsonl"])
    cli.check_all_read(problems, of=len(videos), what="videos")


@app.command()
def overlay(
    source: Annotated[Path, typer.Argument(metavar="RUN-or-DATA", help="Run folder or data set.")],
    overrides: Overrides = None,
    clip: Annotated[list[str] | None, typer.Option("--clip", help="Name of a clip; can be repeated.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of clips to draw if none is named.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
) -> None:
    """Draw the clinician's map over frames; for a run, on test clips, also where the model looked.

    Examples:

        videoclip overlay walks/ data.maps=doctor2

        videoclip overlay runs/videoclip/first --count 6
    """
    from videoclip.classifier.predict import overlay_clips

    files = overlay_clips(
        source, clips=clip or [], count=count, out=out, overrides=overrides or [], reporter=cli.progress
    )
    cli.print_files("picture", files)


cli.add_config_verb(app, package="videoclip", example="--config walking model.map_guided_type=channel > my.yaml")


def print_notes(notes: list[str]) -> None:
    """Print one line each."""
    for note in notes:
        console.print(note, soft_wrap=True)


def print_evaluation(evaluation: "Evaluation", *, title: str, classes: list[str]) -> None:
    """Print metrics with their intervals, and the majority baseline or chance."""
    table = Table("", "", "95 % interval", "baseline", title=Text(title), box=box.SIMPLE)
    for name, label, baseline in FIGURES:
        if name not in evaluation.metrics:
            continue
        low, high = evaluation.intervals.get(name, (None, None))
        between = "" if low is None else f"{low:.3f} to {high:.3f}"
        against = f"{evaluation.metrics[baseline]:.3f}" if baseline in evaluation.metrics else ""
        table.add_row(label, f"{evaluation.metrics[name]:.3f}", between, against)
    console.print(table)
    recalls = {name: evaluation.metrics.get(f"recall_{label}") for label, name in enumerate(classes)}
    shares = (f"{name} {'no clips' if value is None else f'{value:.3f}'}" for name, value in recalls.items())
    console.print(f"recall of each class: {', '.join(shares)}")
    console.print(
        f"{evaluation.clips:,} clips of {evaluation.subjects:,} subjects, {evaluation.mapped:,} with a map; intervals "
        "are a bootstrap over subjects; the baseline always predicts class "
        f"{classes[evaluation.majority]}, or is chance, or a Gaussian in the centre\n"
    )


FIGURES = (
    ("accuracy", "accuracy", "majority_accuracy"),
    ("balanced_accuracy", "balanced accuracy", "majority_balanced_accuracy"),
    ("macro_f1", "macro F1", "majority_macro_f1"),
    ("subject_accuracy", "accuracy, subjects", "majority_subject_accuracy"),
    ("subject_macro_f1", "macro F1, subjects", "majority_subject_macro_f1"),
    ("retrieval_r1_v2a", "R@1 video → map", "retrieval_r1_chance"),
    ("retrieval_r5_v2a", "R@5 video → map", "retrieval_r5_chance"),
    ("retrieval_r1_a2v", "R@1 map → video", "retrieval_r1_chance"),
    ("retrieval_r5_a2v", "R@5 map → video", "retrieval_r5_chance"),
    ("retrieval_r1_v2a_regions", "R@1 video → map, same regions", "retrieval_r1_chance_regions"),
    ("retrieval_r1_a2v_regions", "R@1 map → video, same regions", "retrieval_r1_chance_regions"),
    ("map_corr", "own map: correlation", "centre_corr"),
    ("map_iou", "own map: IoU above half", "centre_iou"),
    ("map_pointing", "own map: pointing game", "centre_pointing"),
    ("align_sim_correct", "similarity, correct clips", ""),
    ("align_sim_incorrect", "similarity, incorrect clips", ""),
    ("align_sim_gap", "their gap", ""),
    ("align_sim_corr", "correlation with correctness", ""),
)
"""Metric, its label, and the metric of its baseline."""
