"""`make demo`'s script does what it says, and leaves the pictures whose paths it prints."""

import os
import sys
from pathlib import Path

import pytest
from environments import ROOT, run


@pytest.mark.slow
def test_the_demo_runs_and_says_what_fine_tuning_changed(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run("bash", ROOT / "scripts" / "demo.sh", cwd=tmp_path, env={"PATH": path})
    before = float(printed.split("rsum ")[1].split()[0])
    assert before > 300, printed  # chance is 16
    after = float(printed.split("clipse 4/5")[1].split("rsum ")[1].split()[0])
    assert after > 400, printed
    low, high = printed.split("rsum of adapted minus tiny: ")[1].split("(")[1].split(",")[0].split(" to ")
    assert float(low) < after - before < float(high)  # whether it is a gain, the interval says
    shown = printed.split("To look at")[1].split()
    assert {Path(name).name for name in shown[1:]} >= {"search.html", "loss.png", "retrieval.png", "weights.png"}
    assert all((tmp_path / name).stat().st_size > 0 for name in shown[1:])
