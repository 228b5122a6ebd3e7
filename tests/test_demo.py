"""`make demo`'s script does what it says, and leaves the pictures whose paths it prints."""

import os
import re
import sys
from pathlib import Path

import pytest
from helpers.environments import ROOT, run


def accuracies(printed: str) -> list[float]:
    """Accuracy, majority, and accuracy with swapped images, over all questions, as `edgeglass vlm-eval` prints them."""
    row = re.search(r"(?m)^ *all  .*$", printed)[0]
    accuracy, _, majority, swapped = re.findall(r"\d\.\d{3}", re.sub(r"\(\d\.\d{3} to( \d\.\d{3}\))?", "", row))
    return [float(number) for number in (accuracy, majority, swapped)]


@pytest.mark.slow
def test_the_demo_runs_and_says_what_training_changed(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run("bash", ROOT / "scripts" / "demo.sh", cwd=tmp_path, env={"PATH": path})
    before = float(printed.split("rsum ")[1].split()[0])
    assert before < 200, printed  # chance is 16
    low = float(printed.split("rsum of sanw_bandpass-s0 minus tiny: ")[1].split("(")[1].split(" to ")[0])
    assert low > 60, printed
    plain, trained = (
        [float(number) for number in printed.split(step)[1].split("mean ")[1].split("\n")[0].split()]
        for step in ("aaclip 2/5", "aaclip 4/5")
    )  # in the order of the table: image AUROC first, pixel AUROC fourth
    assert trained[0] > 80, printed
    assert trained[3] > 88 > plain[3] + 20, printed
    assert "anomalous" in printed.split("aaclip 5/5")[1]
    guided = float(printed.split("videoclip 3/4")[1].split("accuracy ")[1].split()[0])
    assert guided > 0.4, printed  # always the most frequent class: a third
    scored = printed.split("edgeglass 3/8")[1]
    for direction in ("image → text", "audio → text", "image → audio"):
        assert float(scored.split(direction)[1].split()[0]) > 0.75, printed  # chance is .005
    assert "recall@5 of exact search" in printed.split("edgeglass 5/8")[1]
    answered = printed.split("edgeglass 8/8")[1]
    accuracy, majority, swapped = accuracies(answered)
    assert accuracy >= 0.35, printed
    assert accuracy > majority, printed
    assert accuracy >= swapped + 0.1, printed
    assert abs(swapped - majority) < 0.1, printed
    assert "how many things are there?" in answered
    shown = printed.split("To look at")[1].split()
    pictures = {
        "search.html",
        "sounds.html",
        "answers.html",
        "widths-test.png",
        "bells.html",
        "00042_overlay.png",
        "loss.png",
        "retrieval.png",
        "weights.png",
    }
    assert {Path(name).name for name in shown[1:]} >= pictures
    assert all((tmp_path / name).stat().st_size > 0 for name in shown[1:])
