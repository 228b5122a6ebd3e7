"""`clipse data`: look at a set of captioned images, or draw one."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clip_common import cli
from clip_common.captions import COLUMNS
from clip_common.cli import NewFolder, console

data = cli.Application("data", help="Look at a set of captioned images, or draw one.")


class World(StrEnum):
    """Sets that `clipse data synthetic` draws."""

    scenes = "scenes"
    parts = "parts"
    people = "people"


Root = Annotated[Path, typer.Argument(help="Folder of images and captions, or a captions file.", show_default=False)]
Format = Annotated[str, typer.Option(help="Caption format; auto detects it from the files.")]
Files = Annotated[
    list[str] | None, typer.Option(help="Captions file in ROOT; repeat it for several that are read together.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(help="ROLE=NAME: the column or key that holds the image, caption or split; repeatable."),
]


@data.command()
def check(root: Root, format: Format = "auto", files: Files = None, columns: Columns = None) -> None:
    """Read every caption and decode every image; list every problem with its line, and exit with 2 if there are any.

    Examples:

        clipse data check flickr8k/

        clipse data check flickr30k/ --files train.csv --files val.csv

        clipse data check photos/ --files list.csv --columns image=photo --columns caption=words
    """
    from clipse.data import check as check_data

    with cli.progress("decoding images") as progress:
        report = check_data(root, format=format, files=files or (), columns=_roles(columns), progress=progress)
    rows = [(split, f"{images:,}", f"{report.captions[split]:,}") for split, images in report.images.items()]
    cli.print_table(["split", "images", "captions"], rows, title=f"{root}: {report.format}")
    cli.print_notes(report.notes)
    if report.unlisted:
        console.print(f"{report.unlisted} captioned images are in no split list and are not used")
    lines = [str(problem) for problem in report.problems]
    cli.check_no_problems(root, lines, advice="data.on_error=skip trains without them")
    console.print("every image decodes, every caption has words")


@data.command()
def stats(root: Root, format: Format = "auto", files: Files = None, columns: Columns = None) -> None:
    """Count images, captions, words and image sizes.

    Example:

        clipse data stats flickr8k/
    """
    from clipse.data import stats as data_stats

    figures = data_stats(root, format=format, files=files or (), columns=_roles(columns))
    rows = []
    for name in list(figures.rows[0])[1:]:
        values = (row[name] for row in figures.rows)
        cells = (f"{value:.4g}" if isinstance(value, float) else f"{value:,}" for value in values)
        rows.append([name.replace("_", " "), *cells])
    cli.print_table(["", *(str(row["split"]) for row in figures.rows)], rows, title=f"{root}: {figures.format}")
    console.print(
        f"{figures.vocabulary:,} different words; {figures.repeated_captions:,} captions that another image has too"
    )


@data.command()
def synthetic(
    folder: NewFolder,
    what: Annotated[
        World,
        typer.Option(help="Scenes of one to four things, close-ups of damaged and flawless parts, or walking people."),
    ] = World.scenes,
    train: Annotated[int, typer.Option(help="Training images.")] = 3000,
    val: Annotated[int, typer.Option(help="Validation images.")] = 200,
    test: Annotated[int, typer.Option(help="Test images.")] = 200,
    size: Annotated[int, typer.Option(help="Pixels per side.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed draws another set; the tiny CLIP was trained on seed 0.")] = 1,
) -> None:
    """Draw a set of the procedural world as a Flickr8k folder with five captions per image.

    Parts come in pairs, with and without a defect, in combinations of kind and defect that the tiny CLIP never saw;
    data.together=together.csv keeps each pair in one batch. People come in words and looks that it never saw.

    Examples:

        clipse data synthetic scenes/ --train 3000

        clipse data synthetic parts/ --what parts --train 1200 --size 112

        clipse data synthetic people/ --what people --train 600 --size 112
    """
    from clipse.data.synthetic import write_synthetic

    with cli.progress(f"drawing {what}") as progress:
        images = write_synthetic(
            folder, what=what.value, train=train, val=val, test=test, size=size, seed=seed, progress=progress
        )
    console.print(f"{images:,} {what} in {folder}", soft_wrap=True)


def _roles(columns: list[str] | None) -> dict[str, str]:
    """Return role → column of options such as caption=words."""
    pairs = [given.partition("=") for given in columns or ()]
    for role, equals, name in pairs:
        if role not in COLUMNS or not equals or not name:
            raise ValueError(f"--columns {role}{equals}{name}: expected ROLE=NAME, ROLE one of {', '.join(COLUMNS)}")
    return {role: name for role, _, name in pairs}
