"""Alignment models of random weights over tiny encoders, and a collection to search."""

from pathlib import Path

import pytest
import toy_models

from clip_common.config import load_config
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.models.building import build_model

WIDTH = 32
ODD_NAMES = ("a <b>bold & [red].png", "snow été 雪.png", "sub folder/with spaces.JPG")
LINES = ("a red ball", "the dog runs", "two green boxes")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> Path:
    """A folder with the encoders `text` and `audio`."""
    folder = tmp_path_factory.mktemp("encoders")
    toy_models.save_text_encoder(folder / "text")
    toy_models.save_audio_encoder(folder / "audio")
    return folder


def configure(encoders: Path, *overrides: str) -> Config:
    names = [
        "encoders.vision.name=tiny",
        f"encoders.text.name={encoders / 'text'}",
        f"encoders.audio.name={encoders / 'audio'}",
        f"mrl.width={WIDTH}",
        "mrl.dims=[16,8]",
    ]
    return load_config(Config, overrides=[*names, *overrides])


def make_aligner(encoders: Path, *overrides: str) -> Aligner:
    config = configure(encoders, *overrides)
    return Aligner(build_model(config), config)


@pytest.fixture(scope="session")
def saved(encoders, tmp_path_factory) -> Path:
    """A model of three modalities, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    make_aligner(encoders).save_pretrained(folder)
    return folder


@pytest.fixture
def aligner(saved) -> Aligner:
    return Aligner.from_pretrained(saved)


@pytest.fixture
def collection(tmp_path) -> Path:
    """Seven images, three of them with odd names, three sounds, and three lines of text."""
    folder = tmp_path / "collection"
    for seed in range(4):
        toy_models.draw_image(folder / f"{seed}.png", seed=seed)
    for seed, name in enumerate(ODD_NAMES, start=4):
        toy_models.draw_image(folder / name, seed=seed)
    for seed in range(3):
        toy_models.write_sound(folder / "sounds" / f"{seed}.wav", seed=seed)
    (folder / "notes.txt").write_text("\n".join((LINES[0], "", *LINES[1:])) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def encoded(monkeypatch) -> dict[str, int]:
    """Number of items of each modality that are encoded from here on."""
    counts = dict.fromkeys(("image", "text", "audio"), 0)
    original = Aligner.batches

    def counting(self, modality, items, *, batch_size):
        for rows, vectors_BD, failed in original(self, modality, items, batch_size=batch_size):
            counts[modality] += len(rows)
            yield rows, vectors_BD, failed

    monkeypatch.setattr(Aligner, "batches", counting)
    return counts
