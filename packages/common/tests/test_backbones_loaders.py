"""What people point the loaders at: each loads as its own library runs it, or is refused in one line that says why."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_common.backbones import BackboneError, load_clip, load_text, load_vision
from clip_common.backbones.shipped import TINY
from clip_common.tensors import PREFIXES

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VISION |= {"intermediate_size": 64}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def convnext():
    return transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[8, 12, 16], depths=[1, 1, 1], num_stages=3, image_size=64)
    )


def swin():
    return transformers.SwinModel(
        transformers.SwinConfig(
            embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32, patch_size=4, window_size=4
        )
    )


def resnet():
    return transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))


def vit(**options):
    return transformers.ViTModel(transformers.ViTConfig(**VISION), **options)


def classifier():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))


def known_words(folder: Path) -> int:
    """Write the tokenizer of the package's own CLIP and return the size of its vocabulary."""
    words = transformers.AutoTokenizer.from_pretrained(TINY)
    words.save_pretrained(folder)
    return len(words)


SEEN = {
    "ConvNeXt": (convnext, 64, 16, 0),
    "Swin": (swin, 32, 8, 0),
    "ResNet": (resnet, 224, 8, 0),
    "ViT": (vit, 32, 8, 2),
    "ViT without a pooler": (lambda: vit(add_pooling_layer=False), 32, 8, 2),
    "ViT of a classifier": (classifier, 32, 8, 2),
}
"""Vision models: maker, pixels a side, those of a cell, depth."""


@pytest.mark.parametrize("name", SEEN)
def test_a_vision_model_gives_the_features_of_transformers(tmp_path, name):
    make, size, patch, depth = SEEN[name]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    encoder = load_vision(tmp_path)
    cells = size // patch
    spec = encoder.spec
    assert (spec.image_size, spec.patch_size, spec.grid, spec.depth) == (size, patch, (cells, cells), depth)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        output = encoder.tower(images)
        theirs = (model.vit if name == "ViT of a classifier" else model)(pixel_values=images)
    pooled = getattr(theirs, "pooler_output", None)
    expected = theirs.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
    torch.testing.assert_close(output.pooled, expected, rtol=0, atol=2e-6)
    assert output.patches.shape == (2, cells * cells, spec.width)
    assert load_vision(tmp_path).spec.fingerprint == spec.fingerprint  # nothing is drawn at random


@pytest.mark.parametrize("whole", [False, True], ids=["encoder alone", "with its decoder"])
def test_a_t5_encoder_gives_the_mean_over_its_tokens(tmp_path, whole):
    config = transformers.T5Config(**T5, vocab_size=known_words(tmp_path))
    model = (transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel)(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_text(tmp_path)
    tokens = encoder.feed.batch(["a dog", "two cats on a mat"])
    with torch.no_grad():
        states = model.encoder(**{key: tokens[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        expected = (states * mask).sum(dim=1) / mask.sum(dim=1)
        torch.testing.assert_close(encoder.tower(tokens), expected)
    assert 0 < encoder.spec.context_length <= 512


FILTERS = {1: Image.Resampling.LANCZOS, 2: Image.Resampling.BILINEAR, 3: Image.Resampling.BICUBIC}


@pytest.mark.parametrize("number", FILTERS)
def test_the_filter_of_the_image_processor_is_followed(tmp_path, number):
    vit().save_pretrained(tmp_path)
    settings = {
        "size": {"height": 32, "width": 32},
        "resample": number,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    preprocess = load_vision(tmp_path).feed.preprocess
    expected = torch.from_numpy(np.array(picture.resize((32, 32), FILTERS[number]))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(preprocess(picture), expected, rtol=0, atol=1e-5)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert (preprocess(pixels) - expected).abs().max() < 0.02  # torch rounds otherwise


@pytest.mark.parametrize("side", [64, 384])
def test_the_crop_of_convnexts_processor_is_followed(tmp_path, side):
    convnext().save_pretrained(tmp_path)
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": side}, crop_pct=0.875)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(load_vision(tmp_path).feed.preprocess(picture), expected, rtol=0, atol=0.03)


def network(**changes):
    torch.manual_seed(5)
    return open_clip.model.CLIP(**CONFIG | changes).eval()


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, "model._orig_mod.", "_orig_mod.module.", "module.model."], ids=lambda text: text.strip(".")
)
def test_weights_of_a_wrapped_model_load(tmp_path, prefix):
    state = network().state_dict()
    torch.save({"state_dict": {prefix + name: weight for name, weight in state.items()}}, tmp_path / "wrapped.pt")
    bundle = load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / "wrapped.pt"))
    assert torch.equal(bundle.image_tower.trunk.visual.proj, state["visual.proj"])


@pytest.mark.parametrize("quick", [True, False])
def test_a_torchscript_archive_runs_with_its_own_activation(tmp_path, quick):
    model = network(quick_gelu=quick)
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    bundle = load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / "script.pt"))
    assert bundle.spec.activation == ("quick_gelu" if quick else "gelu")
    images, tokens = torch.randn(2, 3, 32, 32), bundle.tokenizer(["a dog", "two cats"])
    with torch.no_grad():
        torch.testing.assert_close(bundle.image_tower(images).pooled, model.encode_image(images), rtol=0, atol=3e-6)
        torch.testing.assert_close(bundle.text_tower(tokens), model.encode_text(tokens), rtol=0, atol=3e-6)
    told = load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / "script.pt"), activation="gelu")
    assert told.spec.activation == "gelu"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders and files that are refused."""
    root = tmp_path_factory.mktemp("models")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = {
        "bert": transformers.BertModel(transformers.BertConfig(**text, vocab_size=9)),
        "t5": transformers.T5EncoderModel(transformers.T5Config(**T5, vocab_size=9)),
        "vit": vit(),
        "half": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text | {"hidden_act": "gelu"}, vision_config=VISION, projection_dim=8)
        ),
        "relu": transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=text | {"hidden_act": "relu"}, vision_config=VISION | {"hidden_act": "relu"}
            )
        ),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    vit().save_pretrained(root / "nearest")
    (root / "nearest" / "preprocessor_config.json").write_text('{"size": 32, "resample": 0}')
    vit().save_pretrained(root / "cut")
    (root / "cut" / "preprocessor_config.json").write_text('{"size": ')
    (root / "empty").mkdir()
    (root / "bare").mkdir()
    (root / "bare" / "config.json").write_text((root / "half" / "config.json").read_text().replace("_vision_model", ""))
    torch.save(network(), root / "whole.pt")
    state = network().state_dict()
    torch.save({"state_dict": {f"net.{name}": weight for name, weight in state.items()}}, root / "net.pt")
    return root


REFUSED = {
    "two activations": (load_clip, "local-dir:{}/clip", "two activations (quick_gelu and gelu)", "load_dual"),
    "another activation": (load_clip, "local-dir:{}/relu", "the activation relu", "load_dual"),
    "half of a CLIP": (load_clip, "local-dir:{}/half", "of the kind clip_vision_model", "load_vision"),
    "BERT as a CLIP": (load_clip, "local-dir:{}/bert", "of the kind bert", "CLIPModel or SiglipModel"),
    "an empty folder": (load_clip, "local-dir:{}/empty", "open_clip_config.json", "CLIPModel or SiglipModel"),
    "no weights": (load_clip, "local-dir:{}/bare", "has no weights", "model.safetensors"),
    "a folder": (load_clip, "{}/clip", "is a folder", "local-dir:"),
    "OpenAI's on the hub": (load_clip, "openai/clip-vit-base-patch32", "prefetch openai/clip-vit-base-patch32"),
    "a mistyped architecture": (load_clip, "ViT-B/23", "did you mean", "ViT-B-32"),
    "BERT as a vision model": (load_vision, "{}/bert", "holds a BertModel", "a vision model with patch tokens"),
    "T5 as a vision model": (load_vision, "{}/t5", "holds a T5Model", "a vision model with patch tokens"),
    "ViT as a text model": (load_text, "{}/vit", "holds a ViTModel", "a text model"),
    "a text model without a tokenizer": (load_text, "{}/bert", "has no tokenizer", "save"),
    "another filter": (load_vision, "{}/nearest", "resample 0", "3 (bicubic), 2 (bilinear), 1 (lanczos)"),
    "a damaged processor": (load_vision, "{}/cut", "preprocessor_config.json is damaged", "get it again"),
}
"""Loader, name, and parts of the line."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_one_line(folders, case):
    load, name, *words = REFUSED[case]
    with pytest.raises(BackboneError) as caught:
        load(name.format(folders))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("whole.pt", ["holds an object of open_clip.model.CLIP", "torch.save(model.state_dict(), NEW)"]),
        ("net.pt", ["does not fit small", "62 foreign, such as net.ln_final"]),
    ],
)
def test_files_that_are_no_weights_of_the_model_are_one_line(folders, file, words):
    with pytest.raises(BackboneError) as caught:
        load_clip("small", model_config=CONFIG, pretrained=str(folders / file))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize("kind", ["vision", "text", "sentence"])
def test_weights_that_are_not_used_are_not_listed(tmp_path, kind, capfd, caplog):
    from sentence_transformers import SentenceTransformer

    known_words(tmp_path)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "vision":
        vit().save_pretrained(tmp_path)
    else:
        transformers.BertModel(transformers.BertConfig(**text)).save_pretrained(tmp_path)
    if kind == "sentence":
        SentenceTransformer(str(tmp_path), device="cpu").save_pretrained(str(tmp_path))
    file = next(tmp_path.rglob("model.safetensors"))
    extra = {f"decoder.layer.{number}.weight": torch.zeros(2) for number in range(25)}
    save_file(load_file(file) | extra, file, {"format": "pt"})
    capfd.readouterr()
    caplog.clear()
    (load_vision if kind == "vision" else load_text)(tmp_path)
    assert "".join(capfd.readouterr()) == ""
    assert not caplog.records
