"""`edgeglass vlm`, `ask`, `caption`, `merge` and `vlm-eval`: a language model that sees."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clip_common import cli
from clip_common.cli import ConfigName, NewFolder, Overrides, Resume, console

if TYPE_CHECKING:
    from edgeglass.scoring.vlm_score import ScoredVlm

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run of `edgeglass vlm`, or saved model.")]
ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)]
Quantize = Annotated[
    Literal["none", "4bit", "8bit"] | None,
    typer.Option(help="Of the language model; default: as it was trained.", show_default=False),
]
Steps = Annotated[
    int | None, typer.Option(min=0, help="Loops of the recursion; default: as it was trained.", show_default=False)
]
ON_PAGE = 60
"""Answers on a page."""


def add_vlm_verbs(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    app.command("vlm")(train)
    app.command()(ask)
    app.command()(caption)
    app.command("vlm-eval")(evaluate)
    app.command()(merge)


def train(overrides: Overrides = None, config: ConfigName = None, resume: Resume = None) -> None:
    """Teach a language model to see: train a projector of image tokens, low-rank adapters, and a recursion.

    The image encoder and the language model stay frozen; the features of the images are computed once and kept in
    runs/cache, which stage 1 shares.

    Examples:

        edgeglass vlm --config tiny_vlm align=runs/edgeglass/world data.root=questions/

        edgeglass vlm align=runs/edgeglass/first data.root=vqa.jsonl decoder.name=Qwen/Qwen2.5-3B-Instruct decoder.quantization=4bit decoder.lora.r=64 trm.steps=4

        edgeglass vlm align=runs/edgeglass/first data.root=vqa.jsonl phase=projector name=projector

        edgeglass vlm align=runs/edgeglass/first data.root=vqa.jsonl phase=lora start=runs/edgeglass/projector

        edgeglass vlm --resume runs/edgeglass/seeing
    """  # noqa: E501 (an example is one line)
    from clip_common.runs.resolve import resolve
    from edgeglass.config import VlmConfig
    from edgeglass.training.vlm_experiment import train_vlm

    settings = resolve(VlmConfig, package="edgeglass", config=config, overrides=overrides or [], resume=resume)
    trained = train_vlm(settings, resume=resume, reporter=cli.progress)
    if trained.validation is None:  # another rank reports
        return
    rows = [[name, f"{value:.3f}"] for name, value in trained.validation.items()]
    cli.print_table(["", "best epoch"], rows, title=f"{trained.run.name}: validation split")
    if trained.cut:
        console.print(f"{trained.cut:,} training conversations were too long for the context and were cut")
    cli.print_files("run", [trained.run.path])
    cli.print_files("plot", trained.plots)
    console.print(f"\nScore it:  edgeglass vlm-eval {trained.run.path}", soft_wrap=True)


def ask(
    run: RunArgument,
    image: ImageArgument,
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION…", help="One or several; without any, a conversation.", show_default=False),
    ] = None,
    quantization: Quantize = None,
    steps: Steps = None,
) -> None:
    """Answer questions about a picture, word by word; several questions read the picture once.

    Without a question, type one after the other; each sees those before it. An empty line ends the conversation.

    Examples:

        edgeglass ask runs/edgeglass/seeing photo.jpg "what colour is the ball?"

        edgeglass ask runs/edgeglass/seeing photo.jpg "how many balls are there?" "where is the dog?"

        edgeglass ask runs/edgeglass/seeing photo.jpg
    """
    from edgeglass.vlm.vlm import VLM

    vlm = VLM.from_pretrained(run, quantization=quantization, steps=steps)
    if questions and len(questions) > 1:
        for question, answer in zip(questions, vlm.ask(image, questions), strict=True):
            console.print(f"{question}  →  {answer}", markup=False, soft_wrap=True)
        return
    chat = vlm.chat(image)
    for question in questions or iter(lambda: typer.prompt("?", default="", show_default=False, prompt_suffix=" "), ""):
        for piece in chat.stream(question):
            typer.echo(piece, nl=False)
        typer.echo()


def caption(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures.", show_default=False)],
    quantization: Quantize = None,
    steps: Steps = None,
) -> None:
    """Describe pictures, by a model that was trained on captions.

    Example:

        edgeglass caption runs/edgeglass/seeing photo.jpg
    """
    from edgeglass.vlm.vlm import VLM

    vlm = VLM.from_pretrained(run, quantization=quantization, steps=steps)
    for image in images:
        console.print(f"{image}  {vlm.caption(image)}" if len(images) > 1 else vlm.caption(image), soft_wrap=True)


def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    control: Annotated[
        Literal["none", "swapped"], typer.Option(help="swapped: also ask about another image of the split.")
    ] = "none",
    steps: Steps = None,
    show: Annotated[int, typer.Option(min=0, help="Questions to print with their answers.")] = 3,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the first 60 answers as a page with their pictures.")
    ] = None,
) -> None:
    """Answer the questions of a split and score the answers: VQA accuracy by type of question, or CIDEr and BLEU.

    Examples:

        edgeglass vlm-eval runs/edgeglass/seeing

        edgeglass vlm-eval runs/edgeglass/seeing data.root=other/ split=val --control swapped --html answers.html
    """
    from edgeglass.report.answers_page import check_replaceable, write_answers
    from edgeglass.scoring.vlm_score import score_vlm

    if html is not None:
        check_replaceable(html)

    scored = score_vlm(run, overrides=overrides or [], control=control, steps=steps, reporter=cli.progress)
    print_scores(scored)
    print_answers(scored, show)
    if html is not None:
        accuracy = scored.scores.accuracy["all"].value
        note = f"{len(scored.asked):,} questions, accuracy {accuracy:.3f}"
        cli.print_files("page", [write_answers(html, scored.page_answers(ON_PAGE), title=scored.name, note=note)])


def merge(run: RunArgument, folder: NewFolder) -> None:
    """Write the model with its adapters merged into a bf16 language model, which needs no peft and answers faster.

    The language model is loaded anew without quantization: merging into 4-bit weights would lose precision.

    Example:

        edgeglass merge runs/edgeglass/seeing merged/
    """
    from edgeglass.vlm.merging import merge_adapters
    from edgeglass.vlm.vlm import VLM

    merge_adapters(VLM.from_pretrained(run, quantization="none", dtype="bfloat16"), folder)
    cli.print_files("model", [folder])


def print_answers(scored: "ScoredVlm", count: int) -> None:
    """Print some questions with the model's answers and the truth, those about the picture with the most of them first.

    Args:
        scored: The answers.
        count: Number of questions.
    """
    for image, questions in scored.by_image(count).items():
        cli.print_table(["question", "answer", "truth"], questions, title=image)


def print_scores(scored: "ScoredVlm") -> None:
    """Print accuracies by type of question, or the metrics of captions, and where the answers are."""
    table = scored.table()
    cli.print_table(table.header, table.rows, title=table.title)
    cli.print_files("written to", scored.written)
