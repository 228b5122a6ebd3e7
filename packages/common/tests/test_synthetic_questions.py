"""Questions about scenes: answers, balanced sets whose words alone tell nothing, and the folder in VQA's format."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from clip_common.synthetic import Scene, Thing, sample_scene
from clip_common.synthetic.balance import LEAST, TooFewScenesError, balanced_questions, majority_answer_accuracy
from clip_common.synthetic.captions import captions
from clip_common.synthetic.jsonl import read_questions, read_scenes, write_questions
from clip_common.synthetic.question_forms import FORMS, TYPES, read_question
from clip_common.synthetic.questions import answer, questions
from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES
from clip_common.tables import read_json_lines

indices = st.integers(min_value=0, max_value=10_000)


def scenes(count: int, *, seed: int = 0) -> list[Scene]:
    return [sample_scene(seed, index) for index in range(count)]


BY_HAND = Scene(
    seed=0,
    index=0,
    things=(
        Thing("mug", "red", "plain", "large", "top left"),
        Thing("mug", "blue", "striped", "small", "centre"),
        Thing("umbrella", "orange", "dotted", "small", "bottom"),
    ),
    background="sand",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what colour is the umbrella?", "orange"),
        ("what is at the top left?", "mug"),
        ("what is in the middle?", "mug"),
        ("how many things are there?", "3"),
        ("how many red things are there?", "1"),
        ("how many pink things are there?", "0"),
        ("Where is the umbrella?", "bottom"),
        ("is there an umbrella?", "yes"),
        ("is there a key?", "no"),
        ("is there anything blue?", "yes"),
        ("is there anything black?", "no"),
        ("is there an orange umbrella?", "yes"),
        ("is there an orange mug?", "no"),
    ],
)
def test_answers_by_hand(text, expected):
    assert answer(BY_HAND, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what colour is the mug?", "2 such things"),
        ("where is the key?", "0 such things"),
        ("what is on the right?", "0 such things"),
        ("what colour is the dog?", "no kind 'dog', only mug"),
        ("is there a beige mug?", "no colour 'beige', only red"),
        ("what is love?", "no place 'love', only at the top left"),
        ("who drank from the mug?", "not a question of the procedural world"),
    ],
)
def test_what_has_no_answer_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        answer(BY_HAND, text)
    assert "\n" not in str(caught.value)


@given(indices)
def test_every_question_is_answered_right_by_the_reader(index):
    scene = sample_scene(2, index)
    asked = questions(scene)
    assert [question.answer for question in asked] == [answer(scene, question.text) for question in asked]
    assert all(question.answer in question.form.answers for question in asked)
    assert all(read_question(question.text)[0] == question.form for question in asked)
    assert len({question.text for question in asked}) == len(asked)
    assert questions(scene) == asked


def test_only_what_has_one_answer_is_asked():
    texts = {question.text for question in questions(BY_HAND)}
    assert "what colour is the umbrella?" in texts
    assert "what colour is the mug?" not in texts
    assert "where is the mug?" not in texts
    # a question with the answer no is asked only if one of its words occurs in the scene
    assert "is there an orange mug?" in texts
    assert "is there a black mug?" in texts
    assert "is there a black key?" not in texts


def test_every_form_and_answer_occurs():
    asked = [question for scene in scenes(300) for question in questions(scene)]
    for form in FORMS:
        assert {question.answer for question in asked if question.form == form} == set(form.answers)
    assert TYPES == ("colour", "shape", "count", "place", "yes/no")


@settings(max_examples=20)
@given(st.integers(min_value=LEAST, max_value=60), st.integers(min_value=0, max_value=50))
def test_each_text_has_each_answer_equally_often(per_type, seed):
    drawn = balanced_questions(scenes(300), per_type=per_type, seed=seed)
    answers = defaultdict(Counter)
    for question in drawn:
        answers[question.text, question.form][question.answer] += 1
    for (_, form), counts in answers.items():
        assert set(counts) == set(form.answers)
        assert len(set(counts.values())) == 1
    assert len({(question.scene, question.text) for question in drawn}) == len(drawn)
    for type, count in Counter(question.type for question in drawn).items():
        assert per_type / 2 < count <= per_type, type


def test_a_set_is_the_same_twice_and_another_seed_draws_another():
    world = scenes(300)
    one, two, other = (balanced_questions(world, per_type=40, seed=seed) for seed in (1, 1, 2))
    assert one == two != other


@pytest.fixture(scope="module")
def train():
    return balanced_questions(scenes(1000), per_type=600)


@pytest.fixture(scope="module")
def test():
    return balanced_questions(scenes(1000, seed=1), per_type=600)


def test_the_words_alone_give_the_majority_baseline(train, test):
    accuracy = majority_answer_accuracy(train, test)
    assert accuracy["colour"] == 1 / len(COLOURS)
    assert accuracy["shape"] == 1 / len(KINDS)
    assert accuracy["place"] == 1 / len(PLACES)
    assert accuracy["yes/no"] == 1 / 2
    # 300 of "how many things" with four answers, 300 of "how many red things" with three
    assert accuracy["count"] == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert accuracy["all"] == pytest.approx(0.22, abs=0.002)


def test_a_classifier_of_the_words_learns_no_more(train, test):
    reader = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression(max_iter=100))
    reader.fit([question.text for question in train], [question.answer for question in train])
    right = reader.predict([question.text for question in test]) == [question.answer for question in test]
    assert np.mean(right) <= majority_answer_accuracy(train, test)["all"] + 1e-9


def test_the_guard_sees_what_is_not_balanced():
    train, test = ([question for scene in part for question in questions(scene)] for part in (scenes(100), scenes(60)))
    assert majority_answer_accuracy(train, test)["yes/no"] > 0.7  # the answer to most questions about a scene is no


def test_the_guard_by_hand():
    colour = [question for question in questions(sample_scene(0, 0)) if question.type == "colour"][:1]
    other = [question for question in questions(sample_scene(0, 0)) if question.type == "count"][:1]
    assert majority_answer_accuracy(colour, colour) == {"all": 1.0, "colour": 1.0}
    with pytest.raises(ValueError, match=r"none in training of \['count'\]"):
        majority_answer_accuracy(colour, other)
    with pytest.raises(ValueError, match="0 test questions"):
        majority_answer_accuracy(colour, [])


def test_too_few_scenes_or_questions_are_one_line():
    with pytest.raises(TooFewScenesError, match=r"30 scenes hold .* give more scenes or ask for fewer"):
        balanced_questions(scenes(30), per_type=40)
    with pytest.raises(ValueError, match="at least 16 questions of each type: got per_type=15"):
        balanced_questions(scenes(30), per_type=15)


def rows_of(folder):
    return [row for _, row in read_json_lines(folder / "questions.jsonl")]


def test_a_folder_holds_pictures_and_questions(tmp_path):
    said = []
    folder = write_questions(
        tmp_path / "deep" / "vqa", train=40, val=0, test=20, size=32, progress=lambda *at: said.append(at)
    )
    rows = rows_of(folder)
    assert set(rows[0]) == {"image", "question", "answer", "answers", "type", "split"}
    assert all(row["answers"] == [row["answer"]] * 10 for row in rows)
    by_split = {split: read_questions(folder, split=split) for split in ("train", "val", "test")}
    assert [len(asked) for asked in by_split.values()] == [
        40 + 32 + (20 + 18) + 36 + 3 * 12,
        0,
        16 + 16 + (8 + 9) + 18 + 3 * 6,
    ]
    for asked in by_split.values():
        assert [answer(question.scene, question.text) for question in asked] == [question.answer for question in asked]
    assert majority_answer_accuracy(by_split["train"], by_split["test"])["yes/no"] == 1 / 2
    # no scene in two splits, and no picture without a question
    images = {split: {row["image"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert not images["train"] & images["test"]
    written = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    assert written == images["train"] | images["test"]
    assert Image.open(folder / rows[0]["image"]).size == (32, 32)
    assert said[-1] == (len(written), len(written))


def test_many_questions_about_each_training_picture(tmp_path):
    types = ("colour", "yes/no", "compare")
    folder = write_questions(tmp_path / "vqa", train=30, val=0, test=16, per_picture=6, types=types, size=32)
    asked = read_questions(folder, split="train")
    assert [len({question.text for question in asked if question.scene.index == index}) for index in range(30)] == [
        6
    ] * 30
    assert len(asked) == 180
    test = read_questions(folder, split="test")
    assert Counter(question.type for question in test) == {"colour": 16, "yes/no": 12, "compare": 16}
    assert not {question.scene for question in asked} & {question.scene for question in test}
    assert len(list((folder / "images").iterdir())) == 30 + len({question.scene for question in test})


def test_captions_of_each_training_picture_among_its_questions(tmp_path):
    folder = write_questions(
        tmp_path / "vqa", train=4, val=0, test=16, per_picture=2, captions_per_picture=3, types=("yes/no",), size=32
    )
    rows = [row for _, row in read_json_lines(folder / "questions.jsonl")]
    described = [row for row in rows if row["type"] == "caption"]
    assert len(described) == 12
    assert {row["split"] for row in described} == {"train"}
    assert {row["question"] for row in described} == {"Describe the image."}
    scenes = read_scenes(folder)
    for row in described:
        assert row["answer"] in captions(scenes[row["image"]], 3)
    assert len(read_questions(folder, split="train")) == 8, "captions are no questions with a single answer"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"per_picture": 0}, "expected at least one question a picture, got per_picture=0"),
        ({"types": ("colour", "sound")}, "types=colour, sound: expected some of the types of questions colour, shape"),
        ({"types": ()}, "expected some of the types"),
        ({"types": (), "per_picture": 3}, "expected some of the types"),
        ({"train": 15}, "at least 16 questions of each type"),
    ],
)
def test_what_cannot_be_written(tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        write_questions(tmp_path / "vqa", **({"train": 20, "val": 0, "test": 0} | arguments))
    assert not (tmp_path / "vqa").exists()
