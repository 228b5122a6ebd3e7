"""Manifests: what is read, what is refused, and in which words."""

import csv
import json
import unicodedata
from dataclasses import fields, replace
from pathlib import Path

import pytest
from helpers.files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from videoclip.data.manifest import COLUMNS, read_manifest, write_manifest
from videoclip.data.records import ClipRecord, group_by_subject

HEAD = "clip_id,subject_id,video"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.mp4", "b ü.mp4", "a.npy", "joints.npy"):
        write(tmp_path / name, "x")
    return tmp_path


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
        (f"{HEAD}\nc1,s1,a.mp4\n\nc1,s2,a.mp4\n", ", line 4: clip_id c1 is already on line 2: rename one"),
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
            ": 2 missing file(s), first line 2: map FOLDER/b.npy: restore them, or correct the paths",
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
    with pytest.raises(DataError, match=r"m\.xlsx: a manifest is a \.csv or \.jsonl file"):
        read_manifest(tmp_path / "m.xlsx")
    with pytest.raises(ValueError, match=r"m\.xlsx: a manifest is a \.csv or \.jsonl file"):
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
