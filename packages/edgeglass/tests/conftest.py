"""Shared by edgeglass's tests: folders of small random encoders."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory) -> Path:
    """A folder with `text`, `audio`, `vision`, `dinov2` and `clip`, each as its library saves it."""
    from toy_encoders import save_clip, save_vision_encoder
    from toy_models import save_audio_encoder, save_text_encoder

    root = tmp_path_factory.mktemp("encoders ü")
    save_text_encoder(root / "text")
    save_audio_encoder(root / "audio")
    save_vision_encoder(root / "vision", kind="clip")
    save_vision_encoder(root / "dinov2", kind="dinov2")
    save_clip(root / "clip")
    return root
