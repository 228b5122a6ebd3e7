"""What every layout is read into: one record a clip."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip of one subject.

    Attributes:
        clip_id: Its name, one of a kind in the set.
        subject_id: Whose it is; splits keep a subject's clips together.
        video: A video file, an .npz of frames, or a folder of frames.
        label: The class, from 0; None where it is not known.
        start_s, end_s: Where the clip begins and ends in the video, in seconds; None is the video's end.
        map: Where somebody looked: .npy, .npz, a video, or a folder of PNG files; None where there is none.
        keypoints: An .npy of (frames, 17, 3) COCO joints: x and y in pixels of the video, and confidence.
        regions_doctor1, regions_doctor2: Names of the regions that each doctor attended (`clip_common.regions`).
        spans: Whether the first and the last row of `map` and `keypoints` are the clip's, or the whole video's.
        fold: The part of a cross-validation that the set assigns it to; None where it does not.
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
    """The clips of each subject, subjects and clips in the order of their names, whatever order they come in."""
    people: dict[str, list[ClipRecord]] = {}
    for record in sorted(records, key=lambda record: (record.subject_id, record.clip_id)):
        people.setdefault(record.subject_id, []).append(record)
    return people
