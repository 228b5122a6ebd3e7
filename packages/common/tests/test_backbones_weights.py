"""Files of weights: one tower alone, and TorchScript archives as OpenAI published CLIP, read without running them."""

import hashlib
import warnings

import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import nn

from clip_common.backbones import BackboneError, fingerprint, load_clip, weights
from clip_common.backbones.weights import construct_network
from clip_common.tensors import TensorsError, read_checkpoint

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small():
    return load_clip("small", model_config=CONFIG)


@pytest.fixture(scope="module")
def flat(small):
    """Weights by OpenAI's names."""
    own = small.image_tower.trunk.state_dict() | small.text_tower.trunk.state_dict()
    own["logit_scale"] = torch.tensor(small.logit_scale)
    return {name.removeprefix("text."): value for name, value in own.items()}


class Archived(nn.Module):
    """Weights of any names, as a module that TorchScript takes."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            first, dot, rest = name.partition(".")
            if dot:
                groups.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(name, tensor)
        for name, own in groups.items():
            self.add_module(name, Archived(own))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(state, file):
    """Write a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Archived(state)), file)
    return file


def test_an_archive_in_half_precision_with_openais_numbers_loads_as_its_weights(small, flat, tmp_path):
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    half = {name: tensor.half() for name, tensor in flat.items()}
    file = archive(half | {name: torch.tensor(size) for name, size in sizes.items()}, tmp_path / "größe.pt")
    bundle = load_clip("small", model_config=CONFIG, pretrained=str(file))
    with torch.no_grad():
        found, expected = (one.image_tower(IMAGES).pooled for one in (bundle, small))
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
        tokens = small.tokenizer(["a dog"])
        torch.testing.assert_close(bundle.text_tower(tokens), small.text_tower(tokens), atol=5e-3, rtol=5e-3)
    larger = load_clip("small", model_config=CONFIG, pretrained=str(file), image_size=48, text=False)
    assert larger.image_tower(torch.randn(1, 3, 48, 48)).patches.shape == (1, 36, 32)


def test_an_archive_that_runs_code_at_loading_is_refused_with_the_way_to_convert_it(tmp_path):
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        @torch.jit.export
        def __getstate__(self):
            return (self.weight, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]):
            self.weight = state[0]
            self.training = state[1]

        def forward(self, x):
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Running()), tmp_path / "running.pt")
    with pytest.raises(
        TensorsError, match=r"running\.pt is a TorchScript archive that runs code.*torch\.save"
    ) as error:
        read_checkpoint(tmp_path / "running.pt")
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_one_line(flat, tmp_path):
    file = archive(flat, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BackboneError, match=r"cut\.pt cannot be read as weights") as error:
        load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / "cut.pt"))
    assert "\n" not in str(error.value)


def test_a_file_of_openais_name_must_be_openais_file(flat, tmp_path, monkeypatch):
    file = archive(flat, tmp_path / "ViT-L-14-336px.pt")
    with pytest.raises(BackboneError, match=r"has the name of OpenAI's file but other content") as error:
        load_clip("small", model_config=CONFIG, pretrained=str(file))
    assert "\n" not in str(error.value)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.PUBLISHED, "ViT-L-14-336px.pt", digest)
    assert load_clip("small", model_config=CONFIG, pretrained=str(file)).spec.fingerprint


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_text_tower_alone_needs_no_image_weights(small, flat, tmp_path, suffix):
    state = {name: value for name, value in flat.items() if not name.startswith("visual.")}
    file = tmp_path / f"texts.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    half = load_clip("small", model_config=CONFIG, pretrained=str(file), image=False)
    assert all(weight.is_meta for weight in half.image_tower.parameters())
    assert not any(weight.is_meta for weight in half.text_tower.parameters())
    assert half.spec.fingerprint == ""
    assert fingerprint(half.text_tower) == fingerprint(small.text_tower)
    tokens = small.tokenizer(["a dog", "two cats on a mat"])
    with torch.no_grad():
        assert torch.equal(half.text_tower(tokens), small.text_tower(tokens))


def test_random_weights_of_a_text_tower_alone_are_those_of_the_whole(small):
    half = load_clip("small", model_config=CONFIG, image=False)
    assert fingerprint(half.text_tower) == fingerprint(small.text_tower)
    assert all(weight.is_meta for weight in half.image_tower.parameters())


def test_the_shipped_clip_gives_its_towers_one_by_one():
    whole, image, text = (load_clip("tiny", **more) for more in ({}, {"text": False}, {"image": False}))
    assert fingerprint(image.image_tower) == fingerprint(whole.image_tower)
    assert fingerprint(text.text_tower) == fingerprint(whole.text_tower)


@pytest.mark.parametrize(("image", "text"), [(False, True), (True, False), (False, False)])
def test_a_tower_that_is_left_out_is_never_allocated_and_has_its_shapes(image, text):
    network, whole = construct_network(CONFIG, image=image, text=text), CustomTextCLIP(**CONFIG)
    for tower, kept in (("visual", image), ("text", text)):
        found, expected = getattr(network, tower).state_dict(), getattr(whole, tower).state_dict()
        assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in expected.items()}
        assert {one.is_meta for one in found.values()} == {not kept}


def test_a_timm_tower_can_be_left_out_too():
    shape = CONFIG | {"vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}}
    half = load_clip("timm", model_config=shape, image=False)
    assert all(weight.is_meta for weight in half.image_tower.parameters())
    assert half.text_tower(half.tokenizer(["a dog"])).shape == (1, 24)
