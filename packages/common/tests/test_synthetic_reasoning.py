"""Questions that compare things or count under a condition; questions drawn about one scene."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.synthetic import REASONING_TYPES, TYPES, Scene, Thing, answer, draw_questions, questions, sample_scene
from clip_common.synthetic.balance import LEAST, balanced_questions, majority_answer_accuracy
from clip_common.synthetic.question_forms import REASONING_FORMS, read_question

ALL = (*TYPES, *REASONING_TYPES)

BY_HAND = Scene(
    seed=0,
    index=0,
    things=(
        Thing("mug", "red", "plain", "large", "top left"),
        Thing("star", "red", "striped", "small", "centre"),
        Thing("umbrella", "orange", "dotted", "small", "bottom"),
        Thing("key", "blue", "dotted", "medium", "top right"),
    ),
    background="sand",
)
TWO_MUGS = Scene(
    0, 0, (Thing("mug", "red", "plain", "large", "left"), Thing("mug", "blue", "plain", "small", "top")), "sand"
)


def scenes(count: int, *, seed: int = 0) -> list[Scene]:
    return [sample_scene(seed, index) for index in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("is the mug larger than the star?", "yes"),
        ("is the key larger than the mug?", "no"),
        ("is the star larger than the umbrella?", "no"),
        ("are the mug and the star the same colour?", "yes"),
        ("are the mug and the key the same colour?", "no"),
        ("how many small things are there?", "2"),
        ("how many medium-sized things are there?", "1"),
        ("how many dotted things are there?", "2"),
        ("how many checked things are there?", "0"),
        ("how many things are larger than the umbrella?", "2"),
        ("how many things are larger than the mug?", "0"),
        ("is the mug left of the star?", "yes"),
        ("is the umbrella left of the star?", "no"),
        ("Is the umbrella below the star?", "yes"),
        ("is the mug above the key?", "no"),
        ("is the key right of the umbrella?", "yes"),
        ("what colour is the thing left of the umbrella?", "red"),
        ("what colour is the thing below the star?", "orange"),
        ("what colour is the thing right of the star?", "blue"),
    ],
)
def test_answers_by_hand(text, expected):
    assert answer(BY_HAND, text) == expected


@pytest.mark.parametrize(
    ("scene", "text", "message"),
    [
        (BY_HAND, "what colour is the thing above the star?", "2 such things"),
        (BY_HAND, "what colour is the thing below the umbrella?", "0 such things"),
        (BY_HAND, "is the mug larger than the boat?", "0 such things"),
        (TWO_MUGS, "how many things are larger than the mug?", "2 such things"),
        (BY_HAND, "is the mug larger than the dog?", "no kind 'dog', only mug"),
        (BY_HAND, "is the mug behind the star?", "not a question of the procedural world"),
    ],
)
def test_what_has_no_answer_is_one_line(scene, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        answer(scene, text)
    assert "\n" not in str(caught.value)


@given(st.integers(min_value=0, max_value=10_000))
def test_every_question_is_answered_right_by_the_reader(index):
    scene = sample_scene(2, index)
    asked = questions(scene, ALL)
    assert [question.answer for question in asked] == [answer(scene, question.text) for question in asked]
    assert all(question.answer in question.form.answers for question in asked)
    assert all(read_question(question.text)[0] == question.form for question in asked)
    assert len({question.text for question in asked}) == len(asked)
    assert [question for question in asked if question.type in TYPES] == questions(scene)


def test_only_clear_comparisons_are_asked():
    texts = {question.text for question in questions(BY_HAND, REASONING_TYPES)}
    assert "is the mug larger than the star?" in texts
    assert "is the star larger than the umbrella?" not in texts  # of one size
    assert "is the mug above the umbrella?" in texts
    assert "is the star left of the umbrella?" not in texts  # in one column
    assert "is the umbrella above the star?" in texts
    assert "what colour is the thing above the star?" not in texts  # two of them
    assert not [question for question in questions(TWO_MUGS, REASONING_TYPES) if "mug" in question.text]


def test_every_form_and_answer_occurs():
    asked = [question for scene in scenes(600) for question in questions(scene, REASONING_TYPES)]
    for form in REASONING_FORMS:
        assert {question.answer for question in asked if question.form == form} == set(form.answers)
    assert REASONING_TYPES == ("compare", "count_if", "relation")


@settings(max_examples=10)
@given(st.integers(min_value=LEAST, max_value=60), st.integers(min_value=0, max_value=50))
def test_each_text_has_each_answer_equally_often(per_type, seed):
    drawn = balanced_questions(scenes(400), per_type=per_type, seed=seed, types=REASONING_TYPES)
    answers = defaultdict(Counter)
    for question in drawn:
        answers[question.text, question.form][question.answer] += 1
    for (_, form), counts in answers.items():
        assert set(counts) == set(form.answers)
        assert len(set(counts.values())) == 1
    assert {question.type for question in drawn} == set(REASONING_TYPES)


def test_the_words_alone_give_the_majority_baseline():
    train, test = (balanced_questions(scenes(600, seed=seed), per_type=96, types=REASONING_TYPES) for seed in (0, 1))
    assert majority_answer_accuracy(train, test)["all"] <= majority_answer_accuracy(test, test)["all"]
    accuracy = majority_answer_accuracy(test, test)
    assert accuracy["compare"] == 1 / 2
    assert accuracy["count_if"] == pytest.approx(1 / 3)
    # 48 with the answers yes and no, 48 with eight colours
    assert accuracy["relation"] == (1 / 2 + 1 / 8) / 2


def test_drawn_questions_take_turns_over_types_and_answers():
    drawn = [draw_questions(scene, 16, random=np.random.default_rng(scene.index), types=ALL) for scene in scenes(200)]
    assert drawn[7] == draw_questions(sample_scene(0, 7), 16, random=np.random.default_rng(7), types=ALL)
    assert drawn[7] != draw_questions(sample_scene(0, 7), 16, random=np.random.default_rng(8), types=ALL)
    for asked in drawn:
        assert len({question.text for question in asked}) == 16
    full = next(asked for asked in drawn if len(asked[0].scene.things) == 4)
    assert set(Counter(question.type for question in full).values()) == {2}
    answers = Counter(question.answer for asked in drawn for question in asked if question.type == "yes/no")
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_scene_with_fewer_questions_gives_all_of_them():
    scene = next(scene for scene in scenes(50) if len(scene.things) == 1)
    drawn = draw_questions(scene, 100_000, random=np.random.default_rng(0))
    assert sorted(question.text for question in drawn) == sorted(question.text for question in questions(scene))
    assert draw_questions(scene, 3, random=np.random.default_rng(0), types=("shape",)) == questions(scene, ("shape",))
