"""`data check` warns of joints, maps, frames and names that can be used but are rarely what was meant."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clip_common.synthetic import write_walking
from clip_common.video import write_video
from videoclip.config import DataConfig
from videoclip.data.check import check
from videoclip.data.joints import PERCENT, SHARES
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.data.maps import FRAMES_LAST
from videoclip.data.records import ClipRecord
from videoclip.data.symptoms import FAINT, ONE_COLOUR, OUTSIDE, TOGETHER

CONFIG = DataConfig(frames=4, size=32)
NAME = "subject_01_clip_00"


@pytest.fixture(scope="module")
def walking(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("symptoms") / "wälking"
    return write_walking(
        folder, subjects=6, clips_per_subject=1, seed=3, size=32, fps=8, conditions=("normal", "dragging foot"), folds=3
    )


def warned(walking: Path, tmp_path: Path, config: DataConfig = CONFIG, **values) -> list[str]:
    """What is warned of if one clip has other values; nothing is a problem."""
    records = [
        replace(record, **values) if record.clip_id == NAME else record
        for record in read_manifest(walking / "manifest.csv")
    ]
    report = check(replace(config, root=str(write_manifest(records, tmp_path / "manifest.csv"))), classes=2)
    assert report.problems == []
    assert not any("\n" in line for line in report.warnings)
    return report.warnings


def joints_of(walking: Path) -> np.ndarray:
    return np.load(next(r for r in read_manifest(walking / "manifest.csv") if r.clip_id == NAME).keypoints)


def one(symptom: str) -> list[str]:
    return [f"1 clip(s), such as {NAME}: {symptom}"]


def test_a_sound_set_is_not_warned_of(walking, tmp_path):
    assert warned(walking, tmp_path) == []
    assert warned(walking, tmp_path, replace(CONFIG, maps="both")) == []


@pytest.mark.parametrize("maps", ["auto", "doctor1"])
@pytest.mark.parametrize(
    ("change", "symptoms"),
    [
        (lambda joints: joints * (0, 0, 1) + (9, 9, 0), [TOGETHER]),
        (lambda joints: joints * (0.06, 0.06, 1) + (9, 9, 0), [TOGETHER]),
        (lambda joints: joints + np.eye(17)[:, :1] * (40, 0, 0), [OUTSIDE]),
        (lambda joints: joints - np.eye(17)[:, :1] * (0, 60, 0), [OUTSIDE]),
        (lambda joints: joints / (32, 32, 1), [SHARES]),
        (lambda joints: joints * (1, 1, 100), [PERCENT]),
        (lambda joints: joints / (32, 32, 0.01), [PERCENT, SHARES]),
        (lambda joints: joints * np.eye(17)[:, :1], []),  # only the nose is found
        (lambda joints: np.full_like(joints, -1) * (1, 1, -1), []),  # nobody is
    ],
)
def test_joints(walking, tmp_path, change, symptoms, maps):
    np.save(tmp_path / "joints.npy", change(joints_of(walking)).astype(np.float32))
    found = warned(walking, tmp_path, replace(CONFIG, maps=maps), keypoints=tmp_path / "joints.npy")
    assert found == [line for symptom in symptoms for line in one(symptom)]


def test_broken_keypoints_that_no_map_is_drawn_from(walking, tmp_path):
    np.save(tmp_path / "joints.npy", joints_of(walking)[:, :5])
    (line,) = warned(walking, tmp_path, keypoints=tmp_path / "joints.npy")
    assert "keypoints that `data.maps` does not use cannot be read" in line
    assert "joints.npy: expected keypoints of shape" in line


@pytest.mark.parametrize(("most", "symptoms"), [(0.04, [FAINT]), (0.06, []), (1.0, [])])
def test_faint_maps(walking, tmp_path, most, symptoms):
    values = np.zeros((8, 32, 32), np.float32)
    values[:, 8:16, 8:16] = most
    np.save(tmp_path / "map.npy", values)
    found = warned(walking, tmp_path, map=tmp_path / "map.npy")
    assert found == [line for symptom in symptoms for line in one(symptom)]


def test_maps_with_frames_last_are_told(walking, tmp_path):
    values = np.zeros((32, 32, 8), np.float32)
    values[8:16, 8:16] = 1
    np.save(tmp_path / "map.npy", values)
    assert warned(walking, tmp_path, map=tmp_path / "map.npy") == one(FRAMES_LAST)


@pytest.mark.parametrize(("frames", "symptoms"), [(range(8), [ONE_COLOUR]), ([3], [ONE_COLOUR]), ([2], []), ([], [])])
def test_frames_of_one_colour(walking, tmp_path, frames, symptoms):
    """Frames 1, 3, 5 and 7 of eight are read."""
    pixels = np.random.default_rng(0).integers(0, 255, size=(8, 32, 32, 3), dtype=np.uint8)
    pixels[list(frames)] = (30, 90, 140)
    write_video(tmp_path / "video.mp4", pixels, fps=8)
    found = warned(walking, tmp_path, video=tmp_path / "video.mp4", end_s=None)
    assert found == [line for symptom in symptoms for line in one(symptom)]


def test_several_clips_are_one_line(walking, tmp_path):
    np.save(tmp_path / "map.npy", np.linspace(0, 0.01, 8 * 32 * 32).reshape(8, 32, 32))
    records: list[ClipRecord] = [
        replace(record, map=tmp_path / "map.npy") for record in read_manifest(walking / "manifest.csv")
    ]
    root = write_manifest(records, tmp_path / "manifest.csv")
    assert check(replace(CONFIG, root=str(root)), classes=2).warnings == [
        f"6 clip(s), such as subject_00_clip_00, subject_01_clip_00, subject_02_clip_00: {FAINT}"
    ]


def test_spellings_of_one_subject_are_told_in_one_part_and_a_problem_in_two(walking, tmp_path):
    records = read_manifest(walking / "manifest.csv")
    for place, problems in ((1, 0), (2, 1)):  # subjects 0 and 1 are in one fold
        renamed = [replace(r, subject_id="SUBJECT_0") if n == place else r for n, r in enumerate(records)]
        root = write_manifest(renamed, tmp_path / "manifest.csv")
        report = check(replace(CONFIG, root=str(root)), classes=2)
        assert report.warnings == [
            "subjects subject_00 and SUBJECT_0 differ only by case or zeros: one person needs one subject_id"
        ]
        if problems:
            assert "differ only by case or zeros: give both one subject_id" in report.problems[0]


def test_the_command_prints_warnings_and_succeeds(walking, tmp_path, videoclip):
    np.save(tmp_path / "joints.npy", joints_of(walking) / np.float32([32, 32, 1]))
    warned(walking, tmp_path, keypoints=tmp_path / "joints.npy")
    code, out, _ = videoclip("data", "check", str(tmp_path), "data.size=32", "data.frames=4", "data.maps=doctor1")
    assert code == 0
    assert f"warning: {one(SHARES)[0]}" in out
    assert "names the clips" not in out
