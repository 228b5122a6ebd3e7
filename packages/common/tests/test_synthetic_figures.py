"""Walking figures: subjects, gait, pictures, attention maps, ceilings and guards, and the folder on disk."""

import csv
from collections import Counter
from dataclasses import astuple

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.regions import JOINTS, REGIONS, attention_maps
from clip_common.synthetic.draw import PALETTE
from clip_common.synthetic.figure_draw import CLOTH, keypoints, render_walk
from clip_common.synthetic.figure_gait import SIDES, body_points, speed
from clip_common.synthetic.figure_oracle import (
    asymmetry,
    frame_guard,
    held_out_accuracy,
    keypoint_oracle,
    majority_label_accuracy,
    map_oracle,
    walking_ceilings,
)
from clip_common.synthetic.figure_regions import watched_regions
from clip_common.synthetic.figures import AFFECTED_REGION, CONDITIONS, NORMAL, Clip, sample_clip, sample_subject
from clip_common.synthetic.walking import COLUMNS, write_walking

EVERY = (NORMAL, *AFFECTED_REGION)
NOTICEABLE = {"foot": 0.3, "shoulder": 0.45, "lumbar_pelvis": 0.035, "wrist": 0.4}
"""Thresholds between normal subjects and pathologies, in the units of `asymmetry`."""

MOMENTS = np.linspace(0, 1, 97)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    subject = sample_subject(draw(st.integers(0, 50)), draw(st.integers(0, 5_000)), conditions=EVERY)
    return sample_clip(subject, draw(st.integers(0, 20)))


def first_clips(subjects: int, *, conditions: tuple[str, ...] = CONDITIONS, each: int = 1) -> list[Clip]:
    walkers = [sample_subject(0, index, conditions=conditions) for index in range(subjects)]
    return [sample_clip(walker, number) for walker in walkers for number in range(each)]


def labels_and_folds(filmed: list[Clip], *, conditions: tuple[str, ...] = CONDITIONS) -> tuple[list[int], list[int]]:
    labels = [conditions.index(clip.subject.condition) for clip in filmed]
    return labels, [clip.subject.index // len(conditions) % 5 for clip in filmed]


# subjects


@given(clips())
def test_subjects_and_clips_do_not_depend_on_the_order_in_which_they_are_drawn(clip):
    subject = clip.subject
    sample_clip(sample_subject(subject.seed, subject.index + 1, conditions=EVERY), 0)
    assert sample_subject(subject.seed, subject.index, conditions=EVERY) == subject
    assert sample_clip(subject, clip.index) == clip


def test_every_block_of_subjects_has_each_condition_and_both_sides_occur():
    subjects = [sample_subject(4, index, conditions=EVERY) for index in range(100)]
    for start in range(0, 100, len(EVERY)):
        assert {subject.condition for subject in subjects[start : start + len(EVERY)]} == set(EVERY)
    assert {subject.side for subject in subjects} == set(SIDES)
    assert all(subject.region == AFFECTED_REGION.get(subject.condition, subject.region) for subject in subjects)
    assert len({subject.condition for subject in subjects[:: len(EVERY)]}) == len(EVERY)  # the order differs


def test_the_build_does_not_tell_the_condition():
    # the same build with other conditions to choose from: it cannot depend on the condition
    for index in range(30):
        two = sample_subject(0, index, conditions=(NORMAL, "stiff arm"))
        assert sample_subject(0, index, conditions=EVERY).build == two.build
    walkers = [sample_subject(0, index) for index in range(600)]
    numbers = [[value for value in astuple(w.build) if isinstance(value, float)] for w in walkers]
    words = sorted({value for w in walkers for value in astuple(w.build) if isinstance(value, str)})
    said = [[float(word in astuple(w.build)) for word in words] for w in walkers]
    labels, folds = labels_and_folds([sample_clip(walker, 0) for walker in walkers])
    assert held_out_accuracy(np.hstack([numbers, said]), labels, folds) < 1 / 3 + 0.06


def test_severity_is_nought_for_normal_subjects_and_varies_for_others():
    filmed = first_clips(30, each=3)
    ill = [clip.severity for clip in filmed if clip.subject.condition != NORMAL]
    assert {clip.severity for clip in filmed if clip.subject.condition == NORMAL} == {0.0}
    assert len(set(ill)) == len(ill)
    assert 0.5 < min(ill) < 0.6 < 0.95 < max(ill) <= 1


# gait


@given(clips())
def test_bones_keep_their_lengths_and_joints_bend_the_right_way(clip):
    at, build = body_points(clip, MOMENTS), clip.subject.build
    for side in SIDES:
        hip, knee, ankle = (at[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        shoulder, elbow, wrist = (at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        for start, end, length in (
            (hip, knee, build.thigh),
            (knee, ankle, build.shank),
            (shoulder, elbow, build.upper_arm),
            (elbow, wrist, build.forearm),
        ):
            np.testing.assert_allclose(np.linalg.norm(end - start, axis=1), length, rtol=1e-9)
        # x is forward, y up: a knee folds the shank backwards (clockwise), an elbow the forearm forwards
        assert bend(knee - hip, ankle - knee).min() >= 0
        assert 0.7 < bend(knee - hip, ankle - knee).max() < 1.6 or clip.severity > 0
        assert bend(elbow - shoulder, wrist - elbow).max() < 0
        assert bend(elbow - shoulder, wrist - elbow).min() > -2.2


def bend(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the angle from the upper to the lower bone, clockwise, in radians."""
    across = upper[:, 1] * lower[:, 0] - upper[:, 0] * lower[:, 1]
    return np.arctan2(across, (upper * lower).sum(axis=1))


@given(clips())
def test_feet_stay_where_they_stand_and_never_sink_into_the_floor(clip):
    build = clip.subject.build
    seconds = np.linspace(0, 1, 481)
    at = body_points(clip, seconds)
    for side in SIDES:
        sole = np.stack([at[f"{side}_{name}"] for name in ("heel", "ball")])
        assert sole[..., 1].min() > -1e-9
        assert at[f"{side}_toe"][:, 1].min() > -1e-9
        phase = (seconds / build.stride_time + clip.phase + (side == "right") / 2) % 1
        standing = (phase > 0.001) & (phase < 0.599)
        lowest = sole[..., 1].argmin(axis=0)
        assert np.abs(sole[lowest, np.arange(481), 1][standing]).max() < 1e-9
        on_floor = sole[..., 0] + speed(build) * seconds
        both = standing[:-1] & standing[1:] & (lowest[:-1] == lowest[1:])
        slid = np.diff(on_floor[lowest, np.arange(481)])[both]
        assert np.abs(slid).max() < 1e-9


@given(clips())
def test_left_and_right_differ_in_the_affected_region_only(clip):
    found = asymmetry(keypoints(clip, size=112))
    affected = AFFECTED_REGION.get(clip.subject.condition)
    assert set(found) == set(NOTICEABLE)
    assert {region for region, value in found.items() if value > NOTICEABLE[region]} == ({affected} - {None})


# pictures and keypoints


@given(clips(), st.sampled_from([32, 64, 112]), st.sampled_from([0.3, 1.0, 4.0]))
def test_keypoints_are_in_the_picture_and_less_certain_on_the_far_side(clip, size, seconds):
    found = keypoints(clip, size=size, seconds=seconds)
    assert found.shape == (round(24 * seconds), len(JOINTS), 3)
    assert found.dtype == np.float32
    assert 0 < found[..., :2].min() < found[..., :2].max() < size
    near = [column for column, name in enumerate(JOINTS) if name.startswith(clip.near)]
    far = [column for column, name in enumerate(JOINTS) if not name.startswith((clip.near, "nose"))]
    assert found[:, near, 2].min() > found[:, far, 2].max()
    nose, ear = (found[:, JOINTS.index(name), 0] for name in ("nose", f"{clip.near}_ear"))
    assert ((nose > ear) == (clip.facing == "right")).all()


def test_joints_are_drawn_where_the_keypoints_say():
    for clip in first_clips(6, conditions=EVERY):
        frames, found = render_walk(clip, size=112), keypoints(clip, size=112)
        for joint, colour in (("knee", CLOTH[clip.subject.build.trousers]), ("hip", None)):
            x, y = found[:, JOINTS.index(f"{clip.near}_{joint}"), :2].round().astype(int).T
            seen = np.median(frames[np.arange(24), y, x], axis=0)
            wanted = [colour] if colour else [PALETTE[clip.subject.build.shirt], CLOTH[clip.subject.build.trousers]]
            assert min(np.abs(seen - np.array(rgb)).max() for rgb in wanted) < 25


@settings(max_examples=8)
@given(clips())
def test_frames_are_the_same_each_time_and_move(clip):
    frames = render_walk(clip, size=64, seconds=0.25)
    assert frames.shape == (6, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, render_walk(clip, size=64, seconds=0.25))
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3)).min() > 0.5


def test_a_clip_may_be_one_frame():
    clip = first_clips(1)[0]
    assert render_walk(clip, size=32, fps=24, seconds=1 / 24).shape == (1, 32, 32, 3)


# attention maps


def test_an_attention_map_by_hand():
    joints = np.zeros((2, 17, 3), dtype=np.float32)
    joints[0, JOINTS.index("left_wrist")] = 10.5, 20.5, 0.9
    joints[1, JOINTS.index("right_wrist")] = 30.5, 5.5, 0.4
    maps = attention_maps(joints, ["wrist"], height=40, width=60)
    assert (maps.shape, maps.dtype) == ((2, 40, 60), np.float32)
    assert maps[0, 20, 10] == pytest.approx(0.9)
    assert maps[0, 20, 14] == pytest.approx(0.9 * np.exp(-0.5))  # σ = 0.1·40
    assert maps[0, 24, 14] == pytest.approx(0.9 * np.exp(-1))
    assert maps[1].max() == maps[1, 5, 30] == pytest.approx(0.4)
    assert not attention_maps(joints, [], height=40, width=60).any()
    with pytest.raises(ValueError, match=r"regions must be some of foot, wrist.*: got knee"):
        attention_maps(joints, ["foot", "knee"], height=40, width=60)


@given(clips(), st.sets(st.sampled_from(sorted(REGIONS)), min_size=1))
def test_maps_lie_between_nought_and_one_and_peak_on_the_most_certain_joint(clip, regions):
    joints = keypoints(clip, size=64, seconds=0.2)
    maps = attention_maps(joints, sorted(regions), height=64, width=64)
    named = joints[:, [JOINTS.index(joint) for region in regions for joint in REGIONS[region]]]
    assert maps.min() >= 0
    assert (maps.max(axis=(1, 2)) <= named[..., 2].max(axis=1) + 1e-6).all()
    assert (maps.max(axis=(1, 2)) > 0.98 * named[..., 2].max(axis=1)).all()


def test_doctors_mostly_agree_and_look_no_differently_at_normal_subjects():
    filmed = first_clips(300, each=2)
    one, two = ([watched_regions(clip, doctor=doctor) for clip in filmed] for doctor in (1, 2))
    assert 0.65 < np.mean([a == b for a, b in zip(one, two, strict=True)]) < 0.85
    on_complaint = [clip.subject.region in seen for clip, seen in zip(filmed, one, strict=True)]
    for condition in CONDITIONS:
        hits = [hit for clip, hit in zip(filmed, on_complaint, strict=True) if clip.subject.condition == condition]
        assert 0.9 < np.mean(hits) < 0.99
    complaints = Counter(clip.subject.region for clip in filmed if clip.subject.condition == NORMAL)
    assert set(complaints) == {"foot", "shoulder"}
    assert min(complaints.values()) > 70


# ceilings and guards


def test_majority_by_hand():
    # fold 0 is predicted as 1 (from 1 1 2), fold 1 as 2 (from 2 2 1): one of three is right in each
    assert majority_label_accuracy([2, 2, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]) == pytest.approx(2 / 6)


@pytest.mark.parametrize("conditions", [CONDITIONS, EVERY], ids=["three classes", "five classes"])
def test_joints_tell_the_class_the_mean_map_some_of_it_and_one_frame_nothing(conditions):
    filmed = first_clips(240, conditions=conditions)
    labels, folds = labels_and_folds(filmed, conditions=conditions)
    chance, knows_region = 1 / len(conditions), 1 - 1 / len(conditions)
    joints = [keypoints(clip, size=64) for clip in filmed]
    maps = [
        attention_maps(each, watched_regions(clip, doctor=1), height=64, width=64).mean(axis=0)
        for clip, each in zip(filmed, joints, strict=True)
    ]
    frames = [render_walk(clip, size=64, seconds=1 / 24)[0] for clip in filmed]
    assert majority_label_accuracy(labels, folds) == pytest.approx(chance)
    assert keypoint_oracle(joints, labels, folds) > 0.97
    assert chance + 0.2 < map_oracle(maps, labels, folds) < knows_region + 0.03
    assert frame_guard(frames, labels, folds) < chance + 0.09  # three standard errors


# the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    calls = []
    path = tmp_path_factory.mktemp("walking") / "set"
    write_walking(path, subjects=16, clips_per_subject=2, size=48, progress=lambda *call: calls.append(call))
    assert calls == [(done, 32) for done in range(1, 33)]
    return path


def manifest(folder) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_manifest_names_every_file_and_every_fold_has_every_label(folder):
    rows = manifest(folder)
    assert tuple(rows[0]) == COLUMNS
    assert len({row["clip_id"] for row in rows}) == len(rows) == 32
    folds = {
        row["subject_id"]: {other["fold"] for other in rows if other["subject_id"] == row["subject_id"]} for row in rows
    }
    assert len(folds) == 16
    assert all(len(fold) == 1 for fold in folds.values())
    for fold in range(5):
        assert {row["label"] for row in rows if row["fold"] == str(fold)} == {"0", "1", "2"}
    named = {row[column] for row in rows for column in ("video", "map", "keypoints")}
    on_disk = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert on_disk == named | {"manifest.csv", "README.txt"}
    assert "0 normal, 1 dragging foot, 2 stiff arm" in (folder / "README.txt").read_text()


def test_files_hold_what_was_filmed(folder):
    for row in manifest(folder)[::7]:
        clip = sample_clip(sample_subject(1, int(row["subject_id"][-2:])), int(row["clip_id"][-2:]))
        with av.open(str(folder / row["video"])) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (48, 48, 24)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert frames.shape == (24, 48, 48, 3)
        assert np.abs(frames.astype(int) - render_walk(clip, size=48)).mean() < 6
        joints, maps = np.load(folder / row["keypoints"]), np.load(folder / row["map"])
        np.testing.assert_array_equal(joints, keypoints(clip, size=48))
        assert (maps.dtype, maps.shape) == (np.float16, (24, 48, 48))
        for doctor in (1, 2):
            assert tuple(row[f"regions_doctor{doctor}"].split(";")) == watched_regions(clip, doctor=doctor)
        wanted = attention_maps(joints, watched_regions(clip, doctor=1), height=48, width=48)
        np.testing.assert_allclose(maps, wanted, atol=1e-3)
        assert int(row["label"]) == CONDITIONS.index(clip.subject.condition)
        assert (row["start_s"], row["end_s"]) == ("0.0", "1")


def test_ceilings_are_read_from_the_folder(folder):
    ceilings = walking_ceilings(folder)
    assert list(ceilings) == ["majority", "keypoints", "mean map", "one frame"]
    assert ceilings["keypoints"] > 0.9
    assert all(0 <= value <= 1 for value in ceilings.values())


def test_bad_input():
    clip = first_clips(1)[0]
    with pytest.raises(ValueError, match="at least 32 pixels a side: got size=31"):
        render_walk(clip, size=31)
    with pytest.raises(ValueError, match="clips 0 to 9999: got index=10000"):
        sample_clip(clip.subject, 10_000)
    with pytest.raises(ValueError, match="a step of each foot: 1 frames show none"):
        asymmetry(keypoints(clip, size=64, seconds=1 / 24))
