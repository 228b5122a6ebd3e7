"""Folders of videos and maps with labels.csv: clips cut from videos, labels, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.files import write
from hypothesis import given
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.video import write_video
from videoclip.config import DataConfig
from videoclip.data.formats import read_clips
from videoclip.data.layout import cut_spans, read_layout


def filmed(file: Path, *, seconds: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, np.zeros((round(10 * seconds), 32, 32, 3), dtype=np.uint8), fps=10)
    return file


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.0, [(0, 1), (1, 2)]),
        (2.4, [(0, 1), (1, 2)]),
        (2.5, [(0, 1), (1, 2), (2, 2.5)]),
        (1.98, [(0, 1), (1, 1.98)]),
        (0.2, [(0, 0.2)]),
    ],
)
def test_where_a_video_is_cut(seconds, expected):
    assert cut_spans(seconds, clip_seconds=1) == expected


@given(st.floats(0.01, 1000), st.floats(0.05, 10))
def test_clips_follow_each_other_and_none_is_short(seconds, length):
    spans = cut_spans(seconds, clip_seconds=length)
    assert spans[0][0] == 0
    assert spans[-1][1] <= seconds
    assert seconds - spans[-1][1] <= length / 2 * (1 + 1e-9)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert len(spans) == 1 or all(end - start >= length / 2 * (1 - 1e-6) for start, end in spans)


@pytest.fixture
def simple(tmp_path) -> Path:
    filmed(tmp_path / "videos/subject_x/gait.mp4", seconds=2.6)
    filmed(tmp_path / "videos/Zoë/there.mp4", seconds=1)
    filmed(tmp_path / "videos/Zoë/back.mp4", seconds=1.3)
    write(tmp_path / "videos/.DS_Store", "x")
    write(tmp_path / "attention_maps/subject_x/attention.npy", "x")
    write(tmp_path / "attention_maps/Zoë/back.npy", "x")
    write(tmp_path / "labels.csv", "subject_id,label\nsubject_x,1\nZoë,\n")
    return tmp_path


def test_the_simple_layout(simple):
    records = read_clips(DataConfig(root=str(simple)))
    assert [(record.clip_id, record.label, record.start_s, record.end_s) for record in records] == [
        ("Zoë_back_000", None, 0, 1),
        ("Zoë_there_000", None, 0, 1),
        ("subject_x_gait_000", 1, 0, 1),
        ("subject_x_gait_001", 1, 1, 2),
        ("subject_x_gait_002", 1, 2, pytest.approx(2.6)),
    ]
    assert {record.spans for record in records} == {"video"}
    maps = [simple / "attention_maps" / name for name in ("Zoë/back.npy", "subject_x/attention.npy")]
    assert [record.map for record in records] == [maps[0], None, maps[1], maps[1], maps[1]]
    assert [record.subject_id for record in records] == ["Zoë", "Zoë", "subject_x", "subject_x", "subject_x"]
    assert len(read_clips(DataConfig(root=str(simple), clip_seconds=0.5))) == 2 + 3 + 5


def test_labels_by_video(simple):
    write(
        simple / "labels.csv",
        "video,label\nvideos/Zoë/back.mp4,0\nvideos/Zoë/there.mp4,2\nvideos/subject_x/gait.mp4,1\n",
    )
    assert [record.label for record in read_layout(simple, clip_seconds=1)] == [0, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("subject_id,label\nZoë,0\n", ": no line for 1 video(s), first ROOT/videos/subject_x/gait.mp4: add one, with"),
        (
            "subject_id,label\nyou,0\n",
            ", line 2: there is no video of subject_id you; expected videos/SUBJECT/NAME.mp4",
        ),
        ("subject_id,label\nZoë,0\nZoë,0\n", ", line 3: ROOT/videos/Zoë/back.mp4 has a label already: leave one line"),
        ("subject_id,label\nZoë,x\n", ", line 2: expected label to be a whole number from 0, got 'x'"),
        ("subject_id,video,label\nZoë,a,1\n", ", line 1: expected subject_id,label or video,label, got subject_id,"),
        ("label\n1\n", ", line 1: expected subject_id,label or video,label, got label"),
        ("subject,label\nZoë,0\n", ", line 1: unknown column 'subject': did you mean subject_id?"),
    ],
)
def test_mistakes_in_the_labels(simple, labels, message):
    file = write(simple / "labels.csv", labels)
    with pytest.raises(DataError) as raised:
        read_layout(simple, clip_seconds=1)
    assert str(raised.value).startswith(f"{file}{message}".replace("ROOT", str(simple)))


def test_files_that_do_not_fit_the_layout(simple):
    def refused(message):
        with pytest.raises(DataError, match=message):
            read_layout(simple, clip_seconds=1)

    stray = write(simple / "attention_maps/Zoë/attention.npy", "x")
    refused(r"Zoë/attention\.npy: the map of no video: name it as one of back\.mp4, there\.mp4$")
    stray.unlink()
    stray = write(simple / "attention_maps/ghost/gait.npy", "x")
    refused(r"attention_maps/ghost: maps of a subject without videos; expected .*videos/ghost$")
    stray.unlink()
    stray.parent.rmdir()
    stray = write(simple / "videos/gait.mp4", "x")
    refused(r"videos/gait\.mp4: a file in no subject's folder; expected .*videos/SUBJECT/gait\.mp4$")
    stray.unlink()
    stray = write(simple / "videos/Zoë/back.avi", "x")
    refused(r"videos/Zoë: back\.avi and back\.mp4 have the same name: rename one of them$")
    stray.unlink()
    (simple / "labels.csv").unlink()
    refused(r"labels\.csv: no such file; expected the columns subject_id,label or video,label$")


def test_a_broken_video_is_an_error_or_one_clip_to_leave_out(simple):
    write(simple / "videos/Zoë/back.mp4", "no video")
    with pytest.raises(DataError, match=r"back\.mp4"):
        read_clips(DataConfig(root=str(simple)))
    broken = read_clips(DataConfig(root=str(simple), on_error="skip"))[0]
    assert (broken.clip_id, broken.start_s, broken.end_s) == ("Zoë_back_000", 0, None)


def test_reading_a_folder_decodes_nothing(tmp_path, monkeypatch):
    """Its length is in a video's index, and in the header of an .npz; not even one frame is decoded for a size."""
    filmed(tmp_path / "videos" / "anna" / "gait.mp4", seconds=2)
    many = tmp_path / "videos" / "berta" / "gait.npz"
    many.parent.mkdir()
    np.savez_compressed(many, frames=np.zeros((25, 16, 16, 3), dtype=np.uint8), fps=10.0)
    write(tmp_path / "labels.csv", "subject_id,label\nanna,0\nberta,1\n")

    def decoded(*arguments, **keywords):
        pytest.fail("pixels were read")

    for place in ("packets.decode_frames", "packets.read_size", "decoding._load_npz"):
        monkeypatch.setattr(f"videoclip.data.{place}", decoded)
    records = read_clips(DataConfig(root=str(tmp_path)))
    spans = [(record.subject_id, record.start_s, record.end_s) for record in records]
    assert spans == [("anna", 0, 1), ("anna", 1, 2), ("berta", 0, 1), ("berta", 1, 2), ("berta", 2, 2.5)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"frames": np.zeros((0, 4, 4, 3), dtype=np.uint8)}, "expected `frames` of shape"),
        ({"frames": np.zeros((4, 4, 4, 3), dtype=np.uint8), "fps": 0.0}, "expected `fps` above 0, got 0"),
        ({"frames": np.zeros((4, 4, 4, 3), dtype=np.uint8), "fps": np.nan}, "expected `fps` above 0, got nan"),
        ({"pixels": np.zeros((4, 4, 4, 3), dtype=np.uint8)}, "expected an .npz with an array `frames`"),
    ],
)
def test_an_npz_without_a_length_is_refused(tmp_path, arrays, message):
    (tmp_path / "videos" / "anna").mkdir(parents=True)
    np.savez(tmp_path / "videos" / "anna" / "gait.npz", **arrays)
    write(tmp_path / "labels.csv", "subject_id,label\nanna,0\n")
    with pytest.raises(DataError, match=message):
        read_clips(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("suffix", [".mts", ".wmv", ".vob", ".MPG", ".m4v", ".avi", ".ts", ".3gp"])
def test_videos_of_any_camera_are_found(simple, suffix):
    (simple / "videos/Zoë/back.mp4").rename(simple / f"videos/Zoë/back{suffix}")
    assert [record.video.name for record in read_layout(simple, clip_seconds=1)][:2] == [f"back{suffix}", "there.mp4"]


def test_what_is_left_out_is_counted(simple):
    for name in ("videos/Zoë/notes.txt", "videos/subject_x/a.TXT", "videos/Zoë/README", "attention_maps/Zoë/a.fig"):
        write(simple / name, "x")
    write(simple / "videos/Zoë/.DS_Store", "x")
    told = r"4 file\(s\) left out \(2 of \.txt, 1 of no suffix, 1 of \.fig\), such as videos/Zoë/README"
    with pytest.warns(UserWarning, match=told):
        assert len(read_layout(simple, clip_seconds=1)) == 5
    for video in (simple / "videos").glob("*/*.mp4"):
        video.unlink()
    with pytest.raises(DataError, match=rf"no videos; expected videos/SUBJECT/NAME\.mp4; {told}"):
        read_layout(simple, clip_seconds=1)
