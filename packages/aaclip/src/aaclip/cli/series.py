"""The verbs of `aaclip` that compare runs or train several times."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

from aaclip.cli.data import Format
from clip_common import cli


def add_series_verbs(app: cli.Application) -> None:
    """Add the verbs to the command."""
    app.command()(compare)


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RUN-or-CLIP... SET", help="Runs, saved detectors or CLIPs; then the labelled set."),
    ],
    format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of results; default: results/compare-SET.")] = None,
) -> None:
    """Score several runs on one labelled set, and compare each with the first: JSON, CSV, Markdown and plots.

    Differences have 95 % intervals from a paired bootstrap over images. The name of a CLIP scores plain CLIP. Scores
    are kept beside the results, so that a repeated comparison, or one with another run, scores only what is new.

    Examples:

        aaclip compare runs/aaclip/first runs/aaclip/second mvtec/

        aaclip compare tiny runs/aaclip/first parts/ --out results/what-training-adds
    """
    from aaclip.series.compare import compare, format_classes, format_means

    *sources, root = arguments
    compared = compare(sources, Path(root), format=format, out=out, reporter=cli.progress)
    for row in compared.rows:
        heading, *rows = format_classes(row)
        cli.print_table([Column(name, overflow="fold") for name in heading], rows, title=row.label)
    heading, *rows = format_means(compared.rows)
    cli.print_table([Column(name, overflow="fold") for name in heading], rows, title="mean over the classes")
    for note in compared.notes:
        cli.console.print(note, soft_wrap=True)
    cli.print_files("written to", [*compared.files, *compared.plots])
    cli.check_all_read(compared.failures, of=compared.images, what="images")
