"""Maps of every kind, at the moments of the clip's frames, with values from 0 to 1; what is no map is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.real import real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_common.regions import JOINTS, attention_maps
from clip_common.video import write_video
from videoclip.config import DataConfig
from videoclip.data import ClipRecord, DataError, find_map_source, read_map, read_pair
from videoclip.data.maps import identify_map

SIDE = 16


@pytest.fixture
def record(tmp_path) -> ClipRecord:
    """Two seconds at 10 frames a second, 32 x 16 pixels; the clip is the second of them."""
    np.savez(tmp_path / "video.npz", frames=np.zeros((20, 16, 32, 3), np.uint8), fps=10)
    return ClipRecord("clip", "anna", tmp_path / "video.npz", start_s=1.0, end_s=2.0)


def config(**knobs) -> DataConfig:
    return DataConfig(**{"frames": 5, "size": SIDE} | knobs)


def read(record: ClipRecord, *, channels: int = 1, **knobs) -> torch.Tensor:
    map_CTSS = read_map(record, config(**knobs), channels=channels, side=SIDE)
    assert map_CTSS.dtype == torch.uint8
    assert map_CTSS.shape == (channels, knobs.get("frames", 5), SIDE, SIDE)
    return map_CTSS


def steps(count: int) -> np.ndarray:
    """(count, 4, 4): each row another constant, the last one 1."""
    return np.broadcast_to(np.linspace(0, 1, count)[:, None, None], (count, 4, 4))


def levels(map_CTSS: torch.Tensor) -> list[float]:
    """The one value of each frame of a map of one channel."""
    assert (map_CTSS == map_CTSS[..., :1, :1]).all()
    return (map_CTSS[0, :, 0, 0] / 255).tolist()


def test_rows_lie_evenly_over_the_clip_or_over_the_video(record, tmp_path):
    np.save(tmp_path / "map.npy", steps(11))
    clip = replace(record, map=tmp_path / "map.npy")
    # the middles of five bins, .1 .3 .5 .7 .9 of eleven rows: rows 1, 3, 5, 7, 9
    assert levels(read(clip)) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.002)
    # .55 .65 .75 .85 .95 of the video
    assert levels(read(replace(clip, spans="video"))) == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0], abs=0.002)


def test_a_row_for_each_frame_follows_the_frames_where_the_rate_varies(tmp_path):
    import av

    path, times = tmp_path / "phone.mp4", [0, 800, 900, 1000, 1500]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 50 * number, np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.save(tmp_path / "map.npy", steps(5))
    clip = ClipRecord("clip", "anna", path, map=tmp_path / "map.npy", spans="video")
    pair = read_pair(clip, config(frames=15), channels=1, side=SIDE)
    shown = [round(level * 4) for level in levels(pair.map_CTSS)]
    assert shown == (pair.frames_T3SS[:, 0, 8, 8] / 50).round().int().tolist()
    assert shown.count(0) > 5  # the first frame lasts for half of the video


@given(
    rows=st.integers(1, 30),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    frames=st.integers(2, 12),
    spans=st.sampled_from(["clip", "video"]),
)
def test_any_length_and_size_keeps_a_constant(tmp_path_factory, rows, shape, frames, spans):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "video.npz", frames=np.zeros((20, 8, 8, 3), np.uint8))
    np.save(folder / "map.npy", np.full((1, rows, *shape), 0.6))
    clip = ClipRecord("clip", "anna", folder / "video.npz", map=folder / "map.npy", spans=spans, end_s=0.5)
    assert (read(clip, frames=frames) == 153).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 0.5], np.float32), [0, 0.5]),  # as it is, though nothing reaches 1
        (np.array([0, 0.5], np.float16), [0, 0.5]),
        (np.array([1, 4.0]), [0.25, 1]),
        (np.array([0, 51], np.uint8), [0, 0.2]),
        (np.array([0, 1], np.uint8), [0, 1]),  # a mask
        (np.array([0, 13107], np.uint16), [0, 0.2]),
        (np.array([False, True]), [0, 1]),
        (np.array([0, 1]), [0, 1]),
        (np.array([20, 80]), [0.25, 1]),
    ],
)
def test_numbers_of_every_type_become_0_to_1(record, tmp_path, values, expected):
    np.save(tmp_path / "map.npy", np.broadcast_to(values[:, None, None], (2, 4, 4)))
    assert levels(read(replace(record, map=tmp_path / "map.npy"), frames=2)) == pytest.approx(expected, abs=0.002)


def test_the_largest_value_is_that_of_the_file_not_of_the_clip(record, tmp_path):
    np.save(tmp_path / "map.npy", 10 * steps(20)[::-1])  # largest in the first second
    found = levels(read(replace(record, map=tmp_path / "map.npy", spans="video"), frames=2))
    assert found == pytest.approx([7 / 19, 2 / 19], abs=0.002)


def test_one_picture_stands_for_all_frames(record, tmp_path):
    np.save(tmp_path / "map.npy", np.eye(SIDE))
    found = read(replace(record, map=tmp_path / "map.npy"))
    assert torch.equal(found, (255 * torch.eye(SIDE)).to(torch.uint8).expand(1, 5, SIDE, SIDE))


def test_files_of_every_kind_hold_the_same_map(record, tmp_path):
    frames = np.zeros((10, SIDE, SIDE), np.uint8)
    for number in range(10):
        frames[number, :, number : number + 5] = 25 * (number + 1)
    np.save(tmp_path / "map.npy", frames)
    np.savez(tmp_path / "only.npz", anything=frames)
    np.savez(tmp_path / "named.npz", other=np.zeros(3), map=frames)
    folder = tmp_path / "Karten – ü"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number + 1}.png")  # 10 comes after 9
    write_video(tmp_path / "map.mp4", np.repeat(frames[..., None], 3, axis=-1), fps=7)
    expected = read(replace(record, map=tmp_path / "map.npy"))
    for name in ("only.npz", "named.npz", folder.name):
        assert torch.equal(read(replace(record, map=tmp_path / name)), expected), name
    video = read(replace(record, map=tmp_path / "map.mp4"))
    assert (video.float() - expected.float()).abs().mean() < 6


@pytest.mark.parametrize(("dtype", "most"), [(np.uint16, 65535), (np.float32, 1)])
def test_pictures_of_more_than_eight_bits_are_maps_too(record, tmp_path, dtype, most):
    folder = tmp_path / "map"
    folder.mkdir()
    bright = np.zeros((SIDE, SIDE), dtype)
    bright[:, : SIDE // 2] = most
    for number in range(10):
        Image.fromarray(bright).save(folder / f"{number}.tif")
    found = read(replace(record, map=folder))
    assert found[..., : SIDE // 2].float().mean() > 250
    assert found[..., SIDE // 2 :].float().mean() < 5


def test_channels_must_be_those_of_the_model(record, tmp_path):
    np.save(tmp_path / "map.npy", np.stack([steps(5), 1 - steps(5), steps(5)]))
    clip = replace(record, map=tmp_path / "map.npy")
    found = read(clip, channels=3)
    assert levels(found[1:2]) == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=0.002)
    with pytest.raises(DataError, match=r"3 channel\(s\), model.attn_in_channels=1: set model.attn_in_channels=3"):
        read(clip)
    np.save(tmp_path / "one.npy", steps(5))
    with pytest.raises(DataError, match=r"1 channel\(s\), model.attn_in_channels=2: set model.attn_in_channels=1"):
        read(replace(record, map=tmp_path / "one.npy"), channels=2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), "from 0 up"),
        (np.array([[0.5, np.inf]]), "from 0 up"),
        (np.array([[0.5, -0.1]]), "from 0 up, got -0.1 to 0.5"),
        (np.array([[-1, 3]]), "from 0 up"),
        (np.zeros(5), r"expected numbers of shape"),
        (np.zeros((0, 4, 4)), r"expected numbers of shape"),
        (np.array([["a", "b"]]), r"expected numbers of shape"),
        (np.array([[{"a": 1}]], dtype=object), "expected a map as .npy"),
    ],
)
def test_what_is_no_attention_is_refused_in_one_line(record, tmp_path, array, message):
    np.save(tmp_path / "map.npy", array)
    with pytest.raises(DataError, match=message) as error:
        read(replace(record, map=tmp_path / "map.npy"))
    assert "map.npy" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["map.npy", "map.npz", "map.mp4"])
def test_damaged_and_missing_files_are_named(record, tmp_path, name):
    clip = replace(record, map=tmp_path / name)
    with pytest.raises(DataError, match="no such map"):
        read(clip)
    for content in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04 not an archive"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name) as error:
            read(clip)
        assert "\n" not in str(error.value)


# -- drawn from joints ---------------------------------------------------------------------------------------------


@pytest.fixture
def walked(record, tmp_path) -> ClipRecord:
    """Joints of each frame of the clip: the left ankle goes from left to right, the nose stays at the top."""
    joints = np.zeros((10, 17, 3), np.float32)
    joints[:, JOINTS.index("left_ankle")] = [(3 * number + 2, 14.5, 1) for number in range(10)]
    joints[:, JOINTS.index("nose")] = (16, 2, 0.5)
    np.save(tmp_path / "joints.npy", joints)
    return replace(record, keypoints=tmp_path / "joints.npy", regions_doctor1=("foot",), regions_doctor2=("head",))


def test_a_drawn_map_is_that_of_the_joints_scaled_to_its_size(walked, tmp_path):
    joints = np.load(tmp_path / "joints.npy")[[1, 3, 5, 7, 9]]
    joints[..., :2] *= (SIDE / 32, SIDE / 16)  # pixels of the video, which is twice as wide as high
    feet, head = (attention_maps(joints, regions, height=SIDE, width=SIDE) for regions in (("foot",), ("head",)))
    for maps, expected in (("doctor1", feet), ("doctor2", head), ("both", np.maximum(feet, head))):
        assert np.abs(read(walked, maps=maps)[0].numpy() / 255 - expected).max() < 0.003, maps
    two = read(walked, maps="both", channels=2).numpy() / 255
    assert np.abs(two - np.stack([feet, head])).max() < 0.003
    assert two[0, 0].argmax() == 14 * SIDE + 2  # (5 · 16/32, 14.5): the middle of a pixel


def test_auto_takes_the_file_and_draws_where_there_is_none(walked, tmp_path):
    np.save(tmp_path / "map.npy", np.ones((4, 4)))
    with_file = replace(walked, map=tmp_path / "map.npy")
    assert (read(with_file) == 255).all()
    assert torch.equal(read(with_file, maps="both"), read(walked, maps="auto"))
    assert find_map_source(walked, config(maps="file"), channels=1) is None


def test_a_clip_without_a_map_has_zeros(record, walked):
    assert not read(record).any()
    assert not read(record, maps="doctor1", channels=2).any()
    assert not read(replace(walked, regions_doctor2=()), maps="doctor2").any()
    assert read(replace(walked, regions_doctor2=()), maps="both", channels=2)[0].any()


def test_doctors_have_no_more_channels_than_they_are(walked):
    for maps, channels, most in (("both", 3, 2), ("auto", 3, 2), ("doctor1", 2, 1)):
        with pytest.raises(DataError, match=f"set model.attn_in_channels={most}"):
            read(walked, maps=maps, channels=channels)


def test_a_joint_that_was_not_found_has_no_place(walked, tmp_path):
    joints = np.load(tmp_path / "joints.npy")
    expected = read(walked, maps="doctor1")
    joints[:, JOINTS.index("right_ankle")] = (np.nan, np.nan, 0)
    np.save(tmp_path / "joints.npy", joints)
    assert torch.equal(read(walked, maps="doctor1"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda joints: joints[:, :5], r"shape \(frames, 17, 3\), got \(10, 5, 3\)"),
        (lambda joints: joints[:0], r"shape \(frames, 17, 3\)"),
        (lambda joints: np.where(joints == 14.5, np.nan, joints), "finite keypoints"),
        (lambda joints: joints.astype(str), "expected an .npy of keypoints|finite|confidences"),
    ],
)
def test_what_are_no_joints_is_refused(walked, tmp_path, change, message):
    np.save(tmp_path / "joints.npy", change(np.load(tmp_path / "joints.npy")))
    if "npy of" in message:
        (tmp_path / "joints.npy").write_bytes(b"")
    with pytest.raises(DataError, match=message) as error:
        read(walked, maps="doctor1")
    assert "joints.npy" in str(error.value)


def test_maps_have_one_origin_where_file_or_joints_and_regions_are_the_same(walked, tmp_path):
    def origin(record: ClipRecord, maps: str = "auto") -> object:
        return identify_map(record, config(maps=maps), channels=1)

    filed = replace(walked, map=tmp_path / "map.npy")
    later = {"start_s": 0.0, "end_s": 1.0}
    assert origin(filed) == origin(replace(filed, **later))
    assert origin(walked) == origin(replace(walked, **later))
    assert origin(replace(walked, spans="video")) != origin(replace(walked, spans="video", **later))
    assert origin(walked, "doctor1") != origin(walked, "doctor2")
    assert origin(replace(walked, keypoints=None)) is None


@pytest.mark.real
def test_real_masks_lie_on_real_frames():
    bear = real_data("video/bear")
    clip = ClipRecord("bear", "bear", bear, map=bear / "ground-truth", spans="video", start_s=1, end_s=2)
    pair = read_pair(clip, config(frames=8, size=112), channels=1, side=112)
    inside = pair.map_CTSS[0] > 127
    assert 0.02 < inside.float().mean() < 0.6
    assert pair.map_CTSS.max() == 255
    # each frame has its own mask: those of 1.0625 s and 1.9375 s at an assumed 25 a second
    for place, number in ((0, 26), (7, 48)):
        own = np.asarray(Image.open(bear / "ground-truth" / f"{number:08}.png").resize((112, 112)))
        assert ((own > 127) == inside[place].numpy()).mean() > 0.98
    assert (inside[0] != inside[7]).float().mean() > 0.02
