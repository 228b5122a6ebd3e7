"""Checkpoints in the released format, from a few lines that save as the released code does."""

import pytest
import torch
from torch import nn

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.released.checkpoints import import_official
from clip_common.backbones import save_bundle
from clip_common.config import load_config


class SimpleAdapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width, bias=False), nn.LeakyReLU())


class SimpleProj(nn.Module):
    def __init__(self, width, out, relu=True):
        super().__init__()
        linear = nn.Linear(width, out, bias=False)
        self.fc = nn.Sequential(linear, nn.LeakyReLU()) if relu else linear


@pytest.fixture
def config(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "clip")
    small = ["backbone.pretrained=null", "backbone.image_size=null", "backbone.activation=null", "levels=[2, 4]"]
    sizes = ["adapters.text_blocks=3", "adapters.image_blocks=2", "surgery.blocks=6"]
    return load_config(
        Config,
        config="official",
        overrides=[f"backbone.name=local-dir:{tmp_path / 'clip'}", *small, *sizes],
        package="aaclip",
    )


@pytest.fixture
def released(tmp_path):
    """text_adapter.pth and image_adapter.pth of widths 16 -> 24 and 32 -> 24."""
    text = nn.ModuleList([*(SimpleAdapter(16) for _ in range(3)), SimpleProj(16, 24)])
    image = nn.ModuleDict(
        {
            "layer_adapters": nn.ModuleList(SimpleAdapter(32) for _ in range(2)),
            "seg_proj": nn.ModuleList(SimpleProj(32, 24, relu=False) for _ in range(2)),
            "det_proj": SimpleProj(32, 24, relu=False),
        }
    )
    optimizer = torch.optim.Adam(text.parameters()).state_dict()
    torch.save(
        {"epoch": 5, "text_adapter": text.state_dict(), "text_optimizer": optimizer}, tmp_path / "text_adapter.pth"
    )
    torch.save({"epoch": 20, "image_adapter": image.state_dict()}, tmp_path / "image_adapter.pth")
    return tmp_path, text, image


def test_every_weight_finds_its_place(config, released):
    folder, text, image = released
    model = import_official(folder, config).model
    for number in range(3):
        assert torch.equal(model.text_adapter.layers[number][0].weight, text[number].fc[0].weight)
    assert torch.equal(model.text_adapter.final[0].weight, text[3].fc[0].weight)
    assert isinstance(model.text_adapter.final[1], nn.LeakyReLU)
    for number in range(2):
        assert torch.equal(model.image_adapter.layers[number][0].weight, image["layer_adapters"][number].fc[0].weight)
        assert torch.equal(model.image_adapter.segmentation[number][0].weight, image["seg_proj"][number].fc.weight)
    assert torch.equal(model.image_adapter.detection[0].weight, image["det_proj"].fc.weight)


def test_what_was_imported_is_saved_as_safetensors_and_comes_back(config, released, tmp_path):
    detector = import_official(released[0], config)
    text = detector.class_embedding("metal nut")
    detector.save_pretrained(tmp_path / "saved")
    again = Detector.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.class_embedding("metal nut"), text)
    images = torch.randn(2, 3, 32, 32)
    pair = text.expand(2, -1, -1)
    torch.testing.assert_close(again.scores(images, pair).maps_BSS, detector.scores(images, pair).maps_BSS)


def test_the_documents_bottleneck_is_read_too(config, tmp_path):
    fc = {f"0.fc{n}.{what}": torch.randn(shape) for n, what, shape in
          [(1, "weight", (8, 16)), (1, "bias", (8,)), (2, "weight", (16, 8)), (2, "bias", (16,))]}  # fmt: skip
    fc["1.fc.0.weight"] = torch.randn(24, 16)
    torch.save({"text_adapter": fc}, tmp_path / "text_adapter.pth")
    config.adapters.kind, config.adapters.text_blocks = "bottleneck", 1
    model = import_official(tmp_path, config).model
    assert torch.equal(model.text_adapter.layers[0][2].bias, fc["0.fc2.bias"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"image_adapter": {}}, "it has no text_adapter"),
        ({"text_adapter": {"7.strange.weight": torch.zeros(1)}}, "no weight of AA-CLIP's adapters"),
        ({"text_adapter": {"0.fc.0.weight": torch.zeros(3, 3)}}, "does not fit the adapters of this configuration"),
    ],
)
def test_other_files_are_one_line(config, tmp_path, content, said):
    torch.save(content, tmp_path / "text_adapter.pth")
    with pytest.raises(ValueError, match=said) as error:
        import_official(tmp_path, config)
    assert "\n" not in str(error.value)


def test_no_file_is_one_line(config, tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint"):
        import_official(tmp_path, config)
