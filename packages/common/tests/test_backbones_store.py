"""A bundle as a folder: it comes back the same, open_clip reads it, and damage is one line."""

import errno
import json
from pathlib import Path

import pytest
import torch

from clip_common.backbones import BackboneError, load_bundle, load_clip, save_bundle

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def small():
    return load_clip("small", model_config=CONFIG, activation="quick_gelu")


def test_a_bundle_comes_back_the_same(small, tmp_path):
    folder = tmp_path / "a model ü"
    small.logit_scale = 3.5
    with torch.no_grad():
        small.image_tower.trunk.visual.proj.add_(1)
    save_bundle(small, folder)
    again = load_bundle(folder)
    images, tokens = torch.randn(2, 3, 32, 32), small.tokenizer(["a dog"])
    torch.testing.assert_close(again.image_tower(images).pooled, small.image_tower.eval()(images).pooled)
    torch.testing.assert_close(again.text_tower(tokens), small.text_tower(tokens))
    assert again.spec.fingerprint != small.spec.fingerprint  # it was trained since it was loaded
    assert (again.spec.activation, again.spec.config) == ("quick_gelu", small.spec.config)
    assert (again.preprocess, again.train_preprocess) == (small.preprocess, small.train_preprocess)
    assert (again.logit_scale, again.logit_bias, again.tokenizer.key) == (3.5, None, small.tokenizer.key)


def test_open_clip_and_load_clip_read_the_folder(small, tmp_path):
    import open_clip

    save_bundle(small, tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    images, tokens = torch.randn(2, 3, 32, 32), small.tokenizer(["a dog", "two cats"])
    ours = load_clip(f"local-dir:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), small.image_tower(images).pooled)
        torch.testing.assert_close(model.encode_text(tokens), small.text_tower(tokens), rtol=0, atol=3e-6)
    assert ours.spec.fingerprint == small.spec.fingerprint
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a dog"]).equal(small.tokenizer(["a dog"]))


def test_a_bias_that_training_added_is_kept(small, tmp_path):
    import open_clip

    small.logit_bias = -9.5
    save_bundle(small, tmp_path)
    assert load_bundle(tmp_path).logit_bias == -9.5
    assert open_clip.create_model(f"local-dir:{tmp_path}").logit_bias.item() == -9.5


def test_a_resized_model_comes_back_at_its_size(small, tmp_path):
    save_bundle(small, tmp_path / "first")
    larger = load_clip(f"local-dir:{tmp_path / 'first'}", image_size=48)
    save_bundle(larger, tmp_path / "second")
    again = load_bundle(tmp_path / "second")
    assert (again.image.spec.image_size, again.image.spec.grid) == (48, (6, 6))
    assert again.spec.fingerprint == larger.spec.fingerprint


def test_a_timm_tower_comes_back_at_its_size(tmp_path):
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}
    bundle = load_clip("timm", model_config=CONFIG | {"vision_cfg": vision}, image_size=192)
    save_bundle(bundle, tmp_path)
    assert load_bundle(tmp_path).spec == bundle.spec


def test_a_text_tower_of_transformers_comes_back_without_its_source(tmp_path):
    import shutil

    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    source = tmp_path / "source"
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(source)
    transformers.RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=9, pad_token_id=0
    ).save_pretrained(source)
    text = {
        "hf_model_name": str(source),
        "hf_tokenizer_name": str(source),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 8,
    }
    bundle = load_clip("words", model_config=CONFIG | {"text_cfg": text})
    assert (bundle.text.spec.width, bundle.text.spec.depth) == (32, 2)
    save_bundle(bundle, tmp_path / "saved")
    shutil.rmtree(source)
    again = load_bundle(tmp_path / "saved")
    torch.testing.assert_close(
        again.text_tower(again.tokenizer(["a dog"])), bundle.text_tower(bundle.tokenizer(["a dog"]))
    )


def refused(folder, *words: str):
    with pytest.raises(BackboneError) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_damage_is_one_line(small, tmp_path):
    refused(tmp_path / "nothing", "nothing", "config.json")
    save_bundle(small, tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "open_clip_model.safetensors"
    whole, content = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1000])
    refused(tmp_path, "open_clip_model.safetensors", "truncated")
    weights.unlink()
    refused(tmp_path, "open_clip_model.safetensors", "no such file")
    weights.write_bytes(whole)
    config.write_text(content[:100])
    refused(tmp_path, "config.json")
    config.write_text("[]")
    refused(tmp_path, "config.json")
    config.write_text(json.dumps(json.loads(content) | {"bundle_format": 7}))
    refused(tmp_path, "bundle_format 2", "7")
    older = {key: value for key, value in json.loads(content).items() if key != "bundle_format"}
    config.write_text(json.dumps(older | {"format": 1}))
    refused(tmp_path, "older version", "save it again")
    absent = {key: value for key, value in json.loads(content).items() if key not in ("model", "preprocess")}
    config.write_text(json.dumps(absent))
    refused(tmp_path, "config.json is damaged", "preprocess, model", "copy the folder again")
    other = json.loads(content)
    other["model"]["vision_cfg"]["width"] = 64
    config.write_text(json.dumps(other))
    refused(tmp_path, "does not fit", "visual.")


def test_weights_and_configuration_of_two_saves_are_told_apart(small, tmp_path):
    save_bundle(small, tmp_path / "one")
    save_bundle(load_clip("small", model_config=CONFIG, seed=5, activation="quick_gelu"), tmp_path / "two")
    (tmp_path / "two" / "open_clip_model.safetensors").replace(tmp_path / "one" / "open_clip_model.safetensors")
    refused(tmp_path / "one", "was not written with this open_clip_model.safetensors")


def test_a_full_disk_leaves_the_former_model_whole(small, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    save_bundle(small, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(tensors, file, metadata=None):
        file.write_bytes(b"half")
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    small.logit_scale = 1.0
    with pytest.raises(BackboneError, match="No space left"):
        save_bundle(small, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("file", ["config.json", "open_clip_config.json"])
def test_a_disk_that_is_full_after_the_weights_leaves_the_former_model_whole(small, tmp_path, monkeypatch, file):
    save_bundle(small, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write = Path.write_text

    def full(path, content, **options):
        if path.name.endswith(file) or f".{file}." in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content, **options)

    monkeypatch.setattr(Path, "write_text", full)
    small.logit_scale = 1.0
    with pytest.raises(BackboneError, match=r"could not be written: .*No space left"):
        save_bundle(small, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_bundle(tmp_path).logit_scale != 1.0
