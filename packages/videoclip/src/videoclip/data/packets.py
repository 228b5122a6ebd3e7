"""Decode chosen frames of a video file: index its packets, then decode only the frames that these depend on.

The index is made from the timestamps and key flags of the packets, without decoding. Neither can be trusted in every
file: a file that shows signs of it is decoded once to index it, and each landing of a seek is checked against the
index. Frames that cannot be reached by seeking are decoded from the start (`passes`).

F frames in order of presentation, P packets in order of storage.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video import VideoFrame, VideoStream
from numpy.typing import NDArray

from clip_common.errors import DataError
from videoclip.data.containers import decode_in_order, iterate_packets, number_frames, open_video, turn_upright
from videoclip.data.passes import DecodingPass

_SKIPPING = ("h264", "hevc", "mpeg4")  # decoders that can skip single frames on which no other frame depends
_FPS = 25  # of a raw stream without a rate
_VOP = b"\x00\x00\x01\xb6"  # start of a picture of MPEG-4 part 2
_EMPTY_VOP = 19  # bytes of an MPEG-4 packet that may hold no picture; FFmpeg's decoder has the same bound
_UNKNOWN = np.iinfo(np.int64).min  # timestamp of a packet without one
_LARGE = 1920 * 1088  # pixels above which few files are decoded at once
_LARGE_THREADS = 3  # each needs about 150 MB for 4K, and its allocator keeps them
_LOCKS = tuple(threading.Lock() for _ in range(16))  # so that threads do not index one file at once

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """Positions of the frames of a file.

    Attributes:
        times_F: Time at which each frame appears, in seconds after the first.
        seconds: End of the last frame.
        packet_F: Packet of each frame.
        keys: Packets at which decoding can start, rising; none if frames can be decoded only from the start of the
            file.
        seek_P: Timestamps to seek to, to reach a packet.
        pts_P: Timestamps of the packets, in units of the file.
        size_P: Their sizes in bytes.
        pixels: Height · width of the picture.
    """

    times_F: NDArray[np.float64]
    seconds: float
    packet_F: NDArray[np.int64]
    keys: NDArray[np.int64]
    seek_P: NDArray[np.int64]
    pts_P: NDArray[np.int64]
    size_P: NDArray[np.int64]
    pixels: int


@dataclass(frozen=True, slots=True, eq=False)
class _Packets:
    """What a container says of its packets, in order of storage, and whether that may mislead.

    Attributes:
        pts_P, dts_P, duration_P: In units of the file; `_UNKNOWN` if not given.
        size_P: In bytes.
        key_P: Whether decoding can start there.
        shown_P: Whether the packet is whole, and no edit list cuts it off.
        irregular: Whether packets may hold other than one picture, or have timestamps of storage.
        palette: Whether frames need the palette of the first packet.
        second: Units of the file per second.
        fps: Mean frames per second.
        pixels: Height · width of the picture.
    """

    pts_P: NDArray[np.int64]
    dts_P: NDArray[np.int64]
    duration_P: NDArray[np.int64]
    size_P: NDArray[np.int64]
    key_P: NDArray[np.bool_]
    shown_P: NDArray[np.bool_]
    irregular: bool
    palette: bool
    second: float
    fps: float
    pixels: int


def read_index(path: Path) -> PacketIndex:
    """Return the index of a file; it is read again only if the file changes.

    No frame is decoded, unless timestamps are missing or may be misleading: then all are, once.

    Raises:
        DataError: Not a video file, or a file without frames.
    """
    status = path.stat()
    with _LOCKS[hash(path) % len(_LOCKS)]:
        return _read_index(path, status.st_size, status.st_mtime_ns)


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of the upright picture.

    Raises:
        DataError: Not a video file, or no frame can be decoded.
    """
    status = path.stat()
    return _read_size(path, status.st_size, status.st_mtime_ns)


def decode_frames(path: Path, rows: Sequence[int], *, convert: Callable[[Pixels], Pixels]) -> list[Pixels]:
    """Decode frames by their indices in order of presentation, as upright RGB.

    Args:
        path: The file.
        rows: Rising indices.
        convert: Applied to each frame, (H, W, 3), as soon as it is decoded: the frames of a clip are never in memory
            together at their full size.

    Returns:
        The converted frames.

    Raises:
        DataError: The file is damaged at these frames.
    """
    index = read_index(path)

    def finish(frame: VideoFrame) -> Pixels:
        return convert(turn_upright(frame))

    if index.pixels > _LARGE:
        pixels = _open_pool(os.getpid()).submit(_decode, path, index, rows, finish).result()
    else:
        pixels = _decode(path, index, rows, finish)
    lost = [row for row in rows if row not in pixels]
    if lost:
        raise DataError(f"{path}: the frame at {index.times_F[lost[0]]:.2f} s cannot be decoded: the file is damaged")
    return [pixels[row] for row in rows]


# -- the index -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)  # clips of one video follow each other
def _read_index(path: Path, size: int, modified: int) -> PacketIndex:
    with open_video(path) as (container, stream):
        packets = _read_packets(container, stream)
    pts_P, keys = packets.pts_P, np.flatnonzero(packets.key_P)
    if not len(keys):
        raise DataError(f"{path}: holds no frame of video")
    packet_F = _sort_shown(packets) if _is_timed(pts_P) and not packets.irregular else _decode_order(path)
    if not len(packet_F):
        raise DataError(f"{path}: holds no frame of video")
    timed = _is_timed(pts_P[packet_F])
    ticks_F = pts_P[packet_F] if timed else packet_F
    if not timed or packets.palette or (np.diff(ticks_F) <= 0).any():
        # the timestamps belong to other frames: each frame takes its turn, and no seek can be checked
        ticks_F, keys = np.sort(ticks_F), keys[:0]
    second = packets.second if timed else packets.fps
    last = packets.duration_P[packet_F[-1]] if timed else 1
    return PacketIndex(
        times_F=(ticks_F - ticks_F[0]) / second,
        seconds=float(ticks_F[-1] - ticks_F[0] + (last or round(second / packets.fps))) / second,
        packet_F=packet_F,
        keys=keys,
        # some containers index by decoding time, others by presentation time
        seek_P=np.where(packets.dts_P == _UNKNOWN, pts_P, np.minimum(pts_P, packets.dts_P)),
        pts_P=pts_P,
        size_P=packets.size_P,
        pixels=packets.pixels,
    )


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    context = stream.codec_context
    rows, irregular = [], False
    for packet in iterate_packets(container, stream):
        times = (_UNKNOWN if time is None else time for time in (packet.pts, packet.dts))
        whole = not packet.is_corrupt
        rows.append((
            *times, packet.duration or 0, packet.size, whole and packet.is_keyframe, whole and not packet.is_discard
        ))  # fmt: skip
        irregular = irregular or _holds_other_than_one(context.name, packet)
    facts_6P = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    pts_P = facts_6P[0]
    # packets are numbered in order of storage, which differs from presentation if frames refer to later ones
    misleading = bool(context.has_b_frames) and not (np.diff(pts_P[pts_P != _UNKNOWN]) < 0).any()
    palette = context.pix_fmt == "pal8"
    return _Packets(
        pts_P=pts_P,
        dts_P=facts_6P[1],
        duration_P=facts_6P[2],
        size_P=facts_6P[3],
        key_P=facts_6P[4] > 0,
        shown_P=facts_6P[5] > 0,
        irregular=irregular or misleading or palette,
        palette=palette,
        second=float(1 / (stream.time_base or Fraction(1, 90_000))),
        fps=float(stream.average_rate or _FPS),
        pixels=context.width * context.height,
    )


def _is_timed(pts: NDArray[np.int64]) -> bool:
    """Return whether each packet has a timestamp of its own."""
    return _UNKNOWN not in pts and len(np.unique(pts)) == len(pts)


def _holds_other_than_one(codec: str, packet: "av.Packet[VideoStream]") -> bool:
    """Return whether a packet may hold two pictures (packed B-frames of DivX and XviD), or none that is shown."""
    if codec == "mpeg4":
        return packet.size <= _EMPTY_VOP or bytes(packet).count(_VOP) != 1
    return codec == "vp8" and not bytes(packet)[0] & 0x10


def _sort_shown(packets: _Packets) -> NDArray[np.int64]:
    """Return the packets that are shown, in order of their timestamps."""
    # frames shown before the first key frame depend on frames that are not in the file
    first = int(np.flatnonzero(packets.key_P)[0])
    later_P = (packets.pts_P >= packets.pts_P[first]) & (np.arange(len(packets.pts_P)) >= first)
    shown = np.flatnonzero(packets.shown_P & later_P)
    return shown[np.argsort(packets.pts_P[shown])]


def _decode_order(path: Path) -> NDArray[np.int64]:
    """Return the packets in the order in which the decoder shows their frames, up to the last one that it can show."""
    with open_video(path) as (container, stream):
        decoded = [(place, frame is not None) for place, frame in decode_in_order(container, stream)]
    last = max((row for row, (_, sound) in enumerate(decoded) if sound), default=-1)
    return np.array([place for place, _ in decoded[: last + 1]], dtype=np.int64)


@lru_cache(maxsize=256)
def _read_size(path: Path, size: int, modified: int) -> tuple[int, int]:
    with open_video(path) as (container, stream):
        for _, frame in decode_in_order(container, stream):
            if frame is not None:
                height, width = turn_upright(frame).shape[:2]
                return height, width
    raise DataError(f"{path}: no frame can be decoded")


# -- decoding ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _open_pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process that decode large pictures; a fork does not have its parent's."""
    return ThreadPoolExecutor(_LARGE_THREADS)


@lru_cache(maxsize=4)
def _open_pass(path: Path, size: int, modified: int, process: int) -> DecodingPass:
    """Return the pass over a file that the clips of a process share; a fork must not move its parent's position."""
    return DecodingPass(path, read_index(path).packet_F)


def _decode(
    path: Path, index: PacketIndex, rows: Sequence[int], finish: Callable[[VideoFrame], Pixels]
) -> dict[int, Pixels]:
    """Return row → pixels of the frames that can be decoded: by seeking, and those missed from the file's start."""
    pixels = _decode_by_seeking(path, index, rows, finish) if len(index.keys) else {}
    rest = [row for row in rows if row not in pixels]
    if rest:
        status = path.stat()
        pixels |= _open_pass(path, status.st_size, status.st_mtime_ns, os.getpid()).read(rest, finish)
    return pixels


def _decode_by_seeking(
    path: Path, index: PacketIndex, rows: Sequence[int], finish: Callable[[VideoFrame], Pixels]
) -> dict[int, Pixels]:
    """Decode each group of pictures from its key packet to the last frame wanted, and nothing else."""
    pixels = {}
    with open_video(path) as (container, stream):
        for key, group in groupby(rows, key=lambda row: _find_key(index, row)):
            row_of = {int(index.packet_F[row]): row for row in group}
            with suppress(av.FFmpegError):  # whether it is damage shows when the file is decoded from its start
                for place, frame in _decode_group(container, stream, index, key=key, wanted=set(row_of)):
                    if place in row_of:
                        pixels[row_of[place]] = finish(frame)
    return pixels


def _find_key(index: PacketIndex, row: int) -> int:
    """Return which of `keys` to decode a frame from: the last one that is neither stored nor shown after it."""
    place = index.packet_F[row]
    fit = (index.keys <= place) & (index.pts_P[index.keys] <= index.pts_P[place])
    return int(np.flatnonzero(fit)[-1])


def _decode_group(
    container: InputContainer, stream: VideoStream, index: PacketIndex, *, key: int, wanted: set[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (packet, frame) from packet `keys[key]` to the last one wanted, skipping frames on which no other depends.

    End early if the first frame is not a key frame, as the container said, or if a frame is damaged.
    """
    first, sound = int(index.keys[key]), False
    for place, frame in number_frames(_decode_packets(container, stream, index, key=key, wanted=wanted)):
        sound = (sound or (place == first and frame.key_frame)) and not frame.is_corrupt
        if sound:
            yield place, frame
        elif index.pts_P[place] >= index.pts_P[first]:
            return


def _decode_packets(
    container: InputContainer, stream: VideoStream, index: PacketIndex, *, key: int, wanted: set[int]
) -> Iterator[VideoFrame]:
    context, last = stream.codec_context, max(wanted)
    for place, packet in enumerate(_packets_from(container, stream, index, key), start=int(index.keys[key])):
        if packet.is_corrupt or not _is_at(packet, index, place):
            return
        if context.name in _SKIPPING:
            context.skip_frame = "DEFAULT" if place in wanted else "NONREF"
        packet.pts = packet.dts = place  # the decoder hands it to the frame
        yield from packet.decode()
        if place == last:
            break
    yield from context.decode(None)


def _packets_from(
    container: InputContainer, stream: VideoStream, index: PacketIndex, key: int
) -> Iterator["av.Packet[VideoStream]"]:
    """Yield the packets from `keys[key]`; none if no seek leads there."""
    place = int(index.keys[key])
    # a table may lead past the key, and the first packet after a seek may be half a frame
    for start in (place, int(index.keys[max(key - 1, 0)]), 0):
        container.seek(int(index.seek_P[start]), stream=stream)
        packets = iterate_packets(container, stream)
        for packet in packets:
            if packet.is_keyframe and _is_at(packet, index, place):
                yield packet
                yield from packets
                return


def _is_at(packet: "av.Packet[VideoStream]", index: PacketIndex, place: int) -> bool:
    """Return whether a packet is the one at a place of the index."""
    return packet.size == index.size_P[place] and packet.pts == index.pts_P[place]
