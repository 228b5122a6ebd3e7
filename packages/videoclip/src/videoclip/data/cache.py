"""A cache of decoded clips: frames and maps as uint8 in one memory-mapped file, written atomically."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch

from clip_common.errors import DataError
from clip_common.pixels import MappedPixels, cache_folder, key_of, state_of
from clip_common.reporting import Progress
from clip_common.runs.files import read_json, write_json
from videoclip.config import DataConfig
from videoclip.data.maps import find_map_source
from videoclip.data.pairs import Pair, read_pair
from videoclip.data.records import ClipRecord

_VERSION = 2  # raise it when the same files would be decoded into other pixels
_IN_MEMORY = 32  # clips decoded before they are written


class ClipCache:
    """Frames and maps of a set of clips, as `read_pair` returns them.

    The cache is written at the first use of a set and read afterwards. Pass the clips of all splits, so that the
    datasets of the splits share one cache. Its key covers the names, sizes and times of the files and all settings
    that change these pixels: a changed file makes another cache. Later changes of maps (noise, scale, controls) are
    not cached.

    Args:
        folder: Folder of all caches.
        records: The clips.
        config: `frames`, `size` and `maps` decide the pixels; `on_error` decides whether an unreadable clip is skipped.
        channels: Channels of a map.
        progress: Called as `progress(done, total)` while clips are decoded, in threads.

    Attributes:
        records: The clips in the cache.
        problems: clip_id → problem, for the clips that could not be read.

    Raises:
        DataError: A clip cannot be read and on_error=raise, or no clip can be read; too little space on the disk.
            Nothing is left behind.
        OSError: The disk filled up meanwhile; nothing is left behind.
    """

    def __init__(
        self,
        folder: Path,
        records: Sequence[ClipRecord],
        config: DataConfig,
        *,
        channels: int,
        progress: Progress | None = None,
    ) -> None:
        frames, side = config.frames, config.size
        self.shapes = ((frames, 3, side, side), (channels, frames, side, side))
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.folder = folder / _key(records, config, channels=channels)
        if not self.folder.exists():
            self._write(records, config, channels=channels, progress=progress)
        self.problems: dict[str, str] = read_json(self.folder / "problems.json")
        if self.problems and config.on_error == "raise":
            raise DataError(
                f"{len(self.problems)} clip(s) cannot be read, the first: {next(iter(self.problems.values()))}: "
                "restore them, or set data.on_error=skip"
            )
        self.records = tuple(record for record in records if record.clip_id not in self.problems)
        self.rows = {record.clip_id: row for row, record in enumerate(self.records)}
        self.pixels = MappedPixels(self.folder / "pixels.bin")

    def __getitem__(self, record: ClipRecord) -> Pair:
        """Return frames and map of a clip in `records`."""
        start = self.rows[record.clip_id] * sum(self.sizes)
        row = torch.from_numpy(self.pixels[start : start + sum(self.sizes)])
        frames, map_ = (part.view(shape) for part, shape in zip(row.split(self.sizes), self.shapes, strict=True))
        return Pair(frames_T3SS=frames, map_CTSS=map_)

    def _write(
        self, records: Sequence[ClipRecord], config: DataConfig, *, channels: int, progress: Progress | None
    ) -> None:
        def attempt(record: ClipRecord) -> Pair | DataError:
            try:
                return read_pair(record, config, channels=channels, side=config.size)
            except DataError as error:
                return error

        needed = len(records) * sum(self.sizes)
        problems: dict[str, str] = {}
        with (
            cache_folder(self.folder, needed=needed, what="the clip cache") as draft,
            (draft / "pixels.bin").open("wb") as stream,
            ThreadPoolExecutor() as pool,
        ):
            for start in range(0, len(records), _IN_MEMORY):
                some = records[start : start + _IN_MEMORY]
                for done, (record, result) in enumerate(zip(some, pool.map(attempt, some), strict=True), start + 1):
                    if isinstance(result, Pair):
                        _append(stream, result)
                    elif config.on_error == "raise":
                        raise result
                    else:
                        problems[record.clip_id] = str(result)
                    if progress is not None:
                        progress(done, len(records))
            if len(problems) == len(records):
                first = next(iter(problems.values()), "the set is empty")
                raise DataError(f"none of {len(records)} clips can be read, the first: {first}")
            write_json(draft / "problems.json", problems)


def _append(stream: BinaryIO, pair: Pair) -> None:
    for pixels in (pair.frames_T3SS, pair.map_CTSS):
        stream.write(pixels.contiguous().numpy().tobytes())


def _key(records: Sequence[ClipRecord], config: DataConfig, *, channels: int) -> str:
    parts: list[object] = [_VERSION, config.frames, channels, config.size]
    for record in records:
        source = find_map_source(record, config, channels=channels)
        files = [record.video] if source is None else [record.video, source.file]
        states = [state_of(file) if file.exists() else f"{file} is absent" for file in files]
        parts.append((record.clip_id, record.start_s, record.end_s, record.spans, states, source and source.regions))
    return key_of(parts)
