"""Features computed once: nothing stale, nothing lost, nothing half-written, however many write."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import toy_features as toy
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_common.backbones import ImageFeed, load_clip
from clip_common.features import FeatureCache, FeatureCacheError, cache


@pytest.fixture
def bundle():
    return toy.toy_bundle()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 PNG files, in a folder with a name that is not ASCII."""
    folder = tmp_path_factory.mktemp("bilder ä 図")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 16 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d} é.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def store(tmp_path):
    return FeatureCache(tmp_path / "cache ö")


def direct(bundle, images):
    """What the trunk yields without a cache."""
    pixels = torch.stack([bundle.preprocess(Image.open(image)) for image in images])
    with torch.no_grad():
        return bundle.image_tower.trunk_features(pixels)


def files(store):
    return sorted(file for file in store.root.rglob("*") if file.is_file())


def test_features_are_those_of_the_trunk_in_the_order_asked_for(bundle, images, store):
    torch.testing.assert_close(store.features(bundle.image, images), direct(bundle, images))
    shuffled = [images[number] for number in torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(store.features(bundle.image, shuffled), direct(bundle, shuffled))


def test_a_second_call_computes_nothing_and_reads_the_same_bits(bundle, images, store):
    first = store.features(bundle.image, images, batch_size=16)
    runs = bundle.image_tower.trunk.runs
    assert runs == [1, 16, 16, 8]  # one row to learn its size
    assert torch.equal(store.features(bundle.image, images, batch_size=16), first)
    assert torch.equal(store.features(toy.toy_bundle().image, images[3:5]), first[3:5])
    assert runs == [1, 16, 16, 8]


def test_only_what_is_missing_is_computed(bundle, images, store):
    store.features(bundle.image, images[:10])
    bundle.image_tower.trunk.runs.clear()
    torch.testing.assert_close(store.features(bundle.image, images[5:20]), direct(bundle, images[5:20]))
    assert bundle.image_tower.trunk.runs == [1, 10, 15]  # the last is `direct`


def test_equal_images_under_several_names_are_computed_once(bundle, images, store, tmp_path):
    shutil.copy(images[0], tmp_path / "copy.png")
    features = store.features(bundle.image, [images[0], tmp_path / "copy.png", images[0]])
    assert bundle.image_tower.trunk.runs == [1, 1]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_texts_are_computed_once_and_come_back_in_order(bundle, store):
    texts = ["a dog", "ein Hündchen im Schnee", "", "a dog", "図書館"]
    features = store.features(bundle.text, texts, batch_size=2)
    with torch.no_grad():
        expected = torch.cat([bundle.text_tower.trunk(bundle.tokenizer([text])) for text in texts])
    torch.testing.assert_close(features, expected)
    bundle.text_tower.trunk.runs.clear()
    assert torch.equal(store.features(bundle.text, texts[::-1]), features.flip(0))
    assert bundle.text_tower.trunk.runs == []


def test_layers_are_kept_beside_pooled_features(bundle, images, store):
    pooled = store.features(bundle.image, images[:6])
    tokens = store.features(bundle.image, images[:6], layers=(2, 1))
    pixels = torch.stack([bundle.preprocess(Image.open(image)) for image in images[:6]])
    with torch.no_grad():
        expected = bundle.image_tower.trunk(pixels, (1, 2)).layers
    assert tokens.shape == (6, 2, 16, 8)
    torch.testing.assert_close(tokens, torch.stack([expected[2], expected[1]], dim=1))
    assert torch.equal(store.features(bundle.image, images[:6]), pooled)


def test_a_member_of_an_archive_stands_for_a_file(bundle, images, store):
    class Member:
        name = "shard.tar/00.png"

        def read(self):
            return images[0].read_bytes()

    features = store.features(bundle.image, [Member(), images[1]])
    torch.testing.assert_close(features, direct(bundle, images[:2]))


def test_nothing_stale_is_served(bundle, images, store, tmp_path):
    first = store.features(bundle.image, images[:4])
    other_weights = toy.toy_bundle(seed=1)
    assert not torch.allclose(store.features(other_weights.image, images[:4]), first)
    other_pixels = replace(
        bundle, image=replace(bundle.image, feed=ImageFeed(replace(bundle.preprocess, mean=(0.0, 0.0, 0.0))))
    )
    assert not torch.allclose(store.features(other_pixels.image, images[:4]), first)
    with torch.no_grad():
        bundle.image_tower.trunk.norm.running_mean.add_(1)  # a buffer is a weight too
    assert not torch.allclose(store.features(bundle.image, images[:4]), first)
    picture = tmp_path / "picture.png"
    shutil.copy(images[0], picture)
    before = store.features(bundle.image, [picture])
    state = picture.stat()
    shutil.copy(images[3], picture)
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))  # the file system says that nothing changed
    assert not torch.allclose(store.features(bundle.image, [picture]), before)


@pytest.mark.parametrize(
    ("change", "activation"),
    [({}, "quick_gelu"), ({"head_width": 8}, "gelu"), ({"image_size": 36}, "gelu"), ({"pool_type": "avg"}, "gelu")],
    ids=["activation", "heads", "image size", "pooling"],
)
def test_equal_weights_that_yield_something_else_do_not_share_rows(images, store, change, activation):
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}

    def clip(change, activation):
        config = {"embed_dim": 8, "vision_cfg": vision | change, "text_cfg": text}
        bundle = load_clip("small", model_config=config, activation=activation)
        bundle.image_tower.freeze_trunk()
        return bundle

    first, second = clip({}, "gelu"), clip(change, activation)
    assert first.spec.fingerprint == second.spec.fingerprint
    store.features(first.image, images[:4])
    torch.testing.assert_close(store.features(second.image, images[:4]), direct(second, images[:4]))
    assert store.verify(second.image, images[:4]) < 1e-5


def test_nothing_asked_for_is_no_rows_of_the_usual_shape(bundle, images, store, tmp_path):
    assert store.features(bundle.image, []).shape == (0, 8)
    assert store.features(bundle.image, [], layers=(1, 2)).shape == (0, 2, 16, 8)
    assert store.features(bundle.image, [tmp_path / "absent.png"], on_error="skip").shape == (0, 8)
    assert store.features(bundle.text, []).shape == (0, 6)
    bundle.text_tower.trunk.requires_grad_(True)
    with pytest.warns(UserWarning, match="the trunk trains"):
        assert store.features(bundle.text, []).shape == (0, 6)


def test_a_trunk_that_trains_is_computed_afresh_with_a_warning(bundle, images, store):
    bundle.image_tower.trunk.requires_grad_(True)
    with pytest.warns(UserWarning, match="the trunk trains"):
        first = store.features(bundle.image, [images[0], images[0], images[1]])
    assert torch.equal(first[0], first[1])
    with torch.no_grad():
        bundle.image_tower.trunk.patches.weight.add_(1)
    with pytest.warns(UserWarning, match="the trunk trains"):
        assert not torch.allclose(store.features(bundle.image, images[:1]), first[:1])
    assert not store.root.exists()


def test_the_trunk_runs_in_eval_mode_without_gradients_and_is_left_as_it_was(images, store):
    bundle = toy.toy_bundle()
    trunk = bundle.image_tower.trunk
    del trunk.train  # frozen by hand: no gradients, but training mode
    trunk.requires_grad_(False).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = store.features(bundle.image, images[:4])
    assert trunk.training
    assert not features.requires_grad
    assert torch.is_grad_enabled()
    torch.testing.assert_close(features, direct(toy.toy_bundle(), images[:4]))


def test_progress_counts_what_is_kept_already(bundle, images, store):
    store.features(bundle.image, images[:10])
    seen = []
    store.features(bundle.image, images, batch_size=16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 40), (26, 40), (40, 40)]


def test_the_size_is_said_first(bundle, images, store, caplog):
    with caplog.at_level(logging.INFO, logger="clip_common.features"):
        store.features(bundle.image, images)
    assert "40 image features take 2.5 KiB" in caplog.text  # 40 · (8 · 4 + 32) bytes


def test_a_disk_that_is_too_small_is_refused_before_any_work(bundle, images, store, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2000))
    with pytest.raises(FeatureCacheError, match=r"40 image features need 2\.5 KiB, but .* has 1\.953 KiB free"):
        store.features(bundle.image, images)
    assert not store.root.exists()
    assert bundle.image_tower.trunk.runs == [1]


def test_a_disk_that_fills_up_leaves_nothing_half_written_and_loses_nothing(bundle, images, store, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_ROWS", 8)
    write, written = safetensors.torch.save_file, []

    def filling_up(tensors, path, metadata):
        write(tensors, path, metadata)
        if len(written) == 2:
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")
        written.append(path)

    monkeypatch.setattr(safetensors.torch, "save_file", filling_up)
    with pytest.raises(FeatureCacheError, match="No space left on device") as caught:
        store.features(bundle.image, images, batch_size=4)
    assert "\n" not in str(caught.value)
    assert torch.is_grad_enabled()
    assert [file.suffix for file in files(store)].count(".safetensors") == 2
    assert not [file for file in files(store) if file.suffix == ".tmp"]
    monkeypatch.setattr(safetensors.torch, "save_file", write)
    bundle.image_tower.trunk.runs.clear()
    torch.testing.assert_close(store.features(bundle.image, images, batch_size=4), direct(bundle, images))
    assert bundle.image_tower.trunk.runs == [1, *[4] * 6, 40]


def broken(tmp_path, images):
    truncated, text = tmp_path / "truncated.png", tmp_path / "text.png"
    truncated.write_bytes(images[0].read_bytes()[:200])
    text.write_text("not an image")
    return truncated, text, tmp_path / "absent.png"


def test_an_unreadable_image_is_named_and_what_came_before_is_kept(bundle, images, store, tmp_path):
    for bad in broken(tmp_path, images):
        with pytest.raises(FeatureCacheError) as caught:
            store.features(bundle.image, [*images[:8], bad], batch_size=4)
        assert bad.name in str(caught.value)
        assert "\n" not in str(caught.value)
    bundle.image_tower.trunk.runs.clear()
    store.features(bundle.image, images[:8])
    assert bundle.image_tower.trunk.runs == []


def test_unreadable_images_are_skipped_and_named_when_asked(bundle, images, store, tmp_path):
    truncated, text, absent = broken(tmp_path, images)
    wanted = [images[0], truncated, images[1], text, absent, images[2], truncated]
    features = store.features(bundle.image, wanted, on_error="skip")
    torch.testing.assert_close(features, direct(bundle, images[:3]))
    assert store.skipped == [truncated, text, absent, truncated]
    store.features(bundle.image, images[:2], on_error="skip")
    assert store.skipped == []


def test_a_decompression_bomb_is_skipped_and_named(bundle, images, store, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 400)  # the others have at most 360 pixels
    bomb = tmp_path / "bomb.png"
    Image.new("RGB", (100, 100)).save(bomb)
    features = store.features(bundle.image, [images[0], bomb, images[1]], on_error="skip")
    torch.testing.assert_close(features, direct(bundle, images[:2]))
    assert store.skipped == [bomb]
    with pytest.raises(
        FeatureCacheError, match=r"^[^\n]*bomb\.png: not a readable image \(.*decompression bomb[^\n]*$"
    ):
        store.features(bundle.image, [bomb])


@pytest.mark.parametrize("error", [tarfile.ReadError, zipfile.BadZipFile, zlib.error, EOFError])
def test_a_member_of_a_damaged_archive_is_skipped_and_named(bundle, images, store, error):
    class Member:
        name = "shard.tar/01.png"

        def read(self):
            raise error("unexpected end of data")

    member = Member()
    features = store.features(bundle.image, [images[0], member], on_error="skip")
    torch.testing.assert_close(features, direct(bundle, images[:1]))
    assert store.skipped == [member]
    with pytest.raises(FeatureCacheError, match=r"01\.png .*its archive is damaged: unexpected end"):
        store.features(bundle.image, [member])


def test_a_damaged_shard_is_named(bundle, images, store):
    store.features(bundle.image, images[:4])
    (shard,) = [file for file in files(store) if file.suffix == ".safetensors"]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(FeatureCacheError, match=rf"{shard.name} is damaged .* delete it"):
        store.features(bundle.image, images[:4])


def test_verify_recomputes_a_sample(bundle, images, store, tmp_path):
    texts = ["a dog", "two cats"]
    store.features(bundle.image, images)
    store.features(bundle.text, texts)
    assert store.verify(bundle.image, [*images, tmp_path / "absent.png"]) < 1e-5
    assert store.verify(bundle.text, texts) < 1e-5
    for shard in [file for file in files(store) if file.suffix == ".safetensors"]:
        content = load_file(shard)
        if content["features"].shape[1] == 6:
            content["features"][:, 0] += 0.5
            save_file(content, shard)
    assert store.verify(bundle.image, images) < 1e-5
    with pytest.raises(FeatureCacheError, match="text features that their trunk does not yield"):
        store.verify(bundle.text, texts)


def test_verify_of_an_empty_cache_is_zero(bundle, images, store):
    assert store.verify(bundle.image, images) == 0.0
    assert store.verify(bundle.text, ["a"]) == 0.0


def test_an_abandoned_temporary_file_is_swept_and_a_young_one_left(bundle, images, store):
    store.features(bundle.image, images[:2])
    folder = files(store)[0].parent
    old, young = folder / ".old.safetensors.1.tmp", folder / ".young.safetensors.2.tmp"
    half = folder / ".tmpNb5LE2"  # safetensors' own
    for file in (old, young, half):
        file.write_bytes(b"x")
    for file in (old, half):
        os.utime(file, (time.time() - 7200,) * 2)
    store.features(bundle.image, images[2:4])
    assert not old.exists()
    assert not half.exists()
    assert young.exists()


def process(store, images, *options):
    command = [sys.executable, str(toy.__file__), str(store.root), str(images[0].parent), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_killed_and_run_again_gives_the_same_bits_as_not_killed(bundle, images, store, tmp_path):
    killed = process(store, images, "--kill-at", "28")
    _, error = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, error
    kept = [file for file in files(store) if file.suffix == ".safetensors"]
    assert len(kept) == 3  # 24 of 28 images: a shard of 8 was under way
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = store.features(bundle.image, images, batch_size=4)
        assert bundle.image_tower.trunk.runs == [1, 4, 4, 4, 4]
        uninterrupted = FeatureCache(tmp_path / "other").features(bundle.image, images, batch_size=4)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(resumed, uninterrupted)


def test_two_processes_may_write_at_once(bundle, images, store):
    writers = [process(store, images) for _ in range(2)]
    for writer in writers:
        _, error = writer.communicate()
        assert writer.returncode == 0, error
    torch.testing.assert_close(store.features(bundle.image, images), direct(bundle, images))
    assert not [file for file in files(store) if file.suffix == ".tmp"]
    assert bundle.image_tower.trunk.runs == [40]  # `direct` alone: nothing was missing
