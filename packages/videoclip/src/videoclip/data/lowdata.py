"""Smaller training sets: fewer subjects, or fewer clips of each; a larger set contains every smaller one."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from clip_common.errors import DataError
from videoclip.data.records import ClipRecord, group_by_subject


def hash_key(seed: int, *names: str | int) -> bytes:
    """Return a seeded sort key: sorting by it shuffles, and no item's key depends on the other items."""
    return hashlib.sha256(json.dumps([seed, *names]).encode()).digest()


def keep_subjects(records: Sequence[ClipRecord], *, count: int, seed: int) -> list[ClipRecord]:
    """Keep the clips of `count` subjects: one of each class first, then each class in proportion.

    A subject's class is its most frequent label; of two equally frequent ones the smaller.

    Raises:
        DataError: More subjects than the set has, or fewer than classes.
    """
    people = group_by_subject(records)
    of_class: dict[int, list[str]] = {}
    for subject in sorted(people, key=lambda subject: hash_key(seed, "subjects", subject)):
        of_class.setdefault(_most_frequent_label(people[subject]), []).append(subject)
    if not len(of_class) <= count <= len(people):
        raise DataError(
            f"data.subjects={count}: expected {len(of_class)} (one per class) to {len(people)} (all training subjects)"
        )
    queue = sorted(
        (place / len(members), len(members), label, subject)
        for label, members in of_class.items()
        for place, subject in enumerate(members)
    )
    kept = {subject for *_, subject in queue[:count]}
    return [record for subject in people if subject in kept for record in people[subject]]


def keep_clips(records: Sequence[ClipRecord], *, fraction: float, seed: int) -> list[ClipRecord]:
    """Keep a share of the clips of each subject, at least one clip."""
    kept = []
    for clips in group_by_subject(records).values():
        drawn = sorted(clips, key=lambda clip: hash_key(seed, "clips", clip.subject_id, clip.clip_id))
        kept += group_by_subject(drawn[: max(1, round(fraction * len(clips)))])[clips[0].subject_id]
    return kept


def _most_frequent_label(clips: Sequence[ClipRecord]) -> int:
    counts = Counter(-1 if clip.label is None else clip.label for clip in clips)
    return min(counts, key=lambda label: (-counts[label], label))
