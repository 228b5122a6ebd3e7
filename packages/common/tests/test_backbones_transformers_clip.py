"""A CLIPModel or SiglipModel of transformers as a bundle: the embeddings of transformers, saved and shared again."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import transformers
from helpers.hub import lay_out_hub
from PIL import Image

from clip_common.backbones import BackboneError, load_bundle, load_clip, prefetch, save_bundle
from clip_common.backbones.open_clip_trunks import OpenClipText
from clip_common.backbones.shipped import TINY

VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONTEXT = {"max_position_embeddings": 16}
TEXTS = ["a dog", "two cats on a mat", "a"]


def tokenizer():
    """The tokenizer of the package's own CLIP, with SigLIP's padding."""
    return transformers.AutoTokenizer.from_pretrained(TINY)


def make_clip(folder, *, act="quick_gelu", words=True, **text):
    """Write a CLIPModel whose weights, biases and scales are all drawn."""
    torch.manual_seed(1)
    known = tokenizer()
    own = {"vocab_size": len(known), "eos_token_id": known.eos_token_id, **CONTEXT, **TEXT, "intermediate_size": 50}
    config = transformers.CLIPConfig(
        text_config=own | {"hidden_act": act} | text,
        vision_config=VISION | {"hidden_act": act, "intermediate_size": 48, "layer_norm_eps": 1e-4},
        projection_dim=20,
        logit_scale_init_value=3.25,
    )
    return write(transformers.CLIPModel(config), folder, words=words)


def make_siglip(folder, *, words=True):
    torch.manual_seed(2)
    wide = {"intermediate_size": 48}
    text = TEXT | CONTEXT | wide | {"vocab_size": len(tokenizer()), "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION | wide)
    model = transformers.SiglipModel(config)
    torch.nn.init.constant_(model.logit_bias, -9.5)
    return write(model, folder, words=words)


def write(model, folder, *, words):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    return model.eval()


def assert_equal(bundle, model, *, size=32, tolerance=3e-6):
    images, ids = torch.randn(3, 3, size, size), tokenizer()(TEXTS, padding="max_length", max_length=16)["input_ids"]
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=images, interpolate_pos_encoding=size != 32).pooler_output
        torch.testing.assert_close(bundle.image_tower(images).pooled, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(bundle.image_tower.pooled(images), expected, rtol=0, atol=tolerance)
        words = model.get_text_features(input_ids=torch.tensor(ids)).pooler_output
        torch.testing.assert_close(bundle.text_tower(bundle.tokenizer(TEXTS)), words, rtol=0, atol=tolerance)
    assert bundle.logit_scale == pytest.approx(model.logit_scale.item())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_a_clip_gives_the_embeddings_of_transformers(tmp_path, act):
    model = make_clip(tmp_path, act=act)
    bundle = load_clip(f"local-dir:{tmp_path}")
    assert_equal(bundle, model)
    assert (bundle.image.spec.embed_dim, bundle.text.spec.context_length, bundle.spec.kind) == (20, 16, "open_clip")
    assert isinstance(bundle.text_tower.trunk, OpenClipText)  # runs at its real length, block by block


@pytest.mark.parametrize("end", [2, None])
def test_texts_end_where_the_configuration_says(tmp_path, end):
    model = make_clip(tmp_path, **({} if end is None else {"eos_token_id": end}))
    bundle = load_clip(f"local-dir:{tmp_path}")
    ids = torch.randint(3, 200, (4, 16))
    ids[:, 9] = tokenizer().eos_token_id
    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(bundle.text_tower(ids), expected, rtol=0, atol=3e-6)


def test_a_siglip_gives_the_embeddings_of_transformers(tmp_path):
    model = make_siglip(tmp_path)
    bundle = load_clip(f"local-dir:{tmp_path}")
    assert_equal(bundle, model)
    assert bundle.logit_bias == model.logit_bias.item() == -9.5
    assert (bundle.spec.kind, bundle.image.spec.embed_dim, bundle.text.spec.embed_dim) == ("siglip", 32, 32)
    assert (bundle.image.spec.depth, bundle.image.spec.grid) == (3, (4, 4))


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_weights_in_several_files_and_in_half_precision_load(tmp_path, make):
    model = make(tmp_path)
    whole = load_clip(f"local-dir:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    assert load_clip(f"local-dir:{tmp_path}").spec.fingerprint == whole.spec.fingerprint
    shutil.rmtree(tmp_path)
    model.half().save_pretrained(tmp_path)
    half = load_clip(f"local-dir:{tmp_path}")
    assert {weight.dtype for weight in half.image_tower.parameters()} == {torch.float32}


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_another_image_size_interpolates_positions(tmp_path, make):
    make(tmp_path)
    bundle = load_clip(f"local-dir:{tmp_path}", image_size=48)
    assert (bundle.preprocess.size, bundle.image.spec.grid) == (48, (6, 6))
    assert bundle.image_tower(torch.randn(1, 3, 48, 48)).patches.shape == (1, 36, 32)


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_one_tower_alone_is_the_same_one(tmp_path, make):
    model = make(tmp_path)
    texts = load_clip(f"local-dir:{tmp_path}", image=False)
    assert texts.spec.fingerprint == ""
    assert all(weight.is_meta for weight in texts.image_tower.parameters())
    ids = torch.tensor(tokenizer()(TEXTS, padding="max_length", max_length=16)["input_ids"])
    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(texts.text_tower(texts.tokenizer(TEXTS)), expected, rtol=0, atol=3e-6)
    images = load_clip(f"local-dir:{tmp_path}", text=False)
    assert all(weight.is_meta for weight in images.text_tower.parameters())


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_a_trained_one_comes_back_and_transformers_or_open_clip_reads_it(tmp_path, make):
    make(tmp_path / "source")
    bundle = load_clip(f"local-dir:{tmp_path / 'source'}", image_size=48)
    with torch.no_grad():
        for weight in (*bundle.image_tower.parameters(), *bundle.text_tower.parameters()):
            weight.mul_(1.25)
    bundle.logit_scale, saved = 3.5, tmp_path / "saved ü"
    save_bundle(bundle, saved, marker={"package": "toy", "format": 1})
    shutil.rmtree(tmp_path / "source")
    again, opened = load_bundle(saved), load_clip(f"local-dir:{saved}")
    assert again.spec.fingerprint == opened.spec.fingerprint != bundle.spec.fingerprint
    assert (again.preprocess, again.logit_bias) == (bundle.preprocess, bundle.logit_bias)
    images = torch.randn(2, 3, 48, 48)
    tokens = bundle.tokenizer(TEXTS)
    with torch.no_grad():
        image, words = bundle.image_tower(images).pooled, bundle.text_tower(tokens)
        for other in (again, opened):
            torch.testing.assert_close(other.image_tower(images).pooled, image)
            torch.testing.assert_close(other.text_tower(other.tokenizer(TEXTS)), words)
        if make is make_siglip:
            theirs = transformers.SiglipModel.from_pretrained(saved)
            assert_equal(opened, theirs, size=48)
            assert opened.preprocess == bundle.preprocess
        else:
            theirs = open_clip.create_model(f"local-dir:{saved}").eval()
            torch.testing.assert_close(theirs.encode_image(images), image, rtol=0, atol=3e-5)
            own = open_clip.get_tokenizer(f"local-dir:{saved}")(TEXTS)
            torch.testing.assert_close(theirs.encode_text(own), words, rtol=0, atol=3e-5)


def test_a_siglip_trained_without_its_bias_comes_back_without(tmp_path):
    make_siglip(tmp_path / "source")
    bundle = load_clip(f"local-dir:{tmp_path / 'source'}")
    bundle.logit_bias = None
    save_bundle(bundle, tmp_path / "saved")
    assert load_bundle(tmp_path / "saved").logit_bias is None
    assert transformers.SiglipModel.from_pretrained(tmp_path / "saved").logit_bias.item() == 0


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_a_cached_repository_loads_by_its_name(tmp_path, monkeypatch, make):
    model = make(tmp_path / "source")
    snapshot = lay_out_hub(tmp_path / "hub", "people/clip-vit-base", tmp_path / "source", monkeypatch)
    for name in ("people/clip-vit-base", "hf-hub:people/clip-vit-base"):
        bundle = load_clip(name)
        assert bundle.spec.name == name
        assert_equal(bundle, model)
        assert prefetch(name) == snapshot


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_image_processor_of_the_folder_is_followed(tmp_path, file):
    make_clip(tmp_path)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    settings = processor.to_dict()
    content = settings if file.startswith("pre") else {"image_processor": settings, "processor_class": "CLIPProcessor"}
    (tmp_path / file).write_text(json.dumps(content))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8))
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(load_clip(f"local-dir:{tmp_path}").preprocess(picture), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [make_clip, make_siglip])
def test_without_a_tokenizer_tokens_are_embedded_and_texts_are_refused(tmp_path, make):
    model = make(tmp_path / "source", words=False)
    bundle = load_clip(f"local-dir:{tmp_path / 'source'}")
    ids = torch.randint(3, 200, (2, 16))
    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(bundle.text_tower(ids if make is make_clip else {"input_ids": ids}), expected)
    for call in (lambda: bundle.tokenizer(["a dog"]), lambda: save_bundle(bundle, tmp_path / "saved")):
        with pytest.raises(BackboneError, match="source has no tokenizer: save the model's tokenizer there"):
            call()


def test_a_clip_with_openais_vocabulary_needs_no_tokenizer_of_its_own(tmp_path):
    make_clip(tmp_path, words=False, vocab_size=49408, eos_token_id=49407)
    bundle = load_clip(f"local-dir:{tmp_path}")
    assert bundle.tokenizer(["a dog"])[0, :4].tolist() == [49406, 320, 1929, 49407]
    assert "hf_tokenizer_name" not in bundle.spec.config["text_cfg"]


def test_weights_named_by_transformers_fill_an_architecture(tmp_path):
    make_clip(tmp_path)
    bundle = load_clip(f"local-dir:{tmp_path}")
    config = {key: value for key, value in bundle.spec.config.items() if key != "custom_text"}
    again = load_clip("mine", model_config=config, pretrained=str(tmp_path / "model.safetensors"))
    assert again.spec.fingerprint == bundle.spec.fingerprint
