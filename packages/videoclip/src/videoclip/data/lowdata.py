"""Learning from less: fewer training subjects, or fewer clips of each; what less keeps, more keeps too."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from clip_common.errors import DataError
from videoclip.data.records import ClipRecord, group_by_subject


def hash_key(seed: int, *names: str | int) -> bytes:
    """What is drawn for a name: sorting by it shuffles, and nobody's place depends on who else is there."""
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()


def keep_subjects(records: Sequence[ClipRecord], *, count: int, seed: int) -> list[ClipRecord]:
    """The clips of `count` subjects: one of each class first, then of each class its share.

    A subject's class is its most frequent label, the smaller one where two are.

    Raises:
        DataError: More subjects than there are, or fewer than classes.
    """
    people = group_by_subject(records)
    of_class: dict[int, list[str]] = {}
    for subject in sorted(people, key=lambda subject: hash_key(seed, "subjects", subject)):
        of_class.setdefault(_most_frequent_label(people[subject]), []).append(subject)
    if not len(of_class) <= count <= len(people):
        raise DataError(
            f"data.subjects={count}: expected {len(of_class)}, one of each class, to {len(people)}, all to learn from"
        )
    queue = sorted(
        (place / len(members), len(members), label, subject)
        for label, members in of_class.items()
        for place, subject in enumerate(members)
    )
    kept = {subject for *_, subject in queue[:count]}
    return [record for subject in people if subject in kept for record in people[subject]]


def keep_clips(records: Sequence[ClipRecord], *, fraction: float, seed: int) -> list[ClipRecord]:
    """A share of the clips of each subject, at least one."""
    kept = []
    for clips in group_by_subject(records).values():
        drawn = sorted(clips, key=lambda clip: hash_key(seed, "clips", clip.subject_id, clip.clip_id))
        kept += group_by_subject(drawn[: max(1, round(fraction * len(clips)))])[clips[0].subject_id]
    return kept


def _most_frequent_label(clips: Sequence[ClipRecord]) -> int:
    counts = Counter(-1 if clip.label is None else clip.label for clip in clips)
    return min(counts, key=lambda label: (-counts[label], label))
