"""The released code's flags: all of them, each on the field that it names, in one line where that cannot be."""

import inspect
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from helpers.configs import leaves

from aaclip.cli.main import train as train_verb
from aaclip.config import Config
from aaclip.released.flags import FIELDS, make_overrides
from aaclip.training.experiment import resolve

RELEASED = {
    *("model_name", "img_size", "surgery_until_layer", "relu", "dataset", "training_mode", "shot", "criterion"),
    *("text_batch_size", "image_batch_size", "text_epoch", "image_epoch", "text_lr", "image_lr", "seed", "save_path"),
    *("text_norm_weight", "text_adapt_weight", "image_adapt_weight", "text_adapt_until", "image_adapt_until"),
}

MEANT = {
    "dataset": ("sets/MVTec, groß", {"data.root": "sets/MVTec, groß"}),
    "shot": (8, {"data.shot": 8, "data.mode": "few_shot"}),
    "training_mode": ("few_shot", {"data.mode": "few_shot"}),
    "text_epoch": (7, {"stages.text.epochs": 7}),
    "image_epoch": (0, {"stages.image.epochs": 0}),
    "text_batch_size": (4, {"stages.text.batch_size": 4}),
    "image_batch_size": (3, {"stages.image.batch_size": 3}),
    "text_lr": (0.00002, {"stages.text.lr": 2e-5}),
    "image_lr": (1e-10, {"stages.image.lr": 1e-10}),
    "text_adapt_until": (2, {"adapters.text_blocks": 2}),
    "image_adapt_until": (5, {"adapters.image_blocks": 5}),
    "text_adapt_weight": (0.2, {"adapters.text_weight": 0.2}),
    "image_adapt_weight": (0.3, {"adapters.image_weight": 0.3}),
    "text_norm_weight": (0.5, {"loss.orthogonal": 0.5}),
    "relu": (True, {"heads.activation": "leaky"}),
    "surgery_until_layer": (20, {"surgery.blocks": 19}),
    "model_name": ("ViT-B-16", {"backbone.name": "ViT-B-16"}),
    "img_size": (336, {"backbone.image_size": 336}),
    "seed": (111, {"trainer.seed": 111}),
}


def test_every_flag_of_the_released_code_is_known():
    assert set(inspect.signature(train_verb).parameters) >= RELEASED
    assert {*MEANT} == RELEASED - {"save_path", "criterion"}


def test_every_flag_that_the_source_document_names_is_an_option_of_train(aaclip):
    _, printed, _ = aaclip("train", "--help")
    shown = set(re.findall(r"--(\w+)", printed))
    assert shown >= RELEASED - {"criterion"}


@pytest.mark.parametrize("name", MEANT)
def test_each_flag_sets_its_field_and_no_other(name):
    given, expected = MEANT[name]
    before = leaves(asdict(resolve(overrides=["heads.activation=none"])))
    after = leaves(asdict(resolve(overrides=["heads.activation=none", *make_overrides(**{name: given})])))
    assert {key: value for key, value in after.items() if value != before[key]} == expected


def test_no_flag_changes_nothing_and_an_override_has_the_last_word():
    assert make_overrides() == []
    flags = make_overrides(text_lr=1e-4, dataset="MVTec")
    settings = resolve(config="official", overrides=[*flags, "data.root=/mnt/mvtec"])
    assert (settings.stages.text.lr, settings.data.root) == (1e-4, "/mnt/mvtec")
    assert settings.adapters.kind == "linear"


def test_full_shot_has_its_say_over_a_shot_in_whatever_order():
    for given in ({"training_mode": "full_shot", "shot": 32}, {"shot": 32, "training_mode": "full_shot"}):
        assert resolve(overrides=make_overrides(**given)).data.mode == "full_shot"


@pytest.fixture
def told(monkeypatch, tmp_path) -> dict:
    """What `aaclip train` asks of `experiment.train` or `released.training.train`, which do nothing."""
    asked = {}

    def train(config: Config, *, resume: Path | None = None, save_path: Path | None = None, **more) -> None:
        asked.update(config=config, resume=resume, save_path=save_path, **more)
        raise ValueError("stop")

    monkeypatch.setattr("aaclip.training.experiment.train", train)
    monkeypatch.setattr("aaclip.released.training.train", train)
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_source_documents_full_pipeline_is_taken_as_it_stands(aaclip, told):
    line = (
        "--dataset MVTec --training_mode few_shot --shot 32 --text_epoch 5 --image_epoch 20 --text_batch_size 16 "
        "--image_batch_size 2 --text_lr 0.00001 --image_lr 0.0005 --save_path ckpt/mvtec_full"
    )
    assert aaclip("train", *line.split())[2].strip() == "error: stop"
    config, stages = told["config"], told["config"].stages
    assert (config.data.root, config.data.mode, config.data.shot) == ("MVTec", "few_shot", 32)
    assert (stages.text.epochs, stages.text.batch_size, stages.text.lr) == (5, 16, 1e-5)
    assert (stages.image.epochs, stages.image.batch_size, stages.image.lr) == (20, 2, 5e-4)
    assert (told["save_path"], told["resume"], told["stage"]) == (Path("ckpt/mvtec_full"), None, "both")


def test_flags_on_the_line_go_beside_presets_and_overrides(aaclip, told):
    more = ("surgery.axis=batch", "stages.text.cache_features=0", "name=x")
    aaclip("train", "--config=tiny", "--surgery_until_layer", 5, "--relu", "--seed=3", *more)
    config = told["config"]
    assert (config.surgery.blocks, config.surgery.axis, config.trainer.seed, config.name) == (4, "batch", 3, "x")
    assert config.backbone.name == "tiny"
    assert told["save_path"] is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--criterion dice_loss focal_loss", ["--criterion", "no meaning here", "leave it out"]),
        ("--text_lr fast", ["--text_lr", "valid number"]),
        ("--text_epoch 2.5", ["--text_epoch", "valid integer"]),
        ("--image_epoch -1", ["stages.image.epochs", "-1"]),
        ("--shot 3", ["data.shot", "even number", "3"]),
        ("--training_mode half_shot", ["data.mode", "few_shot", "half_shot"]),
        ("--text_adapt_weight 2", ["adapters.text_weight", "share", "2"]),
        ("--text_epochs 2", ["--text_epochs", "--text_epoch"]),
        ("--stage txt", ["--stage", "txt"]),
        ("--save_path a name=b", ["name=b", "--save_path a", "one of them"]),
        ("--save_path a --resume b", ["--resume", "leave out"]),
        ("--text_epoch 2 --resume b", ["--resume", "leave out"]),
    ],
)
def test_what_cannot_be_is_one_line(aaclip, told, line, words):
    code, _, error = aaclip("train", *line.split())
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error
    assert told == {}
    assert not any(Path().iterdir())


def test_every_field_that_a_flag_names_exists(aaclip):
    printed = leaves(yaml.safe_load(aaclip("config")[1]))
    assert {*FIELDS.values()} <= set(printed)
    assert {field for _, fields in MEANT.values() for field in fields} <= set(printed)
