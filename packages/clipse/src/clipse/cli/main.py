"""`clipse`: the commands. Each parses its arguments, calls the API and prints the result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume, console
from clipse.cli.data import data

if TYPE_CHECKING:
    from clipse.scoring.evaluation import Evaluation

app = cli.Application("clipse", help="CLIP training for image-text retrieval with similarity-aware negative weighting.")
app.add_typer(data, name="data")


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Resume = None,
) -> None:
    """Train a model, select its best epoch on the validation split, and write a run folder.

    Examples:

        clipse train --config scenes data.root=scenes/

        clipse train data.root=flickr8k/ model.pretrained=laion2b_s34b_b79k loss.name=sanw_bandpass

        clipse train --config dual data.root=captions/ model.vision=dinov2/ model.text=minilm/ data.hold_out=100

        clipse train --resume runs/clipse/first
    """
    from clip_common.runs.resolve import resolve
    from clipse.config import Config
    from clipse.released.results import write_training
    from clipse.training.experiment import train as run_training

    settings = resolve(Config, package="clipse", config=config, overrides=overrides or [], resume=resume)
    trained = run_training(settings, resume=resume, reporter=cli.progress)
    if trained.validation is None:  # another rank reports
        return
    write_training(settings, trained.run)
    print_evaluation(trained.validation, title=f"{trained.run.name}: validation split")
    cli.print_files("run", [trained.run.path])
    cli.print_files("plot", trained.plots)
    console.print(f"\nScore it:  clipse eval {trained.run.path} data.root={settings.data.root}", soft_wrap=True)


@app.command("eval")
def evaluate(
    source: Annotated[str, typer.Argument(metavar="RUN-or-MODEL", help="Run folder, model name or weights file.")],
    overrides: Overrides = None,
    against: Annotated[
        str | None, typer.Option(metavar="RUN-or-MODEL[:TAG]", help="Score this model too, and print the difference.")
    ] = None,
) -> None:
    """Score retrieval in both directions, with 95 % intervals, and append the scores to results/run_registry.csv.

    Examples:

        clipse eval runs/clipse/first data.root=scenes/

        clipse eval ViT-B-32 model.pretrained=laion2b_s34b_b79k data.root=flickr8k/ split=test

        clipse eval runs/clipse/mine --against ViT-B-32:laion2b_s34b_b79k

        clipse eval checkpoint_epoch_3.pt model.weights_of=ViT-B-32 data.root=flickr8k/
    """
    from clipse.released.results import write_registry
    from clipse.scoring.score import score

    scored = score(source, against=against, overrides=overrides or [], reporter=cli.progress)
    settings = scored.config
    print_evaluation(scored.evaluation, title=f"{Path(source).name}: {settings.split} split of {settings.data.root}")
    if scored.against is not None:
        name, theirs, ahead = scored.against.name, scored.against.evaluation.result, scored.against.ahead
        low, high = theirs.intervals["rsum"]
        console.print(
            f"{name} on the same images: rsum {theirs.metrics['rsum']:.1f} ({low:.1f}–{high:.1f})\n"
            f"rsum of {Path(source).name} minus {name}: {ahead.difference:+.1f} "
            f"({ahead.low:+.1f} to {ahead.high:+.1f}, paired by image)\n"
        )
    cli.print_files("written to", [write_registry(scored), *scored.written])


@app.command()
def search(
    source: Annotated[str, typer.Argument(metavar="RUN-or-MODEL", help="Run, saved model, or model name.")],
    query: Annotated[str, typer.Argument(help="Words, or an image file.")],
    images: Annotated[Path, typer.Argument(help="Folder to search.")],
    overrides: Overrides = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Images to return.")] = 10,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that works offline; replaces an earlier search page."),
    ] = None,
) -> None:
    """Find the images of a folder that are most similar to words or to an image.

    The folder is encoded once. The index is kept in runs/cache/index; later searches encode only new and changed
    images. Images that cannot be read are left out and listed.

    Examples:

        clipse search runs/clipse/first "a dog in the snow" photos/

        clipse search runs/clipse/first photos/dog.jpg photos/ --k 20 --html dogs.html

        clipse search ViT-B-32 "a dog in the snow" photos/ model.pretrained=laion2b_s34b_b79k
    """
    from clip_common.errors import printable
    from clipse.retriever.search import search_folder

    found = search_folder(source, query, images, k=k, page=html, overrides=overrides or [], reporter=cli.progress)
    title = f"images like {query}" if isinstance(found.query, Path) else query
    table = Table(title=Text(printable(title)), box=box.SIMPLE)
    table.add_column("", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("image", overflow="fold")
    for rank, hit in enumerate(found.hits, start=1):
        table.add_row(str(rank), f"{hit.similarity:.3f}", Text(printable(hit.path.relative_to(images))))
    console.print(table)
    lines = [f"{len(found.gallery):,} images of {printable(images)}; their index is {printable(found.store)}"]
    lines += [] if found.page is None else [f"page   {printable(found.page)}"]
    if found.skipped:
        lines.append(f"skipped {len(found.skipped):,} that cannot be read, such as")
        lines += [f"  {problem}" for problem in list(found.skipped.values())[:LISTED]]
    for line in lines:
        console.print(Text(line), soft_wrap=True)  # no markup: a file name may contain [brackets]


@app.command()
def compare(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Train each loss with each seed and compare them with the first loss.

    Set losses=[…] and seeds=[…], then overrides of the runs. A loss is NAME or NAME:PRESET. The val split is scored, on
    which weights are selected: score split=test once, at the end. The same command resumes a stopped comparison; losses
    and seeds may be added.

    Examples:

        clipse compare losses=[clip,sanw_debias,sanw_bandpass] seeds=[13,17,23] --config scenes data.root=scenes/

        clipse compare losses=[clip,sanw_debias:conservative] seeds=[0,1] --config scenes data.root=scenes/ name=mild

        clipse compare losses=[clip,sanw_bandpass] seeds=[1,2] --config scenes data.root=scenes/ split=test
    """
    from clipse.released.results import write_series
    from clipse.series.compare import compare as run_comparison
    from clipse.series.compare import describe, format_row, resolve_comparison

    settings, options = resolve_comparison(config=config, overrides=overrides or [])
    found = run_comparison(
        settings,
        losses=options.losses,
        seeds=options.seeds,
        split=options.split,
        reporter=cli.progress,
        announce=cli.announce,
    )
    write_series(found.folder)
    cli.print_table(["loss", "rsum", f"minus {options.losses[0]}", "p"], [format_row(row) for row in found.rows])
    console.print(describe(found))
    cli.print_files("written to", [found.table, found.plot])


@app.command()
def tune(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Search a weighting's parameters for the best validation rsum.

    Set loss=… and trials=…, then overrides of the runs. Parameters that are set (loss.alpha=1) are not searched. The
    same command resumes a stopped search. The test split is not used. Compare the best parameters on other seeds.

    Examples:

        clipse tune loss=sanw_bandpass trials=40 --config scenes data.root=scenes/

        clipse tune loss=sanw_debias trials=20 --config scenes data.root=scenes/ loss.alpha=1 trainer.max_epochs=4
    """
    from clipse.released.results import write_series
    from clipse.series.tune import resolve_tuning
    from clipse.series.tune import tune as run_tuning

    settings, options = resolve_tuning(config=config, overrides=overrides or [])
    found = run_tuning(settings, loss=options.loss, trials=options.trials, reporter=cli.progress, announce=cli.announce)
    write_series(found.folder)
    best = f"best validation rsum {found.best.rsum:.1f}, trial {found.best.number} of {len(found.trials)}:"
    console.print(f"{best}\n\n    {' '.join(found.overrides)}\n", soft_wrap=True)
    cli.print_files("written to", [found.table, found.csv, found.plot])


cli.add_prefetch_verb(app, package="clipse", example="ViT-B-32 laion2b_s34b_b79k")
cli.add_config_verb(app, package="clipse", example="--config scenes loss.name=sanw_debias > my.yaml")


def print_evaluation(evaluation: "Evaluation", *, title: str) -> None:
    """Print a table: each metric above its interval, in both directions, with chance and the oracle if known."""
    metrics, intervals, ceiling = evaluation.result.metrics, evaluation.result.intervals, evaluation.ceiling
    table = Table(title=Text(title), box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for side, label in (("i2t", "image → text"), ("t2i", "text → image")):
        table.add_row(label, *(_number(name, metrics[f"{side}/{name}"]) for name in COLUMNS), style="bold")
        bounds = (intervals[f"{side}/{name}"] for name in COLUMNS)
        ranges = (
            f"{_number(name, low)}–{_number(name, high)}" for name, (low, high) in zip(COLUMNS, bounds, strict=True)
        )
        table.add_row("  95 % interval", *ranges, style="dim")
        if ceiling:
            best = (_number(name, ceiling[key]) if (key := f"{side}/{name}") in ceiling else "" for name in COLUMNS)
            table.add_row("  oracle", *best, style="dim")
    console.print(table)
    low, high = intervals["rsum"]
    top = f"{ceiling['rsum']:.1f} for an oracle that reads the attributes" if ceiling else "600 at most"
    console.print(
        f"rsum {metrics['rsum']:.1f} ({low:.1f}–{high:.1f}); {evaluation.chance:.1f} by chance, {top}; "
        f"{evaluation.images:,} images, {evaluation.captions:,} captions\n"
    )


LISTED = 5
"""Number of skipped images that are listed."""
COLUMNS = ("R@1", "R@5", "R@10", "MedR", "mAP@10")


def _number(name: str, value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if name == "MedR" else f"{value:.3f}"
