"""`aaclip calibrate`, `predict` and `remember`: what they print and write."""

import json
import shutil

import pytest
from helpers.commands import refused, succeeded


def test_calibrate_goes_on_past_what_cannot_be_read(aaclip, saved, photos):
    (photos / "[b]bad.png").write_text("no")
    command = ["calibrate", saved, photos, "--name", "mug", "--target-fpr", 0.34]
    code, printed, error = aaclip(*command)
    assert code == 2
    assert error.strip() == "error: 1 of 4 images could not be read, listed above"
    assert "normal quantile of 3 normal images" in printed
    assert f"{photos / '[b]bad.png'}: not a readable image" in printed
    assert json.loads((saved / "config.json").read_text())["threshold"]["images"] == 3
    before = (saved / "config.json").read_text()
    for file in photos.iterdir():
        file.write_text("no")
    refused(aaclip(*command), "none of 4 images could be read")
    assert (saved / "config.json").read_text() == before


def test_calibrate_refuses_what_the_run_learned_from(aaclip, trained, photos, tmp_path):
    run = shutil.copytree(trained(), tmp_path / "run")
    before = (run / "model" / "config.json").read_text()
    refused(aaclip("calibrate", run, photos, "--name=mug"), "3 of 3 images to calibrate on", "learned from")
    assert (run / "model" / "config.json").read_text() == before


def test_predict_before_calibration_with_a_threshold_and_after_it(aaclip, saved, photos, tmp_path):
    out = tmp_path / "out"
    command = ["predict", saved, photos, "--name", "mug", "--out", out]
    assert "no verdicts yet: aaclip calibrate sets a threshold" in succeeded(aaclip(*command))
    verdicts = [json.loads(line)["verdict"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert verdicts == [None] * 3

    for threshold, verdict in ((0, "anomalous"), (1, "normal")):
        printed = succeeded(aaclip(*command, "--threshold", threshold))
        assert printed.count(verdict) == 3
        assert "no verdicts yet" not in printed
    assert "no verdicts yet" in succeeded(aaclip(*command))  # it was of that call alone

    said = succeeded(aaclip("calibrate", saved, photos, "--name", "mug", "--target-fpr", 0.34))
    assert "normal quantile of 3 normal images, target 34 % false alarms" in said
    printed = succeeded(aaclip(*command, "--html", tmp_path / "report.html"))
    assert (printed.count("anomalous"), printed.count(" normal")) == (1, 2)
    assert "3 normal" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 normal" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("threshold", ["2", "-0.5", "high"])
def test_predict_with_a_threshold_that_is_none(aaclip, saved, photos, tmp_path, threshold):
    command = ["predict", saved, photos, "--name=mug", "--out", tmp_path / "out"]
    refused(aaclip(*command, f"--threshold={threshold}"), "--threshold", "should be")


def test_calibrate_with_too_few_images_or_an_odd_rate(aaclip, saved, photos):
    command = ["calibrate", saved, photos, "--name", "mug"]
    refused(aaclip(*command, "--guarantee"), "3 normal images cannot promise it, 99 can")
    refused(aaclip(*command, "--target-fpr", "1.5"), "target_fpr=1.5", "expected a share")
    succeeded(aaclip(*command, "--guarantee", "--target-fpr", "0.25"))


def test_predict_goes_on_and_lists_every_failure_at_the_end(aaclip, saved, photos, tmp_path):
    for number in range(12):
        (photos / f"bad [b]{number}.png").write_text("no")
    cut = photos / "1.png"
    cut.write_bytes(cut.read_bytes()[:200])
    out, page = tmp_path / "out", tmp_path / "report.html"
    code, printed, error = aaclip("predict", saved, photos, "--name", "mug", "--out", out, "--html", page)
    assert code == 2
    assert error.strip() == "error: 13 of 15 images could not be read, listed above"
    assert printed.count("not a readable image") == 13
    assert f"{photos / 'bad [b]7.png'}: not a readable image" in printed
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    assert "13 could not be read" in page.read_text(encoding="utf-8")


def test_predict_on_names_that_look_like_markup(aaclip, saved, photos, tmp_path):
    folder = photos.rename(tmp_path / "x[")
    (folder / "0.png").rename(folder / "[bold]groß, 1.png")
    out = tmp_path / "[red]out"
    printed = succeeded(aaclip("predict", saved, f"{folder}/[[]bold]*", "--name", "[x] mug", "--out", out))
    assert f"written to {out}" in printed
    assert "[bold]groß,1.png" in "".join(printed.split())  # folded, whole


def test_predict_on_nothing_and_on_a_page_of_somebody_else(aaclip, saved, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.html").write_text("mine")
    for source in ("empty", "*.gif", "gone.png"):
        refused(aaclip("predict", saved, tmp_path / source, "--name=mug", "--out", tmp_path / "o"), "no picture there")
    command = ["predict", saved, photos, "--name=mug", "--out", tmp_path / "o", "--html", tmp_path / "mine.html"]
    refused(aaclip(*command), "mine.html exists and is no page of aaclip predict")
    refused(aaclip("predict", saved, photos, "--name=", "--out", tmp_path / "o"), "name of a thing is empty")
    assert not list(tmp_path.glob("o/*"))


def test_remember_then_test_with_a_memory(aaclip, saved, photos, parts, tmp_path):
    before = json.loads((saved / "config.json").read_text())
    code, printed, _ = aaclip("remember", saved, photos, "--name", "mug")
    assert code == 0
    assert "normal images of mug remembered" in printed
    assert json.loads((saved / "config.json").read_text()) == before | {"threshold": None}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused(aaclip("remember", saved, tmp_path / "broken.png", "--name", "mug"), "broken.png")
    code, printed, _ = aaclip("test", saved, parts, "--memory", 1, "--out", tmp_path / "results")
    assert code == 0
    assert "1 normal images of each class remembered" in (tmp_path / "results" / "results.md").read_text()
    refused(aaclip("test", saved, parts, "--memory", 99), "--memory 99", "ask for fewer")


def test_tiles_are_calibrated_with_and_predicted_with(aaclip, saved, photos, tmp_path):
    files = sorted(photos.glob("*.png")) or sorted(photos.rglob("*.png"))
    assert aaclip("calibrate", saved, *files, "--name", "mug", "--target-fpr", "0.5", "--tile", 24)[0] == 0
    assert json.loads((saved / "config.json").read_text())["threshold"]["tile"] == 24
    out = tmp_path / "out"
    refused(aaclip("predict", saved, files[0], "--name", "mug", "--out", out), "calibrated with tile=24, not None")
    assert not out.exists()
    assert aaclip("predict", saved, files[0], "--name", "mug", "--out", out, "--tile", 24)[0] == 0
    assert aaclip("predict", saved, files[0], "--name", "mug", "--out", out, "--threshold", 0.5)[0] == 0
