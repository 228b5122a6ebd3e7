"""Small sets of questions in every format, with names that are not ASCII."""

import json
from pathlib import Path

import pytest
import toy_samples as toy

from clip_common.errors import DataError
from edgeglass.config import QuestionDataConfig
from edgeglass.data.conversations import Conversations, read_conversations

ROWS = [
    {"image": "images/ein hund.png", "question": "what is it?", "answer": "a dog", "type": "object", "split": "train"},
    {"image": "images/ein hund.png", "question": "how many?", "answers": ["2", "1", "1"], "split": "train"},
    {"question": "what is 犬?", "answer": "a dog", "split": "train"},
    {"image": "images/zwölf.png", "question": "and this?", "answer": "zwölf", "split": "train"},
    {"image": "images/c.png", "question": "colour?", "answer": "red", "answers": ["red"] * 10, "split": "val"},
    {"image": "images/d.png", "question": "colour?", "answer": "blue", "type": "colour", "split": "test"},
]


def write_images(folder: Path) -> None:
    """Write images/NAME.png, a different one for each name."""
    (folder / "images").mkdir()
    for name, content in toy.IMAGES.items():
        (folder / "images" / f"{name}.png").write_bytes(content)


def write_rows(folder: Path, rows: list[dict], name: str = "questions.jsonl") -> Path:
    return toy.write_rows(folder, rows, name)


def write_set(folder: Path) -> None:
    """Write the images and `ROWS`."""
    write_images(folder)
    write_rows(folder, ROWS)


def write_json(file: Path, content) -> Path:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return file


def dialogue(*texts: str, image: str | None = "images/c.png", **more) -> dict:
    """An instruction pair in LLaVA's layout."""
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return ({} if image is None else {"image": image}) | {"id": "1", "conversations": turns} | more


def read(root: Path, **settings) -> Conversations:
    return read_conversations(QuestionDataConfig(root=str(root), **settings))


def refusal(root: Path, **settings) -> str:
    """What `read_conversations` says about a set that it refuses."""
    with pytest.raises(DataError) as error:
        read(root, **settings)
    text = str(error.value)
    assert "\n" not in text
    return text


def all_of(found: Conversations) -> list:
    return sorted((item for part in found.splits.values() for item in part), key=lambda item: item.id)
