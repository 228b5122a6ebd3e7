"""Weights from the hub's cache, checksums, and what is said without a network. Nothing here reaches for one."""

import hashlib
import shutil

import pytest
import torch

from clip_common.backbones import BackboneError, load_clip, prefetch, save_bundle

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub cache that holds `people/clip` as the hub lays it out: blobs named by sha256, linked from a snapshot."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(root), raising=False)
    bundle = load_clip("small", model_config=CONFIG)
    save_bundle(bundle, tmp_path / "saved")
    repository = root / "models--people--clip"
    snapshot = repository / "snapshots" / "0123abcd"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    for source, name in (("model.safetensors", "open_clip_model.safetensors"), ("open_clip_config.json",) * 2):
        content = (tmp_path / "saved" / source).read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return bundle, snapshot


def test_a_cached_repository_loads_without_a_network(cached):
    bundle, _ = cached
    again = load_clip("hf-hub:people/clip")
    assert again.spec.fingerprint == bundle.spec.fingerprint
    assert again.spec.name == "hf-hub:people/clip"


def test_prefetch_of_what_is_cached_verifies_it_and_says_where_it_lies(cached):
    _, snapshot = cached
    for name in ("hf-hub:people/clip", "people/clip"):
        assert prefetch(name) == snapshot / "open_clip_model.safetensors"


def test_prefetch_of_a_cached_model_of_transformers_gives_its_folder(cached):
    _, snapshot = cached
    (snapshot / "open_clip_config.json").unlink()
    (snapshot / "config.json").write_text("{}")
    assert prefetch("people/clip") == snapshot


def test_a_tokenizer_that_is_not_cached_names_what_to_prefetch(cached):
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "nobody/words"}
    with pytest.raises(BackboneError, match="prefetch ViT-X random"):
        load_clip("ViT-X", model_config=CONFIG | {"text_cfg": text})


def test_a_cached_file_without_its_checksum_is_refused(cached):
    _, snapshot = cached
    blob = (snapshot / "open_clip_model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(BackboneError, match=r"does not have its checksum.*delete it and prefetch again"):
        prefetch("hf-hub:people/clip")


def test_a_tag_is_found_in_the_cache(cached, monkeypatch):
    from clip_common.backbones.hub import fetch_tag

    _, snapshot = cached
    expected = snapshot / "open_clip_model.safetensors"
    assert fetch_tag("ViT-B-32", "tag", {"hf_hub": "people/clip/"}) == expected
    assert fetch_tag("ViT-B-32", "tag", {"hf_hub": "people/clip/open_clip_model.bin"}) == expected


def test_a_tag_behind_an_address_has_its_checksum_verified(tmp_path, monkeypatch):
    from clip_common.backbones.hub import fetch_tag

    monkeypatch.setenv("HOME", str(tmp_path))
    content = b"weights"
    name = f"vit_b_32-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    folder = tmp_path / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    address = f"http://127.0.0.1:9/mlfoundations/{name}"
    assert fetch_tag("ViT-B-32", "tag", {"url": address}) == folder / name
    shutil.rmtree(folder)
    with pytest.raises(BackboneError, match="prefetch ViT-B-32 tag"):
        fetch_tag("ViT-B-32", "tag", {"url": address})


def test_a_repository_without_weights_is_no_clip(cached):
    _, snapshot = cached
    (snapshot / "open_clip_model.safetensors").unlink()
    with pytest.raises(BackboneError, match="prefetch hf-hub:people/clip"):
        load_clip("hf-hub:people/clip")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ViT-B-32", "laion2b_s34b_b79k"), "prefetch ViT-B-32 laion2b_s34b_b79k"),
        (("hf-hub:nobody/nothing",), "prefetch hf-hub:nobody/nothing"),
        (("nobody/words",), "prefetch nobody/words"),
        (("ViT-B-23", "openai"), "ViT-B-32"),
        (("ViT-B-32", "laion3b"), "has no weights 'laion3b'"),
        (("ViT-B-32",), "needs pretrained="),
        (("ViT-B-32", "random"), "no weights to fetch"),
    ],
)
def test_prefetch_without_a_network_or_with_a_wrong_name_is_one_line(cached, arguments, words):
    with pytest.raises(BackboneError) as caught:
        prefetch(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_weights_of_a_cached_repository_are_read_safely(cached):
    _, snapshot = cached
    blob = (snapshot / "open_clip_model.safetensors").resolve()
    torch.save({"logit_scale": torch.tensor(1.0)}, blob)
    with pytest.raises(BackboneError, match=r"open_clip_model\.safetensors"):
        load_clip("hf-hub:people/clip")
