"""Shared by the cross-package tests: fresh environments made with uv from the wheels of this checkout."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.environments import ROOT, run, uv


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
