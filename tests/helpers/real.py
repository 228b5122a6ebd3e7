"""Real weights and data for tests marked `real`; a test skips, with the reason, where a part is absent."""

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder of a real data set."""
    return _find_part("CLIP_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "assets" / "data", name)


def real_model(name: str) -> Path:
    """The folder of a model with real weights."""
    return _find_part("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets", name)


def _find_part(variable: str, default: Path, name: str) -> Path:
    folder = Path(os.environ.get(variable, default)) / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent: set {variable} to the folder that holds it")
    return folder
