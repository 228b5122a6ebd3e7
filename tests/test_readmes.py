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
    "vlm": ["trainer.max_epochs=1"],
}
MORE = {"edgeglass": "docs/edgeglass-vlm.md"}
"""Package → page whose Python follows its two minutes, in the same folder."""


def blocks(text: str, languages: str) -> list[tuple[str, str]]:
    """Language and content of each block, in order."""
    return re.findall(rf"```({languages})\n(.*?)```", text, flags=re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", ["README.md", "packages/common/README.md"])
def test_the_python_of_a_readme_runs(readme, tmp_path):
    examples = blocks(read(readme), "python")
    assert examples
    for _, example in examples:
        run(sys.executable, "-c", example, cwd=tmp_path)


@pytest.mark.parametrize(("package", "lines"), [("clipse", 5), ("edgeglass", 6 + 2)])
def test_the_two_minutes_of_a_package_run_as_written_only_smaller(package, lines, tmp_path):
    section = read(f"packages/{package}/README.md").split("\n## Two minutes on a laptop\n")[1].split("\n## ")[0]
    printed = ""
    for language, block in blocks(section, "bash|python"):
        if language == "python":
            printed += run(sys.executable, "-c", block, cwd=tmp_path)
            continue
        for line in block.splitlines():
            run_smaller(line, cwd=tmp_path)
    assert len(printed.splitlines()) == lines
    if package in MORE:
        for _, example in blocks(read(MORE[package]), "python"):
            run(sys.executable, "-c", example, cwd=tmp_path)


def run_smaller(line: str, *, cwd: Path) -> None:
    """Run a command of a README on less data."""
    words = shlex.split(re.sub(r"--(train|per-picture) \d+", "", line))
    extra = next((more for verb, more in SMALL.items() if verb in words), [])
    few = ["--per-picture", "4"] if "--per-picture" in line else []
    run(sys.executable, "-m", *words, *extra, *few, cwd=cwd)
