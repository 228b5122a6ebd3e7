"""`aaclip data`: check a set of labelled images, split it, or draw one."""

from pathlib import Path
from typing import Annotated

import typer

from clip_common import cli
from clip_common.cli import NewFolder, console

data = cli.Application("data", help="Check a set of labelled images, split it, or draw one.")

Root = Annotated[Path, typer.Argument(help="Folder of labelled images.", show_default=False)]
Model = Annotated[str, typer.Argument(metavar="RUN-or-CLIP", help="Run, saved detector, or CLIP: ViT-L-14-336:openai.")]
Format = Annotated[str, typer.Option(help="Format of the folder; auto recognises it by its files.")]


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
    cli.print_table(
        ["class", "split", "normal", "anomalous", "masks"],
        [
            (row.class_name, row.split, f"{row.normal:,}", f"{row.anomalous:,}", f"{row.masked:,}")
            for row in report.counts
        ],
        title=f"{root}: {report.format}",
    )
    cli.check_no_problems(root, report.problems)
    console.print("every image and every mask can be read")


@data.command()
def synthetic(
    folder: NewFolder,
    kinds: Annotated[
        str | None, typer.Option(help="Kinds of things, comma-separated; default: those that tiny was trained on.")
    ] = None,
    unseen: Annotated[bool, typer.Option(help="Kinds whose defects tiny was not trained on.")] = False,
    good: Annotated[int, typer.Option(min=0, help="Flawless test images of each kind.")] = 30,
    damaged: Annotated[int, typer.Option(min=0, help="Images of each kind and defect.")] = 10,
    train: Annotated[int, typer.Option(min=0, help="Flawless training images of each kind.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 112,
    seed: Annotated[int, typer.Option(help="Another seed draws another set; tiny was trained on 0.")] = 1,
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
            raise ValueError("--kinds and --unseen both choose the kinds: give one of them")
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


@data.command()
def split(
    root: Root,
    out: NewFolder,
    shot: Annotated[int, typer.Option(help="Training images of each class: half normal, half anomalous.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    format: Format = "auto",
) -> None:
    """Write train.jsonl, a few-shot training list, and test.jsonl, all the rest; no image is copied.

    The lists depend on the set and the seed, not on the place of the set. Training with data.mode=few_shot draws from
    train.jsonl only; `aaclip test` takes test.jsonl.

    Examples:

        aaclip data split mvtec/ lists/ --shot 32

        aaclip train data.root=lists/ data.mode=few_shot data.shot=32
    """
    from aaclip.data import read_dataset
    from aaclip.data.split import split_few_shot, write_split

    train, test = split_few_shot(read_dataset(root, format=format), shot=shot, seed=seed)
    files = write_split(train, test, out)
    heading = ("class", "train normal", "train anomalous", "test normal", "test anomalous")
    rows = []
    for name in sorted({record.class_name for record in (*train, *test)}):
        own = [[record.anomalous for record in records if record.class_name == name] for records in (train, test)]
        rows.append([name, *(f"{kinds.count(kind):,}" for kinds in own for kind in (False, True))])
    cli.print_table(heading, rows, title=f"{root}, shot {shot}, seed {seed}")
    cli.print_files("written to", files)
