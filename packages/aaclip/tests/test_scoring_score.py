"""Results as JSON, CSV and Markdown: what is written is what is read back, whatever a class is called."""

import csv
import json
import os
import re

import numpy as np
import pytest

from aaclip.scoring.metrics import METRICS
from aaclip.scoring.score import LABELS, format_table, write_results

ODD = ["nut, metal", "a|b", "back\\|slash", "雪 “café”", "<b>*bold*</b> `code` [link]", "metal_nut"]


def values(first=0.5, **changes):
    """Each metric's value, a tenth of a percent apart."""
    row = {name: first + place / 1000 for place, name in enumerate(METRICS)}
    return row | {name.replace("__", "/"): value for name, value in changes.items()}


def written(folder, per_class, intervals=None, **options):
    arguments = {"title": "VisA, zero-shot", "note": "Trained on MVTec."} | options
    return write_results(folder, per_class, intervals or {}, **arguments)


def cells(line):
    """A row of a Markdown table, as GitHub splits and reads it."""
    inner = line.removeprefix("|").removesuffix("|")
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.findall(r"(?:\\.|[^\\|])+", inner)]


def tables(file):
    """The tables of a Markdown file, each a list of rows without the rule."""
    blocks = file.read_text(encoding="utf-8").split("\n\n")
    found = [[cells(line) for line in block.splitlines()] for block in blocks if block.startswith("|")]
    for rows in found:
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows.pop(1))) <= {"-", ":"}
    return found


def test_every_name_survives_in_all_three(tmp_path):
    per_class = {name: values(0.5 + place / 100) for place, name in enumerate(ODD)}
    as_json, as_csv, as_markdown = written(tmp_path / "new", per_class)
    assert [file.name for file in (as_json, as_csv, as_markdown)] == ["results.json", "results.csv", "results.md"]
    assert json.loads(as_json.read_text(encoding="utf-8"))["classes"] == per_class
    with as_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row.pop("class"): {name: float(cell) for name, cell in row.items()} for row in rows} == per_class
    (table,) = tables(as_markdown)
    assert [row[0] for row in table] == ["class", *ODD, "**mean**"]
    assert table[1][1:] == ["50.0", "50.1", "50.2", "50.3", "50.4", "50.5", "50.6"]
    assert not list((tmp_path / "new").glob(".*"))


def test_what_does_not_exist_is_said_and_is_no_zero(tmp_path):
    polyp = values(0.7, image__auroc=None, pixel__aupro=None)
    files = written(tmp_path, {"nut": values(0.5, pixel__aupro=None), "polyp": polyp})
    told = json.loads(files[0].read_text(encoding="utf-8"))
    assert told["classes"]["polyp"]["image/auroc"] is None
    assert told["mean"]["image/auroc"] == {"value": 0.5, "classes": 1}
    assert told["mean"]["pixel/aupro"] == {"value": None, "classes": 0}
    with files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image/auroc"] for row in rows] == ["0.5", ""]
    (table,) = tables(files[2])
    columns = {row[0]: dict(zip(table[0], row, strict=True)) for row in table}
    assert columns["polyp"]["image AUROC"] == columns["polyp"]["AUPRO@0.3"] == "n/a"
    mean = next(row for name, row in columns.items() if "mean" in name)
    assert mean["image AUROC"] == "**50.0 (1 of 2)**"
    assert mean["image AP"] == "**60.1**"
    assert mean["AUPRO@0.3"] == "**n/a**"


def test_numpy_numbers_are_numbers(tmp_path):
    per_class = {"nut": {"image/auroc": np.float64(0.25), "image/ap": np.float32(0.5)}}
    intervals = {"nut": {"image/auroc": (np.float64(0.125), np.float64(1))}}
    file, table, _ = written(tmp_path, per_class, intervals)
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["classes"] == {"nut": {"image/auroc": 0.25, "image/ap": 0.5}}
    assert told["intervals"] == {"nut": {"image/auroc": [0.125, 1.0]}}
    assert table.read_text(encoding="utf-8") == "class,image/auroc,image/ap\nnut,0.25,0.5\n"


def test_intervals_stand_below(tmp_path):
    intervals = {"nut": {"image/auroc": (0.4567, 0.95), "pixel/aupro": (0.0, 1.0)}, "a|b": {"image/auroc": (0.1, 0.2)}}
    markdown = written(tmp_path, {"nut": values(), "a|b": values()}, intervals)[2]
    _, below = tables(markdown)
    assert below == [
        ["class", "image AUROC", "AUPRO@0.3"],
        ["nut", "45.7–95.0", "0.0–100.0"],
        ["a|b", "10.0–20.0", "n/a"],
    ]


def test_the_file_reads_well_as_it_is(tmp_path):
    text = written(tmp_path, {"nut": values(), "a long name": values()}, title="VisA | all\nclasses")[2].read_text()
    heading, note, table, *_ = text.split("\n\n")
    assert heading == "# VisA \\| all classes"
    assert note == "Trained on MVTec."
    assert len({len(line) for line in table.splitlines()}) == 1  # columns line up
    assert text.endswith("\n")
    assert "\n\n\n" not in text


def test_names_that_are_no_utf8_and_names_of_several_lines(tmp_path):
    names = [os.fsdecode(b"latin \xe9"), "two\nlines"]
    files = written(tmp_path, dict.fromkeys(names, values()), {names[0]: {"image/auroc": (0.1, 0.2)}})
    told = json.loads(files[0].read_text(encoding="utf-8"))
    assert list(told["classes"]) == ["latin \N{REPLACEMENT CHARACTER}", "two\nlines"]
    assert list(told["intervals"]) == ["latin \N{REPLACEMENT CHARACTER}"]
    assert [row[0] for row in tables(files[2])[0]][1:3] == ["latin \N{REPLACEMENT CHARACTER}", "two lines"]


def test_a_second_test_replaces_the_first(tmp_path):
    written(tmp_path, {"nut": values(), "bolt": values()})
    files = written(tmp_path, {"screw": values()})
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "screw" in text
        assert "bolt" not in text


def test_a_class_may_be_called_mean_and_lack_columns():
    table = format_table({"mean": {"image/auroc": 1.0}, "nut": {"image/auroc": 0.0, "speed": 0.5}})
    assert table == [
        ["class", "image AUROC", "speed"],
        ["mean", "100.0", "n/a"],
        ["nut", "0.0", "50.0"],
        ["mean", "50.0", "50.0 (1 of 2)"],
    ]


def test_no_class_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="no results to write"):
        written(tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


def test_every_metric_has_a_label():
    assert list(LABELS) == list(METRICS)
