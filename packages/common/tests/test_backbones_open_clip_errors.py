"""Mistakes in loading a CLIP, in names, configurations, files and folders: each is one line that says what to do."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_common.backbones import BackboneError, load_clip, save_bundle
from clip_common.backbones.shipped import check_sums

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def config(vision=None, text=None, **top):
    return (
        CONFIG
        | top
        | {"vision_cfg": CONFIG["vision_cfg"] | (vision or {}), "text_cfg": CONFIG["text_cfg"] | (text or {})}
    )


@pytest.fixture(scope="module")
def small():
    return load_clip("small", model_config=CONFIG)


def refused(*words: str, **arguments):
    name = arguments.pop("name", "ViT-B-32")
    with pytest.raises(BackboneError) as caught:
        load_clip(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_mistakes_in_names_are_one_line_with_the_nearest_known():
    refused("ViT-B-23", "ViT-B-32", name="ViT-B-23", pretrained="openai")
    refused("laion2b_s34b_b79k", "openai", "'random'")
    refused("did you mean", "laion2b_s34b_b79k", pretrained="laion2b_s34b_b97k")
    refused("activation", "quick_gelu", pretrained="random", activation="relu")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tiny", {"pretrained": "random"}),
        ("tiny", {"model_config": CONFIG}),
        ("hf-hub:nobody/nothing", {"pretrained": "openai"}),
        ("local-dir:absent", {"model": "ViT-B-32"}),
        ("weights.pt", {"model": "ViT-B-32", "pretrained": "openai"}),
        ("small", {"model_config": CONFIG, "model": "ViT-B-32"}),
    ],
)
def test_an_argument_without_a_use_is_refused(name, arguments):
    refused("leave", f"{list(arguments)[-1]} out", name=name, **arguments)


def test_weights_in_half_precision_load_at_another_size(small, tmp_path):
    save_bundle(small, tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    ours = load_clip(f"local-dir:{tmp_path}", image_size=56)
    assert {parameter.dtype for parameter in ours.image_tower.parameters()} == {torch.float32}
    assert ours.image_tower(torch.zeros(1, 3, 56, 56)).pooled.isfinite().all()


def test_package_data_must_be_whole(tmp_path):
    (tmp_path / "weights").write_bytes(b"weights")
    sums = f"{hashlib.sha256(b'weights').hexdigest()}  weights\n"
    with pytest.raises(BackboneError, match="SHA256SUMS is absent or damaged"):
        check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(sums)
    check_sums(tmp_path)
    (tmp_path / "weights").write_bytes(b"Weights")
    with pytest.raises(BackboneError, match="weights is absent or damaged: install clip-common again"):
        check_sums(tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(BackboneError, match="weights is absent or damaged"):
        check_sums(tmp_path)


def test_no_network_and_no_cache_names_the_prefetch_command():
    refused("prefetch ViT-B-32 laion2b_s34b_b79k", pretrained="laion2b_s34b_b79k")
    refused("prefetch hf-hub:nobody/nothing", name="hf-hub:nobody/nothing")


def test_mistakes_in_a_configuration_are_one_line():
    refused("vision_cfg.widht", "width", model_config=config(vision={"widht": 3}))
    refused("emb_dim", "embed_dim", model_config=config(emb_dim=3))
    refused("text_cfg", model_config={"embed_dim": 3, "vision_cfg": {}})
    refused("cannot be built", model_config=config(text={"width": 30, "heads": 4}))
    refused("smaller than one patch", model_config=CONFIG, image_size=4)
    refused("32x64", model_config=config(vision={"image_size": [32, 64]}))


def test_files_and_folders_that_are_wrong_are_one_line(small, tmp_path):
    refused("no such file", "absent.pt", name=str(tmp_path / "absent.pt"), model="ViT-B-32")
    refused("open_clip_config.json", name=f"local-dir:{tmp_path}")
    refused("local-dir:", name=str(tmp_path))
    save_bundle(small, tmp_path / "saved")
    weights = tmp_path / "saved" / "open_clip_model.safetensors"
    refused("file of weights", "model=", name=str(weights))
    refused(
        "does not fit",
        "open_clip_model.safetensors",
        model_config=config(vision={"width": 48}),
        pretrained=str(weights),
    )
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused("truncated", "open_clip_model.safetensors", name=f"local-dir:{tmp_path / 'saved'}")
    weights.unlink()
    refused("has no weights", name=f"local-dir:{tmp_path / 'saved'}")
    (tmp_path / "other").mkdir()
    refused("no tokenizer", "other", name="x", model_config=config(text={"hf_tokenizer_name": str(tmp_path / "other")}))
    (tmp_path / "saved" / "open_clip_config.json").write_text("{")
    refused("open_clip_config.json", name=f"local-dir:{tmp_path / 'saved'}")
    damaged = {"cut.pt": b"PK\3\4 cut", "text.pt": b"hello", "empty.safetensors": b"", "cut.npz": b"cut"}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        refused(name, "cannot be read as", "get it again", model_config=CONFIG, pretrained=str(tmp_path / name))


def test_a_checkpoint_of_another_architecture_says_what_differs(tmp_path):
    torch.save({"epoch": 3, "model_state_dict": {"visual.proj": torch.zeros(8, 8)}}, tmp_path / "other.pt")
    refused(
        "other.pt",
        "visual.proj with (8, 8) instead of (32, 24)",
        "missing",
        model_config=CONFIG,
        pretrained=str(tmp_path / "other.pt"),
    )


def test_a_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    refused("bomb.pt", model_config=CONFIG, pretrained=str(tmp_path / "bomb.pt"))
