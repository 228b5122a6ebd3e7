"""The recipes of the tiny models, in versions of minutes: they learn, and typed again they do nothing twice."""

import json
import re
import sys

import pytest
from helpers.environments import ROOT, run

from clip_common.backbones import load_audio, load_language, load_text


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


@pytest.mark.slow
def test_two_minutes_of_the_encoders_learn_and_are_not_repeated(tmp_path):
    small = ["--folder", tmp_path / "small", "--scenes", 1000, "--steps", 200]
    command = [sys.executable, ROOT / "scripts" / "pretrain_tiny_encoders.py", *map(str, small)]
    shares = re.findall(r"  scene (\S+)", run(*command, cwd=tmp_path))
    assert len(shares) == 2
    assert min(map(float, shares)) > 0.5, shares  # chance: 0.005
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert run(*command, cwd=tmp_path).count("is finished") == 2
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    for what, load in (("text", load_text), ("audio", load_audio)):
        assert load(tmp_path / "small" / what).spec.kind == what
        assert f"# The tiny {what} encoder" in (tmp_path / "small" / what / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_minutes_of_the_language_model_learn_and_are_not_repeated(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "pretrain_tiny_decoder.py", "--steps", 100]
    command += ["--folder", tmp_path / "small", "--rows", 16, "--device", "cpu", "--workers", 1]
    losses = re.findall(r"  loss (\S+)", run(*map(str, command), cwd=tmp_path))
    assert float(losses[-1]) < 5, losses  # mean of all steps, measured: 4.3; all tokens alike: 6.3
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert "is finished" in run(*map(str, command), cwd=tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    assert load_language(tmp_path / "small").spec.width == 192
    assert "# The tiny language model" in (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
