"""The tiny language model learns to see: a minute of training, held-out scenes, and the wrong images as a control."""

import pytest

from clip_common.config import load_config
from clip_common.synthetic import write_questions
from edgeglass.config import VlmConfig
from edgeglass.scoring.answers import ALL
from edgeglass.scoring.vlm_score import score_vlm
from edgeglass.training.vlm_experiment import train_vlm


def test_a_minute_of_training_answers_questions_about_unseen_scenes(tmp_path):
    """The words alone reach .22, and so does the trained model with the wrong images."""
    write_questions(tmp_path / "scenes", train=400, val=16, test=64, size=112, seed=7, per_picture=16)
    overrides = [
        f"data.root={tmp_path / 'scenes'}",
        "prefix.name=tiny",
        "trainer.devices=cpu",
        f"runs={tmp_path / 'runs'}",
        "name=seeing",
    ]
    run = train_vlm(load_config(VlmConfig, config="tiny_vlm", overrides=overrides, package="edgeglass")).run
    scored = score_vlm(run.path, control="swapped")
    assert scored.majority is not None
    assert scored.swapped is not None
    assert scored.majority.accuracy[ALL].value == pytest.approx(0.22, abs=0.02)
    assert scored.scores.accuracy[ALL].value > 0.32
    assert scored.swapped.accuracy[ALL].value < 0.29
