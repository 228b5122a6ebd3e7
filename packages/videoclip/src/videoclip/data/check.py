"""`videoclip data check`: count the clips of a data set and find what would stop a run."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean

from clip_common.errors import DataError
from clip_common.reporting import Progress
from videoclip.config import DataConfig
from videoclip.data.decoding import resolve_span
from videoclip.data.formats import check_labels, read_clips
from videoclip.data.maps import NAMED_BY_CHECK, find_map_source
from videoclip.data.pairs import read_pair
from videoclip.data.records import ClipRecord
from videoclip.data.splits import Split, check_disjoint, fold_name, missing_classes, subject_folds
from videoclip.data.symptoms import find_symptoms


@dataclass(slots=True)
class Count:
    """Counts of the clips of one class in one fold.

    Attributes:
        fold: The fold that tests on them; None if the set cannot be split into folds.
        label: Their class; None if unknown.
        subjects, clips: Number of each.
        seconds: Total length; a clip that cannot be read counts 0.
        map_files: Number of clips with a map file.
        keypoints: Number of clips with keypoints.
    """

    fold: int | None
    label: int | None
    subjects: int
    clips: int
    seconds: float
    map_files: int
    keypoints: int


@dataclass(frozen=True, slots=True)
class MapStatistics:
    """Statistics of the maps that `data.maps` selects.

    Attributes:
        without: Names of the clips without a map.
        constant: Names of the clips whose map has one value everywhere, which cannot guide.
        mean: Mean value of the other maps, 0 to 1; None without any.
        focus: Mean share of their pixels with at least half of the map's maximum; None without any.
        two_doctors: Number of clips with regions of both doctors.
        agreeing: Number of these in which both attended the same regions.
    """

    without: list[str]
    constant: list[str]
    mean: float | None
    focus: float | None
    two_doctors: int
    agreeing: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of `check`.

    Attributes:
        counts: One per fold and class, in that order.
        maps: Statistics of the maps.
        problems: Lines that say what would stop a run.
        notes: Lines that name classes without validation or test clips in a fold.
        warnings: Lines that name clips and subjects that can be used, but are rarely what was meant.
    """

    counts: list[Count]
    maps: MapStatistics
    problems: list[str]
    notes: list[str]
    warnings: list[str]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _ClipReport:
    """One decoded clip; `mean` and `focus` are None if it has no map, or a constant one."""

    seconds: float = 0.0
    mean: float | None = None
    focus: float | None = None
    constant: bool = False
    problem: str | None = None
    symptoms: tuple[str, ...] = ()


def check(config: DataConfig, *, classes: int, channels: int = 1, progress: Progress | None = None) -> CheckReport:
    """Decode every clip and map, split into folds and compare their videos; collect problems instead of raising them.

    Args:
        config: The data set, and how to read it.
        classes: `model.model_class_num`.
        channels: `model.attn_in_channels`.
        progress: Called as `progress(done, total)`, in clips.

    Raises:
        DataError: The set cannot be read at all.
    """
    records = read_clips(replace(config, on_error="skip"))
    problems: list[str] = []
    splits: list[Split] = []
    try:
        check_labels(records, classes)
    except DataError as error:
        problems.append(str(error))
    try:
        splits = subject_folds(records, folds=config.folds, seed=config.split_seed)
        for split in splits:
            check_disjoint(split)
    except DataError as error:
        problems.append(str(error))
    seen: dict[str, _ClipReport] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # FFmpeg decodes without the interpreter lock
        warnings.filterwarnings("ignore", message=f".*{re.escape(NAMED_BY_CHECK)}")
        inspected = pool.map(lambda record: _inspect_clip(record, config, channels=channels), records)
        for done, (record, one) in enumerate(zip(records, inspected, strict=True), start=1):
            seen[record.clip_id] = one
            if progress is not None:
                progress(done, len(records))
    return CheckReport(
        counts=_count_clips(records, splits, seen),
        maps=_summarise_maps(records, seen),
        problems=problems + [one.problem for one in seen.values() if one.problem is not None],
        notes=[
            f"fold {number}: no clip of class {', '.join(map(str, labels))} in {part}"
            for number, split in enumerate(splits)
            for part, labels in missing_classes(split).items()
        ],
        warnings=_warn_of_subjects(records) + _warn_of_clips(seen),
    )


def _inspect_clip(record: ClipRecord, config: DataConfig, *, channels: int) -> _ClipReport:
    try:
        start_s, end_s = resolve_span(record.video, start_s=record.start_s, end_s=record.end_s)
        pair = read_pair(record, config, channels=channels, side=config.size)
        symptoms = tuple(find_symptoms(record, pair, config, channels=channels))
        mapped = find_map_source(record, config, channels=channels) is not None
    except DataError as error:
        return _ClipReport(problem=f"clip {record.clip_id}: {error}")
    map_CTSS, most = pair.map_CTSS, pair.map_CTSS.max()
    report = _ClipReport(seconds=end_s - start_s, symptoms=symptoms)
    if not mapped or map_CTSS.min() == most:
        return replace(report, constant=mapped)
    focus = (map_CTSS >= most / 2).float().mean()
    return replace(report, mean=float(map_CTSS.float().mean()) / 255, focus=float(focus))


def _warn_of_subjects(records: Iterable[ClipRecord]) -> list[str]:
    spellings: dict[str, dict[str, None]] = {}
    for record in records:
        spellings.setdefault(fold_name(record.subject_id), {})[record.subject_id] = None
    return [
        f"subjects {' and '.join(names)} differ only by case or zeros: one person needs one subject_id"
        for names in spellings.values()
        if len(names) > 1
    ]


def _warn_of_clips(seen: Mapping[str, _ClipReport]) -> list[str]:
    clips: dict[str, list[str]] = {}
    for name, one in seen.items():
        for symptom in one.symptoms:
            clips.setdefault(symptom, []).append(name)
    return [
        f"{len(names)} clip(s), such as {', '.join(names[:3])}: {symptom}" for symptom, names in sorted(clips.items())
    ]


def _count_clips(
    records: Sequence[ClipRecord], splits: Sequence[Split], seen: Mapping[str, _ClipReport]
) -> list[Count]:
    fold_of = {record.clip_id: number for number, split in enumerate(splits) for record in split.test}
    rows: dict[tuple[int | None, int | None], list[ClipRecord]] = {}
    for record in records:
        rows.setdefault((fold_of.get(record.clip_id), record.label), []).append(record)
    return [
        Count(
            fold=fold,
            label=label,
            subjects=len({record.subject_id for record in rows[fold, label]}),
            clips=len(rows[fold, label]),
            seconds=sum(seen[record.clip_id].seconds for record in rows[fold, label]),
            map_files=sum(record.map is not None for record in rows[fold, label]),
            keypoints=sum(record.keypoints is not None for record in rows[fold, label]),
        )
        for fold, label in sorted(rows, key=lambda key: [(part is None, part or 0) for part in key])
    ]


def _summarise_maps(records: Sequence[ClipRecord], seen: Mapping[str, _ClipReport]) -> MapStatistics:
    means = [one.mean for one in seen.values() if one.mean is not None]
    focuses = [one.focus for one in seen.values() if one.focus is not None]
    both = [record for record in records if record.regions_doctor1 and record.regions_doctor2]
    return MapStatistics(
        without=[name for name, one in seen.items() if one.mean is None and not one.constant and one.problem is None],
        constant=[name for name, one in seen.items() if one.constant],
        mean=fmean(means) if means else None,
        focus=fmean(focuses) if focuses else None,
        two_doctors=len(both),
        agreeing=sum(set(record.regions_doctor1) == set(record.regions_doctor2) for record in both),
    )
