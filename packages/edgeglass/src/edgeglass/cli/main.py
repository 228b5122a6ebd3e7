"""`edgeglass`: the commands. Each parses its arguments, calls the API and prints the result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume, console
from edgeglass.cli.data import data
from edgeglass.cli.index import add_index_verbs
from edgeglass.cli.vlm import add_vlm_verbs

if TYPE_CHECKING:
    from edgeglass.scoring.evaluation import Evaluation, MixedGallery

app = cli.Application("edgeglass", help="Images, text and audio in one nested space: align, embed, search, ask.")


@app.command()
def align(overrides: Overrides = None, config: ConfigName = None, resume: Resume = None) -> None:
    """Align frozen encoders in one space, select the best epoch on the validation split, and write a run folder.

    Features of frozen encoders are computed once and kept in runs/cache, so that an epoch costs the heads only.

    Examples:

        edgeglass align --config tiny data.root=world/

        edgeglass align data.root=clips.jsonl encoders.vision.name=dinov2/ encoders.text.name=minilm/ mrl.width=1024 mrl.dims=[512,256,128]

        edgeglass align --config perceiver_trimodal data.root=clips.parquet encoders.audio.name=openai/whisper-base

        edgeglass align --resume runs/edgeglass/first
    """  # noqa: E501 (an example is one line)
    from clip_common.runs.resolve import resolve
    from edgeglass.config import Config
    from edgeglass.training.experiment import train

    settings = resolve(Config, package="edgeglass", config=config, overrides=overrides or [], resume=resume)
    trained = train(settings, resume=resume, reporter=cli.progress)
    if trained.validation is None:  # another rank reports
        return
    print_evaluation(trained.validation, title=f"{trained.run.name}: validation split")
    cli.print_files("run", [trained.run.path])
    cli.print_files("plot", trained.plots)
    console.print(f"\nScore it:  edgeglass eval {trained.run.path}", soft_wrap=True)


@app.command("eval")
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="RUN-or-MODEL", help="Run folder, or a saved model.")],
    overrides: Overrides = None,
) -> None:
    """Score retrieval at every width, for every pair both ways and for queries of image and sound together.

    Also print the gap between modalities, and whether a gallery of all of them is searched fairly, without and with
    centred embeddings.

    Examples:

        edgeglass eval runs/edgeglass/first

        edgeglass eval runs/edgeglass/first data.root=other/ split=val embeddings.centre=true
    """
    from edgeglass.scoring.score import score

    scored = score(source, overrides=overrides or [], reporter=cli.progress)
    print_evaluation(
        scored.evaluation, title=f"{scored.name}: {scored.config.split} split of {scored.config.data.root}"
    )
    print_centring(scored.centred)
    cli.print_files("written to", scored.written)


add_index_verbs(app)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN-or-MODEL", help="Run folder, or a saved model.")],
    folder: cli.NewFolder,
    modalities: Annotated[
        str | None, typer.Option(help="Export these alone, such as `image,text`.", show_default=False)
    ] = None,
) -> None:
    """Write the model as a stock SentenceTransformer, which loads without this package and runs no code of its own.

    Poolings that sentence-transformers does not have (attention, perceiver) and `audio.context=sound` are refused.

    Examples:

        edgeglass export runs/edgeglass/first exported/

        edgeglass export runs/edgeglass/first exported/ --modalities image,text
    """
    from edgeglass.aligner.aligner import Aligner
    from edgeglass.aligner.export import export_model

    aligner = Aligner.from_pretrained(source)
    chosen = None if modalities is None else [name.strip() for name in modalities.split(",")]
    export_model(aligner.model, aligner.config, folder, modalities=chosen)
    cli.print_files("model", [folder])


add_vlm_verbs(app)
app.add_typer(data, name="data")
cli.add_prefetch_verb(app, package="edgeglass", example="sentence-transformers/all-MiniLM-L6-v2")
cli.add_config_verb(app, package="edgeglass", example="--config tiny > my.yaml")
cli.add_config_verb(
    app, package="edgeglass", example="--config tiny_vlm > my.yaml", verb="vlm-config", schema="VlmConfig"
)


def print_evaluation(evaluation: "Evaluation", *, title: str) -> None:
    """Print recall and mean rank at full width, then R@1 by width."""
    rows = []
    for way in evaluation.full:
        metrics = way.result.metrics
        ceiling = "" if way.ceiling is None else f"{way.ceiling:.3f}"
        recalls = [f"{metrics[f'R@{k}']:.3f}" for k in (1, 5, 10)]
        rows.append([f"{way.query} → {way.gallery}", *recalls, f"{metrics['MeanR']:.1f}", f"{way.chance:.3f}", ceiling])
    header = ["", "R@1", "R@5", "R@10", "mean rank", "chance", "ceiling"]
    cli.print_table(header, rows, title=f"{title}, {evaluation.samples:,} samples, full width")
    widths = list(dict.fromkeys(way.width for way in evaluation.directions))
    by_name: dict[str, list[str]] = {}
    for way in evaluation.directions:
        by_name.setdefault(f"{way.query} → {way.gallery}", []).append(f"{way.result.metrics['R@1']:.3f}")
    cli.print_table(
        ["", *map(str, widths)], [[name, *values] for name, values in by_name.items()], title="R@1 by width"
    )


def print_centring(centred: "dict[bool, tuple[dict[str, float], MixedGallery | None]]") -> None:
    """Print the gap between modalities and the shares of a mixed gallery, without and with centred embeddings."""
    pairs = list(centred[False][0])
    rows = [[pair, *(f"{centred[centre][0][pair]:.3f}" for centre in (False, True))] for pair in pairs]
    cli.print_table(["", "as aligned", "centred"], rows, title="Distance of the mean embeddings")
    galleries = [centred[centre][1] for centre in (False, True)]
    if galleries[0] is None or galleries[1] is None:
        return
    truth = galleries[0].truth
    rows = [
        [name, f"{share:.0%}", *(f"{gallery.overall[name]:.0%}" for gallery in galleries if gallery is not None)]
        for name, share in truth.items()
    ]
    cli.print_table(["", "in the gallery", "as aligned", "centred"], rows, title="Top ten of a mixed gallery")
