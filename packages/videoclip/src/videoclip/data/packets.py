"""Chosen frames of a video file: its packets say what is where, and only what these frames depend on is decoded.

F frames in order of presentation, P packets in order of decoding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream
from numpy.typing import NDArray

from clip_common.errors import DataError

_SKIPPING = ("h264", "hevc", "mpeg4")  # decoders in which frames that no other needs can be skipped one by one
_FPS = 25  # of a raw stream that does not say


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """Where the frames of a file are.

    Attributes:
        times_F: When each appears, in seconds after the first.
        seconds: When the last one ends.
        pts_F: Its timestamp in units of the file; None where the packets' timestamps cannot be relied on (H.264 in AVI,
            raw streams): then frames are counted from the beginning.
        packet_F: The packet that each is in.
        keys: Packets at which decoding can begin, rising.
        key_pts: Their timestamps.
        key_seek: Where to seek to reach them.
    """

    times_F: NDArray[np.float64]
    seconds: float
    pts_F: NDArray[np.int64] | None
    packet_F: NDArray[np.int64]
    keys: NDArray[np.int64]
    key_pts: NDArray[np.int64]
    key_seek: NDArray[np.int64]


def read_index(path: Path) -> PacketIndex:
    """The index of a file, read once while the file stays as it is.

    Raises:
        DataError: Not a video file, or one without a frame.
    """
    status = path.stat()
    return _read_index(path, status.st_size, status.st_mtime_ns)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture, upright.

    Raises:
        DataError: Not a video file, or its first frame cannot be decoded.
    """
    status = path.stat()
    return _read_size(path, status.st_size, status.st_mtime_ns)


def decode_frames(path: Path, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Frames by their place in the order of presentation, upright RGB.

    One thread decodes: clips, not parts of a clip, are what there are many of.

    Args:
        path: The file.
        rows: Rising places.

    Returns:
        (len(rows), H, W, 3).

    Raises:
        DataError: The file is damaged where these frames are.
    """
    index = read_index(path)
    with open_video(path) as (container, stream):
        found = (_decode_by_seeking if index.pts_F is not None else _decode_from_start)(container, stream, index, rows)
    lost = [row for row in rows if row not in found]
    if lost:
        raise DataError(f"{path}: the frame at {index.times_F[lost[0]]:.2f} s cannot be decoded: the file is damaged")
    return np.stack([found[row] for row in rows])


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream; whatever the libraries say against it becomes a DataError."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if container.format.name == "tty":  # FFmpeg draws any text as a picture of its letters
                raise DataError(f"{path}: text, not a video")
            # the cover of a sound file is a stream, too
            streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
            if not streams:
                raise DataError(f"{path}: holds no video")
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video that can be read ({error.strerror})") from error


@lru_cache(maxsize=256)  # clips of one video follow each other
def _read_index(path: Path, size: int, modified: int) -> PacketIndex:
    with open_video(path) as (container, stream):
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.duration or 0, packet.is_discard)
            for packet in _iterate_packets(container, stream)
        ]
        time_base, rate = stream.time_base or Fraction(1, 90_000), stream.average_rate or Fraction(_FPS)
        # AVI numbers packets as they are stored, which is not the order of presentation where frames look ahead
        misleading = container.format.name == "avi" and stream.codec_context.has_b_frames
    first = next((place for place, packet in enumerate(packets) if packet[2]), None)
    if first is None:
        raise DataError(f"{path}: holds no frame of video")
    pts_P = [packet[0] for packet in packets if packet[0] is not None]
    keys = np.array([place for place, packet in enumerate(packets) if packet[2]])
    timed = len(set(pts_P)) == len(packets)
    if not timed or (misleading and pts_P == sorted(pts_P)):
        count = len(packets) - first
        return PacketIndex(
            np.arange(count) / float(rate), float(count / rate), None, first + np.arange(count), keys, keys, keys
        )
    pts = np.array(pts_P, dtype=np.int64)
    # frames shown before the first one that stands by itself need others that are not in the file; what an edit list
    # cuts off is decoded and not shown
    kept = np.array([not packet[4] for packet in packets])
    shown = np.flatnonzero(kept & (pts >= pts[first]) & (np.arange(len(pts)) >= first))
    if not len(shown):
        raise DataError(f"{path}: holds no frame of video")
    packet_F = shown[np.argsort(pts[shown])]
    pts_F = pts[packet_F]
    last = packets[int(packet_F[-1])][3] or round(1 / (rate * time_base))
    return PacketIndex(
        times_F=(pts_F - pts_F[0]) * float(time_base),
        seconds=float((pts_F[-1] - pts_F[0] + last) * time_base),
        pts_F=pts_F,
        packet_F=packet_F,
        keys=keys,
        key_pts=pts[keys],
        # some containers index by the time of decoding, others by that of presentation
        key_seek=np.array([min(t for t in packets[key][:2] if t is not None) for key in keys], dtype=np.int64),
    )


@lru_cache(maxsize=256)
def _read_size(path: Path, size: int, modified: int) -> tuple[int, int]:
    height, width = decode_frames(path, [0]).shape[1:3]
    return height, width


def _decode_by_seeking(
    container: InputContainer, stream: VideoStream, index: PacketIndex, rows: Sequence[int]
) -> dict[int, NDArray[np.uint8]]:
    """Group by group of pictures: from its first packet to the last one wanted, and of the rest nothing."""
    assert index.pts_F is not None
    row_of = {int(index.pts_F[row]): row for row in rows}
    found = {}
    for key, group in groupby(rows, key=lambda row: _find_key(index, row)):
        wanted = {int(index.packet_F[row]) for row in group}
        for frame in _decode_group(container, stream, index, key=key, wanted=wanted):
            row = row_of.get(-1 if frame.pts is None else frame.pts)
            if row is not None and not frame.is_corrupt:
                found[row] = _turn_upright(frame)
    return found


def _decode_from_start(
    container: InputContainer, stream: VideoStream, index: PacketIndex, rows: Sequence[int]
) -> dict[int, NDArray[np.uint8]]:
    """Everything from the beginning to the last frame wanted."""
    wanted, found = set(rows), {}
    for row, frame in enumerate(container.decode(stream)):
        if row in wanted:
            found[row] = _turn_upright(frame)
        if row >= rows[-1]:
            break
    return found


def _find_key(index: PacketIndex, row: int) -> int:
    """Which of `keys` a frame is decoded from: the last one that is neither stored nor shown after it."""
    assert index.pts_F is not None
    fit = (index.keys <= index.packet_F[row]) & (index.key_pts <= index.pts_F[row])
    return int(np.flatnonzero(fit)[-1])


def _decode_group(
    container: InputContainer, stream: VideoStream, index: PacketIndex, *, key: int, wanted: set[int]
) -> Iterator[VideoFrame]:
    """What comes out of the packets from `key` to the last one wanted; frames that no other needs are left out."""
    context = stream.codec_context
    skips = context.name in _SKIPPING
    for place, packet in enumerate(_packets_from(container, stream, index, key), start=int(index.keys[key])):
        if skips:
            context.skip_frame = "DEFAULT" if place in wanted else "NONREF"
        yield from packet.decode()
        if place >= max(wanted):
            break
    yield from context.decode(None)
    context.flush_buffers()


def _packets_from(
    container: InputContainer, stream: VideoStream, index: PacketIndex, key: int
) -> Iterator["av.Packet[VideoStream]"]:
    begin = int(index.key_pts[key])
    for target in (int(index.key_seek[key]), int(index.key_seek[0])):  # a file's own table may lead past the place
        container.seek(target, stream=stream)
        packets = _iterate_packets(container, stream)
        for packet in packets:
            if packet.pts == begin:
                yield packet
                yield from packets
                return


def _iterate_packets(container: InputContainer, stream: VideoStream) -> Iterator["av.Packet[VideoStream]"]:
    """All packets but a last one that a cut file ends in, and the empty one that says there are no more."""
    return (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def _turn_upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """RGB, turned as the file says, to the nearest quarter turn."""
    pixels_HW3 = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels_HW3, k=round(frame.rotation / 90)) if frame.rotation else pixels_HW3  # type: ignore
