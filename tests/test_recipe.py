"""The recipe of the tiny CLIP, in a version of five minutes: it learns, and typed again it does nothing twice."""

import json
import sys

import pytest
from helpers.environments import ROOT, run


@pytest.mark.slow
def test_five_minutes_of_the_recipe_learn_and_are_not_repeated(tmp_path):
    small = ["--folder", tmp_path / "small", "--scenes", 1000, "--parts", 500, "--epochs", 6, "--epochs-112", 1]
    command = [sys.executable, ROOT / "scripts" / "pretrain_tiny.py", *map(str, small)]
    folder = tmp_path / run(*command, cwd=tmp_path).splitlines()[-1]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))["val"]
    assert result["metrics"]["rsum"] > 220, result["metrics"]  # measured: 316
    assert result["chance_rsum"] < 25
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert "is finished" in run(*command, cwd=tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
