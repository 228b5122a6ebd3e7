"""Decode files that cannot be entered in the middle: from the start, once for all clips that are read in order."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from av.video import VideoFrame
from numpy.typing import NDArray

from videoclip.data.containers import decode_in_order, open_video

_END = sys.maxsize  # row of a pass that has no more frames


class DecodingPass:
    """One pass over a file, which stays open between clips: the next clip continues where the last one ended.

    Threads take turns, the one that wants the earliest frame first. Earlier frames than the last one start a new pass.
    Only the last frame is kept in memory.

    Args:
        path: The file.
        packet_F: Packet of each frame, in order of presentation.
    """

    def __init__(self, path: Path, packet_F: NDArray[np.int64]) -> None:
        self.path = path
        self.row_of = {int(place): row for row, place in enumerate(packet_F)}
        self._frames: Iterator[tuple[int, VideoFrame | None]] = iter(())
        self._row = _END
        self._frame: VideoFrame | None = None
        self._turn = threading.Condition()
        self._waiting: list[int] = []
        self._busy = False

    def read(
        self, rows: Sequence[int], convert: Callable[[VideoFrame], NDArray[np.uint8]]
    ) -> dict[int, NDArray[np.uint8]]:
        """Return row → converted frame, for those of the rising `rows` that can be decoded."""
        with self._turn:
            self._waiting.append(rows[0])
            self._turn.wait_for(lambda: not self._busy and rows[0] == min(self._waiting))
            self._waiting.remove(rows[0])
            self._busy = True
        try:
            return self._advance(rows, convert)
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def _advance(
        self, rows: Sequence[int], convert: Callable[[VideoFrame], NDArray[np.uint8]]
    ) -> dict[int, NDArray[np.uint8]]:
        pixels: dict[int, NDArray[np.uint8]] = {}
        if rows[0] < self._row:
            self._frames, self._row, self._frame = self._decode(), -1, None
        for row in rows:
            while self._row < row:
                self._row, self._frame = next(self._frames, (_END, None))
            if self._row == row and self._frame is not None:
                pixels[row] = convert(self._frame)
        return pixels

    def _decode(self) -> Iterator[tuple[int, VideoFrame | None]]:
        with open_video(self.path) as (container, stream):
            for place, frame in decode_in_order(container, stream):
                if place in self.row_of:
                    yield self.row_of[place], frame
