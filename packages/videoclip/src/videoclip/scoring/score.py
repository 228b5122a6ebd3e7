"""`videoclip test`: score a run's best weights on subjects that it never saw."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from clip_common.devices import pick_device
from clip_common.errors import DataError, check_list
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.training import check_trainer
from videoclip.classifier.classifier import Classifier
from videoclip.classifier.run_config import SPLIT_FIELDS, check_same_split_fields, is_training_set, load_run_config
from videoclip.config import Config
from videoclip.data import ClipRecord, Split, check_disjoint, collate, read_clips
from videoclip.data.clip_set import ClipSet, load_clip_set
from videoclip.data.split_record import SPLITS, check_same_split, read_splits
from videoclip.models import VideoAttentionCLIP
from videoclip.report.plots import draw_scores
from videoclip.scoring.evaluation import Evaluation, evaluate
from videoclip.scoring.predictions import Predictions, predict

VIEW_FIELDS = ("frames", "size", "maps", "control", "map_noise", "map_scale")
"""Fields of `data` that decide how a clip and its map are shown to the model."""


@dataclass(frozen=True)
class Scored:
    """Result of `score`.

    Attributes:
        config: The run's configuration with the overrides.
        name: Names the result in the run: the split, and every override that changes the clips or how they are shown.
        evaluation: The metrics.
        predictions: The predictions that they measure.
        files: The files written: predictions, result, plots.
    """

    config: Config
    name: str
    evaluation: Evaluation
    predictions: Predictions
    files: list[Path]


def score(path: str | Path, *, overrides: Sequence[str] = (), reporter: Reporter = silent) -> Scored:
    """Score a run on one of its splits, or on another set, and write predictions, metrics and plots into its folder.

    Metrics are logged as `test/accuracy`, `test/retrieval_r1_v2a` and so on in metrics.csv and result.json.

    Args:
        path: The run folder.
        overrides: Of the run's configuration: `data.maps=doctor2`, `data.control=absent`, `data.map_noise=0.2`,
            `split=val`, `data.root=… split=all`.
        reporter: Shows progress.

    Raises:
        ValueError: One line: no trained run, another model, or clips that the run was trained or selected on.
    """
    check_list(overrides, "overrides")
    run = Run.open(path)
    model = Classifier.from_pretrained(run.path).model
    trained, config = load_run_config(run, overrides)
    check_trainer(config.trainer)
    clips = load_clip_set(config, reporter=reporter)
    part, records, train_labels = select_clips(run, trained, config, clips)
    model.to(pick_device(config.trainer.devices))
    predictions, evaluation = score_records(model, records, clips, config, train_labels=train_labels, reporter=reporter)

    name = result_name(trained, config)
    with run.locked():  # two tests at once would lose one of their results
        metrics = {f"{part}/{key}": value for key, value in evaluation.metrics.items()}
        payload = run.ledger.payload("fit")
        run.metrics.append({"phase": name, "epoch": payload["epochs"], "step": payload["steps"]} | metrics)
        files = [
            predictions.save(run.path / f"predictions-{name}.npz"),
            run.write_result(run.result | {name: evaluation.as_dict() | {"overrides": list(overrides)}}),
            *draw_evaluation(evaluation, predictions, run.folder("plots"), prefix=name, classes=config.model.classes),
        ]
        run.register(registry_row(config, name) | evaluation.metrics)
    return Scored(config, name, evaluation, predictions, files)


def score_records(
    model: VideoAttentionCLIP,
    records: Sequence[ClipRecord],
    clips: ClipSet,
    config: Config,
    *,
    train_labels: Sequence[int],
    reporter: Reporter = silent,
) -> tuple[Predictions, Evaluation]:
    """Predict and evaluate clips of a set; `model` must already be on its device."""
    device = next(model.parameters()).device
    dataset = clips.dataset(records, config, training=False)
    size, workers = config.data.batch_size, config.data.workers
    loader = DataLoader(dataset, batch_size=size, num_workers=workers, collate_fn=collate)
    with reporter("scoring") as progress:
        predictions = predict(model, loader, device=device, progress=progress)  # type: ignore[arg-type]
    return predictions, evaluate(predictions, train_labels=train_labels, classes=config.model.model_class_num)


def draw_evaluation(
    evaluation: Evaluation, predictions: Predictions, folder: Path, *, prefix: str, classes: Sequence[str]
) -> list[Path]:
    """Draw the plots of a scored set into a folder, named PREFIX-….png; return their files."""
    judged_N = predictions.judged_N
    return draw_scores(
        folder,
        prefix=prefix,
        classes=classes,
        confusion_KK=evaluation.confusion_KK,
        subject_confusion_KK=evaluation.subject_confusion_KK,
        similarity_N=predictions.similarity_N[judged_N],
        correct_N=predictions.predicted_N[judged_N] == predictions.label_N[judged_N],
    )


def registry_row(config: Config, split: str) -> dict[str, Any]:
    """Return the first columns of a registry row: what was trained and what it was scored on."""
    return {"method": config.method, "fold": config.data.fold, "seed": config.trainer.seed, "split": split}


def result_name(trained: Config, config: Config) -> str:
    """Return the name under which a result is filed: the split, and each field of `data` that differs from training."""
    changed = [
        f"{field}={getattr(config.data, field)}"
        for field in (*VIEW_FIELDS, *SPLIT_FIELDS)
        if getattr(config.data, field) != getattr(trained.data, field)
    ]
    if config.data.root != trained.data.root:
        changed.append(Path(str(config.data.root)).resolve().name)
    return "-".join([config.split, *changed])


def select_clips(
    run: Run, trained: Config, config: Config, clips: ClipSet
) -> tuple[str, Sequence[ClipRecord], list[int]]:
    """Select the clips to score, and check that the run was neither trained nor selected on them.

    Of the set that the run was trained on, this is one part of its own split; of another set it is the part that
    `split` names, with no video that the run was trained or selected on.

    Returns:
        The part's name in metric names, its clips, and the labels that the run was trained on.

    Raises:
        DataError: A leak, a part without clips, or a data set that has changed since the run was trained.
    """
    recorded = read_splits(run.path).get("fit")
    if recorded is None:
        raise DataError(f"{run.path}: {SPLITS}, which names its training clips, is missing: restore it, or train anew")
    if is_training_set(trained, config):
        part, records = config.split, select_from_training_set(run, trained, config, clips, recorded)
    else:
        part, records = "test", select_from_other_set(trained, config, clips, recorded)
    if not records:
        raise DataError(f"split={config.split}: {config.data.root} has no clip in it")
    return part, records, recorded["train_labels"]


def select_from_training_set(
    run: Run, trained: Config, config: Config, clips: ClipSet, recorded: dict[str, Any]
) -> Sequence[ClipRecord]:
    """Return a part of the run's own split, after checking that the set still gives the recorded split."""
    check_same_split_fields(run, trained, config)
    if config.split == "all":
        raise DataError(f"split=all would take clips that {run.path} was trained on: leave it out, or train anew")
    split = clips.split(trained.data)
    check_same_split(split, recorded, run=run.path, root=config.data.root)
    return split.parts()[config.split]


def select_from_other_set(
    trained: Config, config: Config, clips: ClipSet, recorded: Mapping[str, Any]
) -> Sequence[ClipRecord]:
    """Return clips of another set, after checking that none has the content of a video that the run was trained on.

    If the training set no longer exists, names of clips are compared instead of contents.

    Raises:
        DataError: A leak, or a possible one.
    """
    takes_all = config.split == "all"
    records = clips.readable(clips.records) if takes_all else clips.split(config.data).parts()[config.split]
    known = {clip_id for part in ("train", "val") for clip_ids in recorded[part].values() for clip_id in clip_ids}
    if not Path(str(trained.data.root)).exists():
        absent = (
            f"{trained.data.root}, which was trained on, is not here: its videos cannot be compared with those scored"
        )
        for record in records:
            if record.clip_id in known:
                raise DataError(f"{absent}, and {record.clip_id} is the name of one: bring it back, or score others")
        warnings.warn(absent, stacklevel=2)
        return records
    before = tuple(record for record in read_clips(trained.data) if record.clip_id in known)
    # the same subject name in another set is another person; the same video is a leak
    renamed = tuple(replace(record, subject_id=f"{record.subject_id} of {config.data.root}") for record in records)
    check_disjoint(Split(train=before, val=(), test=renamed), fingerprints=clips.fingerprints)
    return records
