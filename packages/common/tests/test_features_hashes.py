"""Hashes of files are remembered, and forgotten when a file changes."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
import toy_features as toy
from PIL import Image

from clip_common.features import FeatureCache


@pytest.fixture
def bundle():
    return toy.toy_bundle()


@pytest.fixture
def images(tmp_path):
    """Three PNG files."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number} é.png" for number in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(file)
    return files


@pytest.fixture
def store(tmp_path):
    return FeatureCache(tmp_path / "cache ö")


def test_a_file_that_stays_the_same_is_hashed_once(bundle, images, store, monkeypatch):
    an_hour_ago = time.time() - 3600
    for image in images:
        os.utime(image, (an_hour_ago, an_hour_ago))
    rows = store.features(bundle.image, images)
    read = []
    monkeypatch.setattr("clip_common.features.jobs.read_content", lambda source: read.append(source))
    assert torch.equal(FeatureCache(store.root).features(bundle.image, images), rows)
    assert read == []


def test_a_file_that_changed_is_hashed_again(bundle, images, store, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(images[0], copy)
    os.utime(copy, (time.time() - 3600,) * 2)
    before = store.features(bundle.image, [copy])
    shutil.copy(images[1], copy)
    os.utime(copy, (time.time() - 1800,) * 2)
    assert not torch.equal(store.features(bundle.image, [copy]), before)
