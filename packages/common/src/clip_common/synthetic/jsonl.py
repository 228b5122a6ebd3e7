"""Scenes with captions and sounds, or with questions, as folders of pictures with one JSON line a sample.

    data.jsonl       {"image": "images/….jpg", "captions": […], "audio": "sounds/….wav", "split": "train"}
    questions.jsonl  {"image": "images/….jpg", "question": …, "answer": …, "answers": […], "type": …, "split": …}

Paths are relative to the folder. scenes.jsonl describes the content of each picture, README.txt the folder.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import soundfile

from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder, write_text
from clip_common.synthetic.balance import TooFewScenesError, balanced_questions
from clip_common.synthetic.captions import captions
from clip_common.synthetic.draw import render
from clip_common.synthetic.folders import check_counts, picture_name, save_jpeg, split_names, track
from clip_common.synthetic.question_forms import TYPES, read_question
from clip_common.synthetic.questions import Question, draw_questions
from clip_common.synthetic.scenes import VERSION, Scene, generator, sample_scene
from clip_common.synthetic.sounds import SAMPLE_RATE, render_sound
from clip_common.tables import json_lines_text, read_json_lines

DATA, QUESTIONS, SCENES = "data.jsonl", "questions.jsonl", "scenes.jsonl"
DESCRIBE, CAPTION = "Describe the image.", "caption"
"""Question to which a caption is the answer, and its type."""

_PEOPLE = 10  # the VQA metric compares an answer with those of ten people; here all ten agree
_SPARE = 200  # scenes beyond one a question, nearly always enough for whole blocks
_README = """Scenes of the procedural world of clip_common, version {version}, seed {seed}: {count} drawn pictures of
{size} x {size} pixels with {what}. scenes.jsonl describes the content of each picture.
"""


def write_sounds(
    folder: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 1,
    size: int = 64,
    captions_per_image: int = 5,
    progress: Progress | None = None,
) -> Path:
    """Draw scenes and write images/, sounds/ (mono 16-bit PCM at 16 kHz) and data.jsonl; whole or not at all.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Number of scenes of each split; no scene occurs twice.
        seed: Each seed gives another set.
        size: Side of the pictures in pixels.
        captions_per_image: Number of different captions of each image, 1 to 10.
        progress: Called as `progress(done, total)`, in scenes.

    Raises:
        ValueError: The folder exists, a count is negative or all are zero, or `size` is too small.
        OSError: The disk is full.
    """
    folder = Path(folder)
    splits = split_names(train=train, val=val, test=test)
    scenes = [sample_scene(seed, index) for index in range(len(splits))]
    with write_new_folder(folder) as draft:
        (draft / "sounds").mkdir()
        rows = []
        for scene, split, image in zip(scenes, splits, _draw_images(scenes, draft, size, progress), strict=True):
            audio = f"sounds/{picture_name(scene)}.wav"
            (draft / audio).write_bytes(_encode_wav(scene))
            texts = captions(scene, captions_per_image)
            rows.append({"image": image, "captions": texts, "audio": audio, "split": split})
        write_text(draft / DATA, json_lines_text(rows))
        what = f"{captions_per_image} captions and a sound each, see {DATA}"
        _write_about(draft, what=what, seed=seed, size=size, count=len(scenes))
    return folder


def write_questions(
    folder: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    per_picture: int | None = None,
    captions_per_picture: int = 0,
    types: tuple[str, ...] = TYPES,
    seed: int = 1,
    size: int = 64,
    progress: Progress | None = None,
) -> Path:
    """Draw scenes and questions about them; write images/ and questions.jsonl; whole or not at all.

    The sets of all splits are balanced, at about one question a picture. With `per_picture` the training set is
    `draw_questions` about each picture instead: many more questions for the same drawing, nearly but not exactly
    balanced. `answers` repeats the answer ten times, because VQA's metric expects the answers of ten people.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Number of questions of each type in each split: `per_type` of `balanced_questions`, or 0. No
            scene is in two splits. With `per_picture`, `train` is the number of training pictures.
        per_picture: Number of training questions about each picture; None: a balanced training set.
        captions_per_picture: Number of captions of each training picture, 0 to 10, as answers to `DESCRIBE`, of type
            `CAPTION`. A caption tells all about its things, so it teaches more than a question.
        types: Some of `TYPES` and `REASONING_TYPES`.
        seed, size: As for `write_sounds`.
        progress: Called as `progress(done, total)`, in pictures.

    Raises:
        ValueError: As for `write_sounds`; a balanced set has a count below 16 that is not 0; `per_picture` is below 1;
            an unknown type, or none.
        OSError: The disk is full.
    """
    folder = Path(folder)
    check_counts(train=train, val=val, test=test)
    balanced = {"train": train, "val": val, "test": test}
    asked: list[tuple[str, Question]] = []
    first = 0
    if per_picture is not None:
        if per_picture < 1:
            raise ValueError(f"expected at least one question a picture, got per_picture={per_picture}")
        first = balanced.pop("train")
        for index in range(first):
            random = generator("drawn questions", seed=seed, index=index)
            drawn = draw_questions(sample_scene(seed, index), per_picture, random=random, types=types)
            asked += [("train", question) for question in drawn]
    for split, per_type in balanced.items():
        if per_type > 0:
            sampled, first = _sample_questions(seed, first, per_type, types)
            asked += [(split, question) for question in sampled]
    scenes = list(dict.fromkeys(question.scene for _, question in asked))
    with write_new_folder(folder) as draft:
        images = dict(zip(scenes, _draw_images(scenes, draft, size, progress), strict=True))
        rows = [
            {
                "image": images[question.scene],
                "question": question.text,
                "answer": question.answer,
                "answers": [question.answer] * _PEOPLE,
                "type": question.type,
                "split": split,
            }
            for split, question in asked
        ]
        described = dict.fromkeys(question.scene for split, question in asked if split == "train")
        rows += [
            {"image": images[scene], "question": DESCRIBE, "answer": text, "type": CAPTION, "split": "train"}
            for scene in described
            if captions_per_picture
            for text in captions(scene, captions_per_picture)
        ]
        write_text(draft / QUESTIONS, json_lines_text(rows))
        what = f"{len(asked)} questions and {len(rows) - len(asked)} captions, see {QUESTIONS}"
        _write_about(draft, what=what, seed=seed, size=size, count=len(scenes))
    return folder


def read_scenes(folder: str | Path) -> dict[str, Scene]:
    """Return the scene of each picture of a folder, by the image's name in its lists: input of the oracles."""
    return {row["image"]: Scene.from_dict(row) for _, row in read_json_lines(Path(folder) / SCENES)}


def read_questions(folder: str | Path, *, split: str) -> list[Question]:
    """Return the questions of a split that `write_questions` wrote, for `majority_answer_accuracy` and `answer`."""
    scenes = read_scenes(folder)
    return [
        Question(scenes[row["image"]], read_question(row["question"])[0], row["question"], row["answer"])
        for _, row in read_json_lines(Path(folder) / QUESTIONS)
        if row["split"] == split and row["type"] != CAPTION
    ]


def _sample_questions(seed: int, first: int, per_type: int, types: tuple[str, ...]) -> tuple[list[Question], int]:
    """Return a balanced set about scenes from number `first` on, and the number of the first unused scene."""
    count = per_type + _SPARE
    while True:
        scenes = [sample_scene(seed, first + offset) for offset in range(count)]
        try:
            return balanced_questions(scenes, per_type=per_type, seed=seed, types=types), first + count
        except TooFewScenesError:
            count += count // 4


def _draw_images(scenes: list[Scene], draft: Path, size: int, progress: Progress | None) -> Iterator[str]:
    """Write scenes.jsonl, then draw and save each picture; yield its path in the folder."""
    images = [f"images/{picture_name(scene)}.jpg" for scene in scenes]
    rows = ({"image": image} | scene.to_dict() for image, scene in zip(images, scenes, strict=True))
    write_text(draft / SCENES, json_lines_text(rows))
    (draft / "images").mkdir()
    for image, scene in track(zip(images, scenes, strict=True), total=len(scenes), progress=progress):
        save_jpeg(render(scene, size=size), draft / image)
        yield image


def _encode_wav(scene: Scene) -> bytes:
    # by way of memory: soundfile says a full disk as an error of its own, not as an OSError
    stream = io.BytesIO()
    soundfile.write(stream, render_sound(scene), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def _write_about(draft: Path, *, what: str, seed: int, size: int, count: int) -> None:
    about = _README.format(version=VERSION, seed=seed, count=count, size=size, what=what)
    (draft / "README.txt").write_text(about, encoding="utf-8")
