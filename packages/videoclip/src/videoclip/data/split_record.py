"""splits.json of a run: for each of its fits, which subjects and clips were in which part."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_common.errors import DataError
from clip_common.runs import write_json
from clip_common.runs.environment import rank
from clip_common.runs.files import read_json
from videoclip.data.records import ClipRecord, known_labels
from videoclip.data.splits import Split, check_disjoint, missing_classes

SPLITS = "splits.json"


def read_splits(run: Path) -> dict[str, Any]:
    """Return the recorded splits of a run by fit; empty before its first fit.

    Each has `train`, `val` and `test` (subject → names of clips), `train_labels`, and `missing_classes`.
    """
    return dict(read_json(run / SPLITS))


def record_split(split: Split, run: Path, *, fit: str, root: str | None) -> None:
    """Check a split for leaks and record it in the run's splits.json.

    Args:
        split: Who trains, validates and is tested.
        run: The run folder.
        fit: Name of the fit in the run.
        root: The data set, for messages.

    Raises:
        DataError: A subject or a video is in two parts, or a resumed run began with another split.
    """
    check_disjoint(split)
    before = read_splits(run)
    if fit in before:
        check_same_split(split, before[fit], run=run, root=root)
    if rank() > 0:
        return
    recorded: dict[str, object] = {part: clips_of_subjects(records) for part, records in split.parts().items()}
    recorded["train_labels"] = known_labels(split.train)
    recorded["missing_classes"] = {part: list(classes) for part, classes in missing_classes(split).items()}
    recorded["checked"] = "no subject is in two parts, and no video of the same content"
    write_json(run / SPLITS, before | {fit: recorded})


def check_same_split(split: Split, recorded: dict[str, Any], *, run: Path, root: str | None) -> None:
    """Raise DataError unless a split has the subjects and clips that were recorded."""
    for part, records in split.parts().items():
        if clips_of_subjects(records) != recorded[part]:
            raise DataError(
                f"{root}: its {part} split is not what it was when {run} was trained: restore the set, or train anew"
            )


def clips_of_subjects(records: Iterable[ClipRecord]) -> dict[str, list[str]]:
    """Return subject → names of its clips."""
    clips: dict[str, list[str]] = {}
    for record in records:
        clips.setdefault(record.subject_id, []).append(record.clip_id)
    return clips
