"""The record of a clip, into which every format is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip of one subject.

    Attributes:
        clip_id: Name, unique in the set.
        subject_id: Name of the subject; splits keep a subject's clips together.
        video: A video file, an .npz of frames, or a folder of frames.
        label: The class, from 0; None if unknown.
        start_s, end_s: Start and end of the clip in the video, in seconds; None is the video's end.
        map: Attention map: .npy, .npz, a video, or a folder of pictures; None without one.
        keypoints: An .npy of (frames, 17, 3) COCO joints: x and y in pixels of the video, and confidence.
        regions_doctor1, regions_doctor2: Names of the regions that each doctor attended (`clip_common.regions`).
        spans: Whether `map` and `keypoints` cover the clip or the whole video.
        fold: Part of a cross-validation, assigned by the set; None if it assigns none.
    """

    clip_id: str
    subject_id: str
    video: Path
    label: int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    map: Path | None = None
    keypoints: Path | None = None
    regions_doctor1: tuple[str, ...] = ()
    regions_doctor2: tuple[str, ...] = ()
    spans: Literal["clip", "video"] = "clip"
    fold: int | None = None


def known_labels(records: Iterable[ClipRecord]) -> list[int]:
    """Return the labels of the clips that have one."""
    return [record.label for record in records if record.label is not None]


def group_by_subject(records: Iterable[ClipRecord]) -> dict[str, list[ClipRecord]]:
    """Return subject → its clips, both sorted by name, whatever the order of `records`."""
    people: dict[str, list[ClipRecord]] = {}
    for record in sorted(records, key=lambda record: (record.subject_id, record.clip_id)):
        people.setdefault(record.subject_id, []).append(record)
    return people
