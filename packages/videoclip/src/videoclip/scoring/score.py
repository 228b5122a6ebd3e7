"""`videoclip test`: a run's best weights on subjects that they never saw."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_common.config import load_config, overridden
from clip_common.devices import pick_device
from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.files import read_json
from videoclip.classifier.classifier import model_folder
from videoclip.config import Config
from videoclip.data import ClipRecord, Split, assert_disjoint, read_clips
from videoclip.models import VideoAttentionCLIP
from videoclip.report.plots import draw_scores
from videoclip.scoring.evaluation import Evaluation, Predictions
from videoclip.training.experiment import SPLITS, ClipSet, clip_set, registered, require_same, scored

DEALING = ("folds", "fold", "split_seed", "subjects", "train_fraction", "clip_seconds")
"""What decides who is in which part."""
SHOWING = ("frames", "size", "maps", "control", "map_noise", "map_scale")
"""What decides how a clip is shown."""


@dataclass(frozen=True)
class Tested:
    """What `score` leaves.

    Attributes:
        config: What held: the run's configuration with the overrides.
        name: What it is filed under: the split, and what is otherwise than in training.
        evaluation: The numbers.
        predictions: What they are numbers of.
        files: What was written: predictions, result, plots.
    """

    config: Config
    name: str
    evaluation: Evaluation
    predictions: Predictions
    files: list[Path]


def score(path: str | Path, *, overrides: Sequence[str] = (), reporter: Reporter = silent) -> Tested:
    """Score a run on one of its splits, or on another set, and write predictions, figures and plots into its folder.

    Figures are logged as `test/accuracy`, `test/retrieval_r1_v2a` and so on in metrics.csv and result.json.

    Args:
        path: The run folder.
        overrides: Of its configuration: `data.maps=doctor2`, `data.control=absent`, `data.map_noise=0.2`, `split=val`,
            `data.root=… split=all`.
        reporter: Shows progress.

    Raises:
        ValueError: One line: no trained run, another model, or clips that the run was trained or selected on.
    """
    run = Run.open(path)
    folder = model_folder(run.path)
    own, config = trained_config(run, overrides)
    part, records, train_labels, clips = held_out(run, own, config, reporter=reporter)
    model = VideoAttentionCLIP.from_pretrained(folder).to(pick_device(config.trainer.devices))
    predictions, evaluation = scored(model, records, clips, config, train_labels=train_labels, reporter=reporter)

    name = filed_under(own, config)
    with run.locked():  # two tests at once would lose one of their results
        scores = {f"{part}/{key}": value for key, value in evaluation.metrics.items()}
        payload = run.ledger.payload("fit")
        run.metrics.append({"phase": name, "epoch": payload["epochs"], "step": payload["steps"]} | scores)
        files = [
            predictions.save(run.path / f"predictions-{name}.npz"),
            run.write_result(run.result | {name: evaluation.as_dict() | {"overrides": list(overrides)}}),
            *draw_scores(run, evaluation, predictions, prefix=name),
        ]
        run.register(registered(config, name) | evaluation.metrics)
    return Tested(config, name, evaluation, predictions, files)


def trained_config(run: Run, overrides: Sequence[str]) -> tuple[Config, Config]:
    """A run's configuration, and the same with overrides.

    Raises:
        ValueError: An override that says nothing about a trained model, or would make it another.
    """
    own = load_config(Config, config=run.path / "config.yaml")
    config = overridden(own, overrides)
    trainer = replace(config.trainer, devices=own.trainer.devices)
    if replace(config, data=own.data, split=own.split, trainer=trainer) != own:
        raise ValueError(f"{run.path}: the model is trained: override data.…, split and trainer.devices only")
    return own, config


def filed_under(own: Config, config: Config) -> str:
    """What a test is filed under: the split, and what of the data is otherwise than in training."""
    changed = [
        f"{field}={getattr(config.data, field)}"
        for field in (*SHOWING, *DEALING)
        if getattr(config.data, field) != getattr(own.data, field)
    ]
    if config.data.root != own.data.root:
        changed.append(Path(str(config.data.root)).resolve().name)
    return "-".join([config.split, *changed])


def held_out(
    run: Run, own: Config, config: Config, *, reporter: Reporter = silent
) -> tuple[str, Sequence[ClipRecord], list[int], ClipSet]:
    """The clips that are scored, what they are called, and the labels of those that were trained on.

    Of the set that the run was trained on, one of its own parts; of another set what `split` says, none of whose videos
    the run was trained or selected on.

    Raises:
        DataError: A leak, a part without clips, or a set that is not any more what the run was trained on.
    """
    noted = read_json(run.path / SPLITS)["fit"]
    clips = clip_set(config, reporter=reporter)
    if same_set(own, config):
        part, records = config.split, own_part(run, own, config, clips, noted)
    else:
        part, records = "test", other_set(own, config, clips, noted)
    if not records:
        raise DataError(f"split={config.split}: {config.data.root} has no clip in it")
    return part, records, noted["train_labels"], clips


def own_part(run: Run, own: Config, config: Config, clips: ClipSet, noted: Mapping[str, Any]) -> Sequence[ClipRecord]:
    """A part of the run's own split, which is made anew and must come out the same."""
    require_own_dealing(run, own, config)
    if config.split == "all":
        raise DataError(f"split=all would take clips that {run.path} was trained on: leave it out, or train anew")
    split = clips.split(own.data)
    require_same(split, noted, run=run, root=config.data.root)
    return split.parts()[config.split]


def require_own_dealing(run: Run, own: Config, config: Config) -> None:
    """Raise DataError where overrides would deal the run's own set into other parts."""
    for name in DEALING:
        given = getattr(config.data, name)
        if given != getattr(own.data, name):
            raise DataError(
                f"data.{name}={given} would take clips that {run.path} was trained on: leave it out, or train anew"
            )


def same_set(own: Config, config: Config) -> bool:
    """Whether the clips are those of the set that the run was trained on."""
    return Path(str(own.data.root)).resolve() == Path(str(config.data.root)).resolve()


def other_set(own: Config, config: Config, clips: ClipSet, noted: Mapping[str, Any]) -> Sequence[ClipRecord]:
    """Clips of a set that the run was not trained on: none has the content of a video that it was trained on.

    Where the training set is not at hand to be compared, no clip may have the name of one.

    Raises:
        DataError: A leak, or what may be one.
    """
    everybody = config.split == "all"
    records = clips.readable(clips.records) if everybody else clips.split(config.data).parts()[config.split]
    known = {clip_id for part in ("train", "val") for clip_ids in noted[part].values() for clip_id in clip_ids}
    if not Path(str(own.data.root)).exists():
        absent = f"{own.data.root}, which was trained on, is not here: its videos cannot be compared with those scored"
        for record in records:
            if record.clip_id in known:
                raise DataError(f"{absent}, and {record.clip_id} is the name of one: bring it back, or score others")
        warnings.warn(absent, stacklevel=2)
        return records
    before = tuple(record for record in read_clips(own.data) if record.clip_id in known)
    # the same name in another set is another person; the same video is not
    renamed = tuple(replace(record, subject_id=f"{config.data.root}: {record.subject_id}") for record in records)
    assert_disjoint(Split(train=before, val=(), test=renamed))
    return records
