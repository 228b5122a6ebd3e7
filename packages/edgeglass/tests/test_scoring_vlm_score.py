"""A trained run is scored: every question once, the swapped control, captions, and what may change."""

import json
from pathlib import Path

import pytest
from PIL import Image
from toy_questions import configured

from clip_common.tables import read_json_lines
from edgeglass.config import VlmConfig
from edgeglass.data.conversations import read_conversations
from edgeglass.scoring.answers import ALL
from edgeglass.scoring.vlm_score import (
    answer_questions,
    list_questions,
    override_config,
    score_vlm,
    swap_images,
)
from edgeglass.training.vlm_experiment import train_vlm


@pytest.fixture(scope="module")
def trained(question_parts, tmp_path_factory):
    from toy_questions import settings

    folder = tmp_path_factory.mktemp("scored")
    return train_vlm(configured(settings(question_parts, folder), "name=scored", "trainer.max_epochs=1")).run


def test_a_run_is_scored_beside_the_majority_and_swapped_images(trained):
    scored = score_vlm(trained.path, control="swapped")
    sets = read_conversations(scored.config.data)
    assert len(scored.answers) == len(scored.asked) == len(sets.splits["test"])
    assert scored.majority is not None
    assert scored.swapped is not None
    assert {"colour", "shape", "count", "place", "yes/no", ALL} == set(scored.scores.accuracy)
    # each answer of a balanced set is as frequent as any other, so the words alone reach one in as many
    assert scored.majority.accuracy["colour"].value == pytest.approx(1 / 8)
    assert trained.result["test"]["scores"]["accuracy"][ALL] == scored.scores.accuracy[ALL].value
    rows = [row for _, row in read_json_lines(scored.written[0])]
    assert [row["answer"] for row in rows] == scored.answers
    table = scored.table()
    assert table.header == ["", "questions", "accuracy", "token F1", "majority", "swapped image"]
    assert len(table.rows) == 6
    shown = scored.by_image(3)
    assert sum(map(len, shown.values())) == 3
    assert all(Path(place).is_file() for place in shown)


def test_answers_do_not_depend_on_the_batch(trained):
    from clip_common.features import FeatureCache
    from clip_common.reporting import silent
    from edgeglass.vlm.vlm import VLM

    vlm = VLM.from_pretrained(trained.path, device="cpu")
    asked = list_questions(read_conversations(vlm.config.data).splits["test"])[:12]
    cache = FeatureCache(vlm.config.cache_folder / "features")
    whole = answer_questions(vlm, asked, cache=cache, reporter=silent)
    vlm.config.answer.batch_size = 1
    assert answer_questions(vlm, asked, cache=cache, reporter=silent) == whole


def test_swapping_gives_every_question_another_image(trained):
    from clip_common.config import load_config

    config = load_config(VlmConfig, config=trained.path / "config.yaml")
    asked = list_questions(read_conversations(config.data).splits["test"])
    swapped = swap_images(asked)
    for one, other in zip(asked, swapped, strict=True):
        assert one.conversation.image != other.conversation.image
        assert one.turn == other.turn


@pytest.mark.parametrize("setting", ["data.layout=chat", "data.max_length=9", "decoder.name=x", "trm.steps=3"])
def test_settings_of_the_model_are_kept(trained, setting):
    from clip_common.config import load_config

    config = load_config(VlmConfig, config=trained.path / "config.yaml")
    with pytest.raises(ValueError, match="the model is trained and keeps its settings"):
        override_config(config, [setting])


def test_captions_are_scored_by_cider(question_parts, asked, tmp_path):
    rows = []
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        split = "train" if number < 6 else "val" if number < 8 else "test"
        captions = [f"a {word} picture of number {number}" for word in ("red", "dark")]
        rows.append({"image": f"images/{number}.png", "captions": captions, "split": split})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    overrides = [f"data.root={tmp_path}", "data.batch_size=4", "name=captions", "trainer.max_epochs=1"]
    run = train_vlm(configured(asked, *overrides)).run
    scored = score_vlm(run.path)
    assert len(scored.asked) == 4, "an image's two captions answer one question"
    assert scored.captions.keys() == {"CIDEr", "BLEU-4"}
    assert scored.table().rows[0][0] == "CIDEr"
