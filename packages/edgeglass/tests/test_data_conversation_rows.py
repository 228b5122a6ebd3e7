"""Rows of questions: VQA rows, instruction pairs and messages, and what is refused about them."""

import pytest
import toy_conversations as toy
from toy_conversations import dialogue, read, refusal

from edgeglass.data.conversations import Turn


def turns_of(folder, row, **settings) -> tuple[Turn, ...]:
    """The turns of the one conversation of a set."""
    toy.write_rows(folder, [row | {"split": "train"}])
    return read(folder, **settings).splits["train"][0].turns


@pytest.fixture
def folder(tmp_path):
    toy.write_images(tmp_path)
    return tmp_path


def test_an_instruction_pair_of_several_turns(folder):
    row = dialogue("<image>\nWhat is it?", "A dog.", "What colour?", "Brown, as <image> shows.")
    assert turns_of(folder, row) == (Turn("What is it?", "A dog."), Turn("What colour?", "Brown, as <image> shows."))
    assert turns_of(folder, dialogue("What is it?\n<image>", "A dog.")) == (Turn("What is it?", "A dog."),)


def test_messages(folder):
    row = {
        "image": "images/c.png",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A dog."},
        ],
    }
    assert turns_of(folder, row) == (Turn("What is it?", "A dog."),)


def test_a_text_without_an_image_may_speak_of_images(folder):
    row = dialogue("Explain the tag <image> of SVG.", "It draws.", image=None)
    assert turns_of(folder, row) == (Turn("Explain the tag <image> of SVG.", "It draws."),)


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_instruction_pairs_in_json_and_json_lines(folder, name):
    rows = [dialogue("<image>\nq?", "a", split="train"), dialogue("text?", "b", image=None, split="val")]
    if name.endswith("l"):
        toy.write_rows(folder, rows, name)
    else:
        toy.write_json(folder / name, rows)
    for root in (folder, folder / name):
        found = read(root)
        assert found.format == name.partition(".")[2]
        assert [item.turns for item in toy.all_of(found)] == [(Turn("q?", "a"),), (Turn("text?", "b"),)]
        assert found.splits["val"][0].image is None


def test_json_files_named_after_splits(folder):
    for name, answer in (("train", "a"), ("val_2", "b")):
        toy.write_json(
            folder / f"{name}.json", [dialogue("q?", answer, image=f"images/{'c' if answer == 'a' else 'd'}.png")]
        )
    toy.write_json(folder / "settings.json", {"messages": 1})
    found = read(folder)
    assert [item.turns[0].answer for item in found.splits["train"]] == ["a"]
    assert [item.turns[0].answer for item in found.splits["val"]] == ["b"]
    toy.write_json(folder / "more.json", [dialogue("q?", "a")])
    assert "several JSON files (more.json, train.json, val_2.json): name one" in refusal(folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (dialogue("q?"), "line 1: the conversation ends with a question"),
        (dialogue("q?", "a", "and?"), "line 1: the conversation ends with a question"),
        (dialogue(), "expected conversations as a list of turns, got []"),
        (dialogue("<image><image> which?", "a"), "several <image>; a conversation has one image"),
        (dialogue("<image>\nq?", "a", image=None), "<image> in the question, but the row has no image"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "conversations[0] is from 'gpt', expected human or user"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "is from 'system', expected human or user"),
        ({"conversations": [{"value": "a"}]}, "expected {from, value} in conversations[0]"),
        ({"conversations": ["a"]}, "expected {from, value} in conversations[0], got 'a'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]: expected turns as texts, got 3"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "expected parts of the type text or image"),
        ({"question": "q?"}, "line 1: a question without answer: give answer or answers"),
        ({"question": "q?", "answers": []}, "a question without answer"),
        ({"question": "q?", "answer": 3}, "expected answers as texts, got 3"),
        ({"question": "q?", "answers": "yes"}, "expected answers as a list of texts, got 'yes'"),
        ({"question": 3, "answer": "a"}, "expected questions as texts, got 3"),
        ({"question": "q \ud83d", "answer": "a"}, "is not valid Unicode"),
        ({"question": "q?", "answer": "a", "image": 7}, "expected the path of an image, got 7"),
        ({"question": "q?", "answer": "a", "image": "https://x.org/a.png"}, "nothing is downloaded"),
        ({"question": "q?", "answer": "a", "split": "later"}, "unknown split 'later'"),
        ({"question": "q?", "answer": "a", "messages": []}, "expected one of question, conversations, messages, got"),
        ({"question": None, "answer": "a"}, "expected one of question, conversations, messages, got none of them"),
    ],
)  # fmt: skip
def test_what_is_refused(folder, row, said):
    import json

    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")
    assert said in refusal(folder)


def test_a_damaged_file(folder):
    (folder / "questions.jsonl").write_text('{"question": "q?", "answer": \n')
    assert "questions.jsonl, line 1: not JSON" in refusal(folder)
    (folder / "questions.jsonl").unlink()
    (folder / "pairs.json").write_text('[{"conversations": []}, 7')
    assert "pairs.json: not JSON" in refusal(folder)
    toy.write_json(folder / "pairs.json", [dialogue("q?", "a"), 7])
    assert "pairs.json, entry 1: expected an object, got 7" in refusal(folder)
