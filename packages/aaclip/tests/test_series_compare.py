"""`aaclip compare`: several detectors on one set."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import refused, succeeded

from aaclip.data import read_dataset
from aaclip.detector.calibration import UNFITTED, Threshold
from aaclip.detector.files import save_threshold
from aaclip.detector.predict import remember_files
from aaclip.scoring.stored import hash_scoring
from aaclip.series import compare as comparing
from aaclip.series.compare import compare
from clip_common.tensors import read_tensors, write_tensors


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the detectors that images were scored with, in order."""
    names: list[str] = []
    evaluate = comparing.evaluate

    def count(detector, *arguments, **options):
        names.append(detector.name)
        return evaluate(detector, *arguments, **options)

    monkeypatch.setattr(comparing, "evaluate", count)
    return names


def test_two_runs_and_plain_clip(aaclip, trained, other_parts, clip_folder, tmp_path):
    first, second = trained(), trained("stages.text.epochs=0")
    out = tmp_path / "out"
    printed = succeeded(aaclip("compare", first, second, f"local-dir:{clip_folder}", other_parts, "--out", out))
    for word in (first.name, second.name, "small", "bell", "mean over the classes", "AUPRO"):
        assert word in printed
    whole = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["runs"]
    assert list(whole) == [first.name, second.name, clip_folder.name]
    assert whole[first.name]["against_first"] is None
    for label in (second.name, clip_folder.name):
        for metric, paired in whole[label]["against_first"]["mean"].items():
            difference = whole[label]["mean"][metric] - whole[first.name]["mean"][metric]
            assert paired["difference"] == pytest.approx(difference)
            assert paired["low"] <= paired["high"]
    with (out / "comparison.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["run"], line["class"]) for line in lines] == [
        (label, name) for label in whole for name in ("bell", "mug", "mean")
    ]
    assert lines[0]["pixel/auroc low"] == ""
    assert float(lines[-1]["pixel/auroc difference"]) == pytest.approx(
        whole[clip_folder.name]["against_first"]["mean"]["pixel/auroc"]["difference"]
    )
    text = (out / "comparison.md").read_text(encoding="utf-8")
    assert text.count("## ") == 3
    assert "20 images" in text
    plots = sorted(file.name for file in out.glob("*.png"))
    assert plots == ["comparison-image-auroc.png", "comparison-pixel-aupro.png", "comparison-pixel-auroc.png"]


def test_an_unfitted_score_is_told(aaclip, saved, detector, other_parts, tmp_path):
    detector.score = UNFITTED
    unfitted = detector.save_pretrained(tmp_path / "unfitted")
    printed = succeeded(aaclip("compare", saved, unfitted, other_parts, "--out", tmp_path / "out"))
    assert f"aaclip fit-score {unfitted}" in printed
    assert f"aaclip fit-score {saved}" not in printed


def test_a_copy_of_a_run_differs_by_nothing(trained, other_parts, tmp_path):
    copy = shutil.copytree(trained(), tmp_path / "copy")
    found = compare([trained(), copy], other_parts, out=tmp_path / "out", samples=50)
    assert {(paired.difference, paired.low, paired.high) for paired in found.rows[1].against.mean.values()} == {
        (0, 0, 0)
    }


def test_scores_are_kept_until_something_changes(trained, other_parts, tmp_path, counted):
    first, second = trained(), Path(shutil.copytree(trained("stages.text.epochs=0"), tmp_path / "second"))
    root = Path(shutil.copytree(other_parts, tmp_path / "set"))
    options = {"out": tmp_path / "out", "samples": 20}
    before = compare([first, second], root, **options)
    again = compare([second, first], root, **options)
    assert counted == [first.name, "second"]
    assert again.rows[1].evaluation.mean == before.rows[0].evaluation.mean
    file = next((root / "bell").rglob("*.png"))
    file.write_bytes(next((root / "mug").rglob("*.png")).read_bytes())  # another picture in its place
    compare([first, second], root, **options)
    assert counted[2:] == [first.name, "second"]


@pytest.mark.parametrize("change", ["picture", "mask", "label", "weights", "threshold", "memory", "versions"])
def test_everything_that_scores_depend_on_is_in_the_key(trained, other_parts, tmp_path, change, monkeypatch):
    run, root = (Path(shutil.copytree(one, tmp_path / name)) for one, name in ((trained(), "run"), (other_parts, "s")))
    records = read_dataset(root).of(split="test")
    before = hash_scoring(run, records)
    assert hash_scoring(run, read_dataset(root).of(split="test")) == before
    if change in ("picture", "mask"):
        record = next(record for record in records if record.anomalous)
        file = record.image if change == "picture" else record.mask
        file.write_bytes(file.read_bytes() + b" ")
    elif change == "label":
        records = records[1:]
    elif change == "versions":
        monkeypatch.setattr("aaclip.scoring.stored.VERSION", 0)
    elif change == "weights":
        file = run / "model" / "model.safetensors"
        tensors = read_tensors(file)
        write_tensors(file, tensors | {"level_logits": tensors["level_logits"] + 1})
    elif change == "threshold":
        save_threshold(run, Threshold(0.5, method="given"))
    else:
        remember_files(run, [str(records[0].image)], name="mug")
    assert hash_scoring(run, records) != before


def test_prompts_of_a_file_are_in_the_key(small, other_parts, tmp_path):
    from aaclip.training.experiment import resolve, train

    file = tmp_path / "own.yaml"
    file.write_text("normal: ['{}']\nabnormal: ['broken {}']\ntemplates: ['a {}.']\n")
    more = [f"prompts.set={file}", "name=own", "stages.text.epochs=0", "stages.image.epochs=0"]
    run = train(resolve(overrides=[*small, *more])).run.path
    records = read_dataset(other_parts).of(split="test")
    before = hash_scoring(run, records)
    file.write_text(file.read_text().replace("broken", "bent"))
    assert hash_scoring(run, records) != before


def test_a_picture_that_cannot_be_read_counts_for_none(aaclip, trained, other_parts, tmp_path):
    root = Path(shutil.copytree(other_parts, tmp_path / "set"))
    bad = sorted((root / "bell" / "test" / "good").iterdir())[0]
    bad.write_bytes(b"no")
    command = ("compare", trained(), trained("stages.text.epochs=0"), root, "--out", tmp_path / "out")
    for _ in range(2):  # also when the scores are read again
        code, printed, error = aaclip(*command)
        assert code == 2
        assert "1 of 20 images could not be read" in error
        assert bad.name in printed.replace("\n", "")
    assert "19 images" in (tmp_path / "out" / "comparison.md").read_text()


def test_what_compare_refuses(aaclip, trained, parts, other_parts, tmp_path):
    run, out = trained(), ("--out", tmp_path / "out")
    refused(aaclip("compare", run, other_parts, *out), "is no run of `aaclip feedback`: name a second run")
    refused(aaclip("compare", run, *out), "is no run of `aaclip feedback`")
    refused(aaclip("compare", run, run, other_parts, *out), "is given twice")
    refused(aaclip("compare", run, other_parts, other_parts, *out), "neither a run folder nor a saved model")
    refused(aaclip("compare", run, trained("stages.text.epochs=0"), parts, *out), "learned from")
    refused(aaclip("compare", run, trained("stages.text.epochs=0"), tmp_path / "gone", *out), "no such folder")
    assert not (tmp_path / "out").exists()
