"""Shared by edgeglass's tests: folders of small random encoders, and a small set to align them on."""

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


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A folder with `world` (images, captions and sounds) and the encoders `text` and `audio`."""
    from toy_alignments import prepare

    return prepare(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def small(parts, tmp_path) -> list[str]:
    """Overrides of a run that takes seconds and writes below `tmp_path`."""
    from toy_alignments import settings

    return settings(parts, tmp_path)


@pytest.fixture(scope="session")
def question_parts(tmp_path_factory) -> Path:
    """A folder with `questions` about small pictures and the language model `language`."""
    from toy_questions import prepare

    return prepare(tmp_path_factory.mktemp("questions ü"))


@pytest.fixture
def asked(question_parts, tmp_path) -> list[str]:
    """Overrides of a run of `edgeglass vlm` that takes seconds and writes below `tmp_path`."""
    from toy_questions import settings

    return settings(question_parts, tmp_path)
