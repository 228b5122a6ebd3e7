"""`aaclip`: the verbs. It parses, calls and prints; what is done is elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from clip_common import cli
from clip_common.cli import ConfigName, Overrides

if TYPE_CHECKING:
    from aaclip.detector import Detector

app = cli.application("aaclip", help="Zero-shot anomaly detection: train once, then find defects in anything.")
data = cli.application("data", help="Look at a set of labelled images, or make one.")
app.add_typer(data, name="data")
console = Console(markup=False, emoji=False, highlight=False)  # names of files are no markup

Model = Annotated[str, typer.Argument(metavar="RUN-or-CLIP", help="Run folder, saved detector, or a CLIP's name.")]
Root = Annotated[Path, typer.Argument(help="Folder of labelled images.", show_default=False)]
Format = Annotated[str, typer.Option(help="Format of the folder; auto looks for the known files.")]
LISTED = 10
"""Pictures whose verdicts are printed."""


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run folder.")] = None,
) -> None:
    """Train the text adapters, then the image adapters, and leave a run folder with a detector in it.

    Examples:

        aaclip train --config tiny data.root=parts/

        aaclip train data.root=visa/ name=visa-full

        aaclip train --config official data.root=mvtec/ data.mode=few_shot data.shot=32

        aaclip train --resume runs/aaclip/visa-full
    """
    from aaclip.experiment import resolve
    from aaclip.experiment import train as run_training

    settings = resolve(config=config, overrides=overrides or [], resume=resume)
    trained = run_training(settings, resume=resume, reporter=cli.progress)
    if trained.detector is None:  # another rank reports
        return
    console.print(f"learned from {trained.images:,} images of {len(trained.detector.classes)} classes")
    console.print(f"run    {trained.run.path}", soft_wrap=True)
    console.print(f"\nTest it:  aaclip test {trained.run.path} other-set/", soft_wrap=True)


@app.command("test")
def run_test(
    source: Model,
    root: Root,
    format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of results; default: inside the run.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no score.")] = 8,
) -> None:
    """Score every class of a labelled set in one pass: JSON, CSV and Markdown, with 95 % intervals.

    A CLIP's name in place of a run scores plain CLIP with the same prompts: what training must beat.

    Examples:

        aaclip test runs/aaclip/visa-full mvtec/

        aaclip test tiny parts/ --out results/plain
    """
    from aaclip.evaluation import evaluate, records_to_test, refuse_training_images
    from aaclip.results import as_table, write_results

    records = records_to_test(root, format=format)
    refuse_training_images(Path(source), records)
    detector = open_detector(source)
    with cli.progress(f"scoring {len(records):,} images") as progress:
        found = evaluate(detector, records, batch_size=batch_size, progress=progress)
    folder = (
        out or (Path(source) if Path(source).is_dir() else Path("results") / source) / f"test-{root.resolve().name}"
    )
    title, note = f"{Path(source).name} on {root.resolve().name}", f"{len(records):,} images, {detector.size} pixels."
    heading, *rows = as_table(found.classes)
    table = Table(*(Column(name, overflow="fold") for name in heading), title=title, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for file in write_results(folder, found.classes, found.intervals, title=title, note=note):
        console.print(f"written to {file}", soft_wrap=True)


@app.command()
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    images: Annotated[list[str], typer.Argument(help="Normal images: files, a folder or a glob.")],
    name: Annotated[str, typer.Option(help="What is in them: any noun.")],
    target_fpr: Annotated[float, typer.Option(help="Share of normal images that may be called anomalous.")] = 0.01,
    guarantee: Annotated[bool, typer.Option(help="Promise it for the next image (conformal).")] = False,
) -> None:
    """Set the threshold of verdicts from normal images, and keep it beside the weights.

    Examples:

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut"

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut" --target-fpr 0.05 --guarantee
    """
    from aaclip.predict import calibrate_on, files_of

    files = files_of(images)
    with cli.progress("scoring normal images") as progress:
        threshold = calibrate_on(
            source, files, name=name, target_fpr=target_fpr, guarantee=guarantee, progress=progress
        )
    console.print(
        f"threshold {threshold.value:.4f}: {threshold.method.replace('_', ' ')} of {threshold.images} normal images, "
        f"target {100 * target_fpr:g} % false alarms"
    )


@app.command()
def predict(
    source: Model,
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    name: Annotated[str, typer.Option(help="What is in them: any noun.")],
    out: Annotated[Path, typer.Option(help="Folder for overlays, masks and predictions.jsonl.")] = Path("predictions"),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the score, in place of the calibrated one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="A page that works offline.")] = None,
) -> None:
    """Look for defects: a verdict, a score, a heatmap, a mask, boxes and one JSON line for each image.

    Files that cannot be read are listed at the end; the others are looked at, and the exit code is 2.

    Examples:

        aaclip predict runs/aaclip/first photo.jpg --name "metal nut"

        aaclip predict runs/aaclip/first photos/ --name "metal nut" --html report.html
    """
    from aaclip.calibration import Threshold
    from aaclip.predict import files_of, predict_files

    files = files_of(images, without=out)
    detector = open_detector(source)
    if threshold is not None:
        detector.threshold = Threshold(threshold, method="given")
    found = predict_files(
        detector, files, name=name, folder=out, page=html, model=Path(source).name, reporter=cli.progress
    )
    table = Table("score", "verdict", "regions", Column("image", overflow="fold"), box=box.SIMPLE)
    for line in sorted(found.lines, key=lambda line: -line["score"])[:LISTED]:
        table.add_row(f"{line['score']:.3f}", line["verdict"] or "–", str(len(line["boxes"])), Text(line["image"]))
    console.print(table)
    if len(found.lines) > LISTED:
        console.print(f"and {len(found.lines) - LISTED:,} more")
    if detector.threshold is None:
        console.print("no verdicts yet: aaclip calibrate sets a threshold, --threshold gives one")
    for written in [found.folder, *([found.page] if found.page else [])]:
        console.print(f"written to {written}", soft_wrap=True)
    if found.failures:
        for problem in found.failures.values():
            console.print(problem, soft_wrap=True)
        raise ValueError(f"{len(found.failures)} of {len(files)} images could not be read, listed above")


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
    from aaclip.experiment import resolve
    from aaclip.official import import_official

    detector = import_official(folder, resolve(config=config, overrides=overrides or []))
    console.print(f"detector in {detector.save_pretrained(out)}", soft_wrap=True)


@app.command()
def info(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print what is frozen and what is trained, with the number of parameters.

    Example:

        aaclip info --config tiny
    """
    from aaclip.detector import load_backbone
    from aaclip.experiment import resolve
    from aaclip.models import AnomalyModel

    settings = resolve(config=config, overrides=overrides or [])
    model = AnomalyModel(load_backbone(settings.backbone), settings)
    table = Table("module", "parameters", "", title=settings.backbone.name, box=box.SIMPLE)
    for name, count, state in model.inventory():
        table.add_row(name, f"{count:,}", state)
    console.print(table)
    console.print(f"levels {model.levels}, V-V attention in the last {model.surgery_blocks} blocks")


@app.command()
def prefetch(
    name: Annotated[str, typer.Argument(help="open_clip architecture, or hf-hub:org/name.")] = "ViT-L-14-336",
    pretrained: Annotated[str | None, typer.Argument(help="Tag of the weights.")] = "openai",
) -> None:
    """Download weights once, verify them, and say where they lie; afterwards no network is needed.

    Example:

        aaclip prefetch ViT-L-14-336 openai
    """
    from clip_common.backbones import prefetch as fetch

    console.print(str(fetch(name, pretrained=pretrained)), soft_wrap=True)


@app.command("config")
def show_config(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print the full configuration as YAML: every knob with its value.

    Example:

        aaclip config --config official > official.yaml
    """
    from aaclip.config import Config
    from clip_common.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(Config, config=config, overrides=overrides or [], package="aaclip")))


@data.command()
def check(root: Root, format: Format = "auto") -> None:
    """Read every image and mask; list what is wrong and exit with 2 if anything is.

    Example:

        aaclip data check mvtec/
    """
    from aaclip.data import check as check_data
    from aaclip.data import read_dataset

    with cli.progress("reading images and masks") as progress:
        report = check_data(read_dataset(root, format=format), progress=progress)
    table = Table("class", "split", "normal", "anomalous", "masks", title=f"{root}: {report.format}", box=box.SIMPLE)
    for row in report.counts:
        table.add_row(Text(row.class_name), row.split, f"{row.normal:,}", f"{row.anomalous:,}", f"{row.masked:,}")
    console.print(table)
    for problem in report.problems:
        console.print(Text(problem), soft_wrap=True)
    if not report.ok:
        raise ValueError(f"{root}: {len(report.problems)} problem(s), listed above")
    console.print("every image and every mask can be read")


@data.command()
def synthetic(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", show_default=False)],
    kinds: Annotated[str | None, typer.Option(help="Kinds of things, with commas; default: those tiny knows.")] = None,
    unseen: Annotated[bool, typer.Option(help="Kinds whose defects the tiny CLIP has not seen.")] = False,
    good: Annotated[int, typer.Option(min=0, help="Flawless test images a kind.")] = 30,
    damaged: Annotated[int, typer.Option(min=0, help="Images a kind and defect.")] = 10,
    train: Annotated[int, typer.Option(min=0, help="Flawless training images a kind.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 112,
    seed: Annotated[int, typer.Option(help="Another seed is another set; 0 is what tiny learned from.")] = 1,
) -> None:
    """Draw parts with and without defects, with masks, as an MVTec tree.

    Examples:

        aaclip data synthetic parts/

        aaclip data synthetic unseen/ --unseen --seed 2
    """
    from clip_common.synthetic import write_mvtec
    from clip_common.synthetic.parts import HELD_KINDS
    from clip_common.synthetic.scenes import KINDS

    chosen = [kind.strip() for kind in kinds.split(",")] if kinds else [k for k in KINDS if k not in HELD_KINDS]
    if unseen:
        if kinds:
            raise ValueError("--kinds and --unseen both say which kinds: give one of them")
        chosen = list(HELD_KINDS)
    with cli.progress("drawing parts") as progress:
        write_mvtec(
            folder,
            kinds=chosen,
            train=train,
            good=good,
            damaged=damaged,
            seed=seed,
            size=size,
            progress=progress,
        )
    console.print(f"{len(chosen)} kinds in {folder}: {', '.join(chosen)}", soft_wrap=True)


def open_detector(source: str) -> "Detector":
    """A run or a saved detector, or plain CLIP by its name."""
    from aaclip.detector import Detector

    return Detector.from_pretrained(source) if Path(source).is_dir() else Detector.plain(source)


def main() -> None:
    """The console script."""
    cli.main(app)
