"""The verbs of `aaclip` that compare runs or train several times."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Column

from aaclip.cli.data import Format, Root
from aaclip.cli.feedback import feedback
from clip_common import cli
from clip_common.cli import ConfigName, Overrides

Area = Literal["placement", "adapter", "norm", "prompts", "levels", "detection", "loss", "order"]
"""`AblationArea` of the settings, which --help does not load."""

inspect = cli.Application("inspect", help="Look into a trained run.")


def add_series_verbs(app: cli.Application) -> None:
    """Add the verbs to the command."""
    app.command()(feedback)
    app.command()(compare)
    app.command()(ablate)
    app.add_typer(inspect, name="inspect")


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="RUN-or-CLIP... SET", help="Runs, saved detectors or CLIPs; then the labelled set."),
    ],
    format: Format = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; default: results/compare-SET, or inside a feedback run.")
    ] = None,
) -> None:
    """Score several runs on one labelled set, and compare each with the first: JSON, CSV, Markdown and plots.

    Differences have 95 % intervals from a paired bootstrap over images. The name of a CLIP scores plain CLIP. Scores
    are kept beside the results, so that a repeated comparison, or one with another run, scores only what is new.

    A run of `aaclip feedback` alone is compared loop by loop: on the set, or without one on the images that it held
    out.

    Examples:

        aaclip compare runs/aaclip/first runs/aaclip/second mvtec/

        aaclip compare tiny runs/aaclip/first parts/ --out results/what-training-adds

        aaclip compare runs/aaclip/loops
    """
    from aaclip.series.compare import compare, compare_loops, format_classes, format_means

    *sources, root = arguments
    if len(sources) < 2:
        loops_of, labelled = (sources[0], Path(root)) if sources else (root, None)
        compared = compare_loops(loops_of, labelled, format=format, out=out, reporter=cli.progress)
    else:
        compared = compare(sources, Path(root), format=format, out=out, reporter=cli.progress)
    for row in compared.rows:
        heading, *rows = format_classes(row)
        cli.print_table([Column(name, overflow="fold") for name in heading], rows, title=row.label)
    heading, *rows = format_means(compared.rows)
    cli.print_table([Column(name, overflow="fold") for name in heading], rows, title="mean over the classes")
    cli.print_notes(compared.notes)
    cli.print_files("written to", [*compared.files, *compared.plots])
    cli.check_all_read(compared.failures, of=compared.images, what="images")


def ablate(
    test: Annotated[Path, typer.Option(metavar="SET", help="Labelled set that every arm is tested on.")],
    overrides: Overrides = None,
    config: ConfigName = None,
    format: Format = "auto",
    area: Annotated[Area | None, typer.Option(help="Changes of one area; default: all.")] = None,
) -> None:
    """Train with one change at a time, with each of seeds=…, and compare each with none: CSV, Markdown and a plot.

    The changes are other places, kinds and norms of adapters, learned prompt tokens and level weights, other heads for
    the image as a whole, another loss and another order of the stages. Differences have 95 % intervals from a bootstrap
    over images and seeds. Run the same command again to continue, or to add seeds or another area.

    Examples:

        aaclip ablate --config tiny data.root=parts/ --test unseen/

        aaclip ablate --config tiny data.root=parts/ --test unseen/ --area norm seeds=[0,1,2,3,4]
    """
    from aaclip.series.ablation import ablate, compose_caption, format_ablation, resolve_ablation

    settings, options = resolve_ablation(config=config, overrides=overrides or [])
    ablation = ablate(
        settings, test, format=format, area=area, seeds=options.seeds, reporter=cli.progress, announce=cli.announce
    )
    heading, *rows = format_ablation(ablation)
    cli.print_table([Column(name, no_wrap=name == "minus base") for name in heading], rows)
    cli.console.print(f"{compose_caption(ablation, settings)}\n")
    cli.print_files("run", [ablation.folder])
    cli.print_files("written to", ablation.files)


@inspect.command()
def grads(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    root: Root,
    format: Format = "auto",
    images: Annotated[int, typer.Option(min=1, help="Images, drawn at random.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Folder of results; default: inside the run.")] = None,
) -> None:
    """Measure how much gradient reaches each trained module, alone and beside cross-attention: a table and a plot.

    Three ways to scale cross-attention are compared, with the weights of the run: unscaled, 0.1 of the tokens' norm,
    and a gate. A share below 1 means that a module gets less gradient than it would alone. A run without
    cross-attention is measured with an untrained one.

    Example:

        aaclip inspect grads runs/aaclip/first parts/
    """
    from aaclip.training.gradients import format_gradients, inspect_gradients

    with cli.progress("measuring gradients") as progress:
        found = inspect_gradients(source, root, format=format, images=images, out=out, progress=progress)
    heading, *rows = format_gradients(found.rows)
    cli.print_table(heading, rows, title=f"gradient norms, {found.images} images")
    cli.print_files("written to", found.files)
