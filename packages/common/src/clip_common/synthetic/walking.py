"""Walking figures as a folder of MP4 clips with keypoints, attention maps and a manifest, which videoclip reads."""

from pathlib import Path

import numpy as np

from clip_common.regions import attention_maps
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder, write_text
from clip_common.synthetic.figure_draw import frame_times, keypoints, render_walk
from clip_common.synthetic.figure_regions import watched_regions
from clip_common.synthetic.figures import CONDITIONS, sample_clip, sample_subject
from clip_common.synthetic.folders import track
from clip_common.synthetic.scenes import VERSION
from clip_common.tables import csv_text
from clip_common.video import write_video

MANIFEST = "manifest.csv"
COLUMNS = (
    "clip_id", "subject_id", "video", "start_s", "end_s", "label",
    "map", "keypoints", "regions_doctor1", "regions_doctor2", "fold",
)  # fmt: skip

_README = """Walking figures of the procedural world of clip_common, version {version}, seed {seed}: {subjects} subjects
with {clips} clips each, {frames} frames of {size} x {size} pixels at {fps} a second.
Labels: {labels}.
manifest.csv has one row a clip; paths are relative to it. keypoints: (frames, 17, 3) float32, COCO order, x and y in
pixels and confidence. map: (frames, rows, columns) float16, 0 to 1, of the regions of doctor 1. Several regions are
joined by ";". fold: each subject is in one fold, and every fold has every label.
A doctor watches the region that the subject complains about. Normal subjects complain too, but nothing is wrong there.
"""


def write_walking(
    folder: str | Path,
    *,
    subjects: int,
    clips_per_subject: int,
    seed: int = 1,
    size: int = 112,
    fps: int = 24,
    seconds: float = 1.0,
    conditions: tuple[str, ...] = CONDITIONS,
    folds: int = 5,
    progress: Progress | None = None,
) -> Path:
    """Draw clips of subjects; write videos/, keypoints/, maps/, manifest.csv and README.txt; whole or not at all.

    Args:
        folder: A folder that does not exist yet.
        subjects: Number of subjects, at least one of each condition for each fold.
        clips_per_subject: Number of clips of each; they differ in severity, direction, distance and scenery.
        seed: Each seed gives another set.
        size: Side of the frames in pixels; the video format needs an even number.
        fps: Frames a second.
        seconds: Length of a clip; one second shows a whole stride of every subject.
        conditions: The classes; the position of each is its label.
        folds: Number of folds into which the subjects are divided.
        progress: Called as `progress(done, total)`, in clips.

    Raises:
        ValueError: The folder exists, `size`, `fps` or `seconds` is too small, the subjects or clips are too few, or a
            condition is unknown.
        OSError: The disk is full.
    """
    folder = Path(folder)
    frames = len(frame_times(fps=fps, seconds=seconds))
    if size < 32 or size % 2:
        raise ValueError(f"size must be an even number of pixels, at least 32: got size={size}")
    if clips_per_subject < 1:
        raise ValueError(f"a subject has at least one clip: got clips_per_subject={clips_per_subject}")
    if folds < 2 or subjects < folds * len(conditions):
        raise ValueError(
            f"{folds} folds (at least 2) with {len(conditions)} conditions in each need "
            f"{max(folds, 2) * len(conditions)} subjects: got subjects={subjects}"
        )
    walkers = [sample_subject(seed, index, conditions=conditions) for index in range(subjects)]
    clips = [sample_clip(walker, number) for walker in walkers for number in range(clips_per_subject)]
    with write_new_folder(folder) as draft:
        rows = []
        for clip in track(clips, total=len(clips), progress=progress):
            person, name = f"subject_{clip.subject.index:02d}", f"clip_{clip.index:02d}"
            joints = keypoints(clip, size=size, fps=fps, seconds=seconds)
            doctors = [watched_regions(clip, doctor=doctor) for doctor in (1, 2)]
            maps = attention_maps(joints, doctors[0], height=size, width=size)
            row = {
                "clip_id": f"{person}_{name}",
                "subject_id": person,
                "video": f"videos/{person}/{name}.mp4",
                "start_s": "0.0",
                "end_s": f"{frames / fps:.6g}",
                "label": str(conditions.index(clip.subject.condition)),
                "map": f"maps/{person}/{name}.npy",
                "keypoints": f"keypoints/{person}/{name}.npy",
                "regions_doctor1": ";".join(doctors[0]),
                "regions_doctor2": ";".join(doctors[1]),
                # a block of len(conditions) subjects has every condition once, so it stays in one fold
                "fold": str(clip.subject.index // len(conditions) % folds),
            }
            for kind in ("video", "keypoints", "map"):
                (draft / row[kind]).parent.mkdir(parents=True, exist_ok=True)
            write_video(draft / row["video"], render_walk(clip, size=size, fps=fps, seconds=seconds), fps=fps)
            np.save(draft / row["keypoints"], joints)
            np.save(draft / row["map"], maps.astype(np.float16))
            rows.append(row)
        write_text(draft / MANIFEST, csv_text(COLUMNS, ([row[column] for column in COLUMNS] for row in rows)))
        about = _README.format(
            version=VERSION, seed=seed, subjects=subjects, clips=clips_per_subject, frames=frames, size=size, fps=fps,
            labels=", ".join(f"{label} {condition}" for label, condition in enumerate(conditions)),
        )  # fmt: skip
        (draft / "README.txt").write_text(about, encoding="utf-8")
    return folder
