"""From a configuration to a run folder with a model, its metrics and its plots."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from clip_common.config import to_yaml
from clip_common.devices import device_count, divide_batch, pick_device
from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.training import FitResult, check_trainer, fit, load_weights
from clip_common.training.determinism import seed_everything
from videoclip.classifier.classifier import Classifier, Sampling
from videoclip.config import Config
from videoclip.config.switches import check_switches
from videoclip.data import Split, SubjectUniqueBatchSampler, number_subjects
from videoclip.data.clip_set import ClipSet, load_clip_set
from videoclip.data.records import known_labels
from videoclip.data.split_record import record_split
from videoclip.models import VideoAttentionCLIP, build_video_encoder
from videoclip.report.plots import draw_training
from videoclip.scoring.evaluation import Evaluation
from videoclip.scoring.score import draw_evaluation, registry_row, score_records
from videoclip.training.card import write_card
from videoclip.training.modules import AlignmentModule, ClipData
from videoclip.training.teacher import load_teacher, open_teacher
from videoclip.training.weights import load_torchvision_weights


@dataclass(frozen=True)
class Trained:
    """Result of `train`.

    Attributes:
        run: The run folder; `model/` in it holds the best weights, `checkpoints/fit/last.ckpt` the last.
        validation: Metrics of the best weights on the validation split; None on ranks other than the first.
        plots: PNG files of the run.
        notes: What else to tell a user, one line each.
    """

    run: Run
    validation: Evaluation | None
    plots: list[Path]
    notes: list[str]


def train(config: Config, *, resume: Path | None = None, reporter: Reporter = silent, check: bool = True) -> Trained:
    """Train as configured; select the weights by the best validation metric `select`; leave a complete run folder.

    Args:
        config: See `videoclip.config`.
        resume: Run folder to continue, whose configuration `config` is; it ends with the weights of an uninterrupted
            run.
        reporter: Shows progress before and after the fit.
        check: Whether to refuse a setting that changes nothing; false for one row of a table that shares settings.

    Raises:
        ValueError: One line for anything in the data, the model or the configuration that cannot be used; nothing but
            a cache has been written then.
    """
    check_run(config, resume, verb="train")
    check_setup(config)
    clips = load_training_clips(config, check=check and resume is None, reporter=reporter)
    split = clips.split(config.data)
    check_sizes(split, config)
    run = open_run(config, verb="train", label=f"{config.method}-f{config.data.fold}", resume=resume)
    with run.locked():
        model, result = fit_split(split, clips, config, run, phase="fit", resume=resume is not None)
        if rank() != 0:
            return Trained(run=run, validation=None, plots=[], notes=[])
        Classifier(model, Sampling.from_clips(split.train, config.data)).save_pretrained(run.folder("model"))
        predictions, validation = score_records(
            model, split.val, clips, config, train_labels=known_labels(split.train), reporter=reporter
        )
        counts = {"epochs": result.epochs, "steps": result.steps, "skipped_clips": len(clips.skipped)}
        run.write_result(run.result | counts | {"val": validation.as_dict()})  # it may have been tested before
        run.register_once(registry_row(config, "val") | validation.metrics)
        write_card(config, run, validation)
        plots = [
            *draw_training(run.path / "metrics.csv", run.folder("plots")),
            *draw_evaluation(validation, predictions, run.folder("plots"), prefix="val", classes=config.model.classes),
        ]
    return Trained(run=run, validation=validation, plots=plots, notes=clips.describe_cache())


def check_run(config: Config, resume: Path | None, *, verb: Literal["train", "cv"]) -> None:
    """Raise ValueError, before long preparations, if the name is taken or the run was begun by another verb."""
    if resume is None:
        if config.name is not None:
            Run.check_new("videoclip", config.name, root=config.runs)
        return
    began = Run.open(resume).verb
    if began == "ablate":
        raise ValueError(
            f"{resume} is a series of `videoclip ablate`: run that command again, as before, to continue it"
        )
    if began != verb:
        raise ValueError(f"{resume} was begun by another verb: videoclip {began} --resume {resume}")


def load_training_clips(config: Config, *, check: bool, reporter: Reporter) -> ClipSet:
    """Return `load_clip_set`; if `check`, raise ConfigError for a setting that changes nothing with these clips."""
    if check:
        check_switches([config])
    return load_clip_set(config, check=partial(check_switches, [config]) if check else None, reporter=reporter)


def check_setup(config: Config) -> None:
    """Raise ValueError if the trainer's settings, the batch size on so many devices, or the weights cannot be used."""
    divide_batch(config.data.batch_size, world=device_count(config.trainer))
    check_trainer(config.trainer)
    if config.model.weights is not None:
        encoder = build_video_encoder(config.model.clip_backbone, feature_dim=config.model.clip_feature_dim)
        load_torchvision_weights(encoder, Path(config.model.weights))
    if config.loss.teacher is not None:
        open_teacher(Path(config.loss.teacher), config)


def check_sizes(split: Split, config: Config) -> None:
    """Raise DataError if a split has too few clips or subjects to train and validate on."""
    clips, size = len(split.train), config.data.batch_size
    if size > clips:
        raise DataError(
            f"data.batch_size={size} is more than the {clips} training clips: set data.batch_size to at most {clips}"
        )
    for part in ("val", "test"):
        if not split.parts()[part]:
            raise DataError(f"{config.data.root}: no clip of the {part} subjects can be read: restore some")
    world = device_count(config.trainer)
    if len(split.val) < world:
        raise DataError(
            f"{len(split.val)} validation clip(s) are too few for {world} devices: use fewer (trainer.devices)"
        )
    if config.data.batches == "subject_unique":  # the sampler refuses too few subjects
        share = divide_batch(size, world=world)
        SubjectUniqueBatchSampler(number_subjects(split.train), batch_size=share, world=world)


def open_run(config: Config, *, verb: Literal["train", "cv"], label: str, resume: Path | None) -> Run:
    """Make a run folder, or reopen the one to resume."""
    if resume is not None:
        return Run.resume(resume.resolve(), config_yaml=to_yaml(config))
    label = f"{label}-s{config.trainer.seed}"
    return Run.create(
        "videoclip", config_yaml=to_yaml(config), name=config.name, label=label, root=config.runs, verb=verb
    )


def fit_split(
    split: Split, clips: ClipSet, config: Config, run: Run, *, phase: str, resume: bool
) -> tuple[VideoAttentionCLIP, FitResult]:
    """Fit one model on one split; return it with its best weights, in eval mode and on its device."""
    seed_everything(config.trainer.seed)  # decides the initial weights
    model = VideoAttentionCLIP(config.model, temperature=config.loss.temperature)
    if config.model.weights is not None:
        load_torchvision_weights(model.video_encoder, Path(config.model.weights))
    record_split(split, run.path, fit=phase, root=config.data.root)
    datasets = {
        "train": clips.dataset(split.train, config, training=True),
        "val": clips.dataset(split.val, config, training=False),
    }
    teacher = None if config.loss.teacher is None else load_teacher(Path(config.loss.teacher), config, split)
    module, data = AlignmentModule(model, config, teacher=teacher), ClipData(datasets, config)
    result = fit(
        module, data, config.trainer, run, monitor=f"val/{config.select}", mode="max", phase=phase, resume=resume
    )
    load_weights(module, result.best)
    return model.eval().to(pick_device(config.trainer.devices)), result
