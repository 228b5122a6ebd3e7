"""Weights that torchvision publishes: loaded without their classifier, or refused in one line."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from videoclip.models import build_video_encoder
from videoclip.training.weights import load_torchvision_weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_load_from_a_file_without_their_classifier(tmp_path, suffix):
    source = torchvision.models.video.mc3_18(weights=None, num_classes=400)
    file = tmp_path / f"gewichte ü{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), file)
    else:
        save_file(source.state_dict(), file)
    encoder = build_video_encoder("mc3_18", feature_dim=16)
    load_torchvision_weights(encoder, file)
    for name, tensor in encoder.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert encoder(torch.rand(1, 3, 4, 32, 32)).shape == (1, 16)
    with pytest.raises(ValueError, match=r"does not fit r3d_18: .* such as .*: give the weights") as error:
        load_torchvision_weights(build_video_encoder("r3d_18", feature_dim=16), file)
    assert "\n" not in str(error.value)


class _Surprise:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["absent", "damaged .pth", "damaged .safetensors", "pickle", "no tensors"])
def test_weights_that_cannot_be_read_are_one_line(tmp_path, content, capsys):
    file = tmp_path / ("w.safetensors" if content.endswith("safetensors") else "w.pth")
    if content.startswith("damaged"):
        file.write_bytes(b"\x00\x01 no weights")
    elif content == "pickle":
        torch.save({"fc": _Surprise()}, file)
    elif content == "no tensors":
        torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors)") as error:
        load_torchvision_weights(build_video_encoder("mc3_18", feature_dim=16), file)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
