"""`make demo`'s script does what it says, and leaves the pictures whose paths it prints."""

import os
import sys
from pathlib import Path

import pytest
from environments import ROOT, run


@pytest.mark.slow
def test_the_demo_runs_and_learns(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run("bash", ROOT / "scripts" / "demo.sh", cwd=tmp_path, env={"PATH": path})
    assert "attribute oracle" in printed
    rsum = float(printed.split("rsum ")[-1].split()[0])
    assert rsum > 100, printed  # chance on 200 images is about 18
    for plot in ("loss", "retrieval", "temperature"):
        assert (tmp_path / "runs" / "demo" / "runs" / "clipse" / "first" / "plots" / f"{plot}.png").exists()
