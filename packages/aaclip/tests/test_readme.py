"""The examples of the README and of docs/aaclip.md: some are run, the flags of all exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README, DOCS = ROOT / "packages" / "aaclip" / "README.md", ROOT / "docs" / "aaclip.md"
SMALL = {
    "synthetic": ["--good=2", "--damaged=1", "--size=32"],
    "train": ["data.classes=[mug,star]", "stages.text.epochs=1", "stages.image.epochs=1"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def lines() -> list[str]:
    indented = re.findall(r"(?m)^    (aaclip .*)$", DOCS.read_text(encoding="utf-8"))
    return [line for text in (*blocks("bash"), *indented) for line in re.split(r"\n| · ", text) if line]


@pytest.mark.filterwarnings("ignore:image score not fitted")
def test_the_two_minutes_run_as_written_only_smaller(aaclip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in blocks("bash")[0].splitlines():
        words = shlex.split(line)
        extra = next((more for verb, more in SMALL.items() if verb in words), [])
        code, _, error = aaclip(*words[1:], *extra)
        assert code == 0, f"{line}\n{error}"
    assert (tmp_path / "bells.html").stat().st_size > 0
    exec(blocks("python")[0], {})
    assert re.fullmatch(r"(normal|anomalous), score \d\.\d{3}, \d+ regions\n", capsys.readouterr().out)


@pytest.mark.parametrize("line", lines())
def test_every_flag_of_every_line_is_one_of_its_command(aaclip, line):
    words = shlex.split(line)
    verb = words[1:3] if words[1] in ("data", "inspect") else words[1:2]
    code, printed, _ = aaclip(*verb, "--help")
    assert code == 0
    shown = set(re.findall(r"--[\w-]+", printed))
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= shown
