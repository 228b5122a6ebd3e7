"""A classifier saved and read again; damaged, unfinished and foreign folders are one line."""

import json
import shutil

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from clip_common.runs import Run
from videoclip import Classifier
from videoclip.classifier.classifier import Sampling
from videoclip.config import ModelConfig
from videoclip.data.manifest import read_manifest
from videoclip.models import VideoAttentionCLIP
from videoclip.training.weights import load_torchvision_weights

SMALL = {"clip_feature_dim": 16, "clip_embed_dim": 8, "map_guided_hidden_dim": 8}


def model_of(*, temperature=None, **knobs):
    torch.manual_seed(0)
    return VideoAttentionCLIP(ModelConfig(**SMALL | knobs), temperature=temperature)


def save(model, folder):
    return Classifier(model, Sampling(frames=4, size=32, clip_seconds=1.0), device="cpu").save_pretrained(folder)


def inputs_of(channels):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(3, c, 4, 16, 16, generator=generator) for c in (3, channels))


def logits_of(model):
    return model.eval()(*inputs_of(model.config.attn_in_channels)).logits


def test_a_saved_model_comes_back_with_its_knobs(tmp_path):
    folder = tmp_path / "modèle ü"
    model = model_of(map_guided=True, map_guided_type="channel", attn_in_channels=2, temperature=0.5)
    model(*inputs_of(2))
    save(model, folder)
    back = Classifier.from_pretrained(folder).model
    assert back.config == model.config
    assert not back.training
    assert back.temperature == 0.5
    assert torch.equal(logits_of(back), logits_of(model))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert "temperature" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_a_learned_temperature_comes_back(tmp_path):
    model = model_of()
    nn.init.constant_(model.logit_scale.logit_scale, 3.0)
    back = Classifier.from_pretrained(save(model, tmp_path)).model
    assert back.logit_scale.logit_scale.item() == 3
    assert back.logit_scale.logit_scale.requires_grad


def test_the_file_of_torchvisions_weights_is_not_asked_for_again(tmp_path):
    file = tmp_path / "mc3.pth"
    torch.save(torchvision.models.video.mc3_18(weights=None).state_dict(), file)
    model = model_of(clip_backbone="mc3_18", weights=str(file))
    load_torchvision_weights(model.video_encoder, file)
    save(model, tmp_path / "model")
    file.unlink()
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    back = Classifier.from_pretrained(tmp_path / "model").model
    assert torch.equal(back.video_encoder.network.stem[0].weight, model.video_encoder.network.stem[0].weight)


@pytest.mark.parametrize(
    "damage",
    [
        *("no folder", "no weights", "missing weight", "cut weights", "cut config", "foreign knob", "other width"),
        *("no sampling", "half a sampling", "not JSON", "a list"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, damage):
    folder = save(model_of(), tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    match damage:
        case "no folder":
            shutil.rmtree(folder)
        case "no weights":
            weights.unlink()
        case "missing weight":
            state = load_file(weights)
            del state["classifier.bias"]
            save_file(state, weights)
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "cut config":
            config.write_text(config.read_text(encoding="utf-8")[:40], encoding="utf-8")
        case "foreign knob":
            config.write_text(json.dumps(told | {"model": told["model"] | {"depth": 3}}), encoding="utf-8")
        case "other width":
            config.write_text(json.dumps(told | {"model": told["model"] | {"clip_embed_dim": 4}}), encoding="utf-8")
        case "no sampling":
            config.write_text(json.dumps({name: value for name, value in told.items() if name != "sampling"}))
        case "half a sampling":
            config.write_text(json.dumps(told | {"sampling": {"frames": 4}}))
        case "not JSON":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
    with pytest.raises(ValueError, match=r"model\.safetensors|config\.json|no such folder") as error:
        Classifier.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_it_is_saved_and_read_again(trained, walks, tmp_path):
    first = Classifier.from_pretrained(trained("model.map_guided=true"), device="cpu")
    again = Classifier.from_pretrained(first.save_pretrained(tmp_path / "kept"), device="cpu")
    video = read_manifest(walks / "manifest.csv")[0].video
    assert again.sampling == first.sampling
    assert again.predict(video).probabilities == first.predict(video).probabilities


def test_a_run_of_several_fits_or_none_says_so(tmp_path):
    def new(name, **of):
        return Run.create("videoclip", config_yaml="", name=name, root=tmp_path, **of).path

    run = new("unfinished")
    with pytest.raises(ValueError, match=f"a run without a model yet: finish it with `videoclip train --resume {run}`"):
        Classifier.from_pretrained(run)
    with pytest.raises(ValueError, match="a run of `videoclip cv`, which keeps no model: train one with"):
        Classifier.from_pretrained(new("folds", verb="cv"))
    series = new("rows", verb="ablate", group="ablate")
    Run.create("videoclip", config_yaml="", name="B0-s0", root=series)
    with pytest.raises(ValueError, match=r"is a series of several runs .*: name one of them, e\.g\. .*B0-s0"):
        Classifier.from_pretrained(series)


def test_a_model_of_the_version_before_is_refused(tmp_path):
    folder = save(model_of(), tmp_path / "model")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"format": 1, "model": told["model"], "temperature": None}))
    with pytest.raises(ValueError, match=r"saved by an older version of videoclip.*: train it again"):
        Classifier.from_pretrained(folder)
