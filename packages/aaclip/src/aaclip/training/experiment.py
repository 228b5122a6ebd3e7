"""From a configuration to a run folder with a detector in it: both stages, then the image score."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from aaclip.config import Config
from aaclip.data import (
    DataError,
    Record,
    check_masks,
    check_no_overlap,
    read_dataset,
    save_list,
    training_records,
)
from aaclip.data.selection import TRAINING_LIST, check_same_images, read_hashes
from aaclip.detector.detector import Detector
from aaclip.detector.fitting import fit_scores
from aaclip.models.backbone import load_backbone, make_model
from aaclip.models.prompts import load_prompts, note_unnamed
from aaclip.report.plots import draw_losses
from aaclip.scoring.score import register
from aaclip.training.contexts import load_start, name_contexts, read_text_contexts
from aaclip.training.fits import Job, embed_training_classes, train_image, train_joint, train_text
from aaclip.training.stages import (
    Stage,
    check_joint,
    list_pending,
    list_stages,
    mark_resumed,
    read_config,
    resume_config,
)
from clip_common.config import load_config, to_yaml
from clip_common.devices import pick_device
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.opening import MODEL, check_made_by
from clip_common.training import check_trainer
from clip_common.training.determinism import seed_everything

DETECTOR = "model"
"""Phase of the ledger that fits the score and saves the detector."""


@dataclass(frozen=True)
class Trained:
    """Result of `train`.

    Attributes:
        run: The run folder; `model/` in it is a detector, once no stage is left.
        detector: The same, ready to use; None while a stage is left, and on ranks other than the first.
        images: Images it learned from.
        left: Stages that are still to do.
        plots: PNG files of the run.
        notes: Lines about how it was trained.
    """

    run: Run
    detector: Detector | None
    images: int
    left: tuple[str, ...] = ()
    plots: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(
    *, config: str | None = None, overrides: Sequence[str] = (), resume: Path | None = None, verb: str = "train"
) -> Config:
    """Return the configuration of a new run, or the own configuration of one to resume.

    Args:
        config: Name of a configuration, or a file.
        overrides: `section.field=value` each.
        resume: A run to resume with its own configuration.
        verb: Command that makes such runs.

    Raises:
        ValueError: An unknown key, a wrong value, no such run or one of another package, or overrides for a run
            that is resumed.
    """
    if resume is None:
        return load_config(Config, config=config, overrides=overrides, package="aaclip")
    if config or overrides:
        raise ValueError("--resume keeps the run's own configuration: leave out --config, overrides and other flags")
    run = Run.open(resume)
    check_made_by(run, package="aaclip", verb=verb)
    return read_config(run)


def train(config: Config, *, resume: Path | None = None, stage: Stage = "both", reporter: Reporter = silent) -> Trained:
    """Train the text adapters, then the image adapters; fit the image score; leave a complete run folder.

    Args:
        config: See `aaclip.config`.
        resume: Continue this run folder where it stopped. `config` is its configuration, except for stages that were
            not started yet.
        stage: What to do now; a run with a stage left has no detector yet.
        reporter: Shows progress of what precedes and follows the fits.

    Raises:
        ValueError: One line for anything in the data, the model or the configuration that cannot be used; nothing has
            been written then.
    """
    if resume is not None:
        return _resume(Run.open(resume), config, stage=stage, reporter=reporter)
    if config.name is not None:
        Run.check_new("aaclip", config.name, root=config.runs)
    job = prepare(config, stage=stage)
    label = f"{Path(str(config.data.root)).resolve().name}-{config.backbone.name}-s{config.trainer.seed}"
    run = Run.create(
        "aaclip", config_yaml=to_yaml(config), name=config.name, label=label.replace("/", "-"), root=config.runs
    )
    with run.locked():
        return run_job(job, run, resumed=False, reporter=reporter)


def _resume(run: Run, config: Config, *, stage: Stage, reporter: Reporter) -> Trained:
    config = resume_config(run, config)
    if not list_stages(config, stage, run) and (finished := load_finished(run, config)):
        return finished
    job = prepare(config, stage=stage, run=run)
    with run.locked():
        return run_job(job, mark_resumed(run, config), resumed=True, reporter=reporter)


def prepare(config: Config, *, stage: Stage, run: Run | None = None) -> Job:
    """Load and check everything a run needs; nothing is written.

    Args:
        config: Of the run.
        stage: What to do now.
        run: The run to resume; None for a new one.

    Raises:
        ValueError: See `train`.
    """
    list_stages(config, stage, run)
    check_joint(config)
    check_trainer(config.trainer)
    records = read_training_records(config)
    if run is not None and (run.path / TRAINING_LIST).exists():
        check_same_images(run.path / TRAINING_LIST, records)
    bundle = load_backbone(config.backbone)
    seed_everything(config.trainer.seed)
    model = make_model(bundle, config)
    if config.start is not None:
        load_start(model, config.start, config=config)
    model.to(pick_device(config.trainer.devices))
    prompts = load_prompts(config.prompts)
    if config.prompts.learned_tokens:
        for name in sorted({record.class_name for record in records}):
            model.check_texts(prompts.list_all(prompts.name_of(name)))
    return Job(config, stage, records, model, prompts)


def run_job(job: Job, run: Run, *, resumed: bool, reporter: Reporter = silent) -> Trained:
    """Train in a run folder, whose lock the caller holds; finish it if no stage is left afterwards.

    Args:
        job: Of `prepare`.
        run: Its folder.
        resumed: Continue from the checkpoints in it.
        reporter: Shows progress of what precedes and follows the fits.
    """
    config, model = job.config, job.model
    if rank() == 0:
        run.ledger.start(DETECTOR)  # a detector of an earlier call is out of date from here on
        shutil.rmtree(run.path / MODEL, ignore_errors=True)
        if not (run.path / TRAINING_LIST).exists():
            save_list(job.records, run.path / TRAINING_LIST, root=Path(str(config.data.root)))
    joint = config.stages.order == "joint"
    image_contexts: dict[str, Tensor] = {}
    if joint:
        train_joint(job, run, resumed=resumed)
    else:
        image_contexts = train_text(job, run, resumed=resumed, reporter=reporter)
    classes = embed_training_classes(job, image_contexts)
    text_contexts = read_text_contexts(model, list(classes), job.prompts)
    if not joint and (job.stage != "text" or run.ledger.done("image")):
        train_image(job, classes, text_contexts, run, resumed=resumed)
    if rank() != 0:
        return Trained(run, None, len(job.records))
    notes = tuple(note_unnamed(config.prompts, job.prompts, classes))
    if left := list_pending(config, run):
        return Trained(run, None, len(job.records), left=tuple(left), notes=notes)
    contexts = name_contexts(image_contexts, text_contexts)
    detector = Detector(model, config, classes=classes, contexts=contexts, name=run.name, device=model.device)
    with reporter("fitting the score") as progress:
        fit_score(detector, job.records, progress=progress)
    return replace(finish(run, detector, job.records), notes=notes)


def finish(run: Run, detector: Detector, records: Sequence[Record]) -> Trained:
    """Save the detector, and complete the run folder: result, plots, model card, and a row in the registry."""
    detector.save_pretrained(run.folder(MODEL))
    classes = sorted({record.class_name for record in records})
    counts = {"images": len(records), "classes": classes}
    run.write_result(run.result | counts)
    plots = draw_losses(run.path / "metrics.csv", run.folder("plots"))
    write_card(run, detector, counts)
    root = Path(str(detector.config.data.root)).resolve()
    register(
        run,
        detector.config,
        {"split": "train", "set": root.name, "images": len(records), "classes": len(classes)},
    )
    run.ledger.finish(DETECTOR)
    return Trained(run, detector, len(records), plots=tuple(plots))


def load_finished(run: Run, config: Config) -> Trained | None:
    """Load a run in which nothing that was asked for is left to do; None if its detector is missing."""
    left = tuple(list_pending(config, run))
    if not left and not (run.ledger.done(DETECTOR) and (run.path / MODEL).is_dir()):
        return None
    images = len(read_hashes(run.path / TRAINING_LIST))
    detector = None if left or rank() != 0 else Detector.from_pretrained(run.path)
    return Trained(run, detector, images, left=left, plots=tuple(sorted((run.path / "plots").glob("*.png"))))


def read_training_records(config: Config) -> list[Record]:
    """Read the records to train on, and check them: every mask is there, and none is in a set that will be tested.

    Raises:
        DataError: One line.
    """
    if config.data.root is None:
        raise DataError("data.root=… is needed: a folder of labelled images, see `aaclip data check`")
    dataset = read_dataset(Path(config.data.root), format=config.data.format, classes=config.data.classes)
    records = training_records(dataset, config.data, seed=config.trainer.seed)
    check_masks(records)
    for other in config.data.test_roots:
        check_no_overlap(records, read_dataset(Path(other)).of(split="test"))
    return records


def fit_score(detector: Detector, records: Sequence[Record], *, progress: Progress | None = None) -> None:
    """Fit the image score and the border of masks on the training images (`detector.fitting.fit_scores`).

    If all images have the same label, or nothing was learned, the detector keeps its unfitted score; the latter warns.

    Raises:
        DataError: An image that could be read before.
    """
    if len({record.anomalous for record in records}) < 2:
        return
    try:
        failures = fit_scores(detector, records, progress=progress)
    except ValueError as error:
        warnings.warn(f"image score not fitted: {error}", stacklevel=2)
        return
    if failures:
        raise DataError(next(iter(failures.values())))


def write_card(run: Run, detector: Detector, counts: Mapping[str, Any]) -> Path:
    """Write the run's README.md, as a model card."""
    config = detector.config
    return run.write_model_card(
        title=f"{run.name}: anomaly detection",
        summary=(
            f"Adapters for {config.backbone.name}, trained by aaclip on {counts['images']:,} images of "
            f"{len(counts['classes'])} classes of {Path(str(config.data.root)).name}. For an image and any noun they "
            "give a score, a heatmap and, once `aaclip calibrate` has set a threshold, a verdict. No number here is of "
            "images that were not trained on: score another set with `aaclip test`."
        ),
        results={
            "training images": counts["images"],
            "classes": ", ".join(counts["classes"]),
            "image score": detector.score.describe(),
            "border of masks": detector.border,
        },
        usage=(
            "from aaclip import Detector\n\n"
            f'detector = Detector.from_pretrained("{run.path.as_posix()}")\n'
            'found = detector.predict("part.jpg", name="metal nut")\n'
            "print(found.verdict, found.score, found.boxes)"
        ),
        tags=["clip", "anomaly-detection"],
    )
