"""Frames of a clip, from a video file, an .npz of frames, or a folder of pictures.

F frames of the source, T frames asked for, H and W pixels. Seconds count from the first frame.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from clip_common.images import IMAGE_SUFFIXES, read_image, read_size
from videoclip.data import packets
from videoclip.data.numpy_files import NUMPY_ERRORS, open_numpy
from videoclip.data.planning import even_times, plan

ASSUMED_FPS = 25.0
"""Frames per second of a folder of pictures, and of an .npz without `fps`."""
SLACK_S = 0.1
"""How far a clip's `end_s` may exceed the length of its video: players round, and the sound may be longer."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Length, rate and size of a source of frames.

    Attributes:
        seconds: From the first frame to the end of the last one.
        frames: Number of frames.
        fps: Mean frames per second.
        height, width: Of the upright picture, in pixels.
    """

    seconds: float
    frames: int
    fps: float
    height: int
    width: int


def probe(path: Path) -> VideoInfo:
    """Return length, rate and size of a source of frames.

    Raises:
        DataError: The source does not exist or cannot be read.
    """
    times_F, seconds = _timeline(path)
    height, width = _size(path)
    return VideoInfo(seconds=seconds, frames=len(times_F), fps=len(times_F) / seconds, height=height, width=width)


def resolve_span(path: Path, *, start_s: float, end_s: float | None) -> tuple[float, float]:
    """Return a clip's start and end in its video, in seconds, after checking them against its length.

    Args:
        path: The source.
        start_s: Start.
        end_s: End; None is the end of the video, which it may exceed by `SLACK_S` or one frame.

    Raises:
        DataError: The clip is not within the video.
    """
    times_F, seconds = _timeline(path)
    if end_s is None:
        end_s = seconds
    # a clip that starts at the end of the video has no frame
    if not (0 <= start_s < min(end_s, seconds) and end_s <= seconds + max(SLACK_S, seconds / len(times_F))):
        raise DataError(
            f"{path}: a clip from {start_s:g} to {end_s:g} s is not within a video of {seconds:g} s: "
            "correct start_s and end_s, which are seconds from the first frame"
        )
    return start_s, end_s


def read_frames(
    path: Path, *, start_s: float, end_s: float | None, frames: int, convert: Callable[[Pixels], Pixels] = np.asarray
) -> Pixels:
    """Read T frames spread evenly over a clip (`planning.plan`), decoding only them and what they depend on.

    Args:
        path: A video file; an .npz with `frames` (F, H, W, 3) uint8 and optionally `fps`; or a folder of pictures, in
            the order of the numbers in their names. Without `fps`, the last two have `ASSUMED_FPS`; it matters only
            to a clip that is part of the source.
        start_s, end_s: As for `resolve_span`.
        frames: T.
        convert: Applied to each frame, (H, W, 3) RGB, upright, as soon as it is read, so that only one frame is in
            memory at its full size.

    Returns:
        (T, H, W, 3) RGB, upright, or the stack of the converted frames.

    Raises:
        DataError: The source cannot be read, or the clip is not within it.
    """
    start, end = resolve_span(path, start_s=start_s, end_s=end_s)
    rows_T = plan(_timeline(path)[0], start_s=start, end_s=end, frames=frames)
    return read_frames_at(path, rows_T, convert=convert)


def read_frames_at(
    path: Path, places_T: Sequence[int] | NDArray[np.int64], *, convert: Callable[[Pixels], Pixels] = np.asarray
) -> Pixels:
    """Read frames by their indices in the source, which may repeat: (T, H, W, 3) uint8 RGB, or converted frames.

    Raises:
        DataError: One of them cannot be read.
    """
    places, inverse_T = np.unique(places_T, return_inverse=True)
    if path.is_dir():
        pictures = list_frames(path)
        pixels = stack_frames([pictures[place] for place in places], read=_read_rgb, convert=convert)
    elif path.suffix == ".npz":
        frames_FHW3 = _load_npz(path)[0]
        pixels = np.stack([convert(frames_FHW3[place]) for place in places])
    else:
        pixels = np.stack(packets.decode_frames(path, places.tolist(), convert=convert))
    return pixels[inverse_T]


def read_times(path: Path) -> NDArray[np.float64]:
    """Return the time at which each frame of a source appears, (F,), in seconds.

    Raises:
        DataError: The source does not exist or cannot be read.
    """
    return _timeline(path)[0]


def read_seconds(path: Path) -> float:
    """Return the length of a source of frames in seconds; no frame is decoded.

    Raises:
        DataError: The source does not exist or cannot be read.
    """
    if path.suffix != ".npz" or not path.is_file():
        return _timeline(path)[1]
    try:
        with open_numpy(path) as arrays:
            with arrays.zip.open("frames.npy") as stream:
                if np.lib.format.read_magic(stream) != (1, 0):  # the only version that NumPy writes for plain arrays
                    return _timeline(path)[1]
                shape = np.lib.format.read_array_header_1_0(stream)[0]
            fps = float(arrays["fps"]) if "fps" in arrays else ASSUMED_FPS
    except NUMPY_ERRORS:
        return _timeline(path)[1]  # it says what is wrong with the file
    return shape[0] / fps if shape and shape[0] and 0 < fps < math.inf else _timeline(path)[1]


def list_frames(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of the numbers in their names: 2 before 10.

    Raises:
        DataError: The folder holds no pictures.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    if not files:
        raise DataError(
            f"{folder}: holds no pictures ({', '.join(IMAGE_SUFFIXES)}): a folder is read as one video, a picture per "
            "frame"
        )
    return sorted(files, key=lambda file: (_natural(file.name), file.name))


def stack_frames(
    files: Sequence[Path], *, read: Callable[[Path], Pixels], convert: Callable[[Pixels], Pixels] = np.asarray
) -> Pixels:
    """Read pictures of one size and stack them: (T, H, W, 3) or (T, H, W), as `read` and then `convert` give each.

    Raises:
        DataError: One cannot be read, or they differ in size.
    """
    pixels: list[Pixels] = []
    shapes: list[tuple[int, ...]] = []
    for file in files:
        picture = read(file)
        shapes.append(picture.shape)
        if shapes[-1] != shapes[0]:
            sizes = " and ".join(f"{width}x{height}" for height, width, *_ in (shapes[0], shapes[-1]))
            raise DataError(f"{file}: pictures of one clip differ in size ({sizes}): make them equal")
        pixels.append(convert(picture))
    return np.stack(pixels)


def _read_rgb(file: Path) -> NDArray[np.uint8]:
    return np.array(read_image(file))


def _natural(name: str) -> list[tuple[str, int, str]]:
    return [(text, len(number), number) for text, number in re.findall(r"(\D*)0*(\d*)", name)]


def _timeline(path: Path) -> tuple[NDArray[np.float64], float]:
    """Return the time at which each frame appears, and the end of the last one."""
    if not path.exists():
        raise DataError(f"{path}: no such video")
    if path.is_dir():
        count, fps = len(list_frames(path)), ASSUMED_FPS
    elif path.suffix == ".npz":
        frames_FHW3, fps = _load_npz(path)
        count = len(frames_FHW3)
    else:
        index = packets.read_index(path)
        return index.times_F, index.seconds
    return even_times(count, start_s=0, end_s=count / fps), count / fps


def _size(path: Path) -> tuple[int, int]:
    if path.is_dir():
        width, height = read_size(list_frames(path)[0])
        return height, width
    if path.suffix == ".npz":
        height, width = _load_npz(path)[0].shape[1:3]
        return height, width
    return packets.read_size(path)


def _load_npz(path: Path) -> tuple[NDArray[np.uint8], float]:
    status = path.stat()
    return _npz(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)  # a clip needs it several times, and clips of one video follow each other
def _npz(path: Path, size: int, modified: int) -> tuple[NDArray[np.uint8], float]:
    try:
        with open_numpy(path) as arrays:
            frames_FHW3 = arrays["frames"]
            fps = float(arrays["fps"]) if "fps" in arrays else ASSUMED_FPS
    except NUMPY_ERRORS as error:
        raise DataError(f"{path}: expected an .npz with an array `frames` and optionally `fps` ({error})") from error
    if frames_FHW3.ndim != 4 or frames_FHW3.shape[-1] != 3 or frames_FHW3.dtype != np.uint8 or not frames_FHW3.size:
        raise DataError(
            f"{path}: expected `frames` of shape (frames, height, width, 3) and type uint8, got "
            f"{frames_FHW3.shape} {frames_FHW3.dtype}"
        )
    if not (fps > 0 and np.isfinite(fps)):
        raise DataError(f"{path}: expected `fps` above 0, got {fps:g}")
    return frames_FHW3, fps
