"""Models exchanged with open_clip, in folders and in a cache laid out as the hub lays it: the same embeddings there."""

import open_clip
import pytest
import torch
from helpers.hub import lay_out_hub

from clip_common.backbones import load_bundle, load_clip, save_bundle
from clip_common.backbones.shipped import TINY

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "quick_gelu": True,
}
TEXTS = ["a dog", "two cats on a mat", ""]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a folder into a hub cache of its own as `people/clip`, and returns the name to load."""

    def upload(source):
        lay_out_hub(tmp_path / "hub", "people/clip", source, monkeypatch)
        return "hf-hub:people/clip"

    return upload


def trained(**changes):
    """A CLIP whose weights differ from those it was drawn with."""
    bundle = load_clip("small", model_config=CONFIG | changes)
    with torch.no_grad():
        for tower in (bundle.image_tower, bundle.text_tower):
            for parameter in tower.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    bundle.logit_scale = 3.25
    return bundle


def assert_equal_to_open_clip(bundle, name):
    """Assert that open_clip's model and tokenizer of this name give the embeddings of `bundle`."""
    model, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(bundle.image_tower(images).pooled, model.encode_image(images))
        ours, theirs = bundle.text_tower(bundle.tokenizer(TEXTS)), model.encode_text(tokenizer(TEXTS))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)
    assert model.logit_scale.item() == pytest.approx(bundle.logit_scale)
    assert (None if model.logit_bias is None else model.logit_bias.item()) == bundle.logit_bias


@pytest.mark.parametrize("bias", [None, -9.5])
def test_open_clip_reads_a_trained_model_from_a_folder_and_from_the_hub(hub, tmp_path, bias):
    bundle = trained()
    bundle.logit_bias = bias
    save_bundle(bundle, tmp_path / "saved ü")
    assert_equal_to_open_clip(bundle, f"local-dir:{tmp_path / 'saved ü'}")
    name = hub(tmp_path / "saved ü")
    assert_equal_to_open_clip(bundle, name)
    assert_equal_to_open_clip(load_clip(name), name)


@pytest.mark.parametrize("form", [True, False, "both"])
@pytest.mark.parametrize("custom", [True, False], ids=["two towers", "flat layout"])
def test_what_open_clip_pushes_is_read_from_a_folder_and_from_the_hub(hub, tmp_path, form, custom):
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(3)
    model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**CONFIG)
    open_clip.model.set_model_preprocess_cfg(
        model, {"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3, "resize_mode": "squash"}
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY}")
    pushed = tmp_path / "pushed"
    save_for_hf(model, tokenizer, CONFIG | {"custom_text": custom}, pushed, safe_serialization=form)
    for name in (f"local-dir:{pushed}", hub(pushed)):
        bundle = load_clip(name)
        assert (bundle.preprocess.mean, bundle.preprocess.resize_mode) == ((0.1, 0.2, 0.3), "squash")
        assert_equal_to_open_clip(bundle, name)


def test_a_folder_of_an_earlier_version_is_read_and_written_anew_under_the_new_name(hub, tmp_path):
    bundle, folder = trained(), tmp_path / "saved"
    save_bundle(bundle, folder)
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    for again in (load_bundle(folder), load_clip(f"local-dir:{folder}"), load_clip(hub(folder))):
        assert again.image_tower(images).pooled.equal(bundle.image_tower(images).pooled)
    save_bundle(load_bundle(folder), folder)
    assert [file.name for file in folder.glob("*.safetensors")] == ["open_clip_model.safetensors"]
    assert load_bundle(folder).logit_scale == 3.25
