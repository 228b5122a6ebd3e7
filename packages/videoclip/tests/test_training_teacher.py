"""Distillation from a model that is guided by maps, and maps that are hidden more and more."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import rows, same, weights

from clip_common.config import load_config
from clip_common.errors import DataError
from videoclip import Config, train
from videoclip.training.losses import distil
from videoclip.training.modules import AlignmentModule

GUIDED = "model.map_guided=true"


def configured(small, *overrides) -> Config:
    return load_config(Config, overrides=[*small, *overrides])


def test_the_formula_by_hand():
    """At T = 2: logits 2 and 0 against a teacher's 0 and 0, so ½ and ½ against σ(1) and σ(−1); equal ones give 0."""
    own, taught = torch.tensor([[2.0, 0.0], [5.0, 3.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    likely = 1 / (1 + math.exp(-1))
    first = 4 * (0.5 * math.log(0.5 / likely) + 0.5 * math.log(0.5 / (1 - likely)))
    assert distil(own, taught).item() == pytest.approx(first / 2, rel=1e-5)


def test_a_teacher_teaches_and_is_neither_trained_nor_saved(small, trained):
    teacher = trained(GUIDED)
    before = weights(teacher)
    run = train(configured(small, "name=pupil", f"loss.teacher={teacher}", "loss.distill_weight=3")).run.path
    alone = train(configured(small, "name=alone")).run.path
    assert not same(weights(run), weights(alone))
    assert same(weights(teacher), before)
    assert weights(run).keys() == weights(alone).keys()
    kept = torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("teacher" in name for name in kept)
    for row in rows(run / "metrics.csv"):
        if row["train/loss"]:
            parts = {name: float(row[f"train/loss_{name}"]) for name in ("classification", "contrastive")}
            taught = float(row["train/loss_distillation"])
            assert taught > 0
            assert float(row["train/loss"]) == pytest.approx(sum(parts.values()) + 3 * taught, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ("data.fold=1", DataError, r"was trained on 5 subject\(s\) that this run holds out, first subject_"),
        ("data.size=48", ValueError, "it has data.size=32, this run 48: set both alike"),
        ("data.frames=6", ValueError, "it has data.frames=4, this run 6: set both alike"),
        ("model.model_class_num=4", ValueError, "it has model.model_class_num=3, this run 4"),
    ],
)
def test_a_teacher_of_other_people_or_inputs_is_refused(small, trained, overrides, error, message):
    with pytest.raises(error, match=message):
        train(configured(small, f"loss.teacher={trained(GUIDED)}", *overrides.split()))


def test_what_is_no_run_and_a_run_of_another_set_are_refused(small, trained, walks, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        train(configured(small, f"loss.teacher={tmp_path / 'nothing'}"))
    (tmp_path / "other").symlink_to(walks)
    train(configured(small, "name=linked", f"loss.teacher={trained(GUIDED)}", f"data.root={tmp_path / 'other'}"))
    with pytest.raises(ValueError, match="it may know the test subjects of"):
        train(configured(small, f"loss.teacher={trained(GUIDED)}", f"data.root={tmp_path}"))


def test_maps_are_hidden_more_and_more(small):
    """From 0 to a half over the first quarter of 40 steps; without a warm-up a half from the start."""
    for warmup, expected in (("0.25", [0, 0.25, 0.5, 0.5]), ("0", [0.5] * 4)):
        knobs = [GUIDED, "model.map_dropout=0.5", f"model.map_dropout_warmup={warmup}"]
        config = configured(small, *knobs)
        found = []
        for step in (0, 5, 10, 39):
            found.append(
                AlignmentModule.map_dropout.fget(
                    SimpleNamespace(
                        config=config, global_step=step, trainer=SimpleNamespace(estimated_stepping_batches=40)
                    )
                )
            )
        assert found == pytest.approx(expected)
