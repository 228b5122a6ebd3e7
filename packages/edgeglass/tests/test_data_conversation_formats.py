"""VQAv2, GQA, TextVQA, parquet and captions as conversations: detection, images, splits, files of another shape."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_conversations as toy
import toy_samples
from toy_conversations import all_of, read, refusal

from edgeglass.data.conversations import Turn, find_question_format


def write_vqav2(folder, *, images: str = "", subsets=("train2014", "val2014")):
    """One question for each subset, and the questions of the test, which have no annotations."""
    for number, subset in enumerate(subsets):
        question = {"image_id": 9 + number, "question": "What is it?", "question_id": 9000 + number}
        answers = [{"answer": "dog", "answer_confidence": "yes", "answer_id": n} for n in range(1, 10)]
        entry = question | {
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "dog",
            "answers": [*answers, {"answer": "cat", "answer_confidence": "no", "answer_id": 10}],
        }
        del entry["question"]
        toy.write_json(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", {"questions": [question]})
        toy.write_json(folder / f"v2_mscoco_{subset}_annotations.json", {"annotations": [entry]})
        place = folder / images.format(subset)
        place.mkdir(exist_ok=True, parents=True)
        (place / f"COCO_{subset}_{9 + number:012d}.jpg").write_bytes(toy_samples.png(number))
    toy.write_json(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [{"question_id": 1}]})


@pytest.mark.parametrize("images", ["", "{}", "images", "images/{}"])
def test_vqav2(tmp_path, images):
    write_vqav2(tmp_path, images=images)
    found = read(tmp_path)
    assert found.format == "vqav2"
    (train,), (val,) = found.splits["train"], found.splits["val"]
    assert train.turns == (Turn("What is it?", "dog", ("dog",) * 9 + ("cat",), "other"),)
    assert (train.name, val.name) == ("COCO_train2014_000000000009.jpg", "COCO_val2014_000000000010.jpg")
    assert train.image.is_file()
    assert found.splits["test"] == []
    one = read(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json")
    assert [item.name for item in all_of(one)] == [val.name]


def test_vqav2_of_other_folders_and_shapes(tmp_path):
    write_vqav2(tmp_path, images="photos")
    assert "2 image(s) are missing" in refusal(tmp_path)
    assert len(all_of(read(tmp_path, images=str(tmp_path / "photos")))) == 2
    annotations = tmp_path / "v2_mscoco_train2014_annotations.json"
    toy.write_json(annotations, {"annotations": []})
    assert "question 9000: without annotation in v2_mscoco_train2014_annotations.json" in refusal(tmp_path)
    toy.write_json(annotations, {"annotations": [{"id": 1}]})
    assert "annotations.json: expected annotations of question_id, answers" in refusal(tmp_path)
    annotations.unlink()
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    assert find_question_format(tmp_path) is None
    assert "looked for *questions.json and *annotations.json, found none" in refusal(tmp_path, format="vqav2")


def write_gqa(folder):
    def question(image, answer):
        types = {"structural": "query", "semantic": "attr", "detailed": "color"}
        return {"imageId": image, "question": "Which colour?", "answer": answer, "fullAnswer": "It is.", "types": types}

    (folder / "images").mkdir()
    for part, image in (("train", "n1"), ("val", "2"), ("testdev", "3")):
        toy.write_json(folder / f"{part}_balanced_questions.json", {f"0{image}": question(image, f"red {image}")})
        (folder / "images" / f"{image}.jpg").write_bytes(toy_samples.png())
    toy.write_json(folder / "test_balanced_questions.json", {"07": {"imageId": "n7", "question": "Which?"}})


def test_gqa(tmp_path):
    write_gqa(tmp_path)
    found = read(tmp_path)
    assert found.format == "gqa"
    assert {split: [item.name for item in members] for split, members in found.splits.items()} == {
        "train": ["n1.jpg"],
        "val": ["2.jpg"],
        "test": ["3.jpg"],
    }
    assert found.splits["train"][0].turns == (Turn("Which colour?", "red n1", (), "query"),)
    assert len(all_of(read(tmp_path / "val_balanced_questions.json"))) == 1
    toy.write_json(tmp_path / "val_balanced_questions.json", [1])
    assert "val_balanced_questions.json: expected questions by id" in refusal(tmp_path)


def test_textvqa(tmp_path):
    (tmp_path / "train_images").mkdir()
    for name in ("train", "val"):
        answers = ["stop"] * 6 + ["Stop sign"] * 4
        entry = {"image_id": f"00{name}", "question": "what does it say?", "answers": answers, "set_name": name}
        toy.write_json(tmp_path / f"TextVQA_0.5.1_{name}.json", {"data": [entry], "dataset_type": name})
        (tmp_path / "train_images" / f"00{name}.jpg").write_bytes(toy_samples.png())
    toy.write_json(tmp_path / "TextVQA_0.5.1_test.json", {"data": [{"image_id": "x", "question": "what?"}]})
    found = read(tmp_path)
    assert found.format == "textvqa"
    assert found.splits["train"][0].turns[0].answer == "stop"
    assert found.splits["val"][0].turns[0].answers == ("stop",) * 6 + ("Stop sign",) * 4
    assert found.splits["val"][0].name == "00val.jpg"
    toy.write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [{"question": "what?"}]})
    assert "TextVQA_0.5.1_val.json: expected data of image_id, question, answers" in refusal(tmp_path)


@pytest.mark.parametrize("way", ["path", "bytes", "struct"])
def test_parquet(tmp_path, way):
    toy.write_images(tmp_path)
    image = {
        "path": lambda name: f"images/{name}.png",
        "bytes": toy_samples.IMAGES.__getitem__,
        "struct": lambda name: {"bytes": toy_samples.IMAGES[name], "path": None},
    }[way]
    rows = [
        {"image": image("c"), "question": "q?", "answer": "a", "answers": ["a", "b"]},
        {"image": None, "question": "text?", "answer": "b", "answers": None},
        {"image": image("d"), "question": "r?", "answer": None, "answers": ["c"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=2)
    found = read(tmp_path)
    assert found.format == "parquet"
    first, second, third = found.splits["train"]
    assert first.turns == (Turn("q?", "a", ("a", "b")),)
    assert second.image is None
    assert third.turns == (Turn("r?", "c", ("c",)),)
    assert toy_samples.content_of(third.image) == toy_samples.IMAGES["d"]
    assert ("row 2, image" in third.name) == (way != "path")


def test_parquet_of_dialogues(tmp_path):
    row = toy.dialogue("<image>\nq?", "a", "r?", "b") | {"image": toy_samples.png()}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    assert read(tmp_path).splits["test"][0].turns == (Turn("q?", "a"), Turn("r?", "b"))
    pq.write_table(pa.Table.from_pylist([row | {"conversations": row["conversations"][:1]}]), tmp_path / "test.parquet")
    assert "test.parquet, row 0: the conversation ends with a question" in refusal(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    assert "test.parquet: not a readable parquet file" in refusal(tmp_path)


@pytest.mark.parametrize("way", toy_samples.WRITERS)
def test_captions_of_any_format(tmp_path, way):
    toy_samples.WRITERS[way](tmp_path)
    found = read(tmp_path, caption_prompt="Was ist zu sehen?")
    assert found.format == "captions"
    captions = {caption: texts for texts in toy_samples.CAPTIONS.values() for caption in texts}
    turns = [turn for item in all_of(found) for turn in item.turns]
    assert {turn.answer: turn.answers for turn in turns} == captions
    assert len(turns) == len(captions)
    assert {(turn.question, turn.type) for turn in turns} == {("Was ist zu sehen?", "caption")}
    assert len({item.image for item in all_of(found)}) == 4


def test_karpathy_captions(tmp_path):
    toy.write_images(tmp_path)
    images = [
        {"filename": f"{name}.png", "split": split, "sentences": [{"raw": f" {name} one "}, {"raw": f"{name} two"}]}
        for name, split in (("ein hund", "restval"), ("c", "val"), ("d", "test"))
    ]
    toy.write_json(tmp_path / "dataset_flickr8k.json", {"images": images})
    found = read(tmp_path)
    assert [item.turns[0].answer for item in found.splits["train"]] == ["ein hund one", "ein hund two"]
    assert found.splits["train"][1].turns[0].answers == ("ein hund one", "ein hund two")
    assert "data.images=x: captions say where their images are" in refusal(tmp_path, images="x")
    images[0]["sentences"][1]["raw"] = " "
    toy.write_json(tmp_path / "dataset_flickr8k.json", {"images": images})
    assert "1 empty question(s) or answer(s): ein hund.png: an empty answer" in refusal(tmp_path)
    assert read(tmp_path, on_error="skip").splits["train"][0].turns[0].answers == ("ein hund one",)


def test_samples_without_an_image_or_a_caption_are_no_captions(tmp_path):
    toy_samples.write_media(tmp_path)
    rows = toy_samples.rows()
    del rows[0]["image"]
    del rows[1]["captions"]
    toy_samples.write_rows(tmp_path, rows)
    found = read(tmp_path)
    assert [item.name for item in all_of(found)] == ["images/c.png", "images/d.png", "images/d.png"]
