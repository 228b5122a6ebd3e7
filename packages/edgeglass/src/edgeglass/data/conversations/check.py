"""Check a set of questions for problems, and count its conversations, images and types of questions."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from clip_common.captions import SPLITS
from clip_common.reporting import Progress
from edgeglass.config import QuestionDataConfig
from edgeglass.data.conversations.loading import drop_empty, list_conversations
from edgeglass.data.inspection import find_copies, inspect
from edgeglass.data.loading import find_missing


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """Problems and contents of a set of questions, found by decoding every image in full.

    Attributes:
        root, format: The file or folder that was read, and its format.
        counts: `conversations`, `turns`, `images`, `text only` → split → number that can be used.
        types: Type of question → split → number of turns; "" for turns without one.
        problems: One line for each missing or unreadable image and each conversation with an empty text.
        remarks: One line for each image whose content is in two splits.
        unlisted: Number of conversations without a split, when others have one.
    """

    root: Path
    format: str
    counts: dict[str, dict[str, int]]
    types: dict[str, dict[str, int]]
    problems: list[str]
    remarks: list[str]
    unlisted: int

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems


def check_conversations(
    root: str | Path, *, format: str = "auto", images: str | None = None, progress: Progress | None = None
) -> QuestionReport:
    """Decode every image and read every conversation; collect problems instead of raising them.

    Args:
        root: File or folder of questions or captions.
        format: `auto`, or one of `formats.FORMATS`.
        images: Folder of the images, where the files do not say.
        progress: Called while images are decoded.

    Raises:
        DataError: The set cannot be read at all: no known files, a broken list, a conversation that ends with a
            question, an image in two splits.
        ImportError: The format needs a library that is not installed.
    """
    config = QuestionDataConfig(root=str(root), format=format, images=images)
    format, listed, unlisted = list_conversations(config)
    conversations, empty = drop_empty(listed)
    missing = find_missing(conversations)
    conversations = [conversation for conversation in conversations if conversation.image not in missing]
    findings = list(inspect(conversations, progress=progress))
    broken = {finding.source: finding.problem for finding in findings if finding.problem is not None}
    remarks = find_copies(conversations, findings)
    conversations = [conversation for conversation in conversations if conversation.image not in broken]
    in_split = {split: [item for item in conversations if item.split == split] for split in SPLITS}
    types = {
        split: Counter(turn.type for conversation in members for turn in conversation.turns)
        for split, members in in_split.items()
    }
    return QuestionReport(
        root=Path(root),
        format=format,
        counts={
            "conversations": {split: len(members) for split, members in in_split.items()},
            "turns": {split: types[split].total() for split in SPLITS},
            "images": {split: len({item.image for item in members} - {None}) for split, members in in_split.items()},
            "text only": {split: sum(item.image is None for item in members) for split, members in in_split.items()},
        },
        types={type: {split: types[split][type] for split in SPLITS} for type in sorted(set().union(*types.values()))},
        problems=[*missing.values(), *broken.values(), *empty],
        remarks=remarks,
        unlisted=unlisted,
    )
