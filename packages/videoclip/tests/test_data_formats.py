"""data.root in each of its formats, and labels beyond the classes."""

import json
from pathlib import Path

import pytest
from helpers.files import write

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.formats import check_labels, read_clips
from videoclip.data.records import ClipRecord

HEAD = "clip_id,subject_id,video"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.mp4", "b ü.mp4", "a.npy", "joints.npy"):
        write(tmp_path / name, "x")
    return tmp_path


def test_a_folder_or_file_of_each_kind(folder):
    rows = f"{HEAD}\nc1,s1,a.mp4\n"
    line = json.dumps({"clip_id": "c2", "subject_id": "s1", "video": "a.mp4"})

    def names(path, **knobs):
        return [record.clip_id for record in read_clips(DataConfig(root=str(path), **knobs))]

    write(folder / "one/manifest.csv", rows.replace("a.mp4", "../a.mp4"))
    (folder / "one/videos").mkdir()
    assert names(folder / "one") == ["c1"]
    write(folder / "two/manifest.jsonl", line.replace("a.mp4", "../a.mp4"))
    assert names(folder / "two") == ["c2"]
    assert names(write(folder / "other.csv", rows)) == ["c1"]
    write(folder / "one/manifest.jsonl", line)
    with pytest.raises(DataError, match=r"one: holds manifest\.csv and manifest\.jsonl: name one of them"):
        names(folder / "one")
    assert names(folder / "one" / "manifest.csv") == ["c1"]
    with pytest.raises(DataError, match=r"1 missing file\(s\), first line 2: video .*gone\.mp4"):
        names(write(folder / "bad.csv", rows.replace("a.mp4", "gone.mp4")))
    assert names(folder / "bad.csv", on_error="skip") == ["c1"]


def test_roots_that_are_no_set(tmp_path):
    with pytest.raises(DataError, match=r"^data\.root=… is needed: a folder with manifest\.csv or .*labels\.csv"):
        read_clips(DataConfig())
    with pytest.raises(DataError, match=r"gone: no such file or folder; data\.root is "):
        read_clips(DataConfig(root=str(tmp_path / "gone")))
    with pytest.raises(DataError, match=r"no clips found; looked for manifest\.csv, manifest\.jsonl, and videos/"):
        read_clips(DataConfig(root=str(tmp_path)))
    (tmp_path / "videos" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"videos: no videos; expected videos/SUBJECT/NAME\.mp4"):
        read_clips(DataConfig(root=str(tmp_path)))


def test_labels_beyond_the_classes():
    records = [
        ClipRecord(clip_id=f"c{label}", subject_id="s", video=Path("a"), label=label) for label in (None, 2, 4, 3)
    ]
    check_labels(records, 5)
    with pytest.raises(DataError, match=r"^clip c4 has the label 4 \(2 clip\(s\) beyond 2\): .*model_class_num=5$"):
        check_labels(records, 3)
