"""The Flickr8k folder and the ceiling of the attribute oracle."""

import csv

import pytest
import torch
from PIL import Image

from clip_common.metrics import retrieval_metrics
from clip_common.synthetic import (
    Scene,
    Thing,
    attribute_oracle,
    captions,
    oracle_of_folder,
    oracle_scores,
    sample_scene,
    write_flickr8k,
)


def scene(*things: tuple[str, str, str, str, str], background: str = "sand") -> Scene:
    return Scene(seed=0, index=0, things=tuple(Thing(*words) for words in things), background=background)


def test_the_oracle_scores_by_hand():
    one = scene(("mug", "red", "plain", "large", "left"), ("key", "blue", "dotted", "small", "right"))
    two = scene(("mug", "blue", "plain", "large", "left"), background="snow")
    texts = ["a red mug and a blue key", "a big mug in the snow", "a blue mug"]
    scores = oracle_scores([one, two], texts)
    # one: all four claims hold. two: mug holds, red, blue and key do not.
    assert scores[0].tolist() == [4.0, 1 - 20 * 3]
    # one: big and mug hold, snow does not. two: all three hold.
    assert scores[1].tolist() == [2 - 20, 3.0]
    # one: mug, and blue of the key, but not both of one thing. two: both.
    assert scores[2].tolist() == [1 - 20, 2.0]


def test_of_two_that_tie_each_is_first_half_of_the_time():
    twins = [scene(("mug", "red", "plain", "large", "left"))] * 2
    metrics = attribute_oracle(twins, [["a red mug"], ["a red mug"]])
    assert metrics["t2i/R@1"] == 0.5
    assert metrics["t2i/R@5"] == 1.0
    assert metrics["i2t/R@1"] == 0.5
    assert metrics["rsum"] == 500.0


def test_the_oracle_counts_as_the_metrics_do():
    scenes = [sample_scene(4, index) for index in range(50)]
    scenes += scenes[:10]  # ties
    texts = [captions(one, 2) for one in scenes]
    scores = torch.from_numpy(oracle_scores(scenes, [text for said in texts for text in said]))
    owner = torch.arange(60).repeat_interleave(2)
    one_hot = torch.eye(60)  # products with it are the scores themselves
    found = retrieval_metrics(scores, one_hot, owner, normalise=False).metrics
    oracle = attribute_oracle(scenes, texts)
    assert oracle["t2i/R@1"] == pytest.approx(50 / 60)
    assert [oracle[f"t2i/R@{k}"] for k in (1, 5, 10)] == pytest.approx([found[f"R@{k}"] for k in (1, 5, 10)])


def test_the_ceiling_of_a_thousand_scenes_is_at_least_seven_tenths():
    scenes = [sample_scene(0, index) for index in range(1000)]
    metrics = attribute_oracle(scenes, [captions(one) for one in scenes])
    assert metrics["t2i/R@1"] >= 0.7
    assert metrics["i2t/R@1"] >= 0.7


def test_the_folder_is_laid_out_as_flickr8k(tmp_path):
    said = []
    folder = write_flickr8k(
        tmp_path / "ünïcode scenes", train=4, val=2, test=3, size=32, progress=lambda *at: said.append(at)
    )
    names = sorted(path.name for path in (folder / "Images").iterdir())
    assert len(names) == 9
    assert Image.open(folder / "Images" / names[0]).size == (32, 32)
    with (folder / "captions.txt").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["image", "caption"]
    assert len(rows) == 1 + 9 * 5
    lists = [
        (folder / f"Flickr_8k.{word}Images.txt").read_text(encoding="utf-8").split()
        for word in ("train", "dev", "test")
    ]
    assert [len(part) for part in lists] == [4, 2, 3]
    assert sorted(name for part in lists for name in part) == names
    assert said[-1] == (9, 9)
    texts = [[row[1] for row in rows if row[0] == name] for name in names]
    assert oracle_of_folder(folder, names, texts)["t2i/R@1"] > 0.8


def test_a_foreign_folder_has_no_oracle_and_neither_have_rewritten_captions(tmp_path):
    for content in ('{"id": 1}\n', "no JSON", ""):
        (tmp_path / "parts.jsonl").write_text(content, encoding="utf-8")
        assert oracle_of_folder(tmp_path, ["a.jpg"], [["a mug"]]) == {}
    folder = write_flickr8k(tmp_path / "set", train=1, val=0, test=0, size=32)
    (name,) = (path.name for path in (folder / "Images").iterdir())
    assert oracle_of_folder(folder, [name], [["something else altogether"]]) == {}
