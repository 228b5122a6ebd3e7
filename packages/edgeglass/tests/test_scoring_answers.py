"""Scores of answers: normalisation, VQA accuracy, exact match, F1, intervals by image, the majority baseline."""

import numpy as np
import pytest

from clip_common.synthetic import balanced_questions, majority_answer_accuracy, sample_scene
from edgeglass.data.conversations import Turn
from edgeglass.scoring.answers import (
    exact_match,
    majority_answers,
    normalise_answer,
    score_answers,
    token_f1,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("A dog!", "dog"),
        (" the\tRed\n mug ", "red mug"),
        ("two", "2"),
        ("None", "0"),
        ("zero", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("1,000 (dogs)", "1000 dogs"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("p.m.", "pm"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("dog, cat", "dog cat"),
        ("dog,cat", "dog cat"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("he's", "he's"),
        ("5 oclock", "5 o'clock"),
        ("yall'd've", "y'all'd've"),
        ("its", "its"),
        ("Zürich", "zürich"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalised_answers(text, expected):
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_by_the_number_that_agree(agreeing, expected):
    people = ["Red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("a red.", people) == pytest.approx(expected)


def test_vqa_accuracy_needs_several_answers():
    with pytest.raises(ValueError, match="at least 4: got 1; use exact_match"):
        vqa_accuracy("a", ["a"])


def test_exact_match_and_f1():
    assert exact_match("The dog.", ["cat", "dog"]) == 1
    assert exact_match("dogs", ["cat", "dog"]) == 0
    assert token_f1("a big red mug", ["red mug"]) == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("red red mug", ["red mug mug"]) == pytest.approx(2 * 2 / 6)
    assert token_f1("mug", ["star", "the mug"]) == 1
    assert token_f1("mug", ["star"]) == token_f1("", ["star"]) == 0
    assert token_f1("the", ["a"]) == 1


TURNS = [
    Turn("q1", "red", (), "colour"),
    Turn("q2", "blue", (), "colour"),
    Turn("q3", "2", ("2",) * 3 + ("3",) * 7, "count"),
    Turn("q4", "a dog", ()),
]


def test_scores_by_type_of_question():
    scores = score_answers(["red", "green", "two", "big dog"], TURNS)
    assert scores.per_question["accuracy"].tolist() == pytest.approx([1, 0, 0.9, 0])
    assert scores.per_question["exact"].tolist() == [1, 0, 1, 0]
    assert scores.per_question["f1"].tolist() == pytest.approx([1, 0, 1, 2 / 3])
    assert list(scores.accuracy) == ["all", "colour", "count"]
    assert [estimate.count for estimate in scores.accuracy.values()] == [4, 2, 1]
    assert scores.accuracy["all"].value == pytest.approx(1.9 / 4)
    assert scores.accuracy["colour"].value == 0.5
    assert (scores.accuracy["colour"].low, scores.accuracy["colour"].high) == (0, 1)
    assert scores.accuracy["count"].low == scores.accuracy["count"].high == pytest.approx(0.9)


def test_questions_about_one_image_are_drawn_together():
    turns = [Turn("q", "yes")] * 400
    answers = ["yes", "no"] * 200
    alone = score_answers(answers, turns).exact["all"]
    assert alone.value == 0.5
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)
    # pairs of a right and a wrong answer vary nothing; a hundred equal answers an image vary much
    paired = score_answers(answers, turns, images=[row // 2 for row in range(400)]).exact["all"]
    assert paired.low == paired.high == 0.5
    blocks = score_answers(sorted(answers), turns, images=[row // 100 for row in range(400)]).exact["all"]
    assert (blocks.low, blocks.high) == (0, 1)
    assert alone == score_answers(answers, turns).exact["all"]


def test_the_coverage_of_the_interval():
    random = np.random.default_rng(0)
    turns = [Turn("q", "yes")] * 150
    inside = 0
    for seed in range(100):
        answers = ["yes" if right else "no" for right in random.random(150) < 0.7]
        estimate = score_answers(answers, turns, samples=200, seed=seed).exact["all"]
        inside += estimate.low <= 0.7 <= estimate.high
    assert 86 <= inside <= 100


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="got 1 for 4 questions"):
        score_answers(["a"], TURNS)
    with pytest.raises(ValueError, match="got 0 for 0 questions"):
        score_answers([], [])
    with pytest.raises(ValueError, match="no training questions"):
        majority_answers([], TURNS)


def test_majority_answers_by_text_then_type_then_all():
    train = [Turn("Colour?", answer, type="colour") for answer in ("red", "blue", "blue")]
    train += [Turn("hue?", "red", type="colour")] * 3 + [Turn("how many?", "2", type="count")] * 2
    asked = [
        Turn("colour", "", type="colour"),
        Turn("tint?", "", type="colour"),
        Turn("how many", "", type="other"),
        Turn("new", "", type="other"),
    ]
    assert majority_answers(train, asked) == ["blue", "red", "2", "red"]


def test_the_majority_baseline_is_that_of_the_world():
    train, test = (
        balanced_questions([sample_scene(seed, index) for index in range(400)], per_type=100) for seed in (0, 1)
    )
    turns = [[Turn(question.text, question.answer, type=question.type) for question in part] for part in (train, test)]
    scores = score_answers(majority_answers(*turns), turns[1])
    expected = majority_answer_accuracy(train, test)
    assert {type: estimate.value for type, estimate in scores.exact.items()} == pytest.approx(expected)
