"""A small CLIP and a folder of photos to search."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from clip_common.backbones import load_clip
from clip_common.index import VectorIndex
from clipse import RetrievalModel, Retriever

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


SMALL = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}


ODD_NAMES = ('a <b>bold & "quoted" [red].png', "snow été 雪.png", "sub folder/with spaces.JPG")


def small(seed: int = 0) -> RetrievalModel:
    return RetrievalModel(load_clip("small", model_config=SMALL, seed=seed))


def draw(file: Path, *, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture of a few random patches: different seeds differ as scenes do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(file)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A CLIP of random weights, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Nine images, three of them with odd names."""
    folder = tmp_path / "photos"
    for seed in range(6):
        draw(folder / f"{seed}.png", seed=seed)
    for seed, name in enumerate(ODD_NAMES, start=6):
        draw(folder / name, seed=seed)
    return folder


@pytest.fixture
def search(clipse, model, photos, tmp_path, monkeypatch):
    """`search("a dog", "--k", 3)` -> what `clipse search` did, called in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(query, *options, folder=photos, source=model):
        return clipse("search", source, query, folder, *options)

    return call


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches of images that are encoded from here on."""
    sizes: list[int] = []
    original = RetrievalModel.encode_image

    def counting(self, images_B3HW):
        sizes.append(len(images_B3HW))
        return original(self, images_B3HW)

    monkeypatch.setattr(RetrievalModel, "encode_image", counting)
    return sizes


def stored_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").rglob("*") if path.is_file())


def stored_indexes(folder: Path) -> list[Path]:
    """Their folders."""
    return sorted({file.parent for file in stored_files(folder)})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file in a folder."""
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def vectors_of(retriever: Retriever) -> torch.Tensor:
    """The indexed vectors, in the order of the names."""
    return retriever.gallery.vectors(sorted(retriever.gallery.ids))


def index_of(names: Sequence[str], vectors_ND: torch.Tensor, *, store: Path | None = None) -> VectorIndex:
    index = VectorIndex(model="0" * 64, model_name="random", collection="photos", folder=store)
    index.add(names, vectors_ND, stamps=[f"{row} {row + 1}" for row in range(len(names))])
    return index


def random_index(*, images: int, width: int) -> VectorIndex:
    vectors_ND = functional.normalize(torch.randn(images, width), dim=-1)
    return index_of([f"{row:03d}.jpg" for row in range(images)], vectors_ND)
