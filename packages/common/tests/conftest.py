"""Shared by the tests of clip_common."""

import os
from pathlib import Path

import pytest


def real_asset(name: str) -> Path:
    """Folder of a real part, or skip with the reason."""
    folder = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets")) / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent: real weights are fetched by hand, see CONTRIBUTING.md")
    return folder


@pytest.fixture
def real_asset_folder():
    return real_asset
