"""`--help` of every verb of every command: quick, because no heavy library is imported, and with an example."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "numpy", "matplotlib", "PIL", "omegaconf", "open_clip", "transformers", "av"}
WALK = """
import contextlib, importlib, io, json, sys
import typer

def walk(command, words):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        command.main(args=["--help"], prog_name=" ".join(words), standalone_mode=False)
    helps[" ".join(words)] = " ".join(shown.getvalue().split())
    for name, verb in getattr(command, "commands", {}).items():
        walk(verb, [*words, name])

helps, package = {}, sys.argv[1]
walk(typer.main.get_command(importlib.import_module(f"{package}.cli.main").app), [package])
print(json.dumps({"helps": helps, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.mark.parametrize(
    ("package", "training"), [("clipse", "train"), ("aaclip", "train"), ("videoclip", "train"), ("edgeglass", "align")]
)
def test_help_of_every_verb_is_quick_and_shows_an_example(package, training):
    command = [sys.executable, "-c", WALK, package]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert not HEAVY & set(found["modules"])
    assert {f"{package} {training}", f"{package} config", f"{package} data check"} <= found["helps"].keys()
    for words, shown in found["helps"].items():
        if words not in (package, f"{package} data", f"{package} inspect"):  # groups of verbs
            assert "Example" in shown, words
            assert f"{words} " in shown.partition("Example")[2], words
