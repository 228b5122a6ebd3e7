"""The attention map of a clip: from a file, or drawn from joints and the regions that doctors named.

C channels, L frames of a source, T frames of a clip, H and W pixels, S = `side` pixels of height and width.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from clip_common.errors import DataError
from clip_common.images import read_grey
from clip_common.regions import attention_maps
from videoclip.config import DataConfig
from videoclip.data.decoding import (
    NUMPY_ERRORS,
    list_frames,
    probe,
    read_frames_at,
    read_times,
    resolve_span,
    stack_frames,
)
from videoclip.data.planning import even_times, plan
from videoclip.data.records import ClipRecord

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MapSource:
    """Source of a clip's map.

    Attributes:
        file: The map, or the joints that it is drawn from.
        regions: Regions drawn in each channel; empty for a map file.
    """

    file: Path
    regions: tuple[tuple[str, ...], ...] = ()


def find_map_source(record: ClipRecord, config: DataConfig, *, channels: int) -> MapSource | None:
    """Return the source that `data.maps` selects for a clip; None if the clip has none.

    Args:
        record: The clip.
        config: Its `maps` decides.
        channels: Channels of a map. In drawn maps of both doctors, 2 channels are one each, and 1 is their maximum.

    Raises:
        DataError: Maps cannot be drawn with that many channels.
    """
    if config.maps == "file" or (config.maps == "auto" and record.map is not None):
        return None if record.map is None else MapSource(record.map)
    doctors = {"doctor1": (record.regions_doctor1,), "doctor2": (record.regions_doctor2,)}.get(
        config.maps, (record.regions_doctor1, record.regions_doctor2)
    )
    if record.keypoints is None or not any(doctors):
        return None
    if channels == 1:
        doctors = (tuple(dict.fromkeys(region for regions in doctors for region in regions)),)
    if channels != len(doctors):
        raise DataError(
            f"{record.clip_id}: data.maps={config.maps} draws {len(doctors)} channel(s) at most, not {channels}: "
            f"set model.attn_in_channels={len(doctors)}"
        )
    return MapSource(record.keypoints, doctors)


def identify_map(record: ClipRecord, config: DataConfig, *, channels: int) -> Hashable | None:
    """Return a key that is equal for clips whose maps have one origin: the same file, or the same regions and joints.

    A file that spans a whole video is one map, whichever part of it a clip uses.
    """
    source = find_map_source(record, config, channels=channels)
    if source is None or not source.regions:
        return source
    window = (record.start_s, record.end_s) if record.spans == "video" else None
    return source, window


def read_map(record: ClipRecord, config: DataConfig, *, channels: int, side: int) -> Tensor:
    """Read or draw the map of a clip at the times of its frames, (C, T, S, S) uint8; 255 is the most attention.

    The frames of a map are spread evenly over the clip or the video (`record.spans`), unless there is one per frame of
    it. A clip without a map gets zeros.

    Files: .npy or .npz of (L, H, W), (C, L, H, W) or a single (H, W); a video; a folder of pictures. Floats and signed
    integers are used unchanged, or divided by the file's maximum if that exceeds 1. Unsigned integers of 8 and 16 bits
    are divided by the maximum of their type, unless no value exceeds 1: then they are a mask. Videos and pictures are
    reduced to 8-bit grey levels; pictures of more bits or of floats are scaled to them, not clipped.

    Args:
        record: The clip.
        config: `maps` and `frames`.
        channels: C.
        side: S.

    Raises:
        DataError: A file that cannot be read, that holds no map of C channels, or whose values are negative or not
            finite.
    """
    source = find_map_source(record, config, channels=channels)
    if source is None:
        return torch.zeros(channels, config.frames, side, side, dtype=torch.uint8)
    if source.regions:
        map_CTHW = torch.from_numpy(_draw_maps(source, record, config, side=side))
    else:
        map_CTHW = torch.from_numpy(_load_maps(source.file, record, config))
        if len(map_CTHW) != channels:
            raise DataError(
                f"{source.file}: the map has {len(map_CTHW)} channel(s), model.attn_in_channels={channels}: "
                f"set model.attn_in_channels={len(map_CTHW)}, or give every clip a map of {channels}"
            )
        map_CTHW = functional.resize(map_CTHW, [side, side], antialias=True)
    return (map_CTHW * 255).round().clamp(0, 255).to(torch.uint8)


def _draw_maps(source: MapSource, record: ClipRecord, config: DataConfig, *, side: int) -> Floats:
    joints_L173 = _load_joints(source.file)
    joints_T173 = joints_L173[_select_rows(len(joints_L173), record, config)].copy()
    video = probe(record.video)
    joints_T173[..., :2] *= np.array([side / video.width, side / video.height], dtype=np.float32)
    return np.stack([attention_maps(joints_T173, regions, height=side, width=side) for regions in source.regions])


def _load_joints(file: Path) -> Floats:
    try:
        joints_L173 = np.load(file, allow_pickle=False)
        joints_L173 = np.asarray(joints_L173, dtype=np.float32)
    except NUMPY_ERRORS as error:
        raise DataError(f"{file}: expected an .npy of keypoints ({error})") from error
    if joints_L173.ndim != 3 or joints_L173.shape[1:] != (17, 3) or not len(joints_L173):
        raise DataError(f"{file}: expected keypoints of shape (frames, 17, 3), got {joints_L173.shape}")
    # a joint that was not found has no position: pose estimators write NaN or arbitrary values
    joints_L173 = np.where(joints_L173[..., 2:] == 0, np.float32(0), joints_L173)
    confidence_L17 = joints_L173[..., 2]
    if not np.isfinite(joints_L173).all() or (confidence_L17 < 0).any() or (confidence_L17 > 1).any():
        raise DataError(
            f"{file}: expected finite keypoints with confidences from 0 to 1: "
            "give joints that were not found confidence 0"
        )
    return joints_L173


def _load_maps(file: Path, record: ClipRecord, config: DataConfig) -> Floats:
    """Return a map file at the times of the clip's frames: (C, T, H, W), 0 to 1."""
    if not file.exists():
        raise DataError(f"{file}: no such map (clip {record.clip_id})")
    if file.suffix in (".npy", ".npz"):
        status = file.stat()
        array_CLHW, most = _load_array(file, status.st_size, status.st_mtime_ns)
        rows_T = _select_rows(array_CLHW.shape[1], record, config)
        return np.asarray(array_CLHW[:, rows_T], dtype=np.float32) / np.float32(most)
    if file.is_dir():
        pictures = list_frames(file)
        rows_T = _select_rows(len(pictures), record, config)
        grey_THW = stack_frames([pictures[row] for row in rows_T], read=read_grey).astype(np.float32)
    else:
        rows_T = _select_rows(len(read_times(file)), record, config)
        grey_THW = read_frames_at(file, rows_T) @ _LUMA
    return np.minimum(grey_THW / 255, 1)[None]


def _select_rows(count: int, record: ClipRecord, config: DataConfig) -> Sequence[int]:
    """Return the indices of the map frames, out of `count`, that belong to the clip's frames."""
    start, end = resolve_span(record.video, start_s=record.start_s, end_s=record.end_s)
    first, last = (start, end) if record.spans == "clip" else resolve_span(record.video, start_s=0, end_s=None)
    frames_F = read_times(record.video)
    frames_F = frames_F[(frames_F >= first - 1e-6) & (frames_F < last - 1e-6)]
    # one map frame per video frame belongs to that frame even if the rate varies
    times_L = frames_F if len(frames_F) == count else even_times(count, start_s=first, end_s=last)
    return [int(row) for row in plan(times_L, start_s=start, end_s=end, frames=config.frames)]


@lru_cache(maxsize=1)  # clips of one video follow each other, and one map may span them
def _load_array(file: Path, size: int, modified: int) -> tuple[NDArray[np.generic], float]:
    """Return a map array (C, L, H, W) of its own type, and the value that means 1."""
    try:
        array = np.load(file, allow_pickle=False, mmap_mode="r" if file.suffix == ".npy" else None)
        if file.suffix == ".npz":
            with array as arrays:
                names = arrays.files
                array = arrays["map" if "map" in names or len(names) != 1 else names[0]]
    except NUMPY_ERRORS as error:
        raise DataError(f"{file}: expected a map as .npy, or as .npz with an array `map` ({error})") from error
    if array.ndim not in (2, 3, 4) or not array.size or array.dtype.kind not in "buif":
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
    return array.reshape((1,) * (4 - array.ndim) + array.shape), max(most, 1.0)
