"""Aligner: encode items of any modality in any form, save and reload bit for bit, refuse other encoders and weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_aligners
import toy_models
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from edgeglass.aligner.aligner import Aligner
from edgeglass.aligner.files import collect_weights
from edgeglass.models.building import build_model

encoders = toy_aligners.encoders
saved = toy_aligners.saved
aligner = toy_aligners.aligner


@pytest.fixture
def image(tmp_path) -> Path:
    return toy_models.draw_image(tmp_path / "image.png", seed=1)


@pytest.fixture
def sound(tmp_path) -> Path:
    return toy_models.write_sound(tmp_path / "sound.wav", seed=1)


def test_one_modality_gives_unit_vectors_and_several_a_dict(aligner, image, sound):
    texts_ND = aligner.encode(texts=["a red ball", "a dog"])
    assert texts_ND.shape == (2, toy_aligners.WIDTH)
    assert (texts_ND.dtype, texts_ND.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(texts_ND.norm(dim=1), torch.ones(2))
    several = aligner.encode(images=[image], texts=["a red ball", "a dog"], audio=[sound, sound])
    assert {name: len(rows) for name, rows in several.items()} == {"image": 1, "text": 2, "audio": 2}
    torch.testing.assert_close(several["text"], texts_ND)
    assert aligner.encode(texts=[]).shape == (0, toy_aligners.WIDTH)


def test_a_mixed_list_keeps_its_order(aligner, image, sound):
    pixels = Image.open(image)
    samples = toy_models.make_samples(1)
    mixed = ["a dog", sound, image, "a red ball", (samples, 16_000), pixels, torch.from_numpy(samples), samples]
    rows_ND = aligner.encode(mixed)
    text_ND = aligner.encode(texts=["a dog", "a red ball"])
    image_D, sound_D = aligner.encode(images=[image])[0], aligner.encode(audio=[samples])[0]
    expected = [text_ND[0], sound_D, image_D, text_ND[1], sound_D, image_D, sound_D, sound_D]
    # the file holds 16-bit samples
    torch.testing.assert_close(rows_ND, torch.stack(expected), rtol=0, atol=2e-4)
    assert aligner.encode(mixed=[]).shape == (0, toy_aligners.WIDTH)


def test_samples_of_another_rate_are_those_of_the_file(aligner, tmp_path):
    fast = toy_models.make_samples(3, rate=44_100)
    file = toy_models.write_sound(tmp_path / "fast.wav", seed=3, rate=44_100)
    given_ND, read_ND = aligner.encode(audio=[(fast, 44_100)]), aligner.encode(audio=[str(file)])
    torch.testing.assert_close(given_ND, read_ND, rtol=0, atol=2e-4)


def test_any_prefix_is_cut_and_scaled_to_unit_length(aligner):
    whole_ND = aligner.encode(texts=["a red ball", "a dog"])
    for dim in (1, 5, 16, toy_aligners.WIDTH):
        torch.testing.assert_close(aligner.encode(texts=["a red ball", "a dog"], dim=dim), normalize(whole_ND[:, :dim]))
    for dim in (0, toy_aligners.WIDTH + 1):
        with pytest.raises(ValueError, match=f"dim={dim}: expected 1 to 32"):
            aligner.encode(texts=["a"], dim=dim)


def test_codes_stand_for_the_vectors(aligner):
    texts = [f"number {number}" for number in range(20)]
    vectors_ND = aligner.encode(texts=texts, dim=16)
    code_ND, scale_N = aligner.encode(texts=texts, dim=16, quantize="int8")
    assert code_ND.dtype == torch.int8
    assert ((code_ND * scale_N[:, None] - vectors_ND).abs() <= scale_N[:, None] / 2 + 1e-7).all()
    bits_NB = aligner.encode(texts=texts, dim=16, quantize="binary")
    assert (bits_NB.dtype, bits_NB.shape) == (torch.uint8, (20, 8))
    both = aligner.encode(images=[], texts=texts, dim=16, quantize="int8")
    assert torch.equal(both["text"][0], code_ND)


def test_batches_make_no_difference_and_progress_ends_at_the_total(aligner):
    texts, seen = [f"number {number}" for number in range(7)], []
    torch.testing.assert_close(
        aligner.encode(texts=texts, batch_size=3, progress=lambda done, total: seen.append((done, total))),
        aligner.encode(texts=texts),
        rtol=0,
        atol=1e-6,
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_what_cannot_be_encoded_is_one_line(aligner, encoders, tmp_path, image):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    cases = {
        "one mixed list": {},
        "expected a list; give [texts]": {"texts": "a dog"},
        "expected a list; give [mixed]": {"mixed": "a dog"},
        "neither an image nor a sound": {"mixed": [Path("a.docx")]},
        "of type int": {"mixed": [3]},
        "expected a file": {"images": [3]},
        "nowhere.png: no such file": {"images": [tmp_path / "nowhere.png"]},
        "broken.png: not a readable image": {"mixed": ["a", broken]},
        "full scale 1": {"audio": [torch.zeros(2, 100)]},
        "expected int8": {"texts": ["a"], "quantize": "int4"},
    }
    for words, arguments in cases.items():
        with pytest.raises(ValueError) as caught:
            aligner.encode(**arguments)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    deaf = toy_aligners.make_aligner(encoders, "encoders.audio.name=null")
    with pytest.raises(ValueError, match="no encoder of audio: it was aligned for image, text"):
        deaf.encode(["a dog", np.zeros(100, np.float32)])


def test_a_query_of_several_items_is_their_sum_or_the_fusion(aligner, encoders, image, sound):
    parts = aligner.encode(images=[image], audio=[sound])
    together_D = aligner.encode_query(image, sound)
    torch.testing.assert_close(together_D, normalize(parts["image"] + parts["audio"])[0])
    assert aligner.encode_query("a dog", dim=8).shape == (8,)
    for kind in ("concat", "gated", "cross_attention"):
        fused = toy_aligners.make_aligner(encoders, f"fusion.kind={kind}")
        fused_D = fused.encode_query(sound, image)
        torch.testing.assert_close(fused_D, fused.encode_query(image, sound))
        assert not torch.allclose(fused_D, together_D, atol=1e-3)
        torch.testing.assert_close(fused.encode_query(image), fused.encode(images=[image])[0])
    for query in ((), ("  ",)):
        with pytest.raises(ValueError):
            aligner.encode_query(*query)
    with pytest.warns(UserWarning, match="knows no word of '雪'"):
        aligner.encode_query("雪")


def test_centring_subtracts_the_means_of_each_modality(encoders, saved):
    plain, centred = Aligner.from_pretrained(saved), Aligner.from_pretrained(saved, centre=True)
    texts = ["a red ball", "a dog", "two boxes"]
    mean_D = plain.encode(texts=texts).mean(dim=0)
    centred.model.set_means({"text": mean_D})
    torch.testing.assert_close(centred.encode(texts=texts), normalize(plain.encode(texts=texts) - mean_D))
    assert len({plain.fingerprint, centred.fingerprint, toy_aligners.make_aligner(encoders).fingerprint}) == 2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["fusion.kind=cross_attention", "encoders.vision.pooling=perceiver", "encoders.audio.pooling=attention"],
        ["encoders.text.lora.rank=2", "encoders.audio.freeze=false"],
        ["encoders.vision.name=null", "embeddings.centre=true"],
    ],
)
def test_a_reloaded_model_is_equal_bit_by_bit(encoders, tmp_path, image, sound, overrides):
    given = toy_aligners.make_aligner(encoders, *overrides)
    with torch.no_grad():
        for parameter in given.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
        for mean in given.model.means.values():
            mean.copy_(torch.randn_like(mean))
    given.temperatures = {"image-text": 0.05}
    given.save_pretrained(tmp_path / "first")
    moved = tmp_path / "été 雪"
    shutil.move(tmp_path / "first", moved)
    loaded = Aligner.from_pretrained(moved)
    items = ["a red ball", "a dog", sound] + ([image] if "image" in given.modalities else [])
    assert torch.equal(loaded.encode(items), given.encode(items))
    if len(given.modalities) == 3:
        assert torch.equal(loaded.encode_query(image, sound), given.encode_query(image, sound))
    assert loaded.temperatures == given.temperatures
    assert (loaded.fingerprint, loaded.centre) == (given.fingerprint, given.centre)
    assert loaded.config == given.config
    loaded.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (moved / name).read_bytes()


def test_a_saved_model_holds_no_weights_of_frozen_encoders(saved, encoders):
    names = load_file(saved / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"encoders", "means"}
    assert not [name for name in names if ".trunk." in name]
    tuned = toy_aligners.make_aligner(encoders, "encoders.text.lora.rank=2")
    adapters = [name for name in collect_weights(tuned.model) if ".trunk." in name]
    assert adapters
    assert all("lora_" in name for name in adapters)


def test_folders_of_encoders_are_stored_by_their_full_paths(encoders, tmp_path, monkeypatch):
    monkeypatch.chdir(encoders)
    config = toy_aligners.configure(encoders, "encoders.text.name=text", "encoders.audio.name=null")
    Aligner(build_model(config), config).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert Aligner.from_pretrained("model").config.encoders.text.name == str(encoders / "text")


@pytest.fixture
def copied(encoders, tmp_path) -> tuple[Path, Path]:
    """A model, and the encoders that it alone uses."""
    own = tmp_path / "own encoders"
    shutil.copytree(encoders, own)
    toy_aligners.make_aligner(own).save_pretrained(tmp_path / "model")
    return tmp_path / "model", own


def load_fails(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Aligner.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message, f"{word!r} is not in: {message}"


def test_a_moved_or_changed_encoder_is_refused(copied):
    folder, own = copied
    shutil.rmtree(own / "text")
    load_fails(folder, str(own / "text"))
    toy_models.save_text_encoder(own / "text", seed=1)
    load_fails(folder, "another model", f"the text encoder {own / 'text'}")


def test_damaged_and_foreign_files_are_refused(copied, encoders, tmp_path):
    folder, _ = copied
    weights, marker = folder / "model.safetensors", folder / "config.json"
    whole, content = weights.read_bytes(), json.loads(marker.read_text())
    weights.write_bytes(whole[:-100])
    load_fails(folder, "damaged")
    tensors = load_file(_put(weights, whole))
    save_file({name: rows for name, rows in tensors.items() if name != "means.text"}, weights)
    load_fails(folder, "1 missing, such as means.text")
    _put(weights, whole)
    for change in ({"config": None}, {"config": {"no": 1}}, {"encoders": []}, {"temperatures": {"a": "b"}}):
        marker.write_text(json.dumps(content | change))
        load_fails(folder, "is damaged")
    marker.write_text(json.dumps(content | {"format": 0}))
    load_fails(folder, "train it again with `edgeglass align`")
    wide = content | {"config": content["config"] | {"mrl": {"width": 64, "dims": [8]}}}
    marker.write_text(json.dumps(wide))
    load_fails(folder, "of another shape")


def _put(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file
