"""`videoclip data import`: the original project's data set as a manifest that `train` reads.

clinical_CLIP_dataset/
    json_mix/DISEASE/NAME.json          one for each video: video_name, video_path, label
    video/.../NAME.mp4
    doctor_result/doctor1.csv, doctor2.csv
    seg_skeleton_pkl/whole_annotations.pkl
    index_mapping/                      not read: these folds have patients on both sides
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder
from videoclip.data.decoding import VideoInfo, probe
from videoclip.data.layout import cut_spans
from videoclip.data.manifest import compose_name, write_manifest
from videoclip.data.records import ClipRecord
from videoclip.data.splits import subject_folds
from videoclip.released.annotations import (
    DISEASES,
    Skeleton,
    VideoEntry,
    find_rows,
    read_doctor,
    read_entries,
    read_skeletons,
)

JSON, VIDEOS, INDEX = "json_mix", "video", "index_mapping"
DOCTORS = ("doctor_result/doctor1.csv", "doctor_result/doctor2.csv")
SKELETONS = "seg_skeleton_pkl/whole_annotations.pkl"
LEFT_OUT = "video(s) are left out"
SLACK = 2
"""Frames by which a skeleton may be shorter or longer than its video."""


@dataclass(frozen=True)
class Imported:
    """Result of `import_dataset`.

    Attributes:
        manifest: The manifest.
        clips, videos: Number of each.
        patients: Name of each class, in the order of the labels → number of patients. The last class has some.
        notes: What was left out or mended, one line each.
    """

    manifest: Path
    clips: int
    videos: int
    patients: dict[str, int]
    notes: list[str]


class _Notes:
    """Counts of what was found, with the first example of each."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: str) -> None:
        self.found[what].append(example)

    def lines(self) -> list[str]:
        return [f"{len(some)} {what}, the first: {some[0]}" for what, some in self.found.items()]


def import_dataset(
    root: Path, out: Path, *, classes: int = 3, folds: int = 5, progress: Progress | None = None
) -> Imported:
    """Write OUT/manifest.csv and OUT/keypoints/NAME.npy; videos are named where they are. Whole or not at all.

    Clips of one second are cut as by `cut_spans`. Patients, not videos, are dealt to folds. Joints become pixels, with
    their confidence; those that were not found get confidence 0. A doctor's regions are those of all rows about the
    video.

    Args:
        root: `clinical_CLIP_dataset`, or the folder that holds it.
        out: A folder that does not exist yet.
        classes: 3 labels ASD 0, DHS 1, LCS_HipOA 2 (and Normal 3); 2 labels ASD 0 and the others 1.
        folds: Number of parts of a cross-validation.
        progress: Called as `progress(done, total)`, in videos.

    Raises:
        DataError: A folder or file that is missing or cannot be used, no video that can be read, or too few patients.
    """
    root = root / "clinical_CLIP_dataset" if (root / "clinical_CLIP_dataset").is_dir() else root
    absent = [name for name in (JSON, VIDEOS, *DOCTORS, SKELETONS) if not (root / name).exists()]
    if absent:
        raise DataError(f"{root / absent[0]}: missing; expected {JSON}/, {VIDEOS}/, {', '.join(DOCTORS)}, {SKELETONS}")
    entries = read_entries(root / JSON)
    doctors = [read_doctor(root / name) for name in DOCTORS]
    skeletons, ambiguous = read_skeletons(root / SKELETONS)
    notes = _Notes()
    for number, rows in enumerate(doctors, start=1):
        used = {row.line for entry in entries for row in find_rows(rows, entry.names)}
        for row in rows:
            if row.line not in used:
                notes.add(f"row(s) of doctor {number} are about no video", f"line {row.line}")
    places = _list_videos(root / VIDEOS)
    records: list[ClipRecord] = []
    videos = 0
    with write_new_folder(out) as draft:
        (draft / "keypoints").mkdir()
        for done, entry in enumerate(entries, start=1):
            if entry.label is not None and entry.label != DISEASES.index(entry.disease):
                notes.add("label(s) in JSON files differ from their folder's disease, which counts", entry.file.name)
            try:
                video = _find_video(entry, places)
                info = probe(video)
            except DataError as error:
                notes.add(LEFT_OUT, str(error))
            else:
                videos += 1
                regions = []
                for number, rows in enumerate(doctors, start=1):
                    found = find_rows(rows, entry.names)
                    regions.append(_join_regions(region for row in found for region in row.regions))
                    if not regions[-1]:
                        notes.add(f"video(s) have no region by doctor {number}", entry.file.stem)
                skeleton = _find_skeleton(entry, info, skeletons, ambiguous, notes)
                keypoints = None
                if skeleton is not None:
                    keypoints = draft / "keypoints" / f"{compose_name(entry.file.stem)}.npy"
                    np.save(keypoints, _to_pixels(skeleton, info))
                records += _cut(entry, video, info, regions, keypoints, classes=classes)
            if progress is not None:
                progress(done, len(entries))
        if not records:
            raise DataError(f"{root}: none of {len(entries)} videos can be read, the first: {notes.found[LEFT_OUT][0]}")
        write_manifest(_deal(records, folds=folds), draft / "manifest.csv")
    lines = notes.lines()
    if (root / INDEX).exists():
        lines.append(f"{INDEX}/ is not read: its folds may have a patient on both sides; the fold column replaces them")
    return Imported(out / "manifest.csv", len(records), videos, _count_patients(records, classes=classes), lines)


def _list_videos(folder: Path) -> dict[str, list[Path]]:
    """Return name → files of that name, anywhere below a folder."""
    places = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            places[path.name].append(path)
    return places


def _find_video(entry: VideoEntry, places: dict[str, list[Path]]) -> Path:
    """Return the video whose path ends as `video_path` does; that path is one of another machine.

    Raises:
        DataError: There is none, or several.
    """
    fits = places.get(entry.path.name, [])
    for count in range(2, len(entry.path.parts) + 1):
        longer = [path for path in fits if path.parts[-count:] == entry.path.parts[-count:]]
        if not longer:
            break
        fits = longer
    if len(fits) != 1:
        raise DataError(f"{entry.file.name}: {len(fits) or 'no'} video(s) of the name {entry.path.name} in {VIDEOS}/")
    return fits[0]


def _find_skeleton(
    entry: VideoEntry,
    info: VideoInfo,
    skeletons: dict[tuple[str, ...], Skeleton],
    ambiguous: set[tuple[str, ...]],
    notes: _Notes,
) -> Skeleton | None:
    name = entry.file.stem
    keys = [key for key in entry.names if key in skeletons]
    if not keys:
        notes.add("video(s) have no skeleton", name)
        return None
    if keys[0] in ambiguous:
        notes.add("video(s) have two different skeletons and get none", name)
        return None
    skeleton = skeletons[keys[0]]
    frames = len(skeleton.places_F172)
    if abs(frames - info.frames) > SLACK:
        notes.add(
            "video(s) have a skeleton of another length and get none", f"{name}, {frames} of {info.frames} frames"
        )
        return None
    if skeleton.people > 1:
        notes.add("video(s) show several people; the joints are those of the first", name)
    return skeleton


def _to_pixels(skeleton: Skeleton, info: VideoInfo) -> np.ndarray:
    places_F172 = skeleton.places_F172 * np.array([info.width, info.height], dtype=np.float32)
    return np.concatenate([places_F172, skeleton.confidence_F17[..., None]], axis=2)


def _join_regions(regions: Iterable[str]) -> tuple[str, ...]:
    named = set(regions)
    return tuple(region for region in REGIONS if region in named)


def _cut(
    entry: VideoEntry,
    video: Path,
    info: VideoInfo,
    regions: Sequence[tuple[str, ...]],
    keypoints: Path | None,
    *,
    classes: int,
) -> list[ClipRecord]:
    return [
        ClipRecord(
            clip_id=compose_name(f"{entry.file.stem}_{number:03d}"),
            subject_id=entry.patient,
            video=video,
            label=_label(entry.disease, classes=classes),
            start_s=start_s,
            end_s=end_s,
            keypoints=keypoints,
            regions_doctor1=regions[0],
            regions_doctor2=regions[1],
            spans="video",
        )
        for number, (start_s, end_s) in enumerate(cut_spans(info.seconds, clip_seconds=1))
    ]


def _label(disease: str, *, classes: int) -> int:
    return DISEASES.index(disease) if classes == 3 else int(disease != DISEASES[0])


def _deal(records: Sequence[ClipRecord], *, folds: int) -> list[ClipRecord]:
    """Return the clips with the fold in which their patient is tested."""
    try:
        splits = subject_folds(records, folds=folds, seed=0)
    except DataError as error:
        raise DataError(f"--folds {folds}: {error}") from error
    fold_of = {record.subject_id: fold for fold, split in enumerate(splits) for record in split.test}
    return [replace(record, fold=fold_of[record.subject_id]) for record in records]


def _count_patients(records: Sequence[ClipRecord], *, classes: int) -> dict[str, int]:
    names = DISEASES if classes == 3 else (DISEASES[0], "others")
    people = Counter(label for _, label in {(record.subject_id, record.label) for record in records})
    most = max(label for label in people if label is not None)
    return {name: people[label] for label, name in enumerate(names[: max(most + 1, 2)])}
