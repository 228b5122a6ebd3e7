"""Joints in pixels or in shares, with confidences or per cent: mended or refused, never a blob in the corner."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_common.errors import DataError
from clip_common.regions import JOINTS, REGIONS, attention_maps
from clip_common.synthetic import write_walking
from videoclip.config import DataConfig
from videoclip.data.cache import ClipCache
from videoclip.data.joints import PERCENT, SHARES, load_joints
from videoclip.data.manifest import read_manifest
from videoclip.data.maps import identify_map, read_map

WIDTH, HEIGHT = 64, 48


@pytest.fixture
def joints() -> np.ndarray:
    """Ten frames of a body that fills the picture, found with .4 to .95."""
    rng = np.random.default_rng(0)
    places = rng.uniform(4, (WIDTH - 4, HEIGHT - 4), size=(10, 17, 2))
    return np.concatenate([places, rng.uniform(0.4, 0.95, size=(10, 17, 1))], axis=-1).astype(np.float32)


def load(tmp_path, joints: np.ndarray):
    np.save(tmp_path / "jöints.npy", joints)
    return load_joints(tmp_path / "jöints.npy", width=WIDTH, height=HEIGHT)


def test_pixels_and_confidences_stay(tmp_path, joints):
    found = load(tmp_path, joints)
    assert np.array_equal(found.joints_L173, joints)
    assert found.mended == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_shares_become_pixels_and_per_cent_becomes_1(tmp_path, joints, dtype):
    shares = joints / (WIDTH, HEIGHT, 1)
    for given, mended in (
        (shares, (SHARES,)),
        (joints * (1, 1, 100), (PERCENT,)),
        (shares * (1, 1, 100), (SHARES, PERCENT)),
    ):
        found = load(tmp_path, given.astype(dtype))
        assert found.mended == mended
        assert np.abs(found.joints_L173 - joints).max() < 0.05


@pytest.mark.parametrize("scale", [1, 1 / WIDTH])
@pytest.mark.parametrize("missing", [(-1, -1, 0.9), (0, 0, 0.9), (np.nan, np.nan, 0), (7, 900, 0), (-1, -1, 0)])
def test_a_joint_that_was_not_found_is_zeros_whatever_was_written(tmp_path, joints, missing, scale):
    joints[..., :2] *= scale
    joints[3, 5] = missing
    joints[4] = missing  # nobody in the frame
    found = load(tmp_path, joints).joints_L173
    assert not found[3, 5].any()
    assert not found[4].any()
    assert (found[:3] > 0).all()


def test_nobody_in_the_whole_file_draws_nothing(tmp_path):
    found = load(tmp_path, np.tile(np.float32([-1, -1, 1]), (10, 17, 1)))
    assert not found.joints_L173.any()
    assert found.mended == ()


def test_confidences_that_rounding_takes_above_1_are_1(tmp_path, joints):
    joints[0, 0, 2] = 1.0005
    found = load(tmp_path, joints)
    assert found.joints_L173[..., 2].max() == 1
    assert found.mended == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda joints: joints * (1, 1, 7), r"confidences from 0 to 1 \(or per cent\), got up to 6\..*: scale them$"),
        (lambda joints: joints * (1, 1, 1000), r"or per cent\), got up to 9"),
        (lambda joints: joints * (1, 1, -1), "finite keypoints with confidences from 0 to 1"),
        (lambda joints: np.where(np.arange(17)[:, None] < 12, joints / (WIDTH, HEIGHT, 1), joints), r": 71 % of the"),
        (lambda joints: np.where(joints == joints[0, 0, 0], np.nan, joints), "finite keypoints"),
    ],
)
def test_joints_of_unknown_meaning_are_refused_in_one_line(tmp_path, joints, change, message):
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, change(joints).astype(np.float32))
    assert "jöints.npy" in str(error.value)
    assert "\n" not in str(error.value)


# maps drawn from them


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joints") / "walks"
    write_walking(folder, subjects=6, clips_per_subject=1, seed=3, size=32, fps=8, folds=2)
    return read_manifest(folder / "manifest.csv")


CONFIG = DataConfig(frames=4, size=32, maps="doctor1")


def draw(record, config=CONFIG) -> torch.Tensor:
    return read_map(record, config, channels=1, side=config.size)


def test_mended_joints_draw_the_map_of_the_right_ones_and_are_told(walks, tmp_path):
    joints, file = np.load(walks[0].keypoints), tmp_path / "other.npy"
    np.save(file, joints / np.float32([32, 32, 0.01]))
    with pytest.warns(UserWarning, match="are read as") as told:
        drawn = draw(replace(walks[0], keypoints=file))
    assert [str(one.message).split(": ")[0] for one in told] == [SHARES, PERCENT]
    assert (drawn.float() - draw(walks[0]).float()).abs().max() <= 1
    joints[..., :2] = -1
    np.save(file, joints)
    assert not draw(replace(walks[0], keypoints=file)).any()


def test_joints_combine_by_maximum_or_by_mean(walks):
    """By hand: two joints far apart, of confidences 1 and .5; the mean of each blob and the other's zero is half."""
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, JOINTS.index("left_ankle")] = (10.5, 50.5, 1)
    joints[0, JOINTS.index("right_ankle")] = (90.5, 50.5, 0.5)
    size = {"height": 100, "width": 100}
    most, mean = (attention_maps(joints, ["foot"], combine=kind, **size)[0] for kind in ("maximum", "mean"))
    assert (most[50, 10], most[50, 90]) == pytest.approx((1, 0.5), abs=1e-6)
    assert (mean[50, 10], mean[50, 90]) == pytest.approx((0.5, 0.25), abs=1e-6)
    # two of four joints, because those that were not found count
    four = attention_maps(joints, ["foot", "wrist"], combine="mean", **size)[0]
    assert np.allclose(four, mean / 2, atol=1e-6)
    # the source's formula, on a walk
    found = np.load(walks[0].keypoints)
    rows = [JOINTS.index(name) for region in ("foot", "head") for name in REGIONS[region]]
    y, x = np.mgrid[:32, :32] + 0.5
    blobs = [
        score * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 3.2**2))
        for u, v, score in (found[0, joint] for joint in rows)
    ]
    drawn = attention_maps(found[:1], ["foot", "head"], height=32, width=32, combine="mean")[0]
    assert np.abs(drawn - np.mean(blobs, axis=0)).max() < 1e-5


def test_region_joints_changes_the_map_its_origin_and_the_cache(walks, tmp_path):
    mean = replace(CONFIG, region_joints="mean")
    assert draw(walks[0], mean).max() < draw(walks[0]).max()
    assert identify_map(walks[0], mean, channels=1) != identify_map(walks[0], CONFIG, channels=1)
    for config in (CONFIG, mean, CONFIG):  # one after the other in one folder
        cache = ClipCache(tmp_path, walks, config, channels=1)
        assert torch.equal(cache[walks[0]].map_CTSS, draw(walks[0], config))
    files = replace(CONFIG, maps="file")
    same = [ClipCache(tmp_path, walks, replace(files, region_joints=kind), channels=1) for kind in ("maximum", "mean")]
    assert same[0].folder == same[1].folder  # a map file has no joints
