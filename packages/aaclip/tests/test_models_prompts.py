"""What is said about a class, its grammar, and its embedding."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from aaclip.config import PromptConfig
from aaclip.models.prompts import embed_classes, load_prompts


def test_the_sets_have_the_documented_sizes():
    assert [len(side) for side in load_prompts(PromptConfig(set="full")).prompts("nut")] == [42, 70]
    assert [len(side) for side in load_prompts(PromptConfig(set="compact")).prompts("nut")] == [6, 10]


def test_the_compact_set_is_the_released_one_word_for_word():
    normal, abnormal = load_prompts(PromptConfig(set="compact")).prompts("nut")
    assert normal[:2] == ["nut.", "a photo of nut."]
    assert abnormal[-2:] == ["a nut with damage.", "a photo of a nut with damage."]


@pytest.mark.parametrize(
    "name", ["a black zipper", "apple", "the lid", "metal nut which has four notched edges", "an eye"]
)
def test_every_full_prompt_is_english(name):
    normal, abnormal = load_prompts(PromptConfig(set="full")).prompts(name)
    for text in [*normal, *abnormal]:
        pairs = list(pairwise(text.lower().rstrip(".").split()))
        assert not any(one in ("a", "an", "the") and two in ("a", "an", "the") for one, two in pairs), text
        for one, two in pairs:
            assert not (one == "a" and two[0] in "aeiou"), text
            assert not (one == "an" and two[0] not in "aeiou"), text


def test_real_classes_have_descriptive_names():
    prompts = load_prompts(PromptConfig(set="full"))
    assert prompts.name_of("metal_nut") == "metal nut which has four notched edges"
    assert prompts.name_of("Brain") == "scan"
    assert prompts.name_of("steel_pipe") == "steel pipe"


def test_names_may_hold_anything_but_nothing():
    prompts = load_prompts(PromptConfig(set="full"))
    assert "a photo of a {odd} bolt, größe 2." in prompts.prompts("{odd} bolt, größe 2")[0]
    with pytest.raises(ValueError, match="name of a thing is empty"):
        prompts.prompts("  ")


def test_a_file_replaces_what_it_names(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("normal: ['{}', 'new {}']\nnames: {m1: M1 bolt}\n", encoding="utf-8")
    prompts = load_prompts(PromptConfig(set=str(file)))
    assert [len(side) for side in prompts.prompts("x")] == [14, 70]
    assert prompts.name_of("m1") == "M1 bolt"
    assert prompts.name_of("carpet") == "gray carpet"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("normal: ['flawless']", "normal must each hold {} once, got 'flawless'"),
        ("templates: ['{} and {}']", "templates must each hold"),
        ("normal: []", "got 'nothing'"),
        ("normal: fine", "must be a list of texts"),
        ("normall: ['{}']", "unknown key normall"),
        ("- a", "got a list"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, said):
    file = tmp_path / "own.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_prompts(PromptConfig(set=str(file))).prompts("x")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_set_is_one_line():
    with pytest.raises(ValueError, match=r"prompts.set=ful: neither full nor compact nor a file"):
        load_prompts(PromptConfig(set="ful"))


def test_embeddings_are_means_of_units_by_a_loop():
    prompts = load_prompts(PromptConfig(set="compact"))
    torch.manual_seed(0)
    table = {}

    def encode(texts):
        return torch.stack([table.setdefault(text, torch.randn(5)) for text in texts])

    found = embed_classes(encode, ["nut", "mug"], prompts)
    short = embed_classes(encode, ["nut", "mug"], replace(prompts, renormalise=False))
    for row, name in enumerate(["nut", "mug"]):
        for side, texts in enumerate(prompts.prompts(name)):
            mean = sum(normalize(table[text], dim=0) for text in texts) / len(texts)
            torch.testing.assert_close(short[row, :, side], mean)
            torch.testing.assert_close(found[row, :, side], mean / mean.norm())
