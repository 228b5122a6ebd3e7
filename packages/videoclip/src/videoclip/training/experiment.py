"""From a configuration to a run folder with a model, its numbers and its pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader

from clip_common.config import to_yaml
from clip_common.devices import batch_of_rank, device_count, pick_device
from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run, write_json
from clip_common.runs.environment import rank
from clip_common.runs.files import read_json
from clip_common.training import FitResult, fit, load_weights, require_trainer
from clip_common.training.determinism import seed_everything
from videoclip.classifier.classifier import Classifier, Sampling
from videoclip.config import Config, DataConfig
from videoclip.data import (
    ClipCache,
    ClipRecord,
    Split,
    SubjectUniqueBatchSampler,
    VideoMapDataset,
    assert_disjoint,
    check_labels,
    collate,
    missing_classes,
    problems_of,
    read_clips,
    split_of,
    splits_of,
    subject_numbers,
)
from videoclip.data.decoding import clip_span
from videoclip.models import VideoAttentionCLIP
from videoclip.report.plots import draw_run, draw_scores
from videoclip.scoring.evaluation import Evaluation, Predictions, evaluate, predict
from videoclip.training.modules import AlignmentModule, ClipData

SPLITS = "splits.json"
"""Who was trained, validated and tested on in each fit of a run."""


@dataclass(frozen=True)
class Trained:
    """What `train` leaves.

    Attributes:
        run: The run folder; `model/` in it holds the best weights, `checkpoints/fit/last.ckpt` the last.
        validation: Scores of the best weights on the validation split; None on ranks other than the first.
        plots: PNG files of the run.
    """

    run: Run
    validation: Evaluation | None
    plots: list[Path]


@dataclass(frozen=True)
class ClipSet:
    """The labelled clips of a set.

    Attributes:
        records: All of them: subjects are dealt to parts by all, so that a broken file moves nobody.
        cache: Their pixels, decoded once; None decodes each time.
        skipped: clip_id → what is wrong, for those that cannot be read and are left out.
    """

    records: list[ClipRecord]
    cache: ClipCache | None
    skipped: dict[str, str]

    def readable(self, records: Iterable[ClipRecord]) -> tuple[ClipRecord, ...]:
        """Those of some clips that are not left out."""
        return tuple(record for record in records if record.clip_id not in self.skipped)

    def splits(self, config: DataConfig) -> list[Split]:
        """The split of every fold."""
        return [self._readable_of(split) for split in splits_of(self.records, config)]

    def split(self, config: DataConfig) -> Split:
        """The split of `config.fold`."""
        return self._readable_of(split_of(self.records, config))

    def _readable_of(self, split: Split) -> Split:
        return Split(*map(self.readable, split.parts().values()))


def train(config: Config, *, resume: Path | None = None, reporter: Reporter = silent) -> Trained:
    """Train as configured; select the weights with the best validation macro F1; leave a complete run folder.

    Args:
        config: See `videoclip.config`.
        resume: Go on with this run folder, whose configuration `config` is, where it stopped; the weights it ends with
            are those of an uninterrupted run.
        reporter: Shows progress of what precedes and follows the fit.

    Raises:
        ValueError: One line for anything in the data, the model or the configuration that cannot be used; nothing but
            a cache has been written then.
    """
    require_run(config, resume, verb="train")
    clips = clip_set(config, reporter=reporter)
    split = clips.split(config.data)
    require_sizes(split, config)
    run = open_run(config, label=f"{method(config)}-f{config.data.fold}", resume=resume)
    with run.locked():
        model, result = fit_split(split, clips, config, run, phase="fit", resume=resume is not None)
        if rank() != 0:
            return Trained(run=run, validation=None, plots=[])
        Classifier(model, sampling_of(config, split.train)).save_pretrained(run.folder("model"))
        predictions, validation = scored(
            model, split.val, clips, config, train_labels=labels_of(split.train), reporter=reporter
        )
        counts = {"epochs": result.epochs, "steps": result.steps, "skipped_clips": len(clips.skipped)}
        run.write_result(run.result | counts | {"val": validation.as_dict()})  # it may have been tested before
        if not run.ledger.done("register"):
            run.ledger.start("register")
            run.register(registered(config, "val") | validation.metrics)
            run.ledger.finish("register")
        write_card(config, run, validation)
        plots = [*draw_run(run), *draw_scores(run, validation, predictions, prefix="val")]
    return Trained(run=run, validation=validation, plots=plots)


def clip_set(config: Config, *, reporter: Reporter = silent) -> ClipSet:
    """The clips of the set, decoded once where `data.cache` says so.

    Raises:
        ValueError: The set, the batch size, the labels or the trainer cannot be used; or, unless `data.on_error=skip`,
            a clip cannot be read.
    """
    data, channels = config.data, config.model.attn_in_channels
    batch_of_rank(data.batch_size, world=device_count(config.trainer))
    require_trainer(config.trainer)
    records = read_clips(data)
    check_labels(records, config.model.model_class_num)
    records = [record for record in records if record.label is not None]
    if not records:
        raise DataError(f"{data.root}: no clip has a label; training and testing need them")
    cache, skipped = None, {}
    if data.cache:
        folder = Path(data.cache_dir or Path(config.runs) / "cache") / "clips"
        with reporter("decoding clips") as progress:
            cache = ClipCache(folder, records, data, channels=channels, progress=progress)
        skipped = cache.problems
    elif data.on_error == "skip":
        with reporter("reading every clip once") as progress:
            skipped = problems_of(records, data, channels=channels, side=data.size, progress=progress)
    return ClipSet(records, cache, skipped)


def require_sizes(split: Split, config: Config) -> None:
    """Refuse what cannot train before a run is made."""
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
        raise DataError(f"{len(split.val)} validation clip(s) do not go round {world} devices: set trainer.devices")
    if config.data.batches == "subject_unique":  # refuses too few subjects
        share = batch_of_rank(size, world=world)
        SubjectUniqueBatchSampler(subject_numbers(split.train), batch_size=share, world=world)


def require_run(config: Config, resume: Path | None, *, verb: Literal["train", "cv"]) -> None:
    """Refuse, before long preparations, a name that is taken, or to go on with what another verb began."""
    if resume is None:
        if config.name is not None:
            Run.require_new("videoclip", config.name, root=config.runs)
        return
    began = {"train" if phase == "fit" else "cv" for phase in read_json(resume / SPLITS)}
    if began - {verb}:
        raise ValueError(f"{resume} was begun by another verb: videoclip {min(began)} --resume {resume}")


def open_run(config: Config, *, label: str, resume: Path | None, verb: Literal["train", "cv"] = "train") -> Run:
    """A new run folder, or the one to go on with."""
    if resume is not None:
        return Run.resume(resume.resolve(), config_yaml=to_yaml(config))
    label = f"{label}-s{config.trainer.seed}"
    text = to_yaml(config)
    return Run.create("videoclip", config_yaml=text, name=config.name, label=label, root=config.runs, verb=verb)


def fit_split(
    split: Split, clips: ClipSet, config: Config, run: Run, *, phase: str, resume: bool
) -> tuple[VideoAttentionCLIP, FitResult]:
    """Fit one model on one split; it comes back with its best weights, in eval mode."""
    seed_everything(config.trainer.seed)  # what starts from scratch
    model = VideoAttentionCLIP(config.model, temperature=config.loss.temperature)
    write_split(run, phase, split, root=config.data.root)
    datasets = {
        "train": dataset_of(split.train, clips, config, training=True),
        "val": dataset_of(split.val, clips, config, training=False),
    }
    module, data = AlignmentModule(model, config), ClipData(datasets, config)
    result = fit(module, data, config.trainer, run, monitor="val/macro_f1", mode="max", phase=phase, resume=resume)
    load_weights(module, result.best)
    return model.eval().to(pick_device(config.trainer.devices)), result


def scored(
    model: VideoAttentionCLIP,
    records: Sequence[ClipRecord],
    clips: ClipSet,
    config: Config,
    *,
    train_labels: Sequence[int],
    reporter: Reporter = silent,
) -> tuple[Predictions, Evaluation]:
    """What a model says of some clips, and how good that is. The model lies on its device already."""
    device = next(model.parameters()).device
    dataset = dataset_of(records, clips, config, training=False)
    size, workers = config.data.batch_size, config.data.workers
    loader = DataLoader(dataset, batch_size=size, num_workers=workers, collate_fn=collate)
    with reporter("scoring") as progress:
        predictions = predict(model, loader, device=device, progress=progress)  # type: ignore[arg-type]
    return predictions, evaluate(predictions, train_labels=train_labels, classes=config.model.model_class_num)


def dataset_of(records: Sequence[ClipRecord], clips: ClipSet, config: Config, *, training: bool) -> VideoMapDataset:
    """Samples of some clips of a set; augmented in training."""
    return VideoMapDataset(
        records,
        config.data,
        channels=config.model.attn_in_channels,
        seed=config.trainer.seed,
        training=training,
        cache=clips.cache,
    )


def labels_of(records: Iterable[ClipRecord]) -> list[int]:
    """The known labels of some clips."""
    return [record.label for record in records if record.label is not None]


def pooled_predictions(parts: Sequence[Predictions], records: Iterable[ClipRecord]) -> Predictions:
    """What several models say of clips of one set, for classification only: their embeddings have no common space."""
    names = {record.clip_id: record.subject_id for record in records}
    numbers = {subject: number for number, subject in enumerate(sorted(set(names.values())))}
    return Predictions.joined(
        [
            replace(
                part,
                subject_N=np.array([numbers[names[clip_id]] for clip_id in part.clip_ids]),
                valid_N=np.zeros(len(part), dtype=bool),
            )
            for part in parts
        ]
    )


def write_split(run: Run, phase: str, split: Split, *, root: str | None) -> None:
    """Check that no subject and no video is in two parts, and note in the run who is in which.

    Raises:
        DataError: A leak, or not the split that a resumed run began with.
    """
    assert_disjoint(split)
    before = read_json(run.path / SPLITS)
    if phase in before:
        require_same(split, before[phase], run=run, root=root)
    if rank() > 0:
        return
    noted: dict[str, object] = {part: subjects_of(records) for part, records in split.parts().items()}
    noted["train_labels"] = labels_of(split.train)
    noted["missing_classes"] = {part: list(classes) for part, classes in missing_classes(split).items()}
    noted["checked"] = "no subject is in two parts, and no video of the same content"
    write_json(run.path / SPLITS, before | {phase: noted})


def require_same(split: Split, noted: Mapping[str, Any], *, run: Run, root: str | None) -> None:
    """Raise DataError where a split is not what was noted of it."""
    for part, records in split.parts().items():
        if subjects_of(records) != noted[part]:
            raise DataError(
                f"{root}: its {part} split is not what it was when {run.path} was trained: restore the set, or train "
                "anew"
            )


def subjects_of(records: Iterable[ClipRecord]) -> dict[str, list[str]]:
    """Subject → names of its clips."""
    clips: dict[str, list[str]] = {}
    for record in records:
        clips.setdefault(record.subject_id, []).append(record.clip_id)
    return clips


def sampling_of(config: Config, records: Sequence[ClipRecord]) -> Sampling:
    """How the trained model wants its clips: as many frames, as large and, in the median, as long as those it saw."""
    spans = [clip_span(record.video, start_s=record.start_s, end_s=record.end_s) for record in records]
    seconds = median(end_s - start_s for start_s, end_s in spans)
    return Sampling(frames=config.data.frames, size=config.data.size, clip_seconds=round(seconds, 3))


def method(config: Config) -> str:
    """A short name of what is trained, for folders and tables."""
    model = config.model
    name: str = model.clip_backbone
    if model.map_guided:
        name += f"-{model.map_guided_type}" + ("-sigmoid" if model.map_guided_sigmoid_gate else "")
    return name + ("-clip" if config.loss.clip_weight else "") + ("-token" if model.lambda_token else "")


def registered(config: Config, split: str) -> dict[str, Any]:
    """What a row of the registry begins with."""
    return {"method": method(config), "fold": config.data.fold, "seed": config.trainer.seed, "split": split}


def write_card(config: Config, run: Run, validation: Evaluation) -> Path:
    """The run's README.md, as a model card."""
    found = validation.metrics
    interval = ""  # of one subject there is none
    if "macro_f1" in validation.intervals:
        interval = " (95 % interval over subjects {:.3f} to {:.3f})".format(*validation.intervals["macro_f1"])
    return run.write_model_card(
        title=f"{run.name}: video classification beside attention maps",
        summary=(
            f"{method(config)} trained by videoclip on {Path(str(config.data.root)).name}, fold {config.data.fold}. "
            f"Validation macro F1 {found['macro_f1']:.3f}{interval}, "
            f"accuracy {found['accuracy']:.3f} over {validation.clips} clips of {validation.subjects} subjects; always "
            f"the most frequent class: {found['majority_accuracy']:.3f}. These weights were selected on that split: "
            "score subjects that it never saw with `videoclip test`."
        ),
        results={key: round(value, 4) for key, value in found.items()},
        usage=(
            "from videoclip import Classifier\n\n"
            f'prediction = Classifier.from_pretrained("{run.path.as_posix()}").predict("clip.mp4")\n'
            "print(prediction.label, prediction.probabilities)"
        ),
        sections={
            "Limits": (
                "Trained on few subjects of one set. Nothing here is a medical device; a probability is no diagnosis."
            )
        },
        tags=["video-classification", "attention"],
    )
