"""The attention map of a clip: from a file, or drawn from joints and the regions that doctors named.

C channels, L frames of a source, F frames of the video, T frames of a clip, H and W pixels, S = `side` pixels of height
and width.
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from clip_common.errors import DataError
from clip_common.regions import attention_maps
from videoclip.config import DataConfig
from videoclip.data.decoding import probe, read_times, resolve_span
from videoclip.data.joints import Joints, load_joints
from videoclip.data.map_files import arrange, count_pictures, find_order, frames_are_last, read_array, read_pictures
from videoclip.data.planning import even_times, plan
from videoclip.data.records import ClipRecord

FRAMES_LAST = "maps of shape (height, width, frames) are read so, because they have as many frames as their videos"
"""What `frames_are_last` means."""
NAMED_BY_CHECK = "`videoclip data check` names the clips"
"""End of the warnings that maps were mended; they name no clip, so that each is shown once."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MapSource:
    """Source of a clip's map.

    Attributes:
        file: The map, or the joints that it is drawn from.
        regions: Regions drawn in each channel; empty for a map file.
        combine: How the joints of a channel are combined; None for a map file.
    """

    file: Path
    regions: tuple[tuple[str, ...], ...] = ()
    combine: Literal["maximum", "mean"] | None = None


def find_map_source(record: ClipRecord, config: DataConfig, *, channels: int) -> MapSource | None:
    """Return the source that `data.maps` selects for a clip; None if the clip has none.

    Args:
        record: The clip.
        config: Its `maps` decides; of a drawn map, `region_joints` is part of the source.
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
    return MapSource(record.keypoints, doctors, config.region_joints)


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

    Files: .npy or .npz of (L, H, W), (C, L, H, W) or a single (H, W); a video; a folder of pictures. Other orders of
    the axes, such as (L, 1, H, W), are recognised (`map_files.find_order`). Floats and signed integers are used
    unchanged, or divided by the file's maximum if that exceeds 1. Unsigned integers of 8 and 16 bits, videos and
    pictures are divided by the maximum of their type, unless no value of the file, or folder, exceeds 1: then they are
    a mask. Pictures of more bits or of floats are scaled to 8-bit grey levels, not clipped.

    Args:
        record: The clip.
        config: `maps`, `region_joints` and `frames`.
        channels: C.
        side: S.

    Raises:
        DataError: A file that cannot be read, that holds no map of C channels, whose axes are uncertain, or whose
            values are negative or not finite.
    """
    source = find_map_source(record, config, channels=channels)
    if source is None:
        return torch.zeros(channels, config.frames, side, side, dtype=torch.uint8)
    if source.regions:
        map_CTHW = torch.from_numpy(_draw_maps(source, record, config, side=side))
    else:
        map_CTHW = torch.from_numpy(_load_maps(source.file, record, config, channels=channels))
        map_CTHW = functional.resize(map_CTHW, [side, side], antialias=True)
    return (map_CTHW * 255).round().clamp(0, 255).to(torch.uint8)


def read_joints(file: Path, record: ClipRecord, config: DataConfig) -> Joints:
    """Return the joints of a clip at the times of its frames, in pixels of its video.

    Raises:
        DataError: As `joints.load_joints`.
    """
    video = probe(record.video)
    found = load_joints(file, width=video.width, height=video.height)
    rows_T = _select_rows(len(found.joints_L173), record, config)
    return Joints(found.joints_L173[rows_T], found.mended)


def find_map_order(file: Path, record: ClipRecord, *, channels: int) -> str:
    """Return the order of the axes of a map's array, such as "CLHW".

    Raises:
        DataError: As `read_map`.
    """
    array, _ = read_array(file)
    video = probe(record.video)
    frames = len(_frames_of_span(record)[-1])
    try:
        return find_order(array.shape, channels=channels, frames=frames, aspect=video.height / video.width)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def _draw_maps(source: MapSource, record: ClipRecord, config: DataConfig, *, side: int) -> Floats:
    assert source.combine is not None
    found = read_joints(source.file, record, config)
    for mended in found.mended:
        warnings.warn(f"{mended}: {NAMED_BY_CHECK}", stacklevel=2)
    video = probe(record.video)
    joints_T173 = found.joints_L173 * np.array([side / video.width, side / video.height, 1], dtype=np.float32)
    return np.stack(
        [
            attention_maps(joints_T173, regions, height=side, width=side, combine=source.combine)
            for regions in source.regions
        ]
    )


def _load_maps(file: Path, record: ClipRecord, config: DataConfig, *, channels: int) -> Floats:
    """Return a map file at the times of the clip's frames: (C, T, H, W), 0 to 1."""
    if not file.exists():
        raise DataError(f"{file}: no such map (clip {record.clip_id})")
    if file.suffix in (".npy", ".npz"):
        order = find_map_order(file, record, channels=channels)
        array, most = read_array(file)
        if frames_are_last(array.shape, order):
            warnings.warn(f"{FRAMES_LAST}: {NAMED_BY_CHECK}", stacklevel=2)
        array_CLHW = arrange(array, order)
        rows_T = _select_rows(array_CLHW.shape[1], record, config)
        return np.asarray(array_CLHW[:, rows_T], dtype=np.float32) / np.float32(most)
    if channels != 1:
        raise DataError(
            f"{file}: the map has 1 channel(s), model.attn_in_channels={channels}: set model.attn_in_channels=1, or "
            f"give every clip a map of {channels}"
        )
    return read_pictures(file, _select_rows(count_pictures(file), record, config))[None]


def _frames_of_span(record: ClipRecord) -> tuple[float, float, NDArray[np.float64]]:
    """Return start and end of what the map or the joints of a clip cover, and the times of the video's frames in it."""
    start, end = (record.start_s, record.end_s) if record.spans == "clip" else (0.0, None)
    first, last = resolve_span(record.video, start_s=start, end_s=end)
    times_F = read_times(record.video)
    return first, last, times_F[(times_F >= first - 1e-6) & (times_F < last - 1e-6)]


def _select_rows(count: int, record: ClipRecord, config: DataConfig) -> Sequence[int]:
    """Return the indices of the map frames, out of `count`, that belong to the clip's frames."""
    start, end = resolve_span(record.video, start_s=record.start_s, end_s=record.end_s)
    first, last, times_F = _frames_of_span(record)
    # one map frame per video frame belongs to that frame even if the rate varies
    times_L = times_F if len(times_F) == count else even_times(count, start_s=first, end_s=last)
    return [int(row) for row in plan(times_L, start_s=start, end_s=end, frames=config.frames)]
