"""What `videoclip data check` finds, on walking figures and on sets that are broken in one place each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clip_common.errors import DataError
from clip_common.synthetic import write_walking
from videoclip.config import DataConfig
from videoclip.data.check import Count, check
from videoclip.data.manifest import read_manifest, write_manifest

CONDITIONS = ("normal", "dragging foot")
CONFIG = DataConfig(frames=4, size=32)


@pytest.fixture(scope="module")
def walking(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "wälking"
    return write_walking(
        folder, subjects=6, clips_per_subject=2, seed=3, size=32, fps=8, seconds=1.0, conditions=CONDITIONS, folds=3
    )


def changed(walking: Path, tmp_path: Path, name: str, **values) -> DataConfig:
    """The set with other values in one clip's row."""
    records = read_manifest(walking / "manifest.csv")
    assert name in {record.clip_id for record in records}
    rows = [replace(record, **values) if record.clip_id == name else record for record in records]
    return replace(CONFIG, root=str(write_manifest(rows, tmp_path / "manifest.csv")))


def report_of(config: DataConfig, **knobs):
    return check(config, **{"classes": 2} | knobs)


def test_a_sound_set(walking):
    at = []
    report = report_of(replace(CONFIG, root=str(walking)), progress=lambda *state: at.append(state))
    assert report.ok
    assert (report.problems, report.notes) == ([], [])
    assert report.counts == [
        Count(fold=fold, label=label, subjects=1, clips=2, seconds=2.0, map_files=2, keypoints=2)
        for fold in range(3)
        for label in range(2)
    ]
    assert at == [(done, 12) for done in range(1, 13)]
    maps = report.maps
    assert (maps.without, maps.constant, maps.two_doctors) == ([], [], 12)
    assert 0.02 < maps.mean < 0.2
    assert 0.02 < maps.focus < 0.2
    records = read_manifest(walking / "manifest.csv")
    assert maps.agreeing == sum(set(r.regions_doctor1) == set(r.regions_doctor2) for r in records)


def test_the_map_statistics_of_one_map_by_hand(walking, tmp_path):
    file = tmp_path / "half.npy"
    half = np.zeros((8, 32, 32), dtype=np.float32)
    half[:, :8] = 1  # a quarter at 1
    half[:, 8:16] = 0.2  # a quarter below half of it
    np.save(file, half)
    records = [replace(record, map=file) for record in read_manifest(walking / "manifest.csv")]
    config = replace(CONFIG, root=str(write_manifest(records, tmp_path / "manifest.csv")))
    maps = report_of(config).maps
    assert maps.mean == pytest.approx((1 + 0.2) / 4, abs=1e-6)
    assert maps.focus == 0.25


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_constant_map_is_named_and_no_problem(walking, tmp_path, value):
    np.save(tmp_path / "flat.npy", np.full((8, 16, 16), value, dtype=np.float32))
    report = report_of(changed(walking, tmp_path, "subject_01_clip_00", map=tmp_path / "flat.npy"))
    assert report.ok
    assert report.maps.constant == ["subject_01_clip_00"]
    assert report.maps.without == []


def test_a_clip_without_a_map_is_named_and_no_problem(walking, tmp_path):
    bare = changed(walking, tmp_path, "subject_01_clip_01", map=None, keypoints=None)
    report = report_of(bare)
    assert report.ok
    assert (report.maps.without, report.maps.constant) == (["subject_01_clip_01"], [])
    assert sum(count.map_files for count in report.counts) == sum(count.keypoints for count in report.counts) == 11
    drawn = report_of(replace(bare, maps="doctor2"))
    assert (drawn.ok, drawn.maps.without) == (True, ["subject_01_clip_01"])
    none = report_of(replace(CONFIG, root=str(tmp_path), maps="file"))
    assert none.maps.without == ["subject_01_clip_01"]


def test_each_problem_is_one_line(walking, tmp_path):
    records = read_manifest(walking / "manifest.csv")
    (tmp_path / "broken.mp4").write_bytes(b"no\nvideo")
    np.save(tmp_path / "nan.npy", np.full((8, 16, 16), np.nan, dtype=np.float32))
    records[0] = replace(records[0], video=tmp_path / "broken.mp4")
    records[1] = replace(records[1], video=tmp_path / "gone.mp4")
    records[2] = replace(records[2], start_s=5.0, end_s=6.0)
    records[3] = replace(records[3], map=tmp_path / "nan.npy")
    records[4] = replace(records[4], label=7)
    write_manifest(records, tmp_path / "manifest.csv")
    report = report_of(replace(CONFIG, root=str(tmp_path)))
    assert not report.ok
    assert not any("\n" in line for line in report.problems)
    starts = [f"clip {record.clip_id}: " for record in records[:4]]
    assert [line for line in report.problems if line.startswith(tuple(starts))] == report.problems[-4:]
    for line, start, named in zip(
        report.problems[-4:], starts, ("broken.mp4", "gone.mp4", "a clip from 5 to 6 s", "nan.npy"), strict=True
    ):
        assert line.startswith(start)
        assert named in line
    labels, taught = report.problems[:-4]
    assert labels.startswith(f"clip {records[4].clip_id} has the label 7 (1 clip(s) beyond 1)")
    assert taught.startswith("fold 1 tests on all subjects of class 7 (subject_02) and leaves none to train on")
    assert all(count.fold is None for count in report.counts)
    assert sum(count.seconds for count in report.counts) == 8.0


def test_a_leak_is_a_problem(walking, tmp_path):
    records = read_manifest(walking / "manifest.csv")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(records[0].video.read_bytes())
    report = report_of(changed(walking, tmp_path, records[-1].clip_id, video=copy))
    (line,) = report.problems
    assert "have the same content" in line
    assert str(copy) in line


def test_too_few_subjects_for_the_folds_is_a_problem(walking, tmp_path):
    records = [replace(record, fold=None) for record in read_manifest(walking / "manifest.csv")]
    write_manifest(records, tmp_path / "manifest.csv")
    report = report_of(replace(CONFIG, root=str(tmp_path), folds=7))
    assert report.problems == ["data.folds=7 needs as many subjects, there are 6: lower it"]
    assert {count.fold for count in report.counts} == {None}
    assert [count.label for count in report.counts] == [0, 1]


def test_a_class_that_a_fold_cannot_be_tested_on_is_a_note(walking, tmp_path):
    folds = {"subject_00": 0, "subject_01": 0}
    labels = {"subject_02": 1, "subject_03": 1}
    records = [
        replace(record, fold=folds.get(record.subject_id, 1), label=labels.get(record.subject_id, 0))
        for record in read_manifest(walking / "manifest.csv")
    ]
    write_manifest(records, tmp_path / "manifest.csv")
    report = report_of(replace(CONFIG, root=str(tmp_path)))
    assert report.problems == [
        "fold 1 tests on all subjects of class 1 (subject_02, subject_03) and leaves none to train on: a class "
        "needs two subjects, in different folds"
    ]
    third = [replace(r, fold=2) if r.subject_id == "subject_03" else r for r in records]
    write_manifest(third, tmp_path / "manifest.csv")
    report = report_of(replace(CONFIG, root=str(tmp_path)))
    assert report.problems == []
    assert report.notes == [
        "fold 0: no clip of class 1 in test",
        "fold 1: no clip of class 1 in val",
        "fold 2: no clip of class 1 in val",
        "fold 2: no clip of class 0 in test",
    ]


def test_no_set_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no clips found"):
        report_of(replace(CONFIG, root=str(tmp_path)))
