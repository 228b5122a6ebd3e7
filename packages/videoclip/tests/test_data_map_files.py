"""Map files with axes in any order and masks of 0 and 1 of every kind: read right, or refused in one line."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.map_files import find_order
from videoclip.data.maps import FRAMES_LAST, read_map
from videoclip.data.records import ClipRecord

SIDE, FRAMES = 16, 10
CONFIG = DataConfig(frames=5, size=SIDE)


@pytest.fixture
def record(tmp_path) -> ClipRecord:
    """One second at 10 frames a second, 32 x 16 pixels."""
    np.savez(tmp_path / "video.npz", frames=np.zeros((FRAMES, 16, 32, 3), np.uint8), fps=10)
    return ClipRecord("clip", "anna", tmp_path / "video.npz")


@pytest.fixture
def walk() -> np.ndarray:
    """(FRAMES, 16, 16) bytes: a stripe that moves to the right."""
    frames_LHW = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    for number in range(FRAMES):
        frames_LHW[number, 2:9, number : number + 4] = 200
    return frames_LHW


def read(record: ClipRecord, file, *, channels: int = 1) -> torch.Tensor:
    return read_map(replace(record, map=file), CONFIG, channels=channels, side=SIDE)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("arrange", "told"),
    [
        (lambda a: a, False),
        (lambda a: a[None], False),  # (1, L, H, W)
        (lambda a: a[:, None], False),  # (L, 1, H, W)
        (lambda a: a[..., None], False),  # (L, H, W, 1)
        (lambda a: a.transpose(1, 2, 0), True),  # (H, W, L)
        (lambda a: a.transpose(1, 2, 0)[:, :, None], True),  # (H, W, 1, L), as MATLAB keeps a video
        (lambda a: a.transpose(1, 2, 0)[..., None], True),
    ],
)
def test_axes_in_any_order_are_one_map(record, walk, tmp_path, arrange, told, suffix):
    np.save(tmp_path / "map.npy", walk)
    expected = read(record, tmp_path / "map.npy")
    assert [int(row.argmax(dim=-1)[5]) for row in expected[0]] == [1, 3, 5, 7, 9]
    file = tmp_path / f"other{suffix}"
    np.save(file, arrange(walk)) if suffix == ".npy" else np.savez(file, map=arrange(walk))
    if told:
        with pytest.warns(UserWarning, match=FRAMES_LAST.replace("(", r"\(").replace(")", r"\)")):
            found = read(record, file)
    else:
        found = read(record, file)
    assert torch.equal(found, expected)


def test_two_channels_in_any_order(record, walk, tmp_path):
    both = np.stack([walk, walk[::-1]])
    np.save(tmp_path / "map.npy", both)
    expected = read(record, tmp_path / "map.npy", channels=2)
    for axes in ((1, 0, 2, 3), (1, 2, 3, 0)):
        np.save(tmp_path / "other.npy", both.transpose(axes))
        assert torch.equal(read(record, tmp_path / "other.npy", channels=2), expected)
        with pytest.raises(DataError, match=r"2 channel\(s\), model.attn_in_channels=1: set model.attn_in_channels=2"):
            read(record, tmp_path / "other.npy")


@pytest.mark.parametrize(
    ("shape", "channels", "order"),
    [
        # a video of 24 frames, twice as wide as high
        ((24, 64, 64), 1, "LHW"),
        ((64, 64, 24), 1, "HWL"),
        ((32, 64, 24), 1, "HWL"),
        ((24, 24, 24), 1, "LHW"),
        ((24, 24, 48), 1, "LHW"),
        ((24, 48, 24), 1, "LHW"),
        ((8, 24, 24), 1, "LHW"),  # eight square pictures: not 24 of 8 x 24
        ((12, 14, 28), 1, "LHW"),
        ((64, 30, 24), 1, "HWL"),  # neither shape fits; the frame count does
        ((64, 64, 1), 1, "HWL"),
        ((1, 64, 64), 1, "LHW"),
        ((64, 1, 64, 64), 1, "LCHW"),
        ((24, 1, 24, 24), 1, "LCHW"),
        ((8, 64, 64, 1), 1, "LHWC"),
        ((1, 64, 64, 1), 1, "LHWC"),
        ((1, 8, 30, 20), 1, "CLHW"),
        ((2, 2, 64, 64), 2, "CLHW"),
        ((64, 64, 2, 24), 2, "HWCL"),
    ],
)
def test_the_facts_that_decide_the_order(shape, channels, order):
    assert find_order(shape, channels=channels, frames=24, aspect=0.5) == order


@pytest.mark.parametrize("shape", [(64, 64, 25), (64, 64, 100), (32, 64, 23)])
def test_an_order_that_no_fact_decides_is_refused(record, tmp_path, shape):
    with pytest.raises(ValueError, match=r"rather \(height, width, frames\), but its video has 24 frames: save it as"):
        find_order(shape, channels=1, frames=24, aspect=0.5)
    np.save(tmp_path / "map.npy", np.ones(shape))
    with pytest.raises(DataError, match=r"map\.npy: expected a map of shape \(frames, height, width\), got") as error:
        read(record, tmp_path / "map.npy")
    assert "\n" not in str(error.value)


# masks of 0 and 1


def write_pictures(folder, frames_LHW: np.ndarray, suffix: str):
    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames_LHW):
        Image.fromarray(frame).save(folder / f"{number}{suffix}")
    return folder


def write_lossless(file, frames_LHW: np.ndarray):
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=FRAMES)
        stream.height, stream.width = frames_LHW.shape[1:]
        stream.pix_fmt = "gray"
        for frame in frames_LHW:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return file


def kinds(tmp_path, frames_LHW: np.ndarray, name: str) -> dict:
    """The same frames in files of every kind."""
    np.save(tmp_path / f"{name}.npy", frames_LHW)
    np.savez(tmp_path / f"{name}.npz", frames_LHW.astype(np.uint16))
    return {
        ".npy": tmp_path / f"{name}.npy",
        ".npz": tmp_path / f"{name}.npz",
        "png": write_pictures(tmp_path / f"{name} png", frames_LHW, ".png"),
        "bmp": write_pictures(tmp_path / f"{name} bmp", frames_LHW, ".bmp"),
        "video": write_lossless(tmp_path / f"{name}.mkv", frames_LHW),
    }


def test_a_mask_of_0_and_1_is_the_mask_of_0_and_255(record, walk, tmp_path):
    ones = (walk > 0).astype(np.uint8)
    np.save(tmp_path / "expected.npy", ones * 255)
    expected = read(record, tmp_path / "expected.npy")
    assert expected.max() == 255
    files = kinds(tmp_path, ones, "mäsk")
    files["16-bit png"] = write_pictures(tmp_path / "wide png", ones.astype(np.uint16), ".png")
    files["16-bit tif"] = write_pictures(tmp_path / "wide tif", ones.astype(np.uint16), ".tif")
    files["rgb png"] = write_pictures(tmp_path / "rgb", np.repeat(ones[..., None], 3, axis=-1), ".png")
    files["1-bit png"] = write_pictures(tmp_path / "bits", ones.astype(bool), ".png")
    for kind, file in files.items():
        assert torch.equal(read(record, file), expected), kind


def test_dark_frames_of_a_brighter_map_are_no_mask(record, walk, tmp_path):
    """Only the last frame, which no clip of five frames shows, is bright: 1 is then 1/255."""
    dark = (walk > 0).astype(np.uint8)
    dark[0] *= 200
    for kind, file in kinds(tmp_path, dark, "dark").items():
        if kind != ".npz":
            assert read(record, file).max() == 1, kind
    assert read(record, tmp_path / "dark.npz").max() == 0  # 1 of 65535
