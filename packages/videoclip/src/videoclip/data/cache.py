"""A cache of decoded clips: one file of uint8 pixels for the frames of each clip, and one for its map.

C channels of a map, T frames, S = `size` pixels of height and width.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_common.errors import DataError
from clip_common.pixels import check_space, key_of, state_of
from clip_common.reporting import Progress
from clip_common.runs import write_atomically
from videoclip.config import DataConfig
from videoclip.data.maps import find_map_source, read_map
from videoclip.data.pairs import Pair, read_pair
from videoclip.data.records import ClipRecord

_VERSION = 4  # raise it when the same files would be decoded into other pixels
_DAY_S = 24 * 3600
UNUSED_DAYS = 30
"""A cached file that no run has opened for so many days is deleted when a cache is opened."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Files of one clip: its frames, its map (None: the clip has none), and the problem if it could not be read."""

    frames: Path
    map: Path | None
    problem: Path


class ClipCache:
    """Frames and maps of a set of clips, as `read_pair` returns them.

    Clips that are not in the cache are decoded when it is opened, each into files of its own: one more clip adds one
    clip, and a killed run continues where it was. The name of a file is a key of the source's name, size and time and
    of all settings that change these pixels, so a changed file is decoded anew, and other maps (`data.maps`) leave the
    frames as they are. Later changes of maps (noise, scale, controls) are not cached. Files that no run has opened for
    `UNUSED_DAYS` days are deleted, so a copy of the source or of the settings that is not used any more leaves in time.

    Args:
        folder: Folder of all caches.
        records: The clips; those of all splits, so that all datasets share one cache.
        config: `frames`, `size`, `maps` and `region_joints` decide the pixels; `on_error` decides whether an unreadable
            clip is skipped.
        channels: Channels of a map.
        progress: Called as `progress(done, total)` while clips are decoded, in threads.

    Attributes:
        records: The clips in the cache.
        problems: clip_id → problem, for the clips that could not be read.
        added: Number of clips that were decoded.
        removed: Number of unused files that were deleted.

    Raises:
        DataError: A clip cannot be read and on_error=raise, or no clip can be read; too little space on the disk. What
            was decoded before stays.
        OSError: The disk filled up meanwhile; what this call had written is removed.
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
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.frames_shape, self.map_shape = (frames, 3, side, side), (channels, frames, side, side)
        entries = [_make_entry(folder, record, config, channels=channels) for record in records]
        self.added = self._decode_missing(records, entries, config, channels=channels, progress=progress)
        self.problems = {
            record.clip_id: entry.problem.read_text(encoding="utf-8")
            for record, entry in zip(records, entries, strict=True)
            if not self._holds(entry)
        }
        if self.problems and (config.on_error == "raise" or len(self.problems) == len(records)):
            first = next(iter(self.problems.values()))
            if len(self.problems) == len(records):
                raise DataError(f"none of {len(records)} clips can be read, the first: {first}")
            raise DataError(
                f"{len(self.problems)} clip(s) cannot be read, the first: {first}: restore them, or set "
                "data.on_error=skip"
            )
        self.records = tuple(record for record in records if record.clip_id not in self.problems)
        self.entries = {record.clip_id: entry for record, entry in zip(records, entries, strict=True)}
        _mark_used(entries)
        self.removed = remove_unused(folder)

    def __getitem__(self, record: ClipRecord) -> Pair:
        """Return frames and map of a clip in `records`."""
        entry = self.entries[record.clip_id]
        map_CTSS = torch.zeros(self.map_shape, dtype=torch.uint8)
        if entry.map is not None:
            map_CTSS = _read_pixels(entry.map).view(self.map_shape)
        return Pair(frames_T3SS=_read_pixels(entry.frames).view(self.frames_shape), map_CTSS=map_CTSS)

    def describe(self) -> str:
        """Return one line: the size of the folder, what was added to it and what was removed from it."""
        size = sum(status.st_size for _, status in _walk_files(self.folder)) / 2**20
        removed = f"; {self.removed} file(s) unused for {UNUSED_DAYS} days removed" if self.removed else ""
        return f"decoded clips: {size:,.1f} MiB in {self.folder}, {self.added} of {len(self.entries)} added{removed}"

    def _decode_missing(
        self,
        records: Sequence[ClipRecord],
        entries: Sequence[_Entry],
        config: DataConfig,
        *,
        channels: int,
        progress: Progress | None,
    ) -> int:
        """Decode the clips that are not in the cache, and return their number."""
        missing = [
            (record, entry)
            for record, entry in zip(records, entries, strict=True)
            if not (self._holds(entry) or entry.problem.exists())
        ]
        if not missing:
            return 0
        sizes = [0 if self._has_frames(entry) else int(np.prod(self.frames_shape)) for _, entry in missing] + [
            int(np.prod(self.map_shape)) for _, entry in missing if entry.map is not None
        ]
        check_space(self.folder, needed=sum(sizes), what="the clip cache")
        written: list[Path] = []

        def decode(record: ClipRecord, entry: _Entry) -> DataError | None:
            try:
                if self._has_frames(entry):
                    pixels = {entry.map: read_map(record, config, channels=channels, side=config.size)}
                else:
                    pair = read_pair(record, config, channels=channels, side=config.size)
                    pixels = {entry.frames: pair.frames_T3SS, entry.map: pair.map_CTSS}
            except DataError as error:
                return error
            for path, tensor in pixels.items():
                if path is not None:
                    write_file(path, tensor.contiguous().numpy().tobytes())
                    written.append(path)
            return None

        with ThreadPoolExecutor() as pool:
            try:
                for done, ((_, entry), error) in enumerate(
                    zip(missing, pool.map(decode, *zip(*missing, strict=True)), strict=True)
                ):
                    if error is not None and config.on_error == "raise":
                        raise error
                    if error is not None:
                        write_file(entry.problem, str(error).encode())
                    if progress is not None:
                        progress(done + 1, len(missing))
            except BaseException as error:
                pool.shutdown(cancel_futures=True)
                if isinstance(error, OSError):  # a full disk: leave it as it was
                    for path in written:
                        path.unlink(missing_ok=True)
                raise
        return len(missing)

    def _has_frames(self, entry: _Entry) -> bool:
        return _is_whole(entry.frames, self.frames_shape)

    def _holds(self, entry: _Entry) -> bool:
        return self._has_frames(entry) and (entry.map is None or _is_whole(entry.map, self.map_shape))


def remove_unused(folder: Path, *, days: float = UNUSED_DAYS) -> int:
    """Delete the files in a cache's folder that were not used for some days, and return their number.

    A use is an opening of the cache by a run; files left by killed writers count from their last change.
    """
    oldest = time.time() - days * _DAY_S
    removed = [path for path, status in _walk_files(folder) if status.st_mtime < oldest]
    for path in removed:
        path.unlink(missing_ok=True)  # another process may be at it
    for inner in {path.parent for path in removed}:
        with suppress(OSError):  # it holds other files
            inner.rmdir()
    return len(removed)


def _make_entry(folder: Path, record: ClipRecord, config: DataConfig, *, channels: int) -> _Entry:
    """Return the files of a clip, named by keys of all that decides their pixels."""
    video = [_VERSION, config.frames, config.size, _state(record.video), record.start_s, record.end_s]
    source = find_map_source(record, config, channels=channels)
    frames = _place(folder, key_of(["frames", *video]), ".frames")
    if source is None:
        return _Entry(frames, None, frames.with_suffix(".problem"))
    map_ = _place(
        folder,
        key_of(["map", *video, channels, record.spans, _state(source.file), source.regions, source.combine]),
        ".map",
    )
    return _Entry(frames, map_, map_.with_suffix(".problem"))


def _place(folder: Path, key: str, suffix: str) -> Path:
    return folder / key[:2] / f"{key}{suffix}"


def _state(file: Path) -> str:
    return state_of(file) if file.exists() else f"{file} is absent"


def _is_whole(path: Path, shape: Sequence[int]) -> bool:
    """Return whether a file holds as many pixels as it should: a power failure may leave an empty one."""
    try:
        return path.stat().st_size == int(np.prod(shape))
    except FileNotFoundError:
        return False


def _read_pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of two writers the last one wins, with the same pixels."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _mark_used(entries: Sequence[_Entry]) -> None:
    """Set the times of files to now, once a day."""
    now = time.time()
    for entry in entries:
        for path in (entry.frames, entry.map, entry.problem):
            with suppress(FileNotFoundError):  # a clip has pixels or a problem
                if path is not None and path.stat().st_mtime < now - _DAY_S:
                    os.utime(path)


def _walk_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of a cache and their states; folders of an older form hold a file of all clips."""
    for inner in sorted(folder.iterdir()):
        for path in inner.iterdir() if inner.is_dir() else ():
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue
