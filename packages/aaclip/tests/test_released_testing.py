"""Testing as the released code does: the domain of the tested set, names of classes, settings of one test."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import refused, succeeded

from aaclip.config import Config, PromptConfig, ScoreConfig
from aaclip.detector.detector import Detector
from aaclip.models.prompts import embed_classes, load_prompts
from aaclip.scoring.score import choose_score


def official(**more) -> Config:
    return Config(score=ScoreConfig(image="official", **more))


@pytest.fixture
def released(detector, tmp_path) -> Path:
    """A saved detector that scores and prompts as the released code."""
    score = ScoreConfig(image="official")
    detector.config = replace(detector.config, score=score, prompts=PromptConfig(set="compact"))
    return detector.save_pretrained(tmp_path / "released")


@pytest.fixture
def set_of(parts, tmp_path):
    """`set_of("Brain", "pill")` -> the drawn parts under these class names."""

    def make(*names: str) -> Path:
        root = tmp_path / "_".join(names)
        for name, kind in zip(names, ("mug", "star"), strict=False):
            shutil.copytree(parts / kind, root / name)
        return root

    return make


@pytest.mark.parametrize(
    ("config", "classes", "overrides", "domain"),
    [
        (official(), ["candle", "pcb1"], [], "industrial"),
        (official(domain="medical"), ["candle"], [], "industrial"),  # of the tested set, not of the training set
        (official(), ["Brain_AD"], [], "medical"),
        (official(), ["CVC-300"], [], "medical"),
        (official(), ["Brain"], ["score.domain=industrial"], "industrial"),
        (official(), ["01", "02"], ["score.domain=medical"], "medical"),
        (official(domain="medical"), ["mug"], [], "medical"),  # no published set: as configured
        (official(), ["mug"], [], "industrial"),
        (Config(), ["Brain"], [], "industrial"),  # the score of default is absolute
        (Config(), ["Brain"], ["score.domain=medical"], "medical"),
    ],
)
def test_the_domain_is_that_of_the_tested_set(config, classes, overrides, domain):
    assert choose_score(config, classes, overrides=overrides).score.domain == domain


def test_a_set_of_both_domains_needs_a_choice():
    with pytest.raises(ValueError, match="two domains"):
        choose_score(official(), ["Brain", "pill"])
    assert choose_score(official(), ["Brain", "pill"], overrides=["score.domain=medical"]).score.domain == "medical"


def test_test_says_the_domain_and_takes_another(aaclip, released, set_of, tmp_path):
    maps = {}
    for name, more, domain in [
        ("Brain", [], "medical"),
        ("Brain", ["score.domain=industrial"], "industrial"),
        ("candle", [], "industrial"),
    ]:
        root, out = tmp_path / name, tmp_path / "out"
        printed = succeeded(aaclip("test", released, root if root.exists() else set_of(name), *more, "--out", out))
        assert f"domain of the set: {domain}; score.domain=… sets another" in printed
        told = json.loads((out / "results.json").read_text())
        assert f"Domain {domain}." in told["note"]
        maps[name, *more] = told["classes"][name]
    assert maps["Brain",] != maps["Brain", "score.domain=industrial"]


def test_test_takes_score_alone(aaclip, released, parts):
    refused(aaclip("test", released, parts, "levels=[1]"), "levels=[1]", "overrides of score alone")
    refused(aaclip("test", released, parts, "score.domain=medicine"), "score.domain", "medicine")
    assert not (released / "test-parts").exists()


def test_an_override_of_the_score_changes_the_score(aaclip, released, parts, tmp_path):
    found = []
    for more in ([], ["score.image=calibrated"]):
        printed = succeeded(aaclip("test", released, parts, *more, "--out", tmp_path / "out"))
        assert ("domain of the set" in printed) != bool(more)
        found.append(json.loads((tmp_path / "out" / "results.json").read_text())["classes"]["mug"]["image/auroc"])
    assert found[0] != found[1]


def test_test_says_once_which_classes_have_no_name(aaclip, released, set_of):
    printed = succeeded(aaclip("test", released, set_of("pill", "screw")))
    assert printed.count("prompts call these classes by their folders: pill; prompts.names=FILE names them") == 1


@pytest.mark.filterwarnings("ignore:image score not fitted")
def test_train_says_it_once_and_takes_a_file(aaclip, small, set_of, tmp_path):
    one = ["stages.text.epochs=1", "stages.image.epochs=0", f"data.root={set_of('pill', 'screw')}"]
    printed = succeeded(aaclip("train", *small, *one, "name=a"))
    assert printed.count("prompts call these classes by their folders: pill;") == 1
    (tmp_path / "constants.py").write_text("REAL_NAMES = {'MVTec': {'pill': 'white pill'}}")
    printed = succeeded(aaclip("train", *small, *one, "name=b", f"prompts.names={tmp_path / 'constants.py'}"))
    assert "by their folders" not in printed
    detector = Detector.from_pretrained(tmp_path / "runs" / "aaclip" / "b")
    assert sorted(detector.classes) == ["pill", "screw"]
    trained = detector.class_embedding("pill")
    assert torch.allclose(trained, detector.class_embedding("white pill"), atol=1e-5)  # a noun, embedded anew
    assert not torch.allclose(trained, detector.class_embedding("red pill"), atol=1e-3)


@pytest.mark.filterwarnings("ignore:image score not fitted")
@pytest.mark.parametrize("more", [["adapters.final_init=xavier", "adapters.kind=linear"], []])
def test_without_a_text_stage_classes_are_plain_clip_s_in_training_test_and_predict(
    aaclip, small, bundle, tmp_path, monkeypatch, more
):
    expected = embed_classes(
        lambda texts: bundle.text_tower(bundle.tokenizer(texts)), ["mug", "key"], load_prompts(PromptConfig("compact"))
    )
    trained_on = {}

    def fit(module, *_, **__):
        trained_on.update(module.classes)
        raise ValueError("stop")

    with monkeypatch.context() as patch:
        patch.setattr("aaclip.training.fits.fit", fit)
        refused(aaclip("train", *small, *more, "stages.text.epochs=0"), "stop")
    torch.testing.assert_close(trained_on["mug"], expected[0])
    succeeded(aaclip("train", *small, *more, "stages.text.epochs=0", "stages.image.epochs=1", "name=plain"))
    run = Detector.from_pretrained(tmp_path / "runs" / "aaclip" / "plain")
    torch.testing.assert_close(run.class_embedding("mug"), expected[0])  # as it was saved
    torch.testing.assert_close(run.class_embedding("key"), expected[1])  # a new name
