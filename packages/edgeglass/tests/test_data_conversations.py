"""Sets of questions: loading, splits by image, held-out images, what is missing, broken or empty."""

import pytest
import toy_conversations as toy
from toy_conversations import ROWS, all_of, read, refusal

from clip_common.synthetic import write_questions
from edgeglass.data.conversations import Turn


def test_rows_of_questions(tmp_path):
    toy.write_set(tmp_path)
    found = read(tmp_path)
    assert found.format == "jsonl"
    assert (found.problems, found.skipped, found.unlisted) == ([], 0, 0)
    assert {split: len(members) for split, members in found.splits.items()} == {"train": 4, "val": 1, "test": 1}
    assert [item.turns for item in all_of(found)] == [
        (Turn("what is it?", "a dog", (), "object"),),
        (Turn("how many?", "1", ("2", "1", "1"), ""),),
        (Turn("what is 犬?", "a dog"),),
        (Turn("and this?", "zwölf"),),
        (Turn("colour?", "red", ("red",) * 10),),
        (Turn("colour?", "blue", (), "colour"),),
    ]
    assert [item.id for item in all_of(found)] == [0, 1, 2, 3, 4, 5]
    dog, _, text_only, *_ = all_of(found)
    assert (dog.image, dog.name) == (tmp_path / "images" / "ein hund.png", "images/ein hund.png")
    assert text_only.image is None
    assert text_only.name.endswith("questions.jsonl, line 3")
    assert Turn("q", "a").references == ("a",)
    assert Turn("q", "a", ("b", "a")).references == ("b", "a")


def test_the_world_as_it_is_written(tmp_path):
    write_questions(tmp_path / "world", train=16, val=0, test=16, size=32)
    found = read(tmp_path / "world")
    assert found.format == "jsonl"  # beside it, scenes.jsonl describes the pictures
    assert {turn.type for item in found.splits["test"] for turn in item.turns} == {
        "colour", "shape", "count", "place", "yes/no",
    }  # fmt: skip
    assert all(len(turn.answers) == 10 for item in found.splits["test"] for turn in item.turns)
    assert all(item.image.is_file() for item in all_of(found))


def test_images_in_another_folder(tmp_path):
    toy.write_images(tmp_path)
    (tmp_path / "fragen ü").mkdir()
    toy.write_rows(tmp_path / "fragen ü", ROWS)
    assert "images/c.png: no such file" in refusal(tmp_path / "fragen ü")
    found = read(tmp_path / "fragen ü", images=str(tmp_path))
    assert found.splits["val"][0].image == tmp_path / "images" / "c.png"


def test_splits_are_drawn_by_image(tmp_path):
    toy.write_images(tmp_path)
    images = [f"{number}.png" for number in range(20)]
    for image in images:
        (tmp_path / image).write_bytes((tmp_path / "images" / "c.png").read_bytes())
    rows = [{"image": image, "question": f"{number}?", "answer": "a"} for number in range(3) for image in images]
    rows += [{"question": f"{number}?", "answer": "a"} for number in range(10)]
    toy.write_rows(tmp_path, rows)
    found, other = read(tmp_path), read(tmp_path, split_seed=1)
    assert all_of(found) == all_of(read(tmp_path))
    assert found.splits != other.splits
    by_split = {split: {item.image for item in members} - {None} for split, members in found.splits.items()}
    assert sum(map(len, by_split.values())) == 20  # no image is in two splits
    assert all(by_split.values())
    assert sum(map(len, found.splits.values())) == 70


def test_held_out_images_take_all_their_conversations_along(tmp_path):
    toy.write_images(tmp_path)
    names = ["ein hund", "zwölf", "c", "d"]
    rows = [
        {"image": f"images/{name}.png", "question": f"{number}?", "answer": "a", "split": "train"}
        for name in names
        for number in range(3)
    ]
    toy.write_rows(tmp_path, [*rows, {"question": "no image?", "answer": "a", "split": "train"}])
    found = read(tmp_path, hold_out=2)
    assert len(found.splits["val"]) == 6
    assert len({item.image for item in found.splits["val"]}) == 2
    assert not {item.image for item in found.splits["val"]} & {item.image for item in found.splits["train"]}
    assert len(found.splits["train"]) == 7
    assert {item.split for item in found.splits["val"]} == {"val"}
    assert "data.hold_out=3: of 4 training images, 1 to 2 can be held out" in refusal(tmp_path, hold_out=3)


def test_hold_out_and_a_val_split(tmp_path):
    toy.write_set(tmp_path)
    assert "has a val split of 1: leave data.hold_out at 0" in refusal(tmp_path, hold_out=1)


def test_an_image_in_two_splits_is_named(tmp_path):
    toy.write_set(tmp_path)
    toy.write_rows(tmp_path, [*ROWS, ROWS[0] | {"image": "images/../images/ein hund.png", "split": "test"}])
    assert "ein hund.png: in two splits, train and test: keep it in one" in refusal(tmp_path)


def test_rows_without_a_split_beside_others_are_counted(tmp_path):
    toy.write_set(tmp_path)
    toy.write_rows(tmp_path, [*ROWS, {"question": "q?", "answer": "a"}])
    found = read(tmp_path)
    assert found.unlisted == 1
    assert len(all_of(found)) == 6


def test_missing_and_broken_images(tmp_path):
    toy.write_set(tmp_path)
    (tmp_path / "images" / "ein hund.png").unlink()
    (tmp_path / "images" / "zwölf.png").write_bytes(b"no image")
    assert "1 image(s) are missing" in refusal(tmp_path)
    done = []
    found = toy.read_conversations(
        toy.QuestionDataConfig(root=str(tmp_path), on_error="skip"), progress=lambda *state: done.append(state)
    )
    assert [item.id for item in all_of(found)] == [2, 4, 5]
    assert found.skipped == 2
    assert "ein hund.png: no such file" in found.problems[0]
    assert "zwölf.png: not a readable image" in found.problems[1]
    assert done[-1] == (3, 3)


@pytest.mark.parametrize(
    ("key", "said"), [("question", "an empty question"), ("answer", "an empty answer to 'colour?'")]
)
def test_empty_texts(tmp_path, key, said):
    toy.write_set(tmp_path)
    toy.write_rows(tmp_path, [*ROWS[:-1], ROWS[-1] | {key: " \t"}])
    text = refusal(tmp_path)
    assert f"1 empty question(s) or answer(s): images/d.png: {said}" in text
    found = read(tmp_path, on_error="skip")
    assert found.problems == [f"images/d.png: {said}"]
    assert found.skipped == 0
    assert found.splits["test"] == []


def test_nothing_that_can_be_used(tmp_path):
    assert "no set of a known format" in refusal(tmp_path)
    assert "for questions: *.jsonl, *.json or *.parquet" in refusal(tmp_path)
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    toy.write_rows(tmp_path, [{"question": "q", "answer": ""}])
    assert "holds no conversation that can be used" in refusal(tmp_path, on_error="skip")
    assert "expected auto or one of jsonl, json, parquet, vqav2" in refusal(tmp_path, format="coco")
    with pytest.raises(toy.DataError, match=r"data\.root is not set"):
        toy.read_conversations(toy.QuestionDataConfig())
