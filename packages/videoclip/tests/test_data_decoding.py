"""The frames that are planned are the frames that come out, of any file; what cannot be read says so."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.real import real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_common.video import write_video
from videoclip.data import DataError, plan, probe, read_frames
from videoclip.data.decoding import list_frames, read_frames_at

HEIGHT, WIDTH = 48, 64


def picture(number: int) -> np.ndarray:
    """Grey by number, with a white corner at the top left."""
    pixels = np.full((HEIGHT, WIDTH, 3), 16 + 4 * (number % 50), dtype=np.uint8)
    pixels[:12, :12] = 255
    return pixels


def film(
    path: Path,
    *,
    codec="libx264",
    count=60,
    fps=25,
    rotation=None,
    times=None,
    gop=12,
    b_frames=None,
    pix_fmt="yuv420p",
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = HEIGHT, WIDTH, pix_fmt, gop
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def everything(path: Path) -> np.ndarray:
    """The reference: every frame, one after the other."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# -- planning ------------------------------------------------------------------------------------------------------


def test_a_bin_shows_the_frame_that_is_on_the_screen_in_its_middle():
    times = np.arange(50) / 50
    # middles of eight bins of a second: 0.0625, 0.1875, …, and 50 frames a second
    assert plan(times, start_s=0, end_s=1, frames=8).tolist() == [3, 9, 15, 21, 28, 34, 40, 46]
    # the middles 2.5 s and 7.5 s of two bins: frame 2 begins at 2.5 s
    assert plan([0, 1, 2.5, 6, 8], start_s=0, end_s=10, frames=2).tolist() == [2, 3]


def test_a_clip_of_fewer_frames_than_bins_repeats_them():
    assert plan([0, 0.5], start_s=0, end_s=1, frames=6).tolist() == [0, 0, 0, 1, 1, 1]
    assert plan([0], start_s=0, end_s=1, frames=3).tolist() == [0, 0, 0]


def test_a_frame_that_begins_in_the_middle_of_a_bin_is_taken_whatever_rounding_says():
    times = np.cumsum(np.full(300, 0.1)) - 0.1  # 0.1 added up: below and above multiples of it
    assert plan(times, start_s=0, end_s=30, frames=150).tolist() == list(range(1, 300, 2))


@given(
    gaps=st.lists(st.floats(0.005, 0.5), min_size=1, max_size=60),
    start=st.floats(-1, 20),
    length=st.floats(0.01, 20),
    frames=st.integers(1, 40),
)
def test_planned_frames_rise_and_are_the_last_to_have_begun(gaps, start, length, frames):
    times = np.cumsum(gaps) - gaps[0]
    rows = plan(times, start_s=start, end_s=start + length, frames=frames)
    assert rows.shape == (frames,)
    assert (np.diff(rows) >= 0).all()
    for place, row in enumerate(rows):
        middle = start + (place + 0.5) * length / frames
        begun = [number for number, time in enumerate(times) if time <= middle + 1e-6]
        assert abs(row - (begun[-1] if begun else 0)) <= (1 if np.isclose(times, middle + 1e-6).any() else 0)


@pytest.mark.parametrize(("times", "start", "end", "frames"), [([], 0, 1, 2), ([0], 1, 1, 2), ([0], 0, 1, 0)])
def test_what_cannot_be_planned_is_refused(times, start, end, frames):
    with pytest.raises(ValueError, match="expected frames"):
        plan(times, start_s=start, end_s=end, frames=frames)


# -- video files ---------------------------------------------------------------------------------------------------

FILES = [
    ("a.mp4", {}), ("a.mkv", {}), ("a.ts", {}), ("a.avi", {"codec": "mpeg4", "b_frames": 2}), ("h264.avi", {}),
    ("a.webm", {"codec": "libvpx-vp9"}), ("mpeg.mpg", {"codec": "mpeg1video", "b_frames": 2}), ("raw.h264", {}),
    ("m.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}), ("kein Ärger – 步态.mp4", {"b_frames": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "how"), FILES)
def test_any_frames_of_any_format_are_those_of_the_whole_file(tmp_path, name, how):
    path = film(tmp_path / name, **how)
    info, whole = probe(path), everything(path)
    assert (info.frames, info.height, info.width) == (60, HEIGHT, WIDTH)
    assert info.seconds == pytest.approx(2.4)
    assert info.fps == pytest.approx(25)
    for rows in ([0], [59], [5], [11, 12, 13], [3, 4, 20, 41], [7, 7, 58], list(range(60))):
        assert np.array_equal(read_frames_at(path, rows), whole[rows]), rows
    clip = read_frames(path, start_s=1, end_s=2, frames=5)
    assert np.array_equal(clip, whole[[27, 32, 37, 42, 47]])


@given(rows=st.lists(st.integers(0, 59), min_size=1, max_size=12))
def test_any_choice_of_frames_is_decoded_from_its_keyframes(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "choice"
    folder.mkdir(exist_ok=True)
    path = folder / "a.mp4"
    if not path.exists():
        film(path, b_frames=3)
        np.save(folder / "whole.npy", everything(path))
    assert np.array_equal(read_frames_at(path, rows), np.load(folder / "whole.npy")[rows])


def test_a_varying_rate_is_followed(tmp_path):
    # 20 frames at 10 a second, then 20 at 40: in the middle of 4 bins of 0.625 s
    times = [*range(0, 2000, 100), *range(2000, 2500, 25)]
    path = film(tmp_path / "phone.mp4", count=40, times=times, fps=1000)
    info = probe(path)
    assert info.seconds == pytest.approx(2.5, abs=0.03)
    assert info.fps == pytest.approx(16, abs=0.3)
    middles = [312.5, 937.5, 1562.5, 2187.5]
    rows = [max(row for row, time in enumerate(times) if time <= middle) for middle in middles]
    assert np.array_equal(read_frames(path, start_s=0, end_s=2.5, frames=4), everything(path)[rows])


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_comes_upright(tmp_path, rotation):
    path = film(tmp_path / "turned.mp4", rotation=rotation, count=14)
    turned = np.rot90(everything(path), k=rotation // 90, axes=(1, 2))  # counterclockwise, both in the file and here
    info = probe(path)
    assert (info.height, info.width) == turned.shape[1:3]
    assert np.array_equal(read_frames_at(path, [0, 13]), turned[[0, 13]])
    corner = {90: (-1, 0), 180: (-1, -1), -90: (0, -1)}[rotation]
    assert read_frames_at(path, [0])[0][corner].min() > 230


def test_a_video_of_one_frame_is_shown_throughout(tmp_path):
    path = film(tmp_path / "one.mp4", count=1)
    assert probe(path).frames == 1
    assert probe(path).seconds == pytest.approx(0.04)
    clip = read_frames(path, start_s=0, end_s=None, frames=3)
    assert clip.shape == (3, HEIGHT, WIDTH, 3)
    assert (clip == clip[0]).all()


def test_a_clip_must_lie_in_its_video(tmp_path):
    path = film(tmp_path / "a.mp4")
    whole = everything(path)
    # a little too long is what players' roundings give: the last frame stays until then
    assert np.array_equal(read_frames(path, start_s=1.6, end_s=2.5, frames=15)[-2:], whole[[59, 59]])
    for start, end in ((2.4, 2.5), (3, 4), (0, 2400), (-1, 1), (2, 2), (2, 1), (2.4, None), (1, 2.6)):
        with pytest.raises(DataError, match=r"a\.mp4: a clip from .* is not within a video of 2\.4 s") as error:
            read_frames(path, start_s=start, end_s=end, frames=2)
        assert "\n" not in str(error.value)


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = film(tmp_path / "a.mp4", count=10)
    assert probe(path).frames == 10
    film(path, count=20)
    assert probe(path).frames == 20


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a readable video"),
        (lambda path: path.write_bytes(b"not a video" * 100), "not a readable video"),
        (lambda path: path.write_bytes(film(path).read_bytes()[:900]), "not a readable video"),
        (sound, "holds no video"),
        (lambda path: None, "no such video"),
        (lambda path: path.mkdir(), "holds no pictures .*: a folder is read as one video"),
    ],
)
def test_what_is_no_video_is_named_in_one_line(tmp_path, make, message):
    path = tmp_path / "Gang 1.mp4"
    make(path)
    for read in (probe, lambda path: read_frames(path, start_s=0, end_s=None, frames=2)):
        with pytest.raises(DataError, match=message) as error:
            read(path)
        assert "Gang 1.mp4" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_cut_file_has_the_frames_that_are_left(tmp_path):
    path = film(tmp_path / "a.ts")
    whole, content = everything(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    info = probe(path)
    assert 10 < info.frames < 50
    assert np.array_equal(read_frames_at(path, [0, 5]), whole[[0, 5]])
    with pytest.raises(DataError, match="is not within a video of"):
        read_frames(path, start_s=1.8, end_s=2.4, frames=2)


def test_damage_is_an_error_only_for_clips_that_it_hits(tmp_path):
    path = film(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p")
    whole, content = everything(path), bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][40]
        position, size = packet.pos, packet.size
    content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(bytes(content))
    assert np.array_equal(read_frames(path, start_s=0, end_s=1, frames=2), whole[[6, 18]])
    with pytest.raises(DataError, match=r"not a readable video|frame at 1\.60 s cannot be decoded"):
        read_frames_at(path, [40])


# -- arrays and folders --------------------------------------------------------------------------------------------


def test_an_npz_has_its_rate_or_25(tmp_path):
    frames = np.stack([picture(number) for number in range(50)])
    np.savez(tmp_path / "a.npz", frames=frames)
    np.savez(tmp_path / "b.npz", frames=frames, fps=10)
    assert probe(tmp_path / "a.npz").seconds == 2
    assert probe(tmp_path / "b.npz").seconds == 5
    assert np.array_equal(read_frames(tmp_path / "b.npz", start_s=1, end_s=2, frames=2), frames[[12, 17]])
    assert np.array_equal(read_frames(tmp_path / "a.npz", start_s=0, end_s=None, frames=2), frames[[12, 37]])


@pytest.mark.parametrize(
    "arrays",
    [
        {"clip": np.zeros((2, 4, 4, 3), np.uint8)},
        {"frames": np.zeros((2, 4, 4), np.uint8)},
        {"frames": np.zeros((2, 4, 4, 3), np.float32)},
        {"frames": np.zeros((0, 4, 4, 3), np.uint8)},
        {"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": 0},
        {"frames": np.array([{"a": 1}], dtype=object)},
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"a\.npz: expected") as error:
        probe(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_folder_is_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 100, 2):
        Image.fromarray(picture(number)).save(tmp_path / f"bild_{number}.png")
    (tmp_path / ".bild_1.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [file.name for file in list_frames(tmp_path)] == [f"bild_{n}.png" for n in (2, 9, 10, 100)]
    assert probe(tmp_path).fps == 25
    clip = read_frames(tmp_path, start_s=0, end_s=None, frames=4)
    assert np.array_equal(clip, np.stack([picture(number) for number in (2, 9, 10, 100)]))


def test_pictures_that_differ_in_size_or_are_none_are_refused(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    Image.fromarray(picture(0)[:20]).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: pictures of one clip differ in size \(64x48 and 64x20\)"):
        read_frames(tmp_path, start_s=0, end_s=None, frames=2)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        read_frames(tmp_path, start_s=0, end_s=None, frames=2)


@pytest.mark.parametrize("kind", ["file", "folder", "npz"])
def test_frames_are_converted_one_by_one(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, size=(12, 720, 1280, 3), dtype=np.uint8)
    path = tmp_path / "a.npz" if kind == "npz" else tmp_path / "a"
    if kind == "npz":
        np.savez(path, frames=pixels)
        probe(path)  # an .npz is in memory as a whole
    elif kind == "folder":
        path.mkdir()
        for number, picture_HW3 in enumerate(pixels):
            Image.fromarray(picture_HW3).save(path / f"{number}.bmp")
    else:
        write_video(path, pixels, fps=12)
    whole = read_frames(path, start_s=0, end_s=None, frames=12)
    read_frames(path, start_s=0, end_s=None, frames=2, convert=shrink)
    tracemalloc.start()
    small = read_frames(path, start_s=0, end_s=None, frames=12, convert=shrink)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(small, whole[:, ::4, ::4])
    assert peak < 4 * pixels[0].nbytes


def shrink(pixels_HW3: np.ndarray) -> np.ndarray:
    return pixels_HW3[::4, ::4].copy()


def test_pictures_of_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 257 * 7, 65535]], dtype=np.uint16)).save(tmp_path / "0.png")
    assert read_frames_at(tmp_path, [0])[0, 0, :, 0].tolist() == [0, 7, 255]


def test_pictures_of_floats_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 0.2, 1]], dtype=np.float32)).save(tmp_path / "0.tif")
    assert read_frames_at(tmp_path, [0])[0, 0, :, 0].tolist() == [0, 51, 255]


# -- real footage --------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_clips_decode_to_the_planned_frames():
    for path in sorted(real_data("video/actions").glob("*.avi")):
        info, whole = probe(path), everything(path)
        assert info.frames == len(whole)
        assert (info.height, info.width) == whole.shape[1:3]
        assert info.seconds == pytest.approx(3)
        clip = read_frames(path, start_s=1, end_s=2, frames=8)
        assert np.array_equal(clip, whole[[50 + row for row in (3, 9, 15, 21, 28, 34, 40, 46)]])


@pytest.mark.real
def test_a_real_folder_of_frames_reads():
    info = probe(real_data("video/bear"))
    assert (info.frames, info.height, info.width) == (82, 270, 480)
    assert read_frames(real_data("video/bear"), start_s=1, end_s=2, frames=8).shape == (8, 270, 480, 3)
