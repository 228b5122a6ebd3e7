"""Load a set of questions by configuration: `read_conversations`; and the steps that its check takes too."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_common.captions import SPLITS
from clip_common.errors import DataError, printable
from clip_common.reporting import Progress
from edgeglass.config import QuestionDataConfig
from edgeglass.data.conversations.formats import read_format
from edgeglass.data.inspection import inspect
from edgeglass.data.loading import check_exists, check_none, find_missing
from edgeglass.data.records import Conversation
from edgeglass.data.splits import check_leaks, draw_splits, hold_out_images


@dataclass(frozen=True, slots=True)
class Conversations:
    """A set of questions as loaded.

    Attributes:
        root: The file or folder that it was read from.
        format: Name of its format, one of `formats.FORMATS`.
        splits: `train`, `val` and `test` → conversations, ordered by id.
        problems: One line for each image, and each conversation with an empty text, left out under `on_error=skip`.
        skipped: Number of images among them, whose conversations are left out.
        unlisted: Number of conversations without a split, when others have one. They are in no split.
    """

    root: Path
    format: str
    splits: dict[str, list[Conversation]]
    problems: list[str] = field(default_factory=list)
    skipped: int = 0
    unlisted: int = 0


def read_conversations(config: QuestionDataConfig, progress: Progress | None = None) -> Conversations:
    """Read the configured set, in splits; `hold_out` training images become `val` if the set has none.

    Splits are those that the files state; for a set without any they are drawn, 80 / 10 / 10 %, and all conversations
    about an image file get the same one.

    `on_error=raise` stops at missing images and at empty questions and answers; other unreadable images are found when
    they are used. With `skip` every image is decoded once here, and the conversations about those that cannot be used
    are left out, as are those with an empty text.

    Args:
        config: What to read.
        progress: Called while images are decoded.

    Raises:
        DataError: One line: no `data.root`, files that cannot be used, a conversation that ends with a question, an
            image in two splits, missing images or empty texts, or nothing that can be used.
        ImportError: The format needs a library that is not installed.
    """
    if config.root is None:
        raise DataError("data.root is not set: give a file or folder of questions, e.g. data.root=questions.jsonl")
    root = Path(config.root)
    format, conversations, unlisted = list_conversations(config)
    conversations, empty = drop_empty(conversations)
    missing = find_missing(conversations)
    if config.on_error == "raise":
        check_none(empty, f"{printable(root)}: %d empty question(s) or answer(s)", "fill or remove them")
        check_none(list(missing.values()), f"{printable(root)}: %d image(s) are missing", "restore them")
    else:
        conversations = [conversation for conversation in conversations if conversation.image not in missing]
        found = inspect(conversations, progress=progress)
        broken = {finding.source: finding.problem for finding in found if finding.problem is not None}
        conversations = [conversation for conversation in conversations if conversation.image not in broken]
        missing |= broken
    if not conversations:
        raise DataError(f"{printable(root)}: holds no conversation that can be used")
    splits = {split: [item for item in conversations if item.split == split] for split in SPLITS}
    if config.hold_out:
        if splits["val"]:
            raise DataError(f"{printable(root)} has a val split of {len(splits['val'])}: leave data.hold_out at 0")
        splits["train"], splits["val"] = hold_out_images(splits["train"], count=config.hold_out, seed=config.split_seed)
    return Conversations(root, format, splits, [*missing.values(), *empty], skipped=len(missing), unlisted=unlisted)


def list_conversations(config: QuestionDataConfig) -> tuple[str, list[Conversation], int]:
    """Return the format of a set, its conversations in splits, and how many have none although others have one.

    Raises:
        DataError: No such file or folder, files that cannot be used, no conversations, or an image in two splits.
    """
    root = Path(config.root or "")
    check_exists(root)
    format, conversations = read_format(root, config)
    if not conversations:
        raise DataError(f"{printable(root)}: holds no conversations")
    # split before anything is left out, so that a broken image does not move others to another split
    if not any(conversation.split for conversation in conversations):
        conversations = draw_splits(conversations, seed=config.split_seed)
    check_leaks(conversations)
    stated = [conversation for conversation in conversations if conversation.split]
    return format, stated, len(conversations) - len(stated)


def drop_empty(conversations: Sequence[Conversation]) -> tuple[list[Conversation], list[str]]:
    """Return the conversations without empty questions and answers, and one line for each of the others."""
    kept, empty = [], []
    for conversation in conversations:
        turn = next((turn for turn in conversation.turns if not (turn.question and turn.answer)), None)
        if turn is None:
            kept.append(conversation)
        else:
            what = f"an empty answer to {turn.question!r:.60}" if turn.question else "an empty question"
            empty.append(f"{conversation.name}: {what}")
    return kept, empty
