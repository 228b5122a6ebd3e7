"""Read a clip and its map from their files, at the model's size.

C channels of a map, T frames, S = `side` pixels of height and width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from clip_common.errors import DataError
from clip_common.reporting import Progress
from videoclip.config import DataConfig
from videoclip.data.decoding import read_frames
from videoclip.data.maps import read_map
from videoclip.data.records import ClipRecord


@dataclass(frozen=True, slots=True)
class Pair:
    """Frames and map of a clip, both uint8, as the cache stores them.

    Attributes:
        frames_T3SS: RGB.
        map_CTSS: 255 is the most attention; zeros if the clip has no map.
    """

    frames_T3SS: Tensor
    map_CTSS: Tensor


def read_pair(record: ClipRecord, config: DataConfig, *, channels: int, side: int) -> Pair:
    """Decode a clip and its map, and resize both to S x S pixels without keeping the aspect.

    Args:
        record: The clip.
        config: `frames` and `maps`.
        channels: Channels of the map.
        side: S.

    Raises:
        DataError: One of the two cannot be read.
    """

    def resize(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels_3HW = torch.from_numpy(pixels_HW3).permute(2, 0, 1)
        return functional.resize(pixels_3HW, [side, side], antialias=True).numpy()

    frames_T3SS = read_frames(
        record.video, start_s=record.start_s, end_s=record.end_s, frames=config.frames, convert=resize
    )
    return Pair(
        frames_T3SS=torch.from_numpy(frames_T3SS),
        map_CTSS=read_map(record, config, channels=channels, side=side),
    )


def find_problems(
    records: Sequence[ClipRecord],
    config: DataConfig,
    *,
    channels: int,
    side: int,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Return clip_id → problem, for every clip that cannot be read; decodes in threads.

    Args:
        records: The clips.
        config, channels, side: As for `read_pair`.
        progress: Called as `progress(done, total)`, in clips.
    """
    problems: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda record: _problem(record, config, channels=channels, side=side), records)
        for done, (record, message) in enumerate(zip(records, results, strict=True), start=1):
            if message is not None:
                problems[record.clip_id] = message
            if progress is not None:
                progress(done, len(records))
    return problems


def _problem(record: ClipRecord, config: DataConfig, *, channels: int, side: int) -> str | None:
    try:
        read_pair(record, config, channels=channels, side=side)
    except DataError as error:
        return str(error)
    return None
