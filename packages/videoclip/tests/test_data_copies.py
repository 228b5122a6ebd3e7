"""Copies of a video in another format, size or quality are leaks; other walks are not, even in one room."""

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.synthetic import write_walking
from clip_common.synthetic.figure_draw import keypoints, render_walk
from clip_common.synthetic.figures import sample_clip, sample_subject
from clip_common.video import write_video
from videoclip import Config
from videoclip.config import DataConfig
from videoclip.data import fingerprints
from videoclip.data.clip_set import load_clip_set
from videoclip.data.decoding import read_frames
from videoclip.data.fingerprints import compute_fingerprint, find_copy, fingerprint_videos
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.data.records import ClipRecord
from videoclip.data.splits import Split, check_disjoint, fold_name, make_split, make_splits

# copies


def decode(video: Path) -> np.ndarray:
    return read_frames(video, start_s=0, end_s=None, frames=24)


def resize(frames_THW3: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames_THW3])


def encode(file: Path, frames_THW3: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width = frames_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def remux(video: Path, file: Path, **tags: str) -> Path:
    with av.open(str(video)) as source, av.open(str(file), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        container.metadata.update(tags)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return file


def save_pictures(folder: Path, frames_THW3: np.ndarray, suffix: str) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames_THW3):
        Image.fromarray(frame).save(folder / f"{number}{suffix}")
    return folder


def save_npz(file: Path, frames_THW3: np.ndarray) -> Path:
    np.savez(file, frames=frames_THW3)
    return file


COPIES = {
    "remuxed": lambda video, folder: remux(video, folder / "cöpy.mkv"),
    "retitled": lambda video, folder: remux(video, folder / "copy.mp4", title="Frau Müller, Mai"),
    "png": lambda video, folder: save_pictures(folder / "copy", decode(video), ".png"),
    "jpg": lambda video, folder: save_pictures(folder / "copy", decode(video), ".jpg"),
    "npz": lambda video, folder: save_npz(folder / "copy.npz", decode(video)),
    "half": lambda video, folder: encode(folder / "copy.mp4", resize(decode(video), 48, 48)),
    "stretched": lambda video, folder: encode(folder / "copy.mp4", resize(decode(video), 180, 320)),
    "crf 33": lambda video, folder: encode(folder / "copy.mp4", decode(video), crf="33"),
    "mpeg4": lambda video, folder: encode(folder / "copy.avi", decode(video), "mpeg4", b="100k"),
}


@pytest.fixture(scope="module")
def walking(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "walks"
    return write_walking(folder, subjects=9, clips_per_subject=2, seed=4, size=96, folds=3)


def put(walking: Path, copy: Path, tmp_path: Path) -> Path:
    """The set in which the last clip of the last subject is another video."""
    records = read_manifest(walking / "manifest.csv")
    return write_manifest([*records[:-1], replace(records[-1], video=copy, end_s=None)], tmp_path / "set.csv")


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_in_another_part_is_a_leak(walking, tmp_path, kind):
    records = read_manifest(walking / "manifest.csv")
    copy = COPIES[kind](records[0].video, tmp_path)
    leaky = [*records[:-1], replace(records[-1], video=copy, end_s=None)]
    assert leaky[0].fold == 0
    assert leaky[-1].fold == 2
    for fold in (0, 2):
        with pytest.raises(DataError) as raised:
            make_split(leaky, DataConfig(fold=fold, folds=3))
        message = str(raised.value)
        assert f"{records[0].video} of subject subject_00 in " in message
        assert f"{copy} of subject subject_08 in " in message
        assert "have the same content, in other files" in message
        assert message.endswith("give both one subject_id, or leave one out")
        assert "\n" not in message
    with pytest.raises(DataError, match="have the same content"):
        make_splits(leaky, DataConfig(folds=3))


def test_a_copy_within_one_subject_is_no_leak(walking, tmp_path):
    records = read_manifest(walking / "manifest.csv")
    copy = remux(records[0].video, tmp_path / "again.mkv")
    make_splits([*records, replace(records[0], clip_id="again", video=copy)], DataConfig(folds=3))


def test_every_command_that_splits_refuses_a_copy(walking, tmp_path):
    """Through the set that train, cv, ablate and test load; `test` on another set is in test_scoring_score."""
    records = read_manifest(walking / "manifest.csv")
    manifest = put(walking, COPIES["half"](records[0].video, tmp_path), tmp_path)
    config = load_config(
        Config, overrides=[f"data.root={manifest}", f"runs={tmp_path / 'runs'}", "data.size=32", "data.frames=4"]
    )
    clips = load_clip_set(config)
    with pytest.raises(DataError, match="have the same content"):
        clips.split(config.data)
    with pytest.raises(DataError, match="have the same content"):
        clips.splits(config.data)


def test_fingerprints_are_kept_and_follow_their_files(walking, tmp_path, monkeypatch):
    videos = [record.video for record in read_manifest(walking / "manifest.csv")][:3]
    mine = [Path(shutil.copy(video, tmp_path / f"{number}.mp4")) for number, video in enumerate(videos)]
    decoded, kept = [], tmp_path / "kept"

    def count(path, **knobs):
        decoded.append(path)
        return read_frames(path, **knobs)

    def forget() -> None:  # as another process would have
        fingerprints._known.clear()
        decoded.clear()

    monkeypatch.setattr(fingerprints, "read_frames", count)
    done = []
    first = fingerprint_videos(mine, folder=kept, progress=lambda *state: done.append(state))
    assert sorted(decoded) == mine
    assert done == [(1, 3), (2, 3), (3, 3)]
    fingerprint_videos(mine)
    assert sorted(decoded) == mine  # this process knows them
    forget()
    again = fingerprint_videos(mine, folder=kept)
    assert decoded == []
    assert all(np.array_equal(first[video], again[video]) for video in mine)
    shutil.copy(videos[1], mine[0])
    forget()
    changed = fingerprint_videos([*mine, tmp_path / "gone.mp4"], folder=kept)
    assert decoded == [mine[0]]
    assert find_copy([changed[mine[0]]], [changed[mine[1]]]) == (0, 0, pytest.approx(1, abs=1e-5))


# other videos


def alike(frames: list[np.ndarray]) -> list[tuple[int, int]]:
    prints = [compute_fingerprint(each) for each in frames]
    pairs = combinations(range(len(frames)), 2)
    return [(one, other) for one, other in pairs if find_copy([prints[one]], [prints[other]])]


def test_no_two_of_many_walks_are_copies():
    walkers = [sample_clip(sample_subject(6, number), 0) for number in range(110)]
    walks = [render_walk(each, size=48, fps=8) for each in walkers]
    assert alike(walks) == []
    assert alike([*walks[:3], walks[0]]) == [(0, 3)]


@pytest.fixture(scope="module")
def one_room() -> list[np.ndarray]:
    """24 people who cross one room before one camera."""
    noise = np.random.default_rng(0)
    coarse = Image.fromarray(noise.integers(60, 200, size=(9, 16, 3), dtype=np.uint8))
    room = coarse.resize((160, 96), Image.Resampling.BICUBIC)
    bones = [(5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5)]
    films = []
    for number in range(24):
        clip = sample_clip(sample_subject(7, number), 0)
        step, start = (4 if clip.facing == "right" else -4), noise.integers(38, 58)
        legs, arms, width = (*map(tuple, noise.integers(0, 255, size=(2, 3))), noise.integers(4, 8))
        frames = []
        for time, joints in enumerate(keypoints(clip, size=64, fps=8)):
            picture, shift = room.copy(), start + step * (time - 4)
            for one, other in bones:
                ends = [(float(joints[joint, 0]) + shift, float(joints[joint, 1]) + 25) for joint in (one, other)]
                ImageDraw.Draw(picture).line(ends, fill=legs if other > 12 else arms, width=int(width))
            frames.append(np.asarray(picture.filter(ImageFilter.BoxBlur(1))))
        films.append(np.stack(frames))
    return films


def fade(film: np.ndarray) -> np.ndarray:
    shares = np.minimum(np.linspace(0.1, 2, len(film)), 1)[:, None, None, None]
    return (film * shares).astype(np.uint8)


def flicker(film: np.ndarray) -> np.ndarray:
    return (film * np.where(np.arange(len(film)) % 2, 0.85, 1.0)[:, None, None, None]).astype(np.uint8)


def start_black(film: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(film[:1], 16), film[1:]])


def title(film: np.ndarray) -> np.ndarray:
    card = Image.new("RGB", (film.shape[2], film.shape[1]), (20, 20, 20))
    ImageDraw.Draw(card).rectangle((30, 40, 130, 52), fill="white")
    return np.concatenate([np.stack([np.asarray(card)] * 2), film[2:]])


@pytest.mark.parametrize("effect", [np.asarray, fade, flicker, start_black, title])
def test_people_in_one_room_before_one_camera_are_no_copies(one_room, effect):
    pictures = [film.mean(axis=(0, 3)).ravel() for film in one_room]
    assert np.corrcoef(pictures).min() > 0.8  # a hash of the pictures would call all of them one video
    films = [effect(film) for film in one_room]
    assert alike(films) == []
    darker = (films[3] * 0.8).astype(np.uint8)
    assert alike([*films[:5], darker]) == [(3, 5)]


def test_still_videos_are_compared_by_their_picture():
    rng = np.random.default_rng(0)
    still = [np.tile(rng.integers(0, 255, (1, 40, 40, 3), dtype=np.uint8), (8, 1, 1, 1)) for _ in range(2)]
    assert alike([still[0], still[1]]) == []
    assert alike([still[0], still[0] // 2 + 40]) == [(0, 1)]  # darker
    assert compute_fingerprint(np.full((8, 40, 40, 3), 90, np.uint8)) is None


def test_videos_of_one_colour_and_broken_ones_are_no_copies_of_each_other(tmp_path):
    records = []
    for number, (part, shade) in enumerate((part, shade) for part in "abc" for shade in (10, 90)):
        file = tmp_path / f"{number}.mp4"
        write_video(file, np.full((6, 32, 32, 3), shade + number, np.uint8), fps=6)
        records.append(ClipRecord(f"c{number}", f"{part}{shade}", file))
    broken = [tmp_path / "broken.mp4", tmp_path / "empty.mp4"]
    broken[0].write_bytes(b"no video")
    broken[1].write_bytes(b"")
    more = [ClipRecord(file.stem, file.stem, file) for file in broken]
    check_disjoint(Split(train=(*records[:2], more[0]), val=tuple(records[2:4]), test=(*records[4:], more[1])))


def test_the_best_of_several_copies_is_named():
    rng = np.random.default_rng(0)
    films = [rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8) for _ in range(4)]
    noisy = np.clip(films[2].astype(int) + rng.integers(-30, 30, films[2].shape), 0, 255).astype(np.uint8)
    prints = [compute_fingerprint(film) for film in films]
    assert find_copy(prints[:2], prints[2:]) is None
    assert find_copy([], prints) is None
    row, column, most = find_copy(prints, [prints[3], compute_fingerprint(noisy)])
    assert (row, column, most) == (3, 0, pytest.approx(1, abs=1e-5))
    assert find_copy(prints[:3], [compute_fingerprint(noisy)])[:2] == (2, 0)


# spellings of a name


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("P01", "p1", True),
        ("Müller 007", "MÜLLER 7", True),
        ("001", "1", True),
        ("000", "0", True),
        ("１２", "12", True),
        ("p10", "p1", False),
        ("p101", "p11", False),
        ("p1-02", "p1-2", True),
        ("p100", "p1", False),
        ("anna", "anne", False),
    ],
)
def test_spellings_of_one_name(one, other, same):
    assert (fold_name(one) == fold_name(other)) is same


def test_two_spellings_of_a_subject_in_two_parts_are_a_leak(walking):
    records = read_manifest(walking / "manifest.csv")
    names = {"subject_08": "Subject_0"}
    renamed = [replace(record, subject_id=names.get(record.subject_id, record.subject_id)) for record in records]
    with pytest.raises(DataError, match="differ only by case or zeros") as raised:
        make_splits(renamed, DataConfig(folds=3))
    assert "subject_00" in str(raised.value)
    assert "Subject_0 " in str(raised.value)
    assert "\n" not in str(raised.value)
    check_disjoint(Split(train=tuple(renamed), val=(), test=()))  # whoever they are, they are in one part
