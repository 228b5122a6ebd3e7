"""`edgeglass data`: check a set of images, captions and sounds, or draw one."""

from pathlib import Path
from typing import Annotated

import typer

from clip_common import cli
from clip_common.cli import NewFolder, console

data = cli.Application("data", help="Check a set of images, captions and sounds, or draw one.")

Root = Annotated[Path, typer.Argument(help="JSONL or parquet file, or folder of samples.", show_default=False)]
Format = Annotated[str, typer.Option(help="Format; auto detects it from the files.")]


@data.command()
def check(root: Root, format: Format = "auto") -> None:
    """Read every caption, decode every image and sound; list the problems and exit with 2 if there are any.

    Silent and clipped sounds are listed too, but are no problems.

    Example:

        edgeglass data check scenes/
    """
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
    for remark in report.remarks:
        console.print(f"remark: {remark}", soft_wrap=True)
    cli.check_no_problems(root, report.problems, advice="data.on_error=skip trains without them")
    console.print("every image and sound decodes, every caption has words")


@data.command()
def synthetic(
    folder: NewFolder,
    train: Annotated[int, typer.Option(help="Training scenes.")] = 3000,
    val: Annotated[int, typer.Option(help="Validation scenes.")] = 200,
    test: Annotated[int, typer.Option(help="Test scenes.")] = 200,
    size: Annotated[int, typer.Option(help="Pixels per side.")] = 112,
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 1,
) -> None:
    """Draw scenes of the procedural world, each with an image, five captions and a sound.

    Example:

        edgeglass data synthetic scenes/ --train 3000
    """
    from edgeglass.data.synthetic import write_synthetic

    with cli.progress("drawing scenes") as progress:
        scenes = write_synthetic(folder, train=train, val=val, test=test, size=size, seed=seed, progress=progress)
    console.print(f"{scenes:,} scenes in {folder}", soft_wrap=True)
