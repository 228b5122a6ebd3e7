"""The encoder of a Whisper: its tokens are transformers' own, whatever else is in the batch, and only of the sound."""

import json
import math
import shutil

import pytest
import soundfile
import torch
import transformers
from helpers.real import real_data, real_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from clip_common.backbones import (
    AudioEncoder,
    BackboneError,
    SoundFeed,
    TokenSequence,
    audio_models,
    behaviour,
    load_audio,
    load_text,
    load_vision,
)
from clip_common.errors import DataError
from clip_common.features import FeatureCache
from clip_common.sounds import RATE, read_sound

POSITIONS = 100
WINDOW = POSITIONS * 320
"""Samples of the window of the Whisper that is made here: two seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Whisper of two layers as transformers saves it."""
    config = transformers.WhisperConfig(
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=POSITIONS,
        max_target_positions=8,
        vocab_size=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    folder = tmp_path_factory.mktemp("models ü") / "whisper"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["sound", "full"])
def audio(folder, request):
    return load_audio(folder, context=request.param)


def noise(samples, *, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def encode(audio, sounds):
    """Features and tokens of these samples in one batch."""
    batch = audio.feed.batch([audio.feed.from_samples(sound) for sound in sounds])
    with torch.no_grad():
        return audio.tower.trunk_features(batch), audio.tower.trunk.sequence(batch)


def by_transformers(folder, sound, *, tokens):
    """The reference for `full`: the extractor and the encoder as transformers' own users call them."""
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    encoder = transformers.WhisperModel.from_pretrained(folder).encoder.eval()
    inputs = extractor(sound.numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return encoder(inputs.input_features).last_hidden_state[0, :tokens]


def test_the_full_context_is_transformers_own_encoder(folder):
    audio = load_audio(folder, context="full")
    for samples in (1, 319, 320, 321, 8000, WINDOW):
        _, sequence = encode(audio, [noise(samples)])
        expected = by_transformers(folder, noise(samples), tokens=math.ceil(samples / 320))
        assert sequence.mask.all()
        torch.testing.assert_close(sequence.tokens[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [4001, 8000, 12001, 15999, 16001, WINDOW - 1, WINDOW])
def test_the_context_of_a_sound_is_it_and_a_second_of_silence(folder, samples):
    audio = load_audio(folder)
    _, sequence = encode(audio, [noise(samples)])
    length = min(WINDOW, 4000 * math.ceil((samples + RATE) / 4000))
    padded = torch.nn.functional.pad(noise(samples), (0, length - samples))
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    mel = torch.from_numpy(extractor(padded.numpy(), sampling_rate=RATE, max_length=length).input_features[0])
    assert mel.shape == (16, length // 160)
    # transformers' encoder with as many positions as the sound has
    cut = transformers.WhisperModel.from_pretrained(folder).encoder.eval()
    positions = cut.config.max_source_positions = mel.shape[1] // 2
    cut.embed_positions = torch.nn.Embedding.from_pretrained(cut.embed_positions.weight[:positions])
    with torch.no_grad():
        expected = cut(mel[None]).last_hidden_state[0, : math.ceil(samples / 320)]
    torch.testing.assert_close(sequence.tokens[0], expected, rtol=0, atol=1e-5)


def test_features_are_the_mean_of_the_tokens_of_all_segments(audio):
    sound = noise(2 * WINDOW + 5000)
    features, sequence = encode(audio, [sound])
    assert sequence.tokens.shape == (1, 2 * POSITIONS + 16, 32)
    torch.testing.assert_close(features[0], sequence.tokens[0].mean(dim=0))
    parts = [encode(audio, [part])[1].tokens[0] for part in sound.split(WINDOW)]
    torch.testing.assert_close(sequence.tokens[0], torch.cat(parts), rtol=0, atol=1e-5)


def test_tokens_beyond_a_sound_are_masked_and_zero(audio):
    features, sequence = encode(audio, [noise(320), noise(3200), noise(WINDOW + 1)])
    assert isinstance(sequence, TokenSequence)
    assert sequence.mask.dtype == torch.bool
    assert sequence.mask.sum(dim=1).tolist() == [1, 10, POSITIONS + 1]
    assert not sequence.tokens[~sequence.mask].any()
    weights = sequence.mask[..., None].float()
    torch.testing.assert_close(features, (sequence.tokens * weights).sum(dim=1) / weights.sum(dim=1))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 2 * WINDOW + 400), min_size=2, max_size=6), at_once=st.integers(1, 300))
def test_a_sound_alone_is_the_sound_in_any_batch(folder, lengths, at_once):
    sounds, before = [noise(length, seed=length) for length in lengths], audio_models.TOKENS_AT_ONCE
    for context in ("sound", "full"):
        audio = load_audio(folder, context=context)
        alone = [encode(audio, [sound]) for sound in sounds]
        try:
            audio_models.TOKENS_AT_ONCE = at_once
            features, sequence = encode(audio, sounds)
        finally:
            audio_models.TOKENS_AT_ONCE = before
        torch.testing.assert_close(features, torch.cat([one for one, _ in alone]), rtol=0, atol=1e-5)
        for row, (_, one) in enumerate(alone):
            own = sequence.tokens[row][sequence.mask[row]]
            torch.testing.assert_close(own, one.tokens[0], rtol=0, atol=1e-5)


def test_the_batch_says_which_segments_are_of_which_sound(folder):
    feed = load_audio(folder).feed
    batch = feed.batch([feed.from_samples(noise(length)) for length in (8000, WINDOW + 320)])
    assert batch["mel"].shape == (3, 16, 200)
    assert batch["length"].tolist() == [150, 200, 125]  # 0.5 + 1 s; the window; 0.02 + 1 s, rounded up to 1.25 s
    assert batch["frames"].tolist() == [25, 100, 1]
    assert batch["owner"].tolist() == [0, 1, 1]
    assert not batch["mel"][0, :, 150:].any()


def test_gradients_reach_the_encoder(folder):
    audio = load_audio(folder)
    batch = audio.feed.batch([audio.feed.from_samples(noise(length)) for length in (8000, 100)])
    audio.tower.trunk.train().features(batch).sum().backward()
    assert audio.tower.trunk.model.conv1.weight.grad.abs().sum() > 0
    assert len(audio.tower.trunk.blocks) == 2


def test_the_encoder_says_what_it_is(folder):
    sound, full = load_audio(folder), load_audio(str(folder), context="full")
    assert isinstance(sound, AudioEncoder)
    assert isinstance(sound.feed, SoundFeed)
    spec = sound.spec
    assert (spec.kind, spec.name, spec.width, spec.depth, spec.embed_dim) == ("audio", str(folder), 32, 2, 32)
    assert (spec.sample_rate, spec.mels, spec.window_seconds, spec.positions) == (RATE, 16, 2.0, POSITIONS)
    assert (spec.context, full.spec.context) == ("sound", "full")
    assert not sound.tower.training
    # nothing of one context is taken for that of the other
    assert sound.feed.key != full.feed.key
    assert sound.spec.fingerprint != full.spec.fingerprint
    assert behaviour(sound.tower.trunk) != behaviour(full.tower.trunk)
    assert behaviour(sound.tower.trunk) == behaviour(load_audio(folder).tower.trunk)
    assert sound.spec.fingerprint == load_audio(folder).spec.fingerprint


def test_the_cache_keeps_features_and_sequences_of_each_context(folder, tmp_path):
    files = [tmp_path / f"{samples} é.wav" for samples in (500, 8000, WINDOW + 900)]
    for file in files:
        soundfile.write(file, noise(int(file.name.split()[0])).numpy(), RATE, subtype="FLOAT")
    store = FeatureCache(tmp_path / "cache")
    for context in ("sound", "full"):
        audio = load_audio(folder, context=context)
        audio.tower.freeze_trunk()
        features, sequence = encode(audio, [noise(int(file.name.split()[0])) for file in files])
        torch.testing.assert_close(store.features(audio, files), features, rtol=0, atol=1e-5)
        rows = store.sequences(audio, files)
        assert [len(row) for row in rows] == [2, 25, POSITIONS + 3]
        torch.testing.assert_close(torch.cat(rows), sequence.tokens[sequence.mask], rtol=0, atol=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    assert len(store.sequences(audio, [*files, broken], on_error="skip")) == 3
    assert store.skipped == [broken]


def test_samples_that_are_no_sound_are_refused(folder):
    feed = load_audio(folder).feed
    for samples in (torch.zeros(0), torch.zeros(2, 100), torch.full((9,), math.nan)):
        with pytest.raises(DataError):
            feed.from_samples(samples)
    with pytest.raises(DataError, match=r"^clip 3: not a readable sound"):
        feed.load(b"x", name="clip 3")


# ---- folders ----


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def save_encoder(folder, target, *, prefix="", dtype=torch.float32):
    """The folder with the encoder's weights alone, under another prefix and in another type."""
    weights = {
        prefix + name.removeprefix("model.encoder."): weight.to(dtype)
        for name, weight in load_file(folder / "model.safetensors").items()
        if name.startswith("model.encoder.")
    }
    save_file(weights, copied(folder, target) / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_a_folder_may_hold_the_encoder_alone(folder, tmp_path, prefix):
    whole, alone = load_audio(folder), load_audio(save_encoder(folder, tmp_path / "alone", prefix=prefix))
    assert alone.spec.fingerprint == whole.spec.fingerprint
    assert isinstance(alone.tower.trunk.model, WhisperEncoder)


def test_half_precision_on_the_disk_is_run_in_float32(folder, tmp_path):
    half = load_audio(save_encoder(folder, tmp_path / "half", dtype=torch.float16))
    assert {weight.dtype for weight in half.tower.parameters()} == {torch.float32}
    expected, _ = encode(load_audio(folder), [noise(8000)])
    torch.testing.assert_close(encode(half, [noise(8000)])[0], expected, rtol=0, atol=0.05)


def test_a_missing_weight_of_the_encoder_is_one_line(folder, tmp_path):
    target = copied(folder, tmp_path / "incomplete")
    weights = load_file(target / "model.safetensors")
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"incomplete is incomplete: 1 weights .*layers\.1\.fc1\.weight"):
        load_audio(target)
    decoder = {name: weight for name, weight in weights.items() if not name.startswith("model.encoder.")}
    save_file(decoder, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"is incomplete: \d\d weights are missing"):
        load_audio(target)


def test_loading_prints_nothing(folder, capfd):
    load_audio(folder)  # the weights of the decoder are not used
    assert "".join(capfd.readouterr()) == ""


def test_spectrograms_without_settings_are_those_of_the_model(folder, tmp_path):
    bare = copied(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert load_audio(bare).feed.key == load_audio(folder).feed.key
    torch.testing.assert_close(encode(load_audio(bare), [noise(900)])[0], encode(load_audio(folder), [noise(900)])[0])


def test_settings_of_another_model_are_one_line(folder, tmp_path):
    target = copied(folder, tmp_path / "other")
    settings_file = target / "preprocessor_config.json"
    content = json.loads(settings_file.read_text())
    for change, words in (
        ({"feature_size": 80}, "its spectrograms have 80 bands at 16000 Hz, but its encoder takes 16"),
        ({"sampling_rate": 8000}, "16 bands at 8000 Hz"),
    ):
        settings_file.write_text(json.dumps(content | change))
        with pytest.raises(BackboneError, match=words):
            load_audio(target)
    settings_file.write_text(json.dumps(content | {"dither": 0.5}))  # random: equal sounds would differ
    first, second = (encode(load_audio(target), [noise(900)])[0] for _ in range(2))
    assert torch.equal(first, second)
    settings_file.write_text("{")
    with pytest.raises(BackboneError, match="has no settings of spectrograms that can be read"):
        load_audio(target)


def test_what_is_no_whisper_is_one_line(folder, tmp_path):
    bert = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(BackboneError, match="holds a BertModel: expected a Whisper"):
        load_audio(tmp_path / "bert")
    with pytest.raises(BackboneError, match="context 'half': expected sound or full"):
        load_audio(folder, context="half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="cannot be loaded as a transformers model"):
        load_audio(tmp_path / "empty")
    with pytest.raises(BackboneError, match="no such folder"):
        load_audio("nothing here")
    with pytest.raises(BackboneError, match="expected a vision model"):
        load_vision(folder)


def test_tiny_is_a_folder_of_the_package_with_checksums(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_common.backbones.shipped.TINY", tmp_path / "tiny")
    for load, part in ((load_audio, "audio"), (load_text, "text")):
        with pytest.raises(BackboneError, match=rf"{part}.SHA256SUMS is absent or damaged: install clip-common again"):
            load("tiny")
    target = copied(folder, tmp_path / "tiny" / "audio")
    (target / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    with pytest.raises(BackboneError, match=r"config\.json is absent or damaged"):
        load_audio("tiny")
    (target / "SHA256SUMS").write_text("")
    assert load_audio("tiny").spec.name == "tiny"


@pytest.mark.real
def test_the_real_whisper_is_transformers_own_encoder():
    folder = real_model("whisper")
    digits = real_data("spoken_digits")
    full, sound = load_audio(folder, context="full"), load_audio(folder)
    for file in sorted(digits.glob("*_0.wav"))[::20]:
        samples = read_sound(file)
        features, sequence = encode(full, [samples])
        expected = by_transformers(folder, samples, tokens=math.ceil(len(samples) / 320))
        torch.testing.assert_close(sequence.tokens[0], expected, rtol=0, atol=1e-4)
        assert torch.cosine_similarity(encode(sound, [samples])[0], features).item() > 0.7
