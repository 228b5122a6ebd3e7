"""The teacher of a distillation: a trained run, checked for what it may have seen."""

from pathlib import Path

from clip_common.errors import DataError
from clip_common.runs import Run
from videoclip.classifier.classifier import Classifier
from videoclip.classifier.run_config import is_training_set, load_run_config
from videoclip.config import Config
from videoclip.data import Split
from videoclip.data.split_record import read_splits
from videoclip.models import VideoAttentionCLIP


def open_teacher(path: Path, config: Config) -> VideoAttentionCLIP:
    """Load the model of a run that teaches another.

    Raises:
        ValueError: No trained run, or one of other classes, frames, size, map channels or data.
    """
    classifier = Classifier.from_pretrained(path)
    trained, _ = load_run_config(Run.open(path), ())
    model, sampling = classifier.model.config, classifier.sampling
    for name, theirs, ours in (
        ("model.model_class_num", model.model_class_num, config.model.model_class_num),
        ("model.attn_in_channels", model.attn_in_channels, config.model.attn_in_channels),
        ("data.frames", sampling.frames, config.data.frames),
        ("data.size", sampling.size, config.data.size),
    ):
        if theirs != ours:
            raise ValueError(f"loss.teacher={path}: it has {name}={theirs}, this run {ours}: set both alike")
    if not is_training_set(trained, config):
        raise ValueError(
            f"loss.teacher={path} was trained on {trained.data.root}: it may know the test subjects of "
            f"{config.data.root}: give a run of the same set"
        )
    return classifier.model


def load_teacher(path: Path, config: Config, split: Split) -> VideoAttentionCLIP:
    """Return the model that teaches a run, after checking that it was trained on none of the subjects held out.

    Raises:
        ValueError: See `open_teacher`.
        DataError: A leak.
    """
    model = open_teacher(path, config)
    known = set(read_splits(path)["fit"]["train"])
    held = sorted({record.subject_id for record in (*split.val, *split.test)} & known)
    if held:
        raise DataError(
            f"loss.teacher={path} was trained on {len(held)} subject(s) that this run holds out, first {held[0]}: "
            "train it with the same data.fold, data.folds and data.split_seed"
        )
    return model
