"""One reader behind everything: feature cache, preprocessing and `read_image` see the same pixels of every picture."""

from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
import toy_features
import toy_images
from PIL import Image

from clip_common import images, pixels
from clip_common.backbones import ImageFeed
from clip_common.features import FeatureCache


class Spy:
    """A preprocessing that keeps the pictures that it was given."""

    def __init__(self, inner):
        self.inner, self.size, self.key = inner, inner.size, inner.key
        self.given = []

    def __call__(self, image, **options):
        self.given.append(image)
        return self.inner(image, **options)


@pytest.fixture
def spied():
    bundle = toy_features.toy_bundle()
    return replace(bundle.image, feed=ImageFeed(Spy(bundle.preprocess)))


@pytest.mark.parametrize("case", [case for case in toy_images.CASES if case.suffix], ids=lambda case: case.name)
def test_the_cache_and_the_preprocessing_see_what_read_image_reads(spied, tmp_path, case):
    preprocess = spied.feed.preprocess.inner
    for orientation in range(1, 9):
        content = case.encode(orientation=orientation, profile=toy_images.swapping_profile())
        file = tmp_path / f"{orientation}{case.suffix}"
        file.write_bytes(content)
        member = SimpleNamespace(name="a.tar: x", read=lambda content=content: content)
        for number, source in enumerate((file, member)):
            FeatureCache(tmp_path / f"{orientation} {number}").features(spied, [source])
            assert case.agrees(spied.feed.preprocess.given.pop(), orientation)
        with Image.open(BytesIO(content)) as opened:
            assert torch.equal(preprocess(opened), preprocess(images.read_image(file)))


def test_rows_and_pixels_of_another_reader_are_made_anew(spied, tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(file)
    cache, key = FeatureCache(tmp_path / "cache"), pixels.key_of(["a"])
    for _ in range(2):
        cache.features(spied, [file])
    assert len(spied.feed.preprocess.given) == 1
    monkeypatch.setattr(images, "VERSION", images.VERSION + 1)
    cache.features(spied, [file])
    assert len(spied.feed.preprocess.given) == 2
    assert pixels.key_of(["a"]) != key
