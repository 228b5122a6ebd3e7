"""From a row of JSON lines, JSON or parquet to a conversation.

{"image"?, "question", "answer" and/or "answers", "type"?, "split"?}
{"image"?, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …], "split"?}
{"image"?, "messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …], "split"?}
"""

from collections import Counter
from pathlib import Path
from typing import Any

from clip_common.errors import DataError
from edgeglass.data.records import Conversation, Turn
from edgeglass.data.rows import Row, find_source, name_value, parse_text, read_split

ASKING = ("question", "conversations", "messages")
"""Keys of which a row has one."""

KEYS = ("image", *ASKING, "answer", "answers", "type", "split")

_DIALOGUES = {"conversations": ("from", "value"), "messages": ("role", "content")}
"""Key of a row → keys of the speaker and of the text in each entry."""

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")
_PLACEHOLDER = "<image>"


def make_conversation(row: Row, *, id: int, images: Path | None) -> Conversation:
    """Return the conversation of a row with some of the keys `KEYS`; null is absent.

    Args:
        row: The row.
        id: Position in the set.
        images: Folder of the images; None: the folder of the file.

    Raises:
        DataError: Not exactly one of `ASKING`, no answer, a conversation that ends with a question, speakers out of
            turn, a value of another type, a URL, an unknown split.
    """
    values, at = row.values, row.at
    given = [key for key in ASKING if values.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"{at}: expected one of {', '.join(ASKING)}, got {' and '.join(given) or 'none of them'}")
    image = values.get("image")
    if given == ["question"]:
        type = parse_text(values.get("type"), what="type", at=at).strip()
        turns: tuple[Turn, ...] = (
            make_turn(values["question"], values.get("answer"), values.get("answers"), type=type, at=at),
        )
    else:
        turns = _parse_dialogue(values[given[0]], given[0], has_image=image is not None, at=at)
    return Conversation(
        id=id,
        name=at if image is None else name_value(image),
        split=read_split(values, at=at) or row.split or "",
        image=find_source(image, folder=images or row.folder, what="an image", at=at),
        turns=turns,
    )


def make_turn(question: Any, answer: Any, answers: Any, *, type: str, at: str) -> Turn:
    """Return a turn from the values of a file; without `answer`, the most frequent of `answers` is the one to train on.

    Args:
        question: A text.
        answer: A text, or null.
        answers: A list of texts or of objects with the key `answer`, or null.
        type: Type of the question.
        at: Place of the row, for messages.

    Raises:
        DataError: Neither an answer nor answers, or a value of another type.
    """
    if answer is None and not answers:
        raise DataError(f"{at}: a question without answer: give answer or answers")
    if answers is not None and not isinstance(answers, list):
        raise DataError(f"{at}: expected answers as a list of texts, got {answers!r:.60}")
    entries = [entry.get("answer") if isinstance(entry, dict) else entry for entry in answers or ()]
    texts = [parse_text(text, what="answer", at=at).strip() for text in entries]
    if answer is None:
        counts = Counter(text for text in texts if text)
        answer = counts.most_common(1)[0][0] if counts else ""  # of several equally frequent, the first
    return Turn(
        question=parse_text(question, what="question", at=at).strip(),
        answer=parse_text(answer, what="answer", at=at).strip(),
        answers=tuple(texts),
        type=type,
    )


def _parse_dialogue(entries: Any, key: str, *, has_image: bool, at: str) -> tuple[Turn, ...]:
    """Return the turns of a list of entries in which a user and an assistant alternate."""
    speaker_key, text_key = _DIALOGUES[key]
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{at}: expected {key} as a list of turns, got {entries!r:.60}")
    texts: list[str] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {speaker_key, text_key} <= entry.keys():
            raise DataError(f"{at}: expected {{{speaker_key}, {text_key}}} in {key}[{number}], got {entry!r:.60}")
        speaker, expected = entry[speaker_key], _ANSWERS if number % 2 else _ASKS
        if speaker not in expected:
            raise DataError(
                f"{at}: {key}[{number}] is from {speaker!r:.30}, expected {' or '.join(expected)}: questions and "
                "answers must alternate, the first is a question"
            )
        texts.append(_read_text(entry[text_key], at=f"{at}, {key}[{number}]"))
    if len(texts) % 2:
        raise DataError(f"{at}: the conversation ends with a question: add its answer, or remove the question")
    texts[0] = _remove_placeholder(texts[0], has_image=has_image, at=at)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Turn(question=question.strip(), answer=answer.strip()) for question, answer in pairs)


def _read_text(content: Any, *, at: str) -> str:
    """Return the text of a turn: a text, or a list of parts, [{"type": "image"}, {"type": "text", "text": …}]."""
    if not isinstance(content, list):
        return parse_text(content, what="turn", at=at)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image"):
            raise DataError(f"{at}: expected parts of the type text or image, got {part!r:.60}")
        texts.append(_PLACEHOLDER if kind == "image" else parse_text(part.get("text"), what="part", at=at))
    return "\n".join(texts)


def _remove_placeholder(question: str, *, has_image: bool, at: str) -> str:
    """Return the first question without `<image>`: the image always comes first."""
    if has_image:
        if question.count(_PLACEHOLDER) > 1:
            raise DataError(f"{at}: several {_PLACEHOLDER}; a conversation has one image: split it")
        return question.replace(_PLACEHOLDER, "")
    text = question.strip()  # elsewhere it is a word of a text, as in markup
    if text.startswith(_PLACEHOLDER) or text.endswith(_PLACEHOLDER):
        raise DataError(f"{at}: {_PLACEHOLDER} in the question, but the row has no image: give it as image")
    return question
