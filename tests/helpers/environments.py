"""Commands in clean environments, for the cross-package tests."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers.commands import Result

ROOT = Path(__file__).resolve().parents[2]


# A fresh environment is not this one; and it may keep what it compiles, whatever the machine says.
HIDDEN = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "UV_COMPILE_BYTECODE"}


def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    if not Path(found).exists():
        pytest.fail(f"{found} is absent: `make test` installs uv and passes its path in UV")
    return found


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command, fail the test with everything it printed if it fails, and return its standard output."""
    code, printed, error = attempt(*command, cwd=cwd, env=env)
    assert code == 0, f"{' '.join(map(str, command))}\n{printed}\n{error}"
    return printed


def attempt(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Run a command and return what it did."""
    clean = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env={**clean, **(env or {})}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr
