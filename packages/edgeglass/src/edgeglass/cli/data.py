"""`edgeglass data`: check a set of images, captions, sounds or questions, or draw one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from clip_common import cli
from clip_common.cli import NewFolder, console

data = cli.Application("data", help="Check a set of images, captions, sounds or questions, or draw one.")

Root = Annotated[Path, typer.Argument(help="JSONL, JSON or parquet file, or folder of files.", show_default=False)]
Format = Annotated[str, typer.Option(help="Format; auto detects it from the files. captions: as for `edgeglass vlm`.")]
Images = Annotated[str | None, typer.Option(help="Folder of the images of questions, where the files do not say.")]


@data.command()
def check(root: Root, format: Format = "auto", images: Images = None) -> None:
    """Read every text, decode every image and sound; list the problems and exit with 2 if there are any.

    Silent and clipped sounds are listed too, but are no problems.

    Example:

        edgeglass data check scenes/
    """
    from edgeglass.data.conversations import holds_questions

    if holds_questions(root, format=format):
        _check_questions(root, format=format, images=images)
    elif images is not None:
        raise ValueError(f"--images {images}: {root} holds no questions; samples say where their images are")
    else:
        _check_samples(root, format=format)


@data.command()
def synthetic(
    folder: NewFolder,
    what: Annotated[Literal["scenes", "questions"], typer.Option(help="scenes: with captions and sounds.")] = "scenes",
    train: Annotated[int, typer.Option(help="Training scenes, or training questions of each type.")] = 3000,
    val: Annotated[int, typer.Option(help="Validation scenes, or questions of each type.")] = 200,
    test: Annotated[int, typer.Option(help="Test scenes, or questions of each type.")] = 200,
    per_picture: Annotated[
        int | None,
        typer.Option(help="Questions about each training picture; `train` is then the number of these pictures."),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            help="Types of questions, separated by commas: colour, shape, count, place, yes/no (the default), compare, "
            "count_if, relation."
        ),
    ] = None,
    captions: Annotated[
        int, typer.Option(min=0, max=10, help="Captions of each training picture, among its questions.")
    ] = 0,
    size: Annotated[int, typer.Option(help="Pixels per side.")] = 112,
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 1,
) -> None:
    """Draw scenes of the procedural world: each with an image, five captions and a sound, or images with questions.

    Example:

        edgeglass data synthetic scenes/ --train 3000
        edgeglass data synthetic questions/ --what questions --train 8000 --per-picture 8 --captions 3 --test 200
    """
    from clip_common.synthetic import TYPES
    from edgeglass.data.synthetic import write_synthetic, write_synthetic_questions

    if what == "scenes" and (per_picture is not None or captions or types is not None):
        raise ValueError("--per-picture, --captions and --types are settings of questions: add --what questions")
    with cli.progress("drawing scenes") as progress:
        if what == "questions":
            asked = TYPES if types is None else tuple(type.strip() for type in types.split(","))
            count = write_synthetic_questions(
                folder, train=train, val=val, test=test, size=size, seed=seed, per_picture=per_picture,
                captions_per_picture=captions, types=asked, progress=progress,
            )  # fmt: skip
        else:
            count = write_synthetic(folder, train=train, val=val, test=test, size=size, seed=seed, progress=progress)
    console.print(f"{count:,} {what} in {folder}", soft_wrap=True)


def _check_samples(root: Path, *, format: str) -> None:
    from edgeglass.data import check as check_data

    with cli.progress("decoding images and sounds") as progress:
        report = check_data(root, format=format, progress=progress)
    columns = []
    for split, samples in report.samples.items():
        of_split = report.modalities[split]
        counts = [samples, of_split["image"], of_split["text"], report.captions[split], of_split["audio"]]
        columns.append([f"{count:,}" for count in [*counts, *report.pairs[split].values()]])
    names = ["samples", "with an image", "with captions", "captions", "with a sound"]
    names += [f"with {pair.replace('-', ' and ')}" for pair in next(iter(report.pairs.values()))]
    cli.print_table(["", *report.samples], zip(names, *columns, strict=True), title=f"{root}: {report.format}")
    if report.unlisted:
        console.print(f"{report.unlisted} samples are in no split and are not used")
    _print_findings(root, report.remarks, report.problems)
    console.print("every image and sound decodes, every caption has words")


def _check_questions(root: Path, *, format: str, images: str | None) -> None:
    from edgeglass.data.conversations import check_conversations

    with cli.progress("decoding images") as progress:
        report = check_conversations(root, format=format, images=images, progress=progress)
    types = {f"questions of type {type}": counts for type, counts in report.types.items() if type}
    rows = [[name, *(f"{count:,}" for count in counts.values())] for name, counts in (report.counts | types).items()]
    cli.print_table(["", *report.counts["turns"]], rows, title=f"{root}: {report.format}")
    if report.unlisted:
        console.print(f"{report.unlisted} conversations are in no split and are not used")
    _print_findings(root, report.remarks, report.problems)
    console.print("every image decodes, every question has an answer")


def _print_findings(root: Path, remarks: list[str], problems: list[str]) -> None:
    for remark in remarks:
        console.print(f"remark: {remark}", soft_wrap=True)
    cli.check_no_problems(root, problems, advice="data.on_error=skip trains without them")
