"""`aaclip`: the verbs. It parses, calls and prints; what is done is elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column

from aaclip.cli.data import Format, Root, console, data
from aaclip.released.flags import PANEL, make_overrides, with_source_flags
from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume, console

if TYPE_CHECKING:
    from aaclip.detector.detector import Detector

app = cli.application("aaclip", help="Zero-shot anomaly detection: train once, then find defects in anything.")
app.add_typer(data, name="data")

Model = Annotated[str, typer.Argument(metavar="RUN-or-CLIP", help="Run folder, saved detector, or a CLIP's name.")]
Normal = Annotated[list[str], typer.Argument(help="Normal images: files, a folder or a glob.")]
Name = Annotated[str, typer.Option(help="What is in them: any noun.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=16, metavar="PIXELS", help="Side of overlapping tiles for large images; default: the whole image."
    ),
]
LISTED = 10
"""Pictures whose verdicts are printed."""


@app.command()
@with_source_flags
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Resume = None,
    stage: Annotated[
        Literal["text", "image", "both"], typer.Option(help="What to do now; --resume does the rest later.")
    ] = "both",
    save_path: Annotated[
        Path | None,
        typer.Option(
            "--save_path", help="the run's folder; named again, it goes on", rich_help_panel=PANEL, show_default=False
        ),
    ] = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Train the text adapters, then the image adapters, and leave a run folder with a detector in it.

    The released code's flags set the field that each names; section.field=value has the last word.

    Examples:

        aaclip train --config tiny data.root=parts/

        aaclip train data.root=visa/ name=visa-full

        aaclip train --config official data.root=mvtec/ data.mode=few_shot data.shot=32

        aaclip train --resume runs/aaclip/visa-full

        aaclip train --dataset mvtec/ --shot 32 --text_epoch 5 --image_epoch 20 --save_path ckpt/mvtec
    """
    from aaclip.training.experiment import resolve
    from aaclip.training.experiment import train as run_training

    given = [*make_overrides(flags), *(overrides or [])]
    settings = resolve(config=config, overrides=given, resume=resume, folder=save_path)
    trained = run_training(settings, resume=resume, folder=save_path, stage=stage, reporter=cli.progress)
    path = trained.run.path
    if trained.left:
        cli.print_files("run", [path])
        console.print(
            f"\nTrain the {' and the '.join(trained.left)} stage:  aaclip train --resume {path}", soft_wrap=True
        )
    elif trained.detector is not None:  # None: another rank reports
        console.print(f"learned from {trained.images:,} images of {len(trained.detector.classes)} classes")
        cli.print_files("run", [path])
        console.print(f"\nTest it:  aaclip test {path} other-set/", soft_wrap=True)


@app.command("test")
def run_test(
    source: Model,
    root: Root,
    format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of results; default: inside the run.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no score.")] = 8,
    memory: Annotated[
        int, typer.Option(min=0, metavar="K", help="Remember K normal images of each class, from the training split.")
    ] = 0,
) -> None:
    """Score every class of a labelled set in one pass: JSON, CSV and Markdown, with 95 % intervals.

    A CLIP's name in place of a run scores plain CLIP with the same prompts: what training must beat. Images that
    cannot be read are listed at the end; the others are scored, and the exit code is 2.

    Examples:

        aaclip test runs/aaclip/visa-full mvtec/

        aaclip test tiny parts/ --out results/plain

        aaclip test runs/aaclip/visa-full mvtec/ --memory 4 --out results/four-normal-images
    """
    from aaclip.data.selection import check_not_trained_on
    from aaclip.scoring.evaluation import evaluate, read_test_records, remember_training_split
    from aaclip.scoring.results import format_table, write_results

    records = read_test_records(root, format=format)
    check_not_trained_on(Path(source), [record.image for record in records])
    detector = open_detector(source)
    if memory:
        remember_training_split(detector, root, images=memory, format=format)
    with cli.progress(f"scoring {len(records):,} images") as progress:
        found = evaluate(detector, records, batch_size=batch_size, progress=progress)
    folder = (
        out or (Path(source) if Path(source).is_dir() else Path("results") / source) / f"test-{root.resolve().name}"
    )
    title = f"{Path(source).name} on {root.resolve().name}"
    note = f"{sum(found.images.values()):,} images, {detector.size} pixels."
    if memory:
        note += f" {memory} normal images of each class remembered."
    if found.failures:
        note += f" {len(found.failures):,} more could not be read."
    heading, *rows = format_table(found.classes)
    table = Table(*(Column(name, overflow="fold") for name in heading), title=title, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for file in write_results(folder, found.classes, found.intervals, title=title, note=note):
        console.print(f"written to {file}", soft_wrap=True)
    tell(found.failures, of=len(records))


@app.command()
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    images: Normal,
    name: Name,
    target_fpr: Annotated[float, typer.Option(help="Share of normal images that may be called anomalous.")] = 0.01,
    guarantee: Annotated[bool, typer.Option(help="Promise it for the next image (conformal).")] = False,
    tile: Tile = None,
) -> None:
    """Set the threshold of verdicts from normal images, and keep it beside the weights.

    Images that the run learned from are refused. Those that cannot be read are listed at the end; the threshold rests
    on the others, and the exit code is 2.

    Examples:

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut"

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut" --target-fpr 0.05 --guarantee
    """
    from aaclip.data.pictures import files_of
    from aaclip.detector.predict import calibrate_on

    files = files_of(images)
    with cli.progress("scoring normal images") as progress:
        found = calibrate_on(
            source, files, name=name, target_fpr=target_fpr, guarantee=guarantee, tile=tile, progress=progress
        )
    threshold = found.threshold
    console.print(
        f"threshold {threshold.value:.4f}: {threshold.method.replace('_', ' ')} of {threshold.images} normal images, "
        f"target {100 * target_fpr:g} % false alarms"
    )
    cli.check_all_read(found.failures, of=len(files), what="images")


@app.command()
def predict(
    source: Model,
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for overlays, masks and predictions.jsonl.")] = Path("predictions"),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the score, in place of the calibrated one.")
    ] = None,
    tile: Tile = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="A page that works offline.")] = None,
) -> None:
    """Look for defects: a verdict, a score, a heatmap, a mask, boxes and one JSON line for each image.

    Files that cannot be read are listed at the end; the others are looked at, and the exit code is 2.

    Examples:

        aaclip predict runs/aaclip/first photo.jpg --name "metal nut"

        aaclip predict runs/aaclip/first photos/ --name "metal nut" --html report.html

        aaclip predict runs/aaclip/first sheet-20-megapixels.jpg --name "steel sheet" --tile 1024
    """
    from aaclip.data.pictures import files_of
    from aaclip.detector.calibration import Threshold
    from aaclip.detector.predict import predict_files

    files = files_of(images, without=out)
    detector = open_detector(source)
    if threshold is not None:
        detector.threshold = Threshold(threshold, method="given", tile=tile)
    found = predict_files(
        detector, files, name=name, tile=tile, folder=out, page=html, model=Path(source).name, reporter=cli.progress
    )
    hottest = sorted(found.lines, key=lambda line: -line["score"])[:LISTED]
    cli.print_table(
        ["score", "verdict", "regions", Column("image", overflow="fold")],
        [(f"{ln['score']:.3f}", ln["verdict"] or "–", str(len(ln["boxes"])), ln["image"]) for ln in hottest],
    )
    if len(found.lines) > LISTED:
        console.print(f"and {len(found.lines) - LISTED:,} more")
    if detector.threshold is None:
        console.print("no verdicts yet: aaclip calibrate sets a threshold, --threshold gives one")
    cli.print_files("written to", [found.folder, *([found.page] if found.page else [])])
    cli.check_all_read(found.failures, of=len(files), what="images")


@app.command()
def remember(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    images: Normal,
    name: Name,
) -> None:
    """Let a detector remember a few normal images of a thing, without training; what they do not show adds to maps.

    In place of those remembered of it before. A calibrated threshold is forgotten: scores are others from here on.

    Example:

        aaclip remember runs/aaclip/first four-good-parts/ --name "metal nut"
    """
    from aaclip.data.pictures import files_of
    from aaclip.detector.predict import remember_files

    count = remember_files(source, files_of(images), name=name)
    console.print(f"{count} normal images of {name} remembered; set the threshold anew with aaclip calibrate")


@app.command("import")
def import_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Holds text_adapter.pth, and image_adapter.pth after stage 2.")],
    out: Annotated[Path, typer.Argument(help="Folder for the detector.")],
    overrides: Overrides = None,
    config: ConfigName = "official",
) -> None:
    """Turn checkpoints of the released AA-CLIP code into a detector; no pickle is executed.

    Example:

        aaclip import ckpt/mvtec_full detectors/mvtec
    """
    from aaclip.released.checkpoints import import_official
    from aaclip.training.experiment import resolve

    detector = import_official(folder, resolve(config=config, overrides=overrides or []))
    console.print(f"detector in {detector.save_pretrained(out)}", soft_wrap=True)


@app.command()
def info(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print what is frozen and what is trained, with the number of parameters.

    Example:

        aaclip info --config tiny
    """
    from aaclip.models import AnomalyModel
    from aaclip.models.backbone import load_backbone
    from aaclip.training.experiment import resolve

    settings = resolve(config=config, overrides=overrides or [])
    model = AnomalyModel(load_backbone(settings.backbone), settings)
    rows = [(name, f"{count:,}", state) for name, count, state in model.inventory()]
    cli.print_table(["module", "parameters", ""], rows, title=settings.backbone.name)
    console.print(f"levels {model.levels}, V-V attention in the last {model.surgery_blocks} blocks")


cli.add_prefetch_verb(app, package="aaclip", example="ViT-L-14-336 openai", name="ViT-L-14-336", pretrained="openai")
cli.add_config_verb(app, package="aaclip", example="--config official > official.yaml")


def open_detector(source: str) -> "Detector":
    """A run or a saved detector, or plain CLIP by its name."""
    from aaclip.detector.detector import Detector

    return Detector.from_pretrained(source) if Path(source).is_dir() else Detector.plain(source)


def main() -> None:
    """The console script."""
    cli.main(app)
