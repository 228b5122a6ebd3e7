"""The examples of the README and of docs/videoclip.md: some are run, the flags and keys of all exist."""

import re
import shlex
from pathlib import Path

import pytest

from clip_common.config import load_config
from videoclip.config import AblateConfig, Config, CrossValidationConfig
from videoclip.config.upstream import UPSTREAM

ROOT = Path(__file__).parents[3]
README, DOCS = ROOT / "packages" / "videoclip" / "README.md", ROOT / "docs" / "videoclip.md"
SMALL = {
    "synthetic": ["--subjects=15", "--size=32"],
    "train": ["data.size=32", "data.frames=4", "trainer.max_epochs=1", "trainer.devices=cpu"],
}
NEEDED = {"model.guide": ("model.map_guided=true",), "model.align_tokens": ("model.align_pool=mean",)}
"""What a switch of the text needs beside it to be accepted."""
OWN = {"folds": CrossValidationConfig, "seeds": AblateConfig}
"""Keys of `cv` and `ablate` besides those of a run."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def lines() -> list[str]:
    indented = re.findall(r"(?m)^    (videoclip .*)$", DOCS.read_text(encoding="utf-8"))
    return [line for text in (*blocks("bash"), *indented) for line in re.split(r"\n| · ", text) if line]


def switches() -> list[str]:
    """`section.field` and `section.field=value` in running text; a line break may stand before a value."""
    text = README.read_text(encoding="utf-8") + DOCS.read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`((?:data|model|loss|optim|trainer)\.\w+(?:=[\w.]*)?)`", text)))


def test_the_five_minutes_run_as_written_only_smaller(videoclip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in blocks("bash")[0].splitlines():
        words = shlex.split(line)
        extra = next((more for verb, more in SMALL.items() if verb in words), [])
        code, _, error = videoclip(*words[1:], *extra)
        assert code == 0, f"{line}\n{error}"
    assert len(list(tmp_path.glob("runs/videoclip/first/plots/overlays/*.png"))) == 2
    assert (tmp_path / "predictions" / "clip_00.png").stat().st_size > 0
    exec(blocks("python")[0], {})
    assert re.fullmatch(r"(normal|dragging foot|stiff arm) \[\d\.\d+, \d\.\d+, \d\.\d+\]\n", capsys.readouterr().out)


@pytest.mark.parametrize("line", lines())
def test_every_flag_and_key_of_every_line_is_one_of_its_command(videoclip, line):
    words = shlex.split(line.removeprefix("python -m "))[1:]
    verb = words[: 2 if words[0] == "data" else 1] if "=" not in words[0] else ["train"]
    code, printed, _ = videoclip(*verb, "--help")
    assert code == 0
    shown = set(re.findall(r"--[\w-]+", printed))
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= shown
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    own = [text for text in overrides if text.partition("=")[0] in OWN]
    for text in own:
        load_config(OWN[text.partition("=")[0]], overrides=[text])
    load_config(Config, overrides=[text for text in overrides if text not in own])


@pytest.mark.parametrize("switch", switches())
def test_every_switch_of_the_text_exists(switch):
    key, _, value = switch.partition("=")
    if key in UPSTREAM:  # the docs say what it is here
        return
    section, name = key.split(".")
    assert hasattr(getattr(Config(), section), name)
    if value not in ("", "FILE", "RUN"):
        load_config(Config, overrides=[*NEEDED.get(key, ()), switch])
