"""One cache for encoders of every kind: a toy audio encoder goes through it as those of images and texts do."""

import pytest
import torch
import toy_features as toy

from clip_common.backbones import Encoder, load_clip
from clip_common.features import FeatureCache, FeatureCacheError


@pytest.fixture
def audio():
    return toy.toy_audio()


@pytest.fixture
def sounds(tmp_path):
    """Files of 1 to 5 frames."""
    files = [tmp_path / f"{number}.raw" for number in range(1, 6)]
    for number, file in enumerate(files, start=1):
        file.write_bytes(bytes(range(number, number + 4 * number)))
    return files


@pytest.fixture
def store(tmp_path):
    return FeatureCache(tmp_path / "cache")


def direct(audio, sounds):
    """The features without a cache, one sound at a time."""
    feed = audio.feed
    return torch.cat(
        [audio.tower.trunk_features(feed.batch([feed.load(file.read_bytes(), name="")])) for file in sounds]
    ).detach()


def test_sounds_are_computed_once_and_come_back_in_order(audio, sounds, store):
    wanted = [sounds[3], sounds[0], sounds[3], sounds[4]]
    features = store.features(audio, wanted, batch_size=2)
    torch.testing.assert_close(features, direct(audio, wanted))
    assert audio.tower.trunk.runs[:3] == [1, 2, 1]  # one row to learn its size
    audio.tower.trunk.runs.clear()
    assert torch.equal(store.features(toy.toy_audio(), wanted), features)
    assert audio.tower.trunk.runs == []
    assert store.verify(audio, sounds) < 1e-5
    assert audio.tower.head(features).shape == (4, 8)
    torch.testing.assert_close(audio.tower(audio.feed.batch([torch.zeros(2, 4)])).shape, (1, 8))


def test_another_extractor_or_another_trunk_has_rows_of_its_own(sounds, store):
    rows = [store.features(toy.toy_audio(**options), sounds) for options in ({}, {"gain": 2.0}, {"seed": 1})]
    assert not torch.allclose(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])
    assert len(list(store.root.iterdir())) == 3


def test_a_sound_that_the_extractor_refuses_is_named_or_skipped(audio, sounds, store, tmp_path):
    odd = tmp_path / "odd.raw"
    odd.write_bytes(b"12345")
    with pytest.raises(FeatureCacheError, match=r"odd\.raw cannot be read: .*5 bytes are no frames"):
        store.features(audio, [sounds[0], odd])
    torch.testing.assert_close(store.features(audio, [odd, sounds[0]], on_error="skip"), direct(audio, sounds[:1]))
    assert store.skipped == [odd]


def test_what_an_encoder_does_not_take_is_one_line(audio, sounds, store):
    bundle = toy.toy_bundle()
    with pytest.raises(ValueError, match=r"'a\.png': an encoder of kind image takes files .* not str"):
        store.features(bundle.image, ["a.png"])
    with pytest.raises(ValueError, match="an encoder of kind text takes texts"):
        store.features(bundle.text, sounds)
    with pytest.raises(ValueError, match="an encoder of kind image takes files"):
        store.verify(bundle.image, ["a.png"])
    with pytest.raises(ValueError, match=r"layers=\[1\]: toy encodes no images, leave layers out"):
        store.features(audio, sounds, layers=(1,))


def test_a_bundle_is_two_encoders():
    bundle = load_clip("tiny")
    for encoder, kind, tower in ((bundle.image, "image", bundle.image_tower), (bundle.text, "text", bundle.text_tower)):
        assert isinstance(encoder, Encoder)
        assert encoder.tower is tower
        assert (encoder.spec.kind, encoder.spec.name, encoder.spec.fingerprint) == (
            kind,
            "tiny",
            bundle.spec.fingerprint,
        )
    with torch.no_grad():
        embedded = bundle.text.tower(bundle.text.feed.batch(["a red ball"]))
    assert embedded.shape == (1, bundle.text.spec.embed_dim)
