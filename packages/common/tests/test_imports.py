"""What a module may import: a loss costs torch and numpy only, a command's help costs neither."""

import subprocess
import sys

import pytest

LOADED = "; print(*{name.partition('.')[0] for name in sys.modules})"


def modules_after(statement):
    """Return the top-level modules that a fresh process has loaded after a statement."""
    command = [sys.executable, "-c", f"import sys; {statement}{LOADED}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_losses_need_torch_and_numpy_only():
    assert modules_after("import clip_common.losses") - modules_after("import torch, numpy") == {"clip_common"}


@pytest.mark.parametrize("module", ["cli", "config", "runs", "runs.opening", "runs.series", "reporting", "errors"])
def test_what_every_command_imports_leaves_out_torch_and_numpy(module):
    loaded = modules_after(f"import clip_common.{module}")
    assert "clip_common" in loaded
    assert not {"torch", "numpy", "lightning", "PIL", "matplotlib"} & loaded


def test_the_command_line_waits_with_configurations():
    assert not {"omegaconf", "yaml"} & modules_after("import clip_common.cli")
