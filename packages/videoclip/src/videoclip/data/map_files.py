"""Files of attention maps: arrays in any order of their axes, folders of pictures, videos.

C channels, L frames of the file, T frames asked for, H and W pixels.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from clip_common.images import read_binary, read_grey
from clip_common.pixels import state_of
from videoclip.data.decoding import list_frames, read_frames_at, read_times, stack_frames
from videoclip.data.numpy_files import NUMPY_ERRORS, open_numpy

_ORDERS = {2: ("HW",), 3: ("LHW", "HWL"), 4: ("CLHW", "LCHW", "LHWC", "HWCL", "HWLC")}
"""Orders of the axes that are read, by their number; the first is the one that the documentation asks for."""
_NAMES = {"C": "channels", "L": "frames", "H": "height", "W": "width"}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_CHUNK = 32  # frames of a video that are searched at a time

Floats = NDArray[np.float32]


def describe_order(order: str) -> str:
    """Return an order of axes in words: "HWL" is (height, width, frames)."""
    return f"({', '.join(_NAMES[axis] for axis in order)})"


def find_order(shape: Sequence[int], *, channels: int, frames: int, aspect: float) -> str:
    """Return the order of an array's axes, such as "LHW", from what is known of the clip.

    An order needs the right number of channels, and pictures of more than one pixel each way. Frames come first unless
    the array has a frame for each of the video's (or one in all) at its end, and its pictures fit better then: they are
    square, or of the video's shape.

    Args:
        shape: Of the array, with 2 to 4 axes.
        channels: C.
        frames: Number of frames of the clip or video that the map spans.
        aspect: Height divided by width of the video.

    Raises:
        ValueError: No order has so many channels, or the order is uncertain.
    """
    orders = _ORDERS[len(shape)]

    def size(order: str, axis: str) -> int:
        return shape[order.index(axis)] if axis in order else 1

    def is_whole(order: str) -> bool:
        return size(order, "L") == frames

    able = [order for order in orders if size(order, "C") == channels]
    if not able:
        held = min((size(order, "C") for order in orders if is_whole(order)), default=size(orders[0], "C"))
        raise ValueError(
            f"the map has {held} channel(s), model.attn_in_channels={channels}: set model.attn_in_channels={held}, or "
            f"give every clip a map of {channels}"
        )
    pictured = [order for order in able if min(size(order, "H"), size(order, "W")) > 1]
    if not pictured:
        return able[0]

    def fit(order: str) -> int:
        height, width = size(order, "H"), size(order, "W")
        shaped = any(abs(math.log(height / width / wanted)) < 0.1 for wanted in (1, aspect))
        return 2 * shaped + is_whole(order)

    usual = [order for order in pictured if order[0] != "H" or order == "HW"]
    for order in usual:
        if is_whole(order):
            return order
    likely = max(pictured, key=lambda order: (fit(order), order in usual))
    if likely not in usual and not is_whole(likely) and size(likely, "L") > 1:
        wanted = usual[0] if usual else "LHW"
        raise ValueError(
            f"expected a map of shape {describe_order(wanted)}, got {tuple(shape)}, which is rather "
            f"{describe_order(likely)}, but its video has {frames} frames: save it as {describe_order('CLHW')}"
        )
    return likely


def frames_are_last(shape: Sequence[int], order: str) -> bool:
    """Return whether an array keeps its frames, more than one, behind the pixels."""
    return order[0] == "H" and "L" in order and shape[order.index("L")] > 1


def read_array(file: Path) -> tuple[NDArray[np.generic], float]:
    """Return the array of an .npy or .npz, of its own type and 2 to 4 axes, and the value that means 1.

    Raises:
        DataError: A file that cannot be read; values that are negative or not finite.
    """
    status = file.stat()
    return _read_array(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)  # clips of one video follow each other, and one map may span them
def _read_array(file: Path, size: int, modified: int) -> tuple[NDArray[np.generic], float]:
    try:
        with open_numpy(file, mmap_mode="r" if file.suffix == ".npy" else None) as array:
            if file.suffix == ".npz":
                names = array.files
                array = array["map" if "map" in names or len(names) != 1 else names[0]]
    except NUMPY_ERRORS as error:
        raise DataError(f"{file}: expected a map as .npy, or as .npz with an array `map` ({error})") from error
    if array.ndim not in _ORDERS or not array.size or array.dtype.kind not in "buif":
        raise DataError(
            f"{file}: expected numbers of shape (frames, height, width), (channels, frames, height, width) or "
            f"(height, width), got {array.shape} {array.dtype}"
        )
    least, most = float(array.min()), float(array.max())
    if not (least >= 0 and np.isfinite(most)):
        raise DataError(
            f"{file}: expected a map of finite numbers from 0 up, got {least:g} to {most:g}: correct the file"
        )
    if array.dtype in (np.uint8, np.uint16) and most > 1:
        most = float(np.iinfo(array.dtype).max)
    return array, max(most, 1.0)


def arrange(array: NDArray[np.generic], order: str) -> NDArray[np.generic]:
    """Return an array of any order as a view of (C, L, H, W)."""
    missing = [axis for axis in "CL" if axis not in order]
    axes = "".join(missing) + order
    return array.reshape((1,) * len(missing) + array.shape).transpose([axes.index(axis) for axis in "CLHW"])


def count_pictures(path: Path) -> int:
    """Return L of a folder of pictures, or of a video."""
    return len(list_frames(path)) if path.is_dir() else len(read_times(path))


def read_pictures(path: Path, rows_T: Sequence[int]) -> Floats:
    """Read some pictures of a folder, or frames of a video, as attention: (T, H, W), 0 to 1.

    They are grey levels, of which white is 1. A folder or video whose values are all 0 or 1 is a mask: its ones are 1,
    as in an array of bytes.
    """
    if path.is_dir():
        files = list_frames(path)
        grey_THW = stack_frames([files[row] for row in rows_T], read=read_grey)
        if grey_THW.max() <= 1 and _folder_is_binary(path, state_of(path)):
            return stack_frames([files[row] for row in rows_T], read=_read_ones).astype(np.float32)
        return np.asarray(grey_THW / 255, dtype=np.float32)
    pixels_THW3 = read_frames_at(path, rows_T)
    if pixels_THW3.max() <= 1 and _video_is_binary(path, state_of(path)):
        return pixels_THW3.max(axis=-1).astype(np.float32)
    return np.asarray((pixels_THW3 @ _LUMA / 255).clip(0, 1), dtype=np.float32)


def _read_ones(file: Path) -> NDArray[np.uint8]:
    mask_HW = read_binary(file)
    assert mask_HW is not None  # of a binary folder
    return mask_HW.astype(np.uint8)


@lru_cache(maxsize=256)  # asked again for each clip of a video
def _folder_is_binary(folder: Path, state: str) -> bool:
    return all(read_binary(file) is not None for file in list_frames(folder))


@lru_cache(maxsize=256)
def _video_is_binary(video: Path, state: str) -> bool:
    count = len(read_times(video))
    chunks = (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))
    return all(read_frames_at(video, chunk).max() <= 1 for chunk in chunks)
