"""Verbs and output that every command shares."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clip_common import cli

PROGRAM = textwrap.dedent(
    """
    from clip_common import cli

    app = cli.Application("toy", help="A toy.")
    cli.add_config_verb(app, package="toy", example="seed=2 > my.yaml")
    cli.add_prefetch_verb(app, package="toy", example="ViT-B-32 openai", name={name}, pretrained={pretrained})
    app()
    """
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("package")
    (root / "toy" / "configs").mkdir(parents=True)
    (root / "toy" / "__init__.py").touch()
    (root / "toy" / "config.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    seed: int = 1\n    size: int = 224\n"
    )
    (root / "toy" / "configs" / "small.yaml").write_text("size: 64\n")

    def run(*arguments, name=None, pretrained=None):
        (root / "program.py").write_text(PROGRAM.format(name=repr(name), pretrained=repr(pretrained)))
        command = [sys.executable, str(root / "program.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_config_prints_what_options_resolve_to(run):
    done = run("config", "--config", "small", "seed=2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "seed: 2\nsize: 64\n\n", "")
    done = run("config", "sed=2")
    assert (done.returncode, done.stderr) == (2, "error: sed: unknown key; did you mean seed?\n")
    assert "toy config seed=2 > my.yaml" in run("config", "--help").stdout


def test_prefetch_takes_a_name_or_has_a_default(run):
    assert "Missing argument 'name'" in run("prefetch").stderr
    help = run("prefetch", "--help", name="ViT-L-14", pretrained="openai").stdout
    assert "toy prefetch ViT-B-32 openai" in help
    assert "[default: ViT-L-14]" in help
    assert run("prefetch", "tiny").stdout.endswith(
        "tiny/open_clip_model.safetensors\n"
    )  # ships with clip_common: nothing is downloaded


def test_a_table_shows_names_as_they_are(capsys):
    cli.print_table(["class", "images"], [["[bold]a", "1,000"]], title="[red]parts")
    shown = capsys.readouterr().out
    for text in ("[bold]a", "1,000", "[red]parts", "class"):
        assert text in shown


def test_files_are_printed_one_a_line_however_long(capsys):
    long = Path("/".join(["folder"] * 40))
    cli.print_files("run", [long])
    cli.print_files("written to", [Path("a [1].png"), Path("b.png")])
    assert capsys.readouterr().out == f"run    {long}\nwritten to a [1].png\nwritten to b.png\n"


def test_an_announcement_is_a_line_on_stderr(capsys):
    cli.announce("[clip], seed 1")
    assert capsys.readouterr() == ("", "[clip], seed 1\n")


def test_problems_of_a_data_set_are_listed_and_fail(capsys):
    cli.check_no_problems(Path("parts"), [])
    with pytest.raises(ValueError, match=r"^parts: 2 problem\(s\), listed above$"):
        cli.check_no_problems(Path("parts"), ["[1].png: truncated", "b.png: empty"])
    assert capsys.readouterr().out == "[1].png: truncated\nb.png: empty\n"
    with pytest.raises(ValueError, match=r"listed above; skip it$"):
        cli.check_no_problems(Path("parts"), ["a"], advice="skip it")


def test_files_that_cannot_be_read_are_listed_and_fail(capsys):
    cli.check_all_read({}, of=3, what="images")
    with pytest.raises(ValueError, match=r"^1 of 3 images could not be read, listed above$"):
        cli.check_all_read({"a.png": "a.png: truncated"}, of=3, what="images")
    assert capsys.readouterr().out == "a.png: truncated\n"
