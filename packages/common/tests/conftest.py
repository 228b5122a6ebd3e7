"""Shared by the tests of clip_common."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Nothing here may reach for a network: a loader that tries must fail in the test, not in a user's hands.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models of a test are tiny: a second thread costs more than it brings, above all where tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine than about the code.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def real_asset(name: str) -> Path:
    """Folder of a real part, or skip with the reason."""
    folder = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets")) / name
    if not folder.exists():
        pytest.skip(f"{folder} is absent: real weights are fetched by hand, see CONTRIBUTING.md")
    return folder


@pytest.fixture
def real_asset_folder():
    return real_asset
