"""Video files as FFmpeg reads them: opening, packets in order of storage, and all frames in order of presentation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, dropwhile
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream
from numpy.typing import NDArray

from clip_common.errors import DataError

_FAULTS = 8  # places in a row at which a damaged file may be unreadable before its rest is given up


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and yield it with its first video stream; errors of FFmpeg become DataErrors.

    Decoding uses one thread, because many clips are decoded in parallel.
    """
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


def iterate_packets(container: InputContainer, stream: VideoStream) -> Iterator["av.Packet[VideoStream]"]:
    """Yield the packets from the current position, past places that cannot be read, without the empty last one."""
    faults = 0
    while faults < _FAULTS:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    faults = 0
                    yield packet
            return
        except av.InvalidDataError:
            faults += 1


def decode_in_order(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame | None]]:
    """Decode a file from its start and yield (packet, frame) in order of presentation, without trusting timestamps.

    Packets are numbered in order of storage. The frame is None if its packet is damaged, or if an earlier one since
    the last key frame is. Packets without a picture, and frames shown before the first key frame, are left out.
    """
    packets = dropwhile(lambda each: not each[1].is_keyframe, enumerate(iterate_packets(container, stream)))
    first = next(packets, None)
    if first is None:
        return
    started, sound = False, True
    for place, frame in _decode_each(stream, chain([first], packets)):
        sound = frame is not None and not frame.is_corrupt and (sound or frame.key_frame)
        started = started or sound or place == first[0]
        if started:
            yield place, frame if sound else None


def _decode_each(
    stream: VideoStream, packets: Iterable[tuple[int, "av.Packet[VideoStream]"]]
) -> Iterator[tuple[int, VideoFrame | None]]:
    """Yield (packet, frame) as the decoder gives them, and (packet, None) for a damaged packet."""
    for place, packet in packets:
        packet.pts = packet.dts = place  # the decoder hands it to the frame
        try:
            yield from (number_frames(packet.decode()) if not packet.is_corrupt else [(place, None)])
        except av.FFmpegError:
            yield place, None
    yield from number_frames(stream.codec_context.decode(None))


def number_frames(frames: Iterable[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield (packet, frame), with the number that the packet had as timestamp, without frames made up to fill a gap."""
    return ((frame.pts, frame) for frame in frames if frame.pts is not None)


def turn_upright(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return a frame as RGB, (H, W, 3), rotated as the file says, to the nearest quarter turn."""
    pixels_HW3 = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels_HW3, k=round(frame.rotation / 90)).copy() if frame.rotation else pixels_HW3  # type: ignore
