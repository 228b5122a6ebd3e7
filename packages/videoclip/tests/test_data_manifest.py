"""Manifests and the simple layout: what is read, what is refused, and in which words."""

import csv
import itertools
import json
import unicodedata
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from clip_common.video import write_video
from videoclip.config import DataConfig
from videoclip.data.formats import check_labels, read_clips
from videoclip.data.layout import cut_spans, read_layout
from videoclip.data.manifest import COLUMNS, read_manifest, write_manifest
from videoclip.data.records import ClipRecord, group_by_subject

HEAD = "clip_id,subject_id,video"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.mp4", "b ü.mp4", "a.npy", "joints.npy"):
        write(tmp_path / name, "x")
    return tmp_path


def filmed(file: Path, *, seconds: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, np.zeros((round(10 * seconds), 32, 32, 3), dtype=np.uint8), fps=10)
    return file


def test_the_columns_are_the_fields_of_a_record():
    assert set(COLUMNS) == {field.name for field in fields(ClipRecord)}


def test_a_whole_row(folder):
    file = write(
        folder / "manifest.csv",
        "clip_id,subject_id,video,start_s,end_s,label,map,keypoints,regions_doctor1,regions_doctor2,fold,spans\n"
        "c1,s1,a.mp4,0.5,1.5,2,a.npy,joints.npy,foot; wrist,head;head,4,video\n"
        "c2,s1,b ü.mp4,,,,,,,,,\n",
    )
    assert read_manifest(file) == [
        ClipRecord(
            clip_id="c1", subject_id="s1", video=folder / "a.mp4", label=2, start_s=0.5, end_s=1.5,
            map=folder / "a.npy", keypoints=folder / "joints.npy", regions_doctor1=("foot", "wrist"),
            regions_doctor2=("head",), spans="video", fold=4,
        ),
        ClipRecord(clip_id="c2", subject_id="s1", video=folder / "b ü.mp4"),
    ]  # fmt: skip


def test_a_file_as_excel_and_pandas_write_it(folder):
    rows = f"\ufeff{HEAD},label\r\n 007 ,s1,a.mp4,1.0\r\n\r\nc2,s2,b ü.mp4, \r\n"
    records = read_manifest(write(folder / "list.CSV", rows))
    assert [(record.clip_id, record.label) for record in records] == [("007", 1), ("c2", None)]


def test_the_same_as_json_lines(folder):
    rows = [
        {"clip_id": 7, "subject_id": "s1", "video": "a.mp4", "label": 2.0, "regions_doctor1": ["foot"], "map": None},
        {"clip_id": "c\u2028x", "subject_id": "s2", "video": str(folder / "b ü.mp4"), "end_s": 2, "label": ""},
    ]
    file = write(folder / "m.jsonl", "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    first, second = read_manifest(file)
    assert (first.clip_id, first.label, first.regions_doctor1, first.map) == ("7", 2, ("foot",), None)
    assert (second.clip_id, second.video, second.end_s, second.label) == ("c\u2028x", folder / "b ü.mp4", 2.0, None)


def test_a_name_composed_in_two_ways_is_one_subject(folder):
    rows = f"{HEAD}\nc1,Jose\u0301,a.mp4\nc2,Jos\u00e9,a.mp4\n"
    assert list(group_by_subject(read_manifest(write(folder / "m.csv", rows)))) == ["Jos\u00e9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: no column clip_id, subject_id, video; needed are clip_id,subject_id,video"),
        ("clip_id,video\n", ", line 1: no column subject_id; needed are clip_id,subject_id,video"),
        (f"{HEAD}\n", ": holds no clips"),
        (f"{HEAD},lable\n", ", line 1: unknown column 'lable': did you mean label? known are clip_id, "),
        ("clip_id,subject,video\n", ", line 1: unknown column 'subject': did you mean subject_id? known are clip_id, "),
        (f"{HEAD},age\n", ", line 1: unknown column 'age': known are clip_id, "),
        (
            f"{HEAD},label,label\n",
            ", line 1: two columns of the same name, in clip_id,subject_id,video,label,label",
        ),
        (f"{HEAD}\nc1,s1\n", ", line 2: expected 3 cells as in the header, got fewer"),
        (f"{HEAD}\nc1,s1,a.mp4,4\n", ", line 2: expected 3 cells as in the header, got more"),
        (f'{HEAD}\nc1,s1,"a.mp4\n', ", line 2: not comma-separated values (unexpected end of data)"),
        (f"{HEAD}\nc1, ,a.mp4\n", ", line 2: expected subject_id as text, got nothing"),
        (f"{HEAD}\nc1,s1,\n", ", line 2: expected video as text, got nothing"),
        (f"{HEAD}\nc1,s1,a.mp4\n\nc1,s2,a.mp4\n", ", line 4: clip_id c1 is that of line 2 too: rename one"),
        (f"{HEAD},label\nc1,s1,a.mp4,ill\n", ", line 2: expected label to be a whole number from 0, got 'ill'"),
        (f"{HEAD},label\nc1,s1,a.mp4,1.5\n", ", line 2: expected label to be a whole number from 0, got '1.5'"),
        (f"{HEAD},label\nc1,s1,a.mp4,-1\n", ", line 2: expected label to be a whole number from 0, got '-1'"),
        (f"{HEAD},label\nc1,s1,a.mp4,nan\n", ", line 2: expected label to be a whole number from 0, got 'nan'"),
        (f"{HEAD},fold\nc1,s1,a.mp4,inf\n", ", line 2: expected fold to be a whole number from 0, got 'inf'"),
        (f"{HEAD},start_s\nc1,s1,a.mp4,-0.1\n", ", line 2: expected start_s to be seconds from 0, got '-0.1'"),
        (
            f"{HEAD},start_s,end_s\nc1,s1,a.mp4,2,2\n",
            ", line 2: expected end_s after start_s, got start_s=2 and end_s=2",
        ),
        (f"{HEAD},end_s\nc1,s1,a.mp4,0\n", ", line 2: expected end_s after start_s, got start_s=0 and end_s=0"),
        (
            f"{HEAD},regions_doctor2\nc1,s1,a.mp4,foot;foots\n",
            f", line 2: unknown region in regions_doctor2 'foots': did you mean foot? known are {', '.join(REGIONS)}",
        ),
        (f"{HEAD},spans\nc1,s1,a.mp4,all\n", ", line 2: expected spans to be clip or video, got 'all'"),
        (
            f"{HEAD},map\nc1,s1,a.mp4,b.npy\nc2,s1,c.mp4,\n",
            ": 2 missing file(s), first line 2: map FOLDER/b.npy: restore them, or mend the paths",
        ),
    ],
)
def test_each_mistake_in_a_table_is_one_line(folder, text, message):
    file = write(folder / "m.csv", text)
    with pytest.raises(DataError) as raised:
        read_manifest(file)
    line = str(raised.value)
    assert line.startswith(f"{file}{message.replace('FOLDER', str(folder))}")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ", line 1: not JSON ("),
        ("[1]", ", line 1: expected a JSON object, got '[1]'"),
        (
            '{"clip_id": "c", "subject": "s", "video": "a.mp4"}',
            ", line 1: unknown key 'subject': did you mean subject_id?",
        ),
        ('{"clip_id": "c", "video": "a.mp4"}', ", line 1: expected subject_id as text, got nothing"),
        ('{"clip_id": true, "subject_id": "s", "video": "a.mp4"}', ", line 1: expected clip_id as text, got True"),
        ('{"clip_id": "c", "subject_id": "s", "video": 5}', ", line 1: expected video as text, got 5"),
        (
            '{"clip_id": "c", "subject_id": "s", "video": "a.mp4", "label": true}',
            ", line 1: expected label to be a whole number from 0, got True",
        ),
        (
            '{"clip_id": "c", "subject_id": "s", "video": "a.mp4", "start_s": NaN}',
            ", line 1: expected start_s to be seconds from 0, got nan",
        ),
        (
            '{"clip_id": "c", "subject_id": "s", "video": "a.mp4", "label": 1' + 400 * "0" + "}",
            ", line 1: expected label to be a whole number from 0, got 1000",
        ),
        (
            '{"clip_id": "c", "subject_id": "s", "video": "a.mp4", "regions_doctor1": "foot;head"}',
            ", line 1: expected regions_doctor1 to be a list of regions, got 'foot;head'",
        ),
    ],
)  # fmt: skip
def test_each_mistake_in_json_lines_is_one_line(folder, row, message):
    file = write(folder / "m.jsonl", row)
    with pytest.raises(DataError) as raised:
        read_manifest(file)
    assert str(raised.value).startswith(f"{file}{message}")
    assert "\n" not in str(raised.value)


def test_files_that_are_no_manifest(tmp_path):
    (tmp_path / "m.csv").write_bytes(f"{HEAD}\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"m\.csv: not UTF-8 text"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"m\.xlsx: a manifest is a file \.csv or \.jsonl"):
        read_manifest(tmp_path / "m.xlsx")
    with pytest.raises(ValueError, match=r"m\.xlsx: a manifest is a file \.csv or \.jsonl"):
        write_manifest([], tmp_path / "m.xlsx")
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read \(No such file"):
        read_manifest(tmp_path / "gone.csv")


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).map(
    lambda name: unicodedata.normalize("NFC", name.strip()) or "ß"
)
PATHS = st.lists(NAMES.map(lambda name: name.replace("/", "_").replace(".", "_")), min_size=1, max_size=3)
SECONDS = st.floats(0, 1e4, allow_nan=False)


@st.composite
def some_records(draw) -> list[ClipRecord]:
    regions = st.lists(st.sampled_from(list(REGIONS)), unique=True).map(tuple)
    files = st.none() | PATHS.map(lambda parts: Path(*parts))
    records = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        start_s = draw(SECONDS)
        records.append(
            ClipRecord(
                clip_id=name,
                subject_id=draw(NAMES),
                video=Path(*draw(PATHS)),
                label=draw(st.none() | st.integers(0, 10**6)),
                start_s=start_s,
                end_s=draw(st.none() | st.floats(start_s, 1e5, exclude_min=True)),
                map=draw(files),
                keypoints=draw(files),
                regions_doctor1=draw(regions),
                regions_doctor2=draw(regions),
                spans=draw(st.sampled_from(["clip", "video"])),
                fold=draw(st.none() | st.integers(0, 9)),
            )
        )
    return records


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@settings(max_examples=60, deadline=None)
@given(records=some_records())
def test_what_is_written_is_read_again(tmp_path_factory, suffix, records):
    folder = tmp_path_factory.mktemp("set")
    below = [
        replace(
            record,
            video=folder / record.video,
            map=record.map and folder / record.map,
            keypoints=record.keypoints and folder / record.keypoints,
        )
        for record in records
    ]
    file = write_manifest(below, folder / f"manifest.{suffix}")
    assert read_manifest(file, require_files=False) == below
    assert str(folder) not in file.read_text(encoding="utf-8")


def test_a_manifest_beside_its_files_names_them_from_where_it_lies(folder):
    record = ClipRecord(clip_id="c", subject_id="s", video=folder / "a.mp4")
    (folder / "lists").mkdir()
    file = write_manifest([record], folder / "lists" / "m.csv")
    with file.open(newline="") as stream:
        assert next(csv.DictReader(stream))["video"] == "../a.mp4"
    assert read_manifest(file)[0].video.samefile(folder / "a.mp4")


# the simple layout


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
    write(tmp_path / "videos/Zoë/notes.txt", "x")
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


# which of them it is


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
    with pytest.raises(DataError, match=r"one: holds manifest\.csv and manifest\.jsonl: name the one that is meant"):
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
