"""Plain CLIP as a command names it: the pixels and activation of its trained self, and the overrides of one test."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import refused, succeeded

from aaclip.config import BackboneConfig
from aaclip.detector.detector import Detector
from aaclip.detector.files import read_detector
from aaclip.models.backbone import read_backbone
from aaclip.scoring.score import open_for_test
from clip_common.backbones import BackboneError, load_clip
from clip_common.runs.opening import MARKER


def test_an_architecture_with_its_weights_runs_as_training_runs_it():
    found = read_backbone("ViT-L-14-336:openai")
    assert found == BackboneConfig()
    assert (found.image_size, found.activation) == (518, "quick_gelu")
    file = read_backbone("ViT-L-14-336:/models/a:b/ViT-L-14-336px.pt")
    assert (file.name, file.pretrained) == ("ViT-L-14-336", "/models/a:b/ViT-L-14-336px.pt")


@pytest.mark.parametrize("source", ["tiny", "hf-hub:org/name", "local-dir:/models/größe"])
def test_others_run_as_their_weights_say(source):
    assert read_backbone(source) == BackboneConfig(name=source, pretrained=None, activation=None, image_size=None)


def test_an_architecture_alone_and_an_unknown_tag_are_one_line():
    with pytest.raises(ValueError, match="name its weights too, such as ViT-L-14-336:openai") as error:
        Detector.open("ViT-L-14-336")
    assert "\n" not in str(error.value)
    with pytest.raises(BackboneError, match="has no weights 'openay'; did you mean openai"):
        Detector.open("ViT-L-14-336:openay")


@pytest.fixture
def architecture(monkeypatch, bundle, tmp_path) -> str:
    """An architecture of the small CLIP's shape, and a file of its weights: NAME:FILE."""
    import open_clip

    config = {key: bundle.spec.config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-small.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "configs")
    state = bundle.image_tower.trunk.state_dict() | bundle.text_tower.trunk.state_dict()
    torch.save(state | {"logit_scale": torch.tensor(bundle.logit_scale)}, tmp_path / "weights.pt")
    return f"ViT-small:{tmp_path / 'weights.pt'}"


def test_a_test_of_it_takes_the_size_and_activation_of_a_run_or_others(aaclip, architecture, parts, tmp_path):
    small = ("backbone.image_size=48", "prompts.set=compact")
    printed = succeeded(aaclip("test", architecture, parts, *small, "--out", tmp_path / "out"))
    assert "ViT-small:weights.pt on parts" in " ".join(printed.split())
    assert "48 pixels" in json.loads((tmp_path / "out" / "results.json").read_text())["note"]
    opened = open_for_test(architecture, overrides=small)
    assert (opened.size, opened.model.bundle.spec.activation) == (48, "quick_gelu")
    gelu = open_for_test(architecture, overrides=(*small, "backbone.activation=gelu"))
    images = torch.randn(1, 3, 48, 48)
    maps = [one.scores(images, one.class_embedding("mug")[None]).maps_BSS for one in (opened, gelu)]
    assert not torch.allclose(*maps, atol=1e-3)


def test_predict_takes_it_too(aaclip, architecture, photos, tmp_path, monkeypatch):
    asked = []

    def load(name, **more):
        asked.append(more)
        return load_clip("tiny")

    monkeypatch.setattr("aaclip.models.backbone.load_clip", load)
    succeeded(aaclip("predict", architecture, photos, "--name", "mug", "--out", tmp_path / "out"))
    assert (asked[0]["image_size"], asked[0]["activation"]) == (518, "quick_gelu")
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("override", ["data.root=x", "stages.text.epochs=3", "surgery.blocks=2"])
def test_settings_that_plain_clip_has_no_use_for_are_refused(aaclip, clip_folder, parts, override):
    said = f"{override}: this test takes overrides of backbone, levels, preprocess, prompts, score alone"
    refused(aaclip("test", f"local-dir:{clip_folder}", parts, override), said)


def test_a_run_takes_overrides_of_its_score_alone(aaclip, saved, parts):
    said = "backbone.image_size=48: this test takes overrides of score alone, because the rest is part of the run"
    refused(aaclip("test", saved, parts, "backbone.image_size=48"), said)


def test_a_detector_whose_clip_now_has_another_activation_is_refused(saved, clip_folder, tmp_path):
    """Its weights, and so its fingerprint, are the same."""
    other = Path(shutil.copytree(clip_folder, tmp_path / "other"))
    file = other / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["quick_gelu"] = not content["model_cfg"].get("quick_gelu", False)
    file.write_text(json.dumps(content))
    assert read_detector(saved).activation == "gelu"
    (saved / MARKER).write_text((saved / MARKER).read_text().replace(str(clip_folder), str(other)))
    with pytest.raises(ValueError, match=r"was made with activation gelu, but .* now runs with quick_gelu") as error:
        Detector.from_pretrained(saved)
    assert "\n" not in str(error.value)
