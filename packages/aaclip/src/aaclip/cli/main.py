"""The command `aaclip`: verbs that parse, call one function and print."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column

from aaclip.cli.data import Format, Model, Root, data
from aaclip.cli.deploy import add_deploy_verbs
from aaclip.cli.series import add_series_verbs
from aaclip.released import flags
from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume, console

app = cli.Application("aaclip", help="Zero-shot anomaly detection: train once, then find defects in anything.")
app.add_typer(data, name="data")

Normal = Annotated[list[str], typer.Argument(help="Normal images: files, a folder or a glob.")]
Name = Annotated[str, typer.Option(help="What the images show: any noun.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=16, metavar="PIXELS", help="Side of overlapping tiles for large images; default: the whole image."
    ),
]
LISTED = 10
"""Number of pictures whose verdicts are printed."""


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Resume = None,
    stage: Annotated[
        Literal["text", "image", "both"], typer.Option(help="What to train now; --resume trains the rest later.")
    ] = "both",
    save_path: flags.SavePath = None,
    dataset: flags.Dataset = None,
    shot: flags.Shot = None,
    training_mode: flags.TrainingMode = None,
    text_epoch: flags.TextEpoch = None,
    image_epoch: flags.ImageEpoch = None,
    text_batch_size: flags.TextBatchSize = None,
    image_batch_size: flags.ImageBatchSize = None,
    text_lr: flags.TextLr = None,
    image_lr: flags.ImageLr = None,
    text_adapt_until: flags.TextAdaptUntil = None,
    image_adapt_until: flags.ImageAdaptUntil = None,
    text_adapt_weight: flags.TextAdaptWeight = None,
    image_adapt_weight: flags.ImageAdaptWeight = None,
    text_norm_weight: flags.TextNormWeight = None,
    relu: flags.Relu = None,
    surgery_until_layer: flags.SurgeryUntilLayer = None,
    model_name: flags.ModelName = None,
    img_size: flags.ImgSize = None,
    seed: flags.Seed = None,
    criterion: flags.Criterion = None,
) -> None:
    """Train the text adapters, then the image adapters; leave a run folder with a detector in it.

    Each flag of the released code sets the field in its description; section.field=value wins over it.

    Examples:

        aaclip train --config tiny data.root=parts/

        aaclip train data.root=visa/ name=visa-full

        aaclip train --config official data.root=mvtec/ prompts.names=AA-CLIP/dataset/constants.py

        aaclip train data.root=visa/ cross_attention.enabled=true start=runs/aaclip/visa-full

        aaclip train --resume runs/aaclip/visa-full

        aaclip train --dataset mvtec/ --shot 32 --text_epoch 5 --image_epoch 20 --save_path ckpt/mvtec
    """
    from aaclip.released import training as released
    from aaclip.training import experiment

    given = flags.make_overrides(
        dataset=dataset,
        shot=shot,
        training_mode=training_mode,
        text_epoch=text_epoch,
        image_epoch=image_epoch,
        text_batch_size=text_batch_size,
        image_batch_size=image_batch_size,
        text_lr=text_lr,
        image_lr=image_lr,
        text_adapt_until=text_adapt_until,
        image_adapt_until=image_adapt_until,
        text_adapt_weight=text_adapt_weight,
        image_adapt_weight=image_adapt_weight,
        text_norm_weight=text_norm_weight,
        relu=relu,
        surgery_until_layer=surgery_until_layer,
        model_name=model_name,
        img_size=img_size,
        seed=seed,
        criterion=criterion,
    )
    given += overrides or []
    if save_path is None:
        settings = experiment.resolve(config=config, overrides=given, resume=resume)
        trained = experiment.train(settings, resume=resume, stage=stage, reporter=cli.progress)
    else:
        settings = released.resolve(save_path, config=config, overrides=given, resume=resume)
        trained = released.train(settings, save_path=save_path, stage=stage, reporter=cli.progress)
    path = trained.run.path
    cli.print_notes(trained.notes)
    if trained.left:
        cli.print_files("run", [path])
        console.print(
            f"\nTrain the {' and the '.join(trained.left)} stage:  aaclip train --resume {path}", soft_wrap=True
        )
    elif trained.detector is not None:  # None: another rank reports
        console.print(f"learned from {trained.images:,} images of {len(trained.detector.classes)} classes")
        cli.print_files("run", [path])
        cli.print_files("plot", trained.plots)
        console.print(f"\nTest it:  aaclip test {path} other-set/", soft_wrap=True)


@app.command("test")
def run_test(
    source: Model,
    root: Root,
    overrides: Overrides = None,
    format: Format = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of results; default: inside the run.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes no score.")] = 8,
    memory: Annotated[
        int, typer.Option(min=0, metavar="K", help="Remember K normal images of each class, from the training split.")
    ] = 0,
) -> None:
    """Score every class of a labelled set in one pass: JSON, CSV and Markdown, with 95 % intervals.

    The name of a CLIP instead of a run scores plain CLIP with the same prompts, pixels and activation: what training
    must beat. Images that cannot be read are listed at the end, and the exit code is 2; the others are scored.
    score.FIELD=value scores this test otherwise than the run was configured; plain CLIP takes backbone.… too.

    Examples:

        aaclip test runs/aaclip/visa-full mvtec/

        aaclip test runs/aaclip/visa-full scans/ score.domain=medical

        aaclip test tiny parts/ --out results/plain

        aaclip test ViT-L-14-336:openai mvtec/ backbone.image_size=336

        aaclip test runs/aaclip/visa-full mvtec/ --memory 4 --out results/four-normal-images
    """
    from aaclip.scoring.score import format_table, score

    scored = score(
        source,
        root,
        overrides=overrides or [],
        format=format,
        out=out,
        batch_size=batch_size,
        memory=memory,
        reporter=cli.progress,
    )
    heading, *rows = format_table(scored.evaluation.classes)
    cli.print_table([Column(name, overflow="fold") for name in heading], rows, title=scored.title)
    cli.print_notes(scored.notes)
    cli.print_files("written to", scored.files)
    cli.check_all_read(scored.evaluation.failures, of=scored.images, what="images")


@app.command()
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    images: Normal,
    name: Name,
    target_fpr: Annotated[float, typer.Option(help="Share of normal images that may be called anomalous.")] = 0.01,
    guarantee: Annotated[bool, typer.Option(help="Promise that share for the next image (conformal).")] = False,
    tile: Tile = None,
) -> None:
    """Set the threshold of verdicts from normal images, and save it beside the weights.

    Images that the run was trained on are refused. Images that cannot be read are listed at the end, and the exit code
    is 2; the threshold is computed from the others.

    Examples:

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut"

        aaclip calibrate runs/aaclip/first good-parts/ --name "metal nut" --target-fpr 0.05 --guarantee
    """
    from aaclip.detector.predict import calibrate as calibrate_detector

    with cli.progress("scoring normal images") as progress:
        found = calibrate_detector(
            source, images, name=name, target_fpr=target_fpr, guarantee=guarantee, tile=tile, progress=progress
        )
    threshold = found.threshold
    console.print(
        f"threshold {threshold.value:.4f}: {threshold.method.replace('_', ' ')} of {threshold.images} normal images, "
        f"target {100 * target_fpr:g} % false alarms"
    )
    cli.check_all_read(found.failures, of=found.images, what="images")


@app.command("fit-score")
def fit_score(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    root: Root,
    format: Format = "auto",
) -> None:
    """Fit the image score and the border of masks on a labelled set, and save them beside the weights.

    Training does so on its own images; an imported detector has no fit yet. The set's training split is used if it has
    normal and anomalous images, else all of the set. The threshold is cleared, because scores change.

    Example:

        aaclip fit-score detectors/mvtec visa/
    """
    from aaclip.detector.fitting import fit_saved

    found = fit_saved(source, root, format=format, reporter=cli.progress)
    console.print(f"image score {found.score.describe()}; border of masks {found.border:.4g}", soft_wrap=True)
    if found.split == "all":
        console.print("its training split lacks a label, so test images were used: test on another set")
    if found.threshold_cleared:
        console.print("the threshold was cleared: aaclip calibrate sets it again")
    cli.check_all_read(found.failures, of=found.images, what="images")


@app.command()
def predict(
    source: Model,
    images: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for overlays, masks and predictions.jsonl.")] = Path("predictions"),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold of the score, instead of the calibrated one.")
    ] = None,
    tile: Tile = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML report too, one file that works offline.")
    ] = None,
) -> None:
    """Look for defects: a verdict, a score, a heatmap, a mask, boxes and a JSON line for each image.

    Files that cannot be read are listed at the end, and the exit code is 2; the others are predicted.

    Examples:

        aaclip predict runs/aaclip/first photo.jpg --name "metal nut"

        aaclip predict runs/aaclip/first photos/ --name "metal nut" --html report.html

        aaclip predict runs/aaclip/first sheet-20-megapixels.jpg --name "steel sheet" --tile 1024
    """
    from aaclip.detector.detector import Detector
    from aaclip.detector.fitting import note_unfitted
    from aaclip.detector.predict import predict_files

    detector = Detector.open(source)
    found = predict_files(
        detector,
        images,
        name=name,
        folder=out,
        threshold=threshold,
        tile=tile,
        page=html,
        reporter=cli.progress,
    )
    hottest = sorted(found.lines, key=lambda line: -line["score"])[:LISTED]
    cli.print_table(
        ["score", "verdict", "regions", Column("image", overflow="fold")],
        [(f"{ln['score']:.3f}", ln["verdict"] or "–", str(len(ln["boxes"])), ln["image"]) for ln in hottest],
    )
    if len(found.lines) > LISTED:
        console.print(f"and {len(found.lines) - LISTED:,} more")
    if found.threshold is None:
        console.print("no verdicts yet: aaclip calibrate sets a threshold, --threshold gives one")
    cli.print_notes(note_unfitted(source, detector.score))
    cli.print_files("written to", [found.folder, *([found.page] if found.page else [])])
    cli.check_all_read(found.failures, of=found.images, what="images")


@app.command()
def remember(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or saved detector.")],
    images: Normal,
    name: Name,
) -> None:
    """Remember a few normal images of a thing, without training. Patches unlike these raise the anomaly map.

    Replaces earlier images of this thing and clears the threshold, because scores change.

    Example:

        aaclip remember runs/aaclip/first four-good-parts/ --name "metal nut"
    """
    from aaclip.detector.predict import remember_files

    count = remember_files(source, images, name=name)
    console.print(f"{count} normal images of {name} remembered; now set the threshold again with aaclip calibrate")


@app.command("import")
def import_checkpoint(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER-or-FILE", help="Folder of text_adapter.pth and image_adapter.pth, or one.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the detector.")],
    overrides: Overrides = None,
    config: ConfigName = "official",
    epoch: Annotated[
        int | None, typer.Option(min=1, help="Read image_adapter_EPOCH.pth; default: image_adapter.pth, the last one.")
    ] = None,
    era: Annotated[
        Literal["unscaled", "scaled", "matched"] | None,
        typer.Option(help="Version of the fork with cross-attention, which its files do not tell; default: matched."),
    ] = None,
    loop: Annotated[int | None, typer.Option(min=1, help="Loop of the fork; default: its final model.")] = None,
) -> None:
    """Turn checkpoints of the released AA-CLIP code into a detector; no pickle is executed.

    The files say which adapters and heads they are of. Without image_adapter.pth the text stage alone is written, for
    training the image stage; without text_adapter.pth plain CLIP embeds the classes.

    Files of the fork with cross-attention and feedback loops are told by their names. Three of its versions save the
    same files and compute differently: --era says which.

    Examples:

        aaclip import ckpt/mvtec_full detectors/mvtec

        aaclip import ckpt/feedback detectors/feedback-2 --era matched --loop 2

        aaclip import ckpt/mvtec_full detectors/mvtec-15 --epoch 15

        aaclip import ckpt/mvtec_full/text_adapter.pth detectors/mvtec-text
    """
    from aaclip.detector.calibration import UNFITTED
    from aaclip.detector.fitting import note_unfitted
    from aaclip.released.checkpoints import read_released, save_released
    from aaclip.released.fork import is_fork, read_fork

    given: dict[str, Any] = {"config": str(config), "overrides": overrides or [], "epoch": epoch}
    if era is not None or loop is not None or is_fork(source):
        found = read_fork(source, **given, era=era or "matched", loop=loop)
        console.print(f"cross-attention of the era {era or 'matched'}; --era names another", soft_wrap=True)
    else:
        found = read_released(source, **given)
    save_released(found, out)
    cli.print_files("read", found.files)
    console.print(f"they say {' '.join(found.told)}", soft_wrap=True)
    if found.image:
        if not found.text:
            console.print("no text_adapter.pth: plain CLIP embeds the classes, as after --text_epoch 0")
        console.print(f"detector in {out}", soft_wrap=True)
        cli.print_notes(note_unfitted(out, UNFITTED))
    else:
        start = ["stages.text.epochs=0", f"start={out}", "data.root=SET"]
        command = shlex.join(["aaclip", "train", "--config", str(config), *found.told, *(overrides or []), *start])
        console.print(f"text stage in {out}; train the image stage:  {command}", soft_wrap=True)


@app.command()
def info(overrides: Overrides = None, config: ConfigName = None) -> None:
    """Print the frozen and the trained parts of the model, with their numbers of parameters.

    Example:

        aaclip info --config tiny
    """
    from aaclip.models.backbone import load_backbone, make_model
    from aaclip.training.experiment import resolve

    settings = resolve(config=config, overrides=overrides or [])
    model = make_model(load_backbone(settings.backbone), settings)
    rows = [(name, f"{count:,}", state) for name, count, state in model.inventory()]
    cli.print_table(["module", "parameters", ""], rows, title=settings.backbone.name)
    console.print(f"levels {model.levels}, V-V attention in the last {model.vv_blocks} blocks")


add_series_verbs(app)
add_deploy_verbs(app)
cli.add_prefetch_verb(app, package="aaclip", example="ViT-L-14-336 openai", name="ViT-L-14-336", pretrained="openai")
cli.add_config_verb(app, package="aaclip", example="--config official > official.yaml")
