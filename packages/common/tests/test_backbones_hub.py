"""Weights from the hub's cache, checksums, and what is said without a network. Nothing here reaches for one."""

import hashlib
import json
import shutil

import pytest
import torch
from helpers.hub import lay_out_hub

from clip_common.backbones import BackboneError, load_clip, load_dual, prefetch, save_bundle
from clip_common.backbones.hub import find_missing_of_model
from clip_common.backbones.origins import find_origin

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def words():
    """A tokenizer of transformers that knows two words."""
    import transformers
    from tokenizers import Tokenizer, models

    known = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=known, unk_token="[UNK]", pad_token="[UNK]")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub cache that holds `people/clip` as the hub lays it out: blobs named by sha256, linked from a snapshot."""
    bundle = load_clip("small", model_config=CONFIG)
    save_bundle(bundle, tmp_path / "saved")
    (tmp_path / "saved" / "config.json").unlink()
    snapshot = lay_out_hub(tmp_path / "hub", "people/clip", tmp_path / "saved", monkeypatch)
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
    (snapshot / "open_clip_model.safetensors").rename(snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    assert prefetch("people/clip") == snapshot


def test_what_an_open_clip_load_left_is_no_model_of_transformers(cached, monkeypatch):
    _, snapshot = cached
    with pytest.raises(BackboneError, match=r"people/clip without config\.json.*prefetch people/clip"):
        load_dual(vision="people/clip", text="people/clip")

    class Listing:
        siblings = (type("File", (), {"rfilename": name}) for name in ("open_clip_config.json", "config.json"))

    def download(repository, *, allow_patterns, local_files_only=False):
        if not local_files_only:
            (snapshot / "config.json").write_text("{}")
            (snapshot / "model.safetensors").write_bytes(b"")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repository: Listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert prefetch("people/clip") == snapshot
    assert (snapshot / "config.json").exists()


def test_a_whole_folder_has_every_shard_and_every_module(tmp_path):
    def lacks(name, content="{}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        return find_missing_of_model(tmp_path)

    assert find_missing_of_model(tmp_path) == "config.json"
    assert lacks("config.json") == "model.safetensors"
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    assert lacks("model.safetensors.index.json", json.dumps({"weight_map": shards})) == "model-1.safetensors"
    assert lacks("model-1.safetensors") == "model-2.safetensors"
    assert lacks("model-2.safetensors") is None
    modules = [
        {"path": "", "type": "Transformer"},
        {"path": "1_Pooling", "type": "Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    assert lacks("modules.json", json.dumps(modules)) == "1_Pooling"
    assert lacks("1_Pooling/config.json") is None


def test_a_tokenizer_that_is_not_cached_names_what_to_prefetch(cached):
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "nobody/words"}
    with pytest.raises(BackboneError, match="prefetch nobody/words on"):
        load_clip("ViT-X", model_config=CONFIG | {"text_cfg": text})


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B/16-SigLIP"])
def test_prefetch_of_random_weights_fetches_the_tokenizer_that_they_need(cached, monkeypatch, name):
    with pytest.raises(BackboneError, match="prefetch ViT-B-16-SigLIP random on"):
        find_origin(name, pretrained="random").load_tokenizer()
    root, fetched = cached[1].parents[2], []
    snapshot = root / "models--timm--ViT-B-16-SigLIP" / "snapshots" / "0"

    def download(repository, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError(repository)
        fetched.append(repository)
        snapshot.mkdir(parents=True)
        words().save_pretrained(snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert prefetch(name, "random") == snapshot
    assert fetched == ["timm/ViT-B-16-SigLIP"]


@pytest.mark.parametrize("name", ["hf-hub:nobody/nothing", "nobody/nothing"])
def test_an_ordinary_user_without_a_network_gets_one_line(cached, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    sleeps = []
    monkeypatch.setattr("time.sleep", sleeps.append)
    for load in (prefetch, load_clip if name.startswith("hf-hub:") else lambda name: load_dual(vision=name, text=name)):
        with pytest.raises(BackboneError, match=f"prefetch {name} on a machine with network") as caught:
            load(name)
        assert "\n" not in str(caught.value)
    assert sleeps == []  # nor is it tried again and again


@pytest.mark.parametrize("name", ["hf-hub:no body/x//", "hf-hub:a/b/c"])
def test_a_name_that_no_repository_can_have_is_one_line(cached, name):
    with pytest.raises(BackboneError, match="expected org/name"):
        load_clip(name)


@pytest.mark.parametrize(("content", "words"), [("{", "JSONDecodeError"), ("{}", "model_cfg")])
def test_a_damaged_configuration_in_the_cache_is_one_line(cached, content, words):
    _, snapshot = cached
    (snapshot / "open_clip_config.json").resolve().write_text(content)
    with pytest.raises(BackboneError, match=rf"open_clip_config\.json is not an open_clip configuration.*{words}"):
        load_clip("hf-hub:people/clip")


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
        (("people/clip", "openai"), "leave pretrained out"),
        (("ViT-B/32", "laion2b_s34b_b79k"), "prefetch ViT-B-32 laion2b_s34b_b79k"),
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
