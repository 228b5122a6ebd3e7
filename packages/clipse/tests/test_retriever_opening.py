"""What a model may be named by, in Python and in commands; a trained one in open_clip, by folder and on the hub."""

import open_clip
import pytest
import torch
import transformers
from helpers.commands import refused
from helpers.hub import lay_out_hub
from torch.nn.functional import normalize

from clip_common.backbones.shipped import TINY
from clip_common.config import load_config
from clip_common.images import read_image
from clipse import Config, Retriever
from clipse.models.retrieval import load_towers

TEXTS = ["a red ball", "two cats on a mat", "a"]


def make_clip(folder):
    """Write a CLIPModel of transformers with a tokenizer."""
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(TINY)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = sizes | {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


def test_a_trained_model_gives_the_same_embeddings_in_open_clip(trained, scenes, tmp_path, monkeypatch):
    run = trained()
    retriever = Retriever.from_pretrained(run, device="cpu")
    lay_out_hub(tmp_path / "hub", "people/trained", run / "model", monkeypatch)
    pictures = sorted(scenes.rglob("*.jpg"))[:4]
    for name in (f"local-dir:{run / 'model'}", "hf-hub:people/trained"):
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        pixels = torch.stack([preprocess(read_image(picture)) for picture in pictures])
        with torch.no_grad():
            images, texts = model.eval().encode_image(pixels), model.encode_text(tokenizer(TEXTS))
        torch.testing.assert_close(retriever.encode_image(pictures), normalize(images, dim=-1), rtol=0, atol=1e-5)
        torch.testing.assert_close(retriever.encode_text(TEXTS), normalize(texts, dim=-1), rtol=0, atol=1e-5)
        again = Retriever.from_pretrained(name, device="cpu")
        torch.testing.assert_close(again.encode_text(TEXTS), retriever.encode_text(TEXTS))


def test_a_retriever_opens_models_by_name(tmp_path):
    tiny = Retriever.from_pretrained("tiny", device="cpu")
    assert tiny.encode_text(TEXTS).shape == (3, 128)
    model = make_clip(tmp_path)
    retriever = Retriever.from_pretrained(f"local-dir:{tmp_path}", device="cpu")
    words = transformers.AutoTokenizer.from_pretrained(TINY)
    ids = torch.tensor(words(TEXTS, padding="max_length", max_length=16)["input_ids"])
    with torch.no_grad():
        expected = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    torch.testing.assert_close(retriever.encode_text(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("runs/clipse/none", ["no such folder", "give a run folder"]),
        ("ViT-B-32", ["needs pretrained="]),
        ("{}", ["is a folder: write local-dir:"]),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, source, words):
    make_clip(tmp_path)
    with pytest.raises(ValueError, match=words[0]) as caught:
        Retriever.from_pretrained(source.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_commands_read_a_clip_of_transformers(clipse, small, tmp_path):
    make_clip(tmp_path / "clip")
    overrides = [text for text in small if not text.startswith("model.")]
    assert clipse("eval", f"local-dir:{tmp_path / 'clip'}", *overrides)[0] == 0
    refused(clipse("eval", str(tmp_path / "clip"), *overrides), "write local-dir:")


def test_the_activation_of_a_weights_file_can_be_told(small, tmp_path):
    model = load_towers(load_config(Config, overrides=small).model, seed=1)
    weights = model.image_tower.trunk.state_dict() | model.text_tower.trunk.state_dict()
    torch.save(weights | {"logit_scale": torch.tensor(2.0)}, tmp_path / "weights.pt")
    small = [*small, f"model.pretrained={tmp_path / 'weights.pt'}"]
    found = {}
    for activation in ("gelu", "quick_gelu", None):
        told = "null" if activation is None else activation
        config = load_config(Config, overrides=[*small, f"model.activation={told}"])
        bundle = load_towers(config.model, seed=0)
        found[activation] = bundle.spec.activation, bundle.text_tower(bundle.tokenizer(TEXTS))
    assert [found[key][0] for key in found] == ["gelu", "quick_gelu", "gelu"]
    assert torch.equal(found["gelu"][1], found[None][1])
    assert not torch.allclose(found["gelu"][1], found["quick_gelu"][1])


def test_one_item_where_a_list_is_expected_and_nothing_at_all():
    retriever = Retriever.from_pretrained("tiny", device="cpu")
    for call in (retriever.encode_text, retriever.encode_image):
        with pytest.raises(ValueError, match="is a single str: expected a list"):
            call("a dog")
        assert call([]).shape == (0, 128)
    with pytest.raises(ValueError, match="a Tensor is no picture: give files or PIL images"):
        retriever.encode_image([torch.zeros(3, 4, 4)])
