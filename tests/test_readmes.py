"""The examples of the READMEs run as they stand."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers.environments import ROOT, run

SMALL = {
    "synthetic": ["--train", "64", "--val", "16", "--test", "16"],
    "train": ["trainer.max_epochs=1", "data.batch_size=32"],
    "align": ["trainer.max_epochs=1", "data.batch_size=32"],
}


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("readme", ["README.md", "packages/common/README.md"])
def test_the_python_of_a_readme_runs(readme, tmp_path):
    examples = blocks(ROOT / readme, "python")
    assert examples
    for example in examples:
        run(sys.executable, "-c", example, cwd=tmp_path)


@pytest.mark.parametrize(("package", "lines"), [("clipse", 5), ("edgeglass", 6)])
def test_the_two_minutes_of_a_package_run_as_written_only_smaller(package, lines, tmp_path):
    readme = ROOT / "packages" / package / "README.md"
    for line in blocks(readme, "bash")[0].splitlines():
        command = re.sub(r"--train \d+", "", line)
        words = shlex.split(command)
        extra = next((more for verb, more in SMALL.items() if verb in words), [])
        run(sys.executable, "-m", *words, *extra, cwd=tmp_path)
    printed = run(sys.executable, "-c", blocks(readme, "python")[0], cwd=tmp_path)
    assert len(printed.splitlines()) == lines
