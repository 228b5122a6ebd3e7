"""Files whose timestamps or key flags mislead: every planned frame is that of a full decode."""

import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from videoclip.data import DataError, plan, probe, read_frames
from videoclip.data.decoding import read_frames_at, read_times

COUNT, HEIGHT, WIDTH, FPS = 60, 96, 128, 25
WALL = np.random.default_rng(0).integers(0, 256, size=(HEIGHT // 8, WIDTH // 4, 3), dtype=np.uint8)
WALL = WALL.repeat(8, 0).repeat(8, 1)
VOP = b"\x00\x00\x01\xb6"  # start of a picture of MPEG-4; I, P and B are the first two bits of the next byte
EMPTY_VOP = VOP + bytes([0b01010000, 0b01011111])  # a P picture that is not coded

Packets = list["av.Packet"]


def film(path: Path, codec: str, *, container=None, pix_fmt="yuv420p", b_frames=2, gop=12, options=None, change=None):
    """Write a moving wall; `change` maps the encoder's packets to those that are stored, numbered in that order."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=FPS, options=options or {})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = HEIGHT, WIDTH, pix_fmt, gop
        stream.max_b_frames, stream.codec_context.thread_count = b_frames, 1
        packets = [packet for number in range(COUNT) for packet in stream.encode(frame(number, pix_fmt))]
        packets += stream.encode(None)
        if change is not None:
            packets = change(packets)
            for place, packet in enumerate(packets):
                packet.pts = packet.dts = place
                packet.stream, packet.time_base = stream, Fraction(1, FPS)
        for packet in packets:
            out.mux(packet)


def frame(number: int, pix_fmt: str) -> av.VideoFrame:
    pixels = np.ascontiguousarray(WALL[:, 2 * number : 2 * number + WIDTH])
    if pix_fmt != "pal8":
        return av.VideoFrame.from_ndarray(pixels, format="rgb24")
    palette = np.stack([np.full(256, 255), *[np.arange(256) // step % 4 * 85 for step in (1, 4, 16)]], axis=1)
    return av.VideoFrame.from_ndarray((pixels[..., 0], palette.astype(np.uint8)), format="pal8")


def chunk(content: bytes, *, key: bool) -> av.Packet:
    packet = av.Packet(content)
    packet.is_keyframe = key
    return packet


def pack(packets: Packets) -> Packets:
    """Store each B picture after its predecessor in one packet, as DivX and XviD do, and an empty one in its place."""
    chunks: Packets = []
    behind: list[bytes] = []  # B pictures that wait for their packet
    contents = [bytes(packet) for packet in packets]
    kinds = [content[content.index(VOP) + 4] >> 6 for content in contents]
    for place, (content, kind) in enumerate(zip(contents, kinds, strict=True)):
        if kind == 2:
            continue
        run = place + 1
        while run < len(kinds) and kinds[run] == 2:
            run += 1
        behind = contents[place + 1 : run]
        marked = content.replace(VOP, b"\x00\x00\x01\xb2DivX503b1393p" + VOP)
        chunks.append(chunk(marked + (behind[0] if behind else b""), key=kind == 0))
        chunks += [chunk(b_picture, key=False) for b_picture in behind[1:]]
        chunks += [chunk(EMPTY_VOP, key=False)] * bool(behind)
    return chunks


def drop(packets: Packets) -> Packets:
    """Store an empty picture after each seventh, as a recorder does that missed a frame."""
    return [
        each
        for place, packet in enumerate(packets)
        for each in ([packet, chunk(EMPTY_VOP, key=False)] if place % 7 == 6 else [packet])
    ]


def flag_all(packets: Packets) -> Packets:
    return [chunk(bytes(packet), key=True) for packet in packets]


X264 = {"preset": "veryfast"}
FILES: dict[str, Callable[[Path], None]] = {
    "packed.avi": lambda path: film(path, "mpeg4", change=pack),
    "dropped.avi": lambda path: film(path, "mpeg4", b_frames=0, change=drop),
    "palette.avi": lambda path: film(path, "rawvideo", pix_fmt="pal8"),
    "palette.mov": lambda path: film(path, "rawvideo", pix_fmt="pal8"),
    "quicktime.mov": lambda path: film(path, "qtrle", pix_fmt="rgb24", b_frames=0),
    "mpeg1.mpg": lambda path: film(path, "mpeg1video"),
    "mpeg2.vob": lambda path: film(path, "mpeg2video", container="vob"),
    "h264.vob": lambda path: film(path, "libx264", container="vob", options=X264),
    "h264.wmv": lambda path: film(path, "libx264", container="asf", options=X264),
    "h264.avi": lambda path: film(path, "libx264", options=X264),
    "camera.mts": lambda path: film(path, "libx264", container="mpegts", options=X264),
    "stored.mp4": lambda path: film(path, "libx264", options=X264, change=list),
    "stored.mkv": lambda path: film(path, "libx264", options=X264, change=list),
    "keys.mp4": lambda path: film(path, "mpeg4", b_frames=0, change=flag_all),
    "keys.avi": lambda path: film(path, "libx264", b_frames=0, options=X264, change=flag_all),
    "open.mp4": lambda path: film(path, "libx264", options=X264 | {"x264-params": "open-gop=1"}),
    "refresh.mp4": lambda path: film(path, "libx264", b_frames=0, options=X264 | {"x264-params": "intra-refresh=1"}),
    "raw.m4v": lambda path: film(path, "mpeg4", container="m4v"),
    "raw.h264": lambda path: film(path, "libx264", container="h264", options=X264),
}


def decode_all(path: Path) -> np.ndarray:
    """The reference: every frame, one after the other."""
    with av.open(str(path)) as container:
        return np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])


def check_frames(path: Path, whole: np.ndarray, *, seconds: float) -> None:
    info, times = probe(path), read_times(path)
    assert info.frames == len(whole) == len(times)
    assert info.seconds == pytest.approx(seconds, abs=0.09)
    assert (np.diff(times) > 0).all()
    for row in range(len(whole)):
        assert np.array_equal(read_frames_at(path, [row])[0], whole[row]), row
    assert np.array_equal(read_frames_at(path, range(len(whole))), whole)
    for rows in ([3, 4, 20, 41], [11, 12, 13], [0, len(whole) - 1], [40, 40, 7]):
        assert np.array_equal(read_frames_at(path, rows), whole[rows]), rows
    for second in range(int(seconds)):
        rows_T = plan(times, start_s=second, end_s=second + 1, frames=8)
        assert np.array_equal(read_frames(path, start_s=second, end_s=second + 1, frames=8), whole[rows_T])


@pytest.mark.parametrize("name", FILES)
def test_every_planned_frame_is_that_of_a_full_decode(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    whole = decode_all(path)
    assert len(whole) >= COUNT - 2
    check_frames(path, whole, seconds=COUNT / FPS if name != "dropped.avi" else 68 / FPS)


VP8 = "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -b:v 200k"
COMMANDS = {
    "xvid.avi": "-c:v libxvid -bf 2 -g 12 -q:v 3",
    "palette.avi": "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse -c:v rawvideo -pix_fmt pal8",
    "palette.mov": "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse -c:v rawvideo -pix_fmt pal8",
    "mpeg1.mpg": "-c:v mpeg1video -bf 2 -g 12 -q:v 3",
    "mpeg2.vob": "-c:v mpeg2video -bf 2 -g 12 -q:v 3",
    "h264.wmv": "-c:v libx264 -bf 2 -g 12",
    "wmv2.wmv": "-c:v wmv2 -g 12",
    "x265.mkv": "-c:v libx265 -x265-params log-level=none:keyint=12:bframes=3:open-gop=1",
    "theora.ogv": "-c:v libtheora -g 12",
    "hidden.webm": f"{VP8} -pass 2",
}
"""ffmpeg options; the last one reads the statistics of a first pass."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg, Debian's package")
@pytest.mark.parametrize("name", COMMANDS)
def test_frames_are_those_of_ffmpeg(tmp_path, name):
    def run(command: str) -> bytes:
        words = ["ffmpeg", "-nostdin", "-v", "quiet", "-y", *command.split()]
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True).stdout

    source = f"-f lavfi -i testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS}:duration=4"
    if "-pass" in COMMANDS[name]:
        run(f"{source} {VP8} -pass 1 -f null -")
    run(f"{source} {COMMANDS[name]} {name}")
    raw = run(f"-i {name} -vsync passthrough -f rawvideo -pix_fmt rgb24 -")
    check_frames(tmp_path / name, np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3), seconds=4)


# -- damage --------------------------------------------------------------------------------------------------------


def damage(path: Path, *, packet: int) -> None:
    """Overwrite a packet, but not its header, with noise."""
    with av.open(str(path)) as container:
        hit = [each for each in container.demux(video=0) if each.size][packet]
        start, size = hit.pos, hit.size
    content = bytearray(path.read_bytes())
    content[start + 16 : start + size] = np.random.default_rng(0).bytes(size - 16)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(("name", "packet"), [("open.mp4", 26), ("stored.mp4", 26), ("keys.mp4", 26), ("keys.mp4", 0)])
def test_damage_leaves_the_other_seconds(tmp_path, name, packet):
    path = tmp_path / name
    FILES[name](path)
    whole, times = decode_all(path), read_times(path)
    damage(path, packet=packet)
    assert probe(path).height == HEIGHT
    with pytest.raises(DataError, match="cannot be decoded: the file is damaged"):
        read_frames(path, start_s=packet / FPS, end_s=packet / FPS + 0.4, frames=10)
    # a group of pictures is lost, and not a frame outside of it
    assert len(read_times(path)) == len(times)
    good = [row for row in range(len(times)) if not packet - 4 <= row < (packet + 12 if packet else 16)]
    assert np.array_equal(read_frames_at(path, good), whole[good])
