"""Commands in clean environments, for the cross-package tests."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

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
    clean = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env={**clean, **(env or {})}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout
