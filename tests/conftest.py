"""Shared by the cross-package tests: fresh environments made with uv from the wheels of this checkout."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """The wheels of all five packages, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    run(uv(), "build", "--all-packages", "--wheel", "--out-dir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def constraints(tmp_path_factory) -> Path:
    """The workspace's pins, so that a fresh environment takes the versions that were tried (and that uv has cached)."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    file = tmp_path_factory.mktemp("pins") / "constraints.txt"
    file.write_text("\n".join(pins))
    return file


@pytest.fixture(scope="session")
def fresh_environment(tmp_path_factory, wheels, constraints) -> Callable[[str], Path]:
    """`fresh_environment("clipse")` -> the bin folder of a new environment holding that wheel and what it declares."""
    made: dict[str, Path] = {}

    def make(requirement: str) -> Path:
        if requirement not in made:
            folder = tmp_path_factory.mktemp("environment") / "venv"
            run(uv(), "venv", "--quiet", folder)
            install = [uv(), "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
            run(*install, "--find-links", wheels, "--constraint", constraints, requirement)
            made[requirement] = folder / "bin"
        return made[requirement]

    return make
