"""The flags of the fork's scripts: all of them, each on the field that it names."""

import inspect
import re
from dataclasses import asdict

import pytest
from helpers.commands import refused
from helpers.configs import leaves

from aaclip.cli.feedback import feedback as feedback_verb
from aaclip.released.fork_flags import FIELDS, make_fork_overrides
from aaclip.training.feedback import resolve

MEANT = {
    "mode": ("freeze_adapters", {"feedback.freeze": "adapters"}),
    "num_feedback_loops": (10, {"feedback.loops": 10}),
    "loop1_text_epoch": (4, {"feedback.text_epochs": [4, 3, 2]}),
    "loop2_text_epoch": (4, {"feedback.text_epochs": [5, 4, 2]}),
    "loop3_text_epoch": (4, {"feedback.text_epochs": [5, 3, 4]}),
    "loop1_image_epoch": (7, {"feedback.image_epochs": [7, 10, 5]}),
    "loop2_image_epoch": (7, {"feedback.image_epochs": [20, 7, 5]}),
    "loop3_image_epoch": (7, {"feedback.image_epochs": [20, 10, 7]}),
    "text_epochs_per_loop": (6, {"feedback.text_epochs": [6]}),
    "image_epochs_per_loop": (15, {"feedback.image_epochs": [15]}),
    "epochs_decay_rate": (0.8, {"feedback.epochs_decay": 0.8}),
    "lr_decay_per_loop": (0.8, {"feedback.lr_decay": 0.8}),
    "warmup_epochs": (1, {"feedback.warmup_epochs": 1.0}),
    "cross_attn_start_loop": (2, {"feedback.cross_attention_start_loop": 2}),
    "cross_attn_heads": (4, {"cross_attention.heads": 4}),
    "cross_attn_dropout": (0.2, {"cross_attention.dropout": 0.2}),
    "plateau_threshold": (0.02, {"feedback.plateau_threshold": 0.02}),
    "plateau_patience": (3, {"feedback.plateau_patience": 3}),
    "grad_clip": (1.5, {"trainer.grad_clip": 1.5}),
}


@pytest.mark.parametrize("name", MEANT)
def test_each_flag_sets_its_field_and_no_other(name):
    given, expected = MEANT[name]
    before, after = (leaves(asdict(resolve(overrides=more))) for more in ([], make_fork_overrides(**{name: given})))
    assert {key: value for key, value in after.items() if value != before[key]} == expected


def test_every_flag_is_an_option_of_feedback_and_named_there(aaclip):
    parameters = set(inspect.signature(feedback_verb).parameters)
    assert parameters >= {*MEANT, "load_base_text_adapter", "load_base_image_adapter", "dataset", "shot", "text_lr"}
    assert set(FIELDS) < set(MEANT)
    _, printed, _ = aaclip("feedback", "--help")
    assert set(re.findall(r"--(\w+)", printed)) >= set(MEANT)


def test_no_clipping_is_zero_there_and_null_here():
    assert make_fork_overrides(grad_clip=0.0) == ["trainer.grad_clip=null"]
    assert make_fork_overrides() == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode", "base"], ["use aaclip train"]),
        (["--mode", "cross_attention"], ["use aaclip train cross_attention.enabled=true"]),
        (["--mode", "both"], ["expected one of feedback, freeze_adapters, variant_b"]),
        (["--load_base_text_adapter", "x.pth"], ["aaclip import FOLDER DETECTOR", "start=DETECTOR"]),
        (["--text_epochs_per_loop", 3, "--loop2_text_epoch", 2], ["both set feedback.text_epochs"]),
    ],
)
def test_flags_without_a_meaning_here_are_one_line(aaclip, flags, words):
    refused(aaclip("feedback", *flags, "data.root=x"), *words)


def test_flags_train_and_an_override_wins(aaclip, small, tmp_path):
    import yaml

    more = ["--num_feedback_loops", 1, "--loop1_text_epoch", 1, "--image_epochs_per_loop", 4, "--cross_attn_heads", 2]
    wins = ["feedback.image_epochs=[1]", "name=flags"]
    code, _, error = aaclip("feedback", *more, *small, *wins)
    assert code == 0, error
    config = yaml.safe_load((tmp_path / "runs" / "aaclip" / "flags" / "config.yaml").read_text())
    assert (config["feedback"]["loops"], config["feedback"]["text_epochs"]) == (1, [1, 3, 2])
    assert (config["feedback"]["image_epochs"], config["cross_attention"]["heads"]) == ([1], 2)
