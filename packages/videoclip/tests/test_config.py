"""Every knob does something: an epoch comes out with other weights, or a test is named that shows what it does."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.runs import same

from clip_common.config import ConfigError, OptimConfig, TrainerConfig, load_config
from videoclip import Config
from videoclip.data.clip_set import load_clip_set
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.training.experiment import fit_split, open_run

GUIDED, TWO = "model.map_guided=true", "model.attn_in_channels=2 data.maps=both"
TOKEN = "model.lambda_token=1"
CHANGED = {
    "data.frames": ("", "6"),
    "data.size": ("", "24"),
    "data.maps": ("", "doctor2"),
    "data.region_joints": ("data.maps=doctor1", "mean"),
    "data.control": ("", "centre"),
    "data.map_noise": ("", "0.3"),
    "data.map_scale": ("", "0.5"),
    "data.folds": ("data.root=unfolded", "3"),
    "data.fold": ("", "1"),
    "data.split_seed": ("data.root=unfolded", "1"),
    "data.subjects": ("", "6"),
    "data.train_fraction": ("", "0.5"),
    "data.batches": ("", "subject_unique"),
    "data.batch_size": ("", "4"),
    "data.augment.flip": ("", "false"),
    "data.augment.crop": ("", "0.5"),
    "data.augment.colour": ("", "0.9"),
    "model.clip_feature_dim": ("", "8"),
    "model.clip_embed_dim": ("", "4"),
    "model.model_class_num": ("", "4"),
    "model.attn_in_channels": ("data.maps=both", "2"),
    "model.clip_backbone": ("", "cnn_lstm"),
    "model.align_pool": ("", "mean"),
    "model.video_input": ("", "changes"),
    "model.class_pool": ("", "grid"),
    "model.align_tokens": (f"{GUIDED} model.align_pool=mean", "gated"),
    "model.guide": (GUIDED, "predicted"),
    "model.lambda_guide": (f"{GUIDED} model.guide=predicted", "0.1"),
    "model.guide_loss": (f"{GUIDED} model.guide=predicted", "mse"),
    "model.map_guided": ("", "true"),
    "model.map_guided_type": (GUIDED, "weighted_pool"),
    "model.map_guided_hidden_dim": (f"{GUIDED} model.map_guided_type=channel", "8"),
    "model.map_guided_sigmoid_gate": (GUIDED, "true"),
    "model.gate_channels": (f"{GUIDED} {TWO}", "each"),
    "model.clip_classifier_source": ("", "fusion"),
    "model.map_dropout": (GUIDED, "0.5"),
    "model.lambda_token": ("", "0.5"),
    "model.token_loss": (TOKEN, "mse"),
    "model.token_source": (f"{GUIDED} {TOKEN}", "gated"),
    "loss.clip_weight": ("", "0.3"),
    "loss.exclude": ("", "none"),
    "loss.positive": ("", "regions"),
    "loss.temperature": ("", "0.5"),
    "optim.lr": ("", "5e-3"),
    "trainer.seed": ("", "1"),
}
"""Knob → overrides under which it counts, and another value of it."""
SAME = {"data.cache": "false", "data.cache_dir": "elsewhere", "data.workers": "1"}
"""Knobs of speed and place: the weights are the same."""
SHOWN_BY = {
    "name": "test_training_experiment.py: name=whole",
    "runs": "conftest.py: runs=",
    "loss.teacher": "test_training_teacher.py: loss.teacher=",
    "loss.distill_weight": "test_training_teacher.py: loss.distill_weight=",
    "model.map_dropout_warmup": "test_training_teacher.py: model.map_dropout_warmup=",
    "select": "test_training_experiment.py: select=",
    "model.class_names": "test_classifier_focus.py: model.class_names=",
    "split": "test_scoring_score.py: split=val",
    "data.root": "test_scoring_score.py: data.root=",
    "data.clip_seconds": "test_data_layout.py: clip_seconds=",
    "data.on_error": "test_training_experiment.py: data.on_error=skip",
    "model.weights": "test_classifier_saving.py: weights=",
}
"""Knobs that a fit alone does not show, and where a test sets them. Those of `optim` and `trainer` are tested in
clip_common, which owns them."""


def knobs(schema: object, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    found = []
    for field in dataclasses.fields(schema):
        value = getattr(schema, field.name)
        found += knobs(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else [prefix + field.name]
    return found


def test_every_knob_has_an_effect_test():
    shared = {f"optim.{field.name}" for field in dataclasses.fields(OptimConfig)}
    shared |= {f"trainer.{field.name}" for field in dataclasses.fields(TrainerConfig)}
    own = [knob for knob in knobs(Config()) if knob not in shared]
    assert sorted([*own, "optim.lr", "trainer.seed"]) == sorted([*CHANGED, *SAME, *SHOWN_BY])
    for file, _, text in (where.partition(": ") for where in SHOWN_BY.values()):
        assert text in Path(__file__).with_name(file).read_text(encoding="utf-8"), file


@pytest.fixture(scope="session")
def fitted(walks, cache, tmp_path_factory):
    """`fitted("loss.clip_weight=0", …)` -> the weights after an epoch."""
    made: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
    folder = tmp_path_factory.mktemp("fitted")
    records = [dataclasses.replace(record, fold=None) for record in read_manifest(walks / "manifest.csv")]
    unfolded = write_manifest(records, folder / "unfolded.csv")

    def get(small: list[str], *overrides: str) -> dict[str, torch.Tensor]:
        if overrides not in made:
            given = [text.replace("=unfolded", f"={unfolded}").replace("elsewhere", str(folder)) for text in overrides]
            config = load_config(Config, overrides=[*small, f"name=fit-{len(made)}", *given])
            clips = load_clip_set(config)
            run = open_run(config, verb="train", label="fit", resume=None)
            model, _ = fit_split(clips.split(config.data), clips, config, run, phase="fit", resume=False)
            made[overrides] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return made[overrides]

    return get


@pytest.mark.parametrize("knob", CHANGED)
def test_it_changes_what_is_learnt(fitted, small, knob):
    under, value = CHANGED[knob]
    assert not same(fitted(small, *under.split()), fitted(small, *under.split(), f"{knob}={value}"))


@pytest.mark.parametrize("knob", SAME)
def test_it_changes_nothing_that_is_learnt(fitted, small, knob):
    assert same(fitted(small), fitted(small, f"{knob}={SAME[knob]}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.frames=1", "data.frames: expected a number from 2, got 1"),
        ("data.size=8", "data.size: expected a number from 16, got 8"),
        ("data.folds=2", "data.folds: expected a number from 3, got 2"),
        ("data.fold=5", "data.fold: expected 0 to 4 with data.folds=5, got 5"),
        ("data.batch_size=1", "data.batch_size: expected a number from 2, got 1"),
        ("data.map_noise=-1", "data.map_noise: expected a number from 0, got -1"),
        ("data.map_scale=0", "data.map_scale: expected a factor above 0, got 0"),
        ("data.clip_seconds=0", "data.clip_seconds: expected seconds above 0, got 0"),
        ("data.train_fraction=0", "data.train_fraction: expected a share above 0 and at most 1, got 0"),
        ("data.subjects=1", "data.subjects: expected a number from 2, got 1"),
        ("data.augment.crop=0", "data.augment.crop: expected a number from 0.1 to 1, got 0"),
        ("data.augment.colour=2", "data.augment.colour: expected a number from 0 to 1, got 2"),
        ("data.maps=doctor3", "data.maps: expected one of auto, file, doctor1, doctor2, both, got 'doctor3'"),
        ("model.model_class_num=1", "model.model_class_num: expected a number from 2, got 1"),
        ("model.map_dropout=1", "model.map_dropout: expected a share from 0 to below 1, got 1"),
        ("model.lambda_token=-1", "model.lambda_token: expected a number from 0, got -1"),
        ("model.lambda_token=1 model.clip_backbone=2dcnn", "the token loss needs the tokens of clip_backbone=3dcnn"),
        (
            "model.lambda_token=1 model.clip_classifier_source=attn loss.clip_weight=0",
            "model.lambda_token: with clip_classifier_source=attn and loss.clip_weight=0 nothing reads the video",
        ),
        (
            "model.align_tokens=gated",
            "model.align_tokens=gated pools as published: set model.align_pool=mean, got grid",
        ),
        (
            "model.guide=predicted",
            "model.guide=predicted: a predicted map guides the tokens of clip_backbone=3dcnn: set",
        ),
        (f"{GUIDED} model.map_guided_type=channel model.guide=mixed", "model.guide=mixed: a predicted map guides"),
        (f"{GUIDED} model.clip_backbone=2dcnn model.guide=mixed", "model.guide=mixed: a predicted map guides"),
        ("model.lambda_guide=-1", "model.lambda_guide: expected a number from 0, got -1"),
        ("select=retrieval_r1 loss.clip_weight=0", "select=retrieval_r1: nothing is aligned with loss.clip_weight=0"),
        ("model.weights=x.pth", "model.weights: 3dcnn has no published weights: leave it null"),
        ("model.map_dropout_warmup=2", "model.map_dropout_warmup: expected a number from 0 to 1, got 2"),
        ("loss.distill_weight=0", "loss.distill_weight: expected a weight above 0, got 0"),
        ("loss.clip_weight=-1", "loss.clip_weight: expected a number from 0, got -1"),
        ("loss.temperature=0", "loss.temperature: expected a temperature above 0, or null to learn it, got 0"),
        ("model.map_guidde=true", "did you mean model.map_guided"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError) as raised:
        load_config(Config, overrides=override.split())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_named_configuration_is_the_full_method_at_a_small_size():
    config = load_config(Config, config="walking", package="videoclip")
    assert (config.model.map_guided, config.model.map_guided_type) == (True, "spatiotemporal")
    assert config.loss.clip_weight > 0
    assert config.data.size == 64
