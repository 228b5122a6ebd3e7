"""Decode chosen frames of a video file: index its packets, then decode only the frames that these depend on.

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

_SKIPPING = ("h264", "hevc", "mpeg4")  # decoders that can skip single frames on which no other frame depends
_FPS = 25  # of a raw stream without a rate


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """Positions of the frames of a file.

    Attributes:
        times_F: Time at which each frame appears, in seconds after the first.
        seconds: End of the last frame.
        pts_F: Timestamp of each frame in units of the file; None if the packets' timestamps are unreliable (H.264 in
            AVI, raw streams): frames are counted from the start then.
        packet_F: Packet of each frame.
        keys: Packets at which decoding can start, rising.
        key_pts: Their timestamps.
        key_seek: Timestamps to seek to, to reach them.
    """

    times_F: NDArray[np.float64]
    seconds: float
    pts_F: NDArray[np.int64] | None
    packet_F: NDArray[np.int64]
    keys: NDArray[np.int64]
    key_pts: NDArray[np.int64]
    key_seek: NDArray[np.int64]


def read_index(path: Path) -> PacketIndex:
    """Return the index of a file; it is read again only if the file changes.

    Raises:
        DataError: Not a video file, or a file without frames.
    """
    status = path.stat()
    return _read_index(path, status.st_size, status.st_mtime_ns)


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of the upright picture.

    Raises:
        DataError: Not a video file, or its first frame cannot be decoded.
    """
    status = path.stat()
    return _read_size(path, status.st_size, status.st_mtime_ns)


def decode_frames(path: Path, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Decode frames by their indices in order of presentation, as upright RGB.

    Decoding uses one thread, because many clips are decoded in parallel.

    Args:
        path: The file.
        rows: Rising indices.

    Returns:
        (len(rows), H, W, 3).

    Raises:
        DataError: The file is damaged at these frames.
    """
    index = read_index(path)
    with open_video(path) as (container, stream):
        pixels = (_decode_by_seeking if index.pts_F is not None else _decode_from_start)(container, stream, index, rows)
    lost = [row for row in rows if row not in pixels]
    if lost:
        raise DataError(f"{path}: the frame at {index.times_F[lost[0]]:.2f} s cannot be decoded: the file is damaged")
    return np.stack([pixels[row] for row in rows])


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and yield it with its first video stream; errors of FFmpeg become DataErrors."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if container.format.name == "tty":  # FFmpeg draws any text as a picture of its letters
                raise DataError(f"{path}: text, not a video")
            # the cover picture of a sound file is a stream too
            streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
            if not streams:
                raise DataError(f"{path}: holds no video")
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a readable video ({error.strerror})") from error


@lru_cache(maxsize=256)  # clips of one video follow each other
def _read_index(path: Path, size: int, modified: int) -> PacketIndex:
    with open_video(path) as (container, stream):
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.duration or 0, packet.is_discard)
            for packet in _iterate_packets(container, stream)
        ]
        time_base, rate = stream.time_base or Fraction(1, 90_000), stream.average_rate or Fraction(_FPS)
        # AVI numbers packets in order of storage, which differs from presentation if frames refer to later ones
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
    # frames shown before the first key frame depend on frames that are not in the file; frames that an edit list cuts
    # off are decoded but not shown
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
        # some containers index by decoding time, others by presentation time
        key_seek=np.array([min(t for t in packets[key][:2] if t is not None) for key in keys], dtype=np.int64),
    )


@lru_cache(maxsize=256)
def _read_size(path: Path, size: int, modified: int) -> tuple[int, int]:
    height, width = decode_frames(path, [0]).shape[1:3]
    return height, width


def _decode_by_seeking(
    container: InputContainer, stream: VideoStream, index: PacketIndex, rows: Sequence[int]
) -> dict[int, NDArray[np.uint8]]:
    """Decode each group of pictures from its key packet to the last frame wanted, and nothing else."""
    assert index.pts_F is not None
    row_of = {int(index.pts_F[row]): row for row in rows}
    pixels = {}
    for key, group in groupby(rows, key=lambda row: _find_key(index, row)):
        wanted = {int(index.packet_F[row]) for row in group}
        for frame in _decode_group(container, stream, index, key=key, wanted=wanted):
            row = row_of.get(-1 if frame.pts is None else frame.pts)
            if row is not None and not frame.is_corrupt:
                pixels[row] = _turn_upright(frame)
    return pixels


def _decode_from_start(
    container: InputContainer, stream: VideoStream, index: PacketIndex, rows: Sequence[int]
) -> dict[int, NDArray[np.uint8]]:
    """Decode all frames from the start to the last one wanted."""
    wanted, pixels = set(rows), {}
    for row, frame in enumerate(container.decode(stream)):
        if row in wanted:
            pixels[row] = _turn_upright(frame)
        if row >= rows[-1]:
            break
    return pixels


def _find_key(index: PacketIndex, row: int) -> int:
    """Return which of `keys` to decode a frame from: the last one that is neither stored nor shown after it."""
    assert index.pts_F is not None
    fit = (index.keys <= index.packet_F[row]) & (index.key_pts <= index.pts_F[row])
    return int(np.flatnonzero(fit)[-1])


def _decode_group(
    container: InputContainer, stream: VideoStream, index: PacketIndex, *, key: int, wanted: set[int]
) -> Iterator[VideoFrame]:
    """Yield the frames from packet `key` to the last one wanted, skipping frames on which no other depends."""
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
    for target in (int(index.key_seek[key]), int(index.key_seek[0])):  # a file's own table may lead past the key
        container.seek(target, stream=stream)
        packets = _iterate_packets(container, stream)
        for packet in packets:
            if packet.pts == begin:
                yield packet
                yield from packets
                return


def _iterate_packets(container: InputContainer, stream: VideoStream) -> Iterator["av.Packet[VideoStream]"]:
    """Return all packets except the incomplete last one of a truncated file and the empty one that ends the stream."""
    return (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def _turn_upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a frame as RGB, rotated as the file says, to the nearest quarter turn."""
    pixels_HW3 = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels_HW3, k=round(frame.rotation / 90)) if frame.rotation else pixels_HW3  # type: ignore
