"""The one reader of sounds: any rate, channels and format to 16 kHz, and one line for a file that cannot be used."""

import math
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from clip_common.errors import DataError
from clip_common.sounds import RATE, SOUND_SUFFIXES, change_rate, check_samples, describe_sound, read_sound


def sine(seconds=0.5, *, rate=RATE, hertz=440.0, size=0.5):
    return (size * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(file, samples, rate=RATE, **form):
    soundfile.write(file, samples, rate, **form)
    return file


@pytest.fixture
def wav(tmp_path):
    return write(tmp_path / "звук 音.wav", sine(), subtype="FLOAT")


def test_samples_at_16_khz_come_back_bit_by_bit(wav):
    samples = read_sound(wav)
    assert (samples.dtype, samples.shape) == (torch.float32, (8000,))
    assert torch.equal(samples, torch.from_numpy(sine()))
    assert torch.equal(read_sound(wav.read_bytes()), samples)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 12345])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    samples = read_sound(write(tmp_path / "a.wav", sine(rate=rate), rate, subtype="FLOAT"))
    assert len(samples) == math.ceil(round(0.5 * rate) * RATE / rate)
    inner = slice(400, 7600)  # the filter sees silence beyond both ends
    torch.testing.assert_close(samples[inner], torch.from_numpy(sine())[inner], rtol=0, atol=2e-3)


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path):
    file = write(tmp_path / "a.wav", sine(rate=48000, hertz=12000), 48000, subtype="FLOAT")
    assert read_sound(file)[400:7600].abs().max() < 1e-2  # not folded down to 4 kHz


def test_channels_are_averaged(tmp_path):
    channels = np.stack([sine(), 0.5 * sine(), np.zeros(8000, np.float32)], axis=1)
    samples = read_sound(write(tmp_path / "a.wav", channels, subtype="FLOAT"))
    torch.testing.assert_close(samples, torch.from_numpy(sine()) / 2)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 1e-2),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.wav", "ULAW", 2e-2),
        ("a.wav", "IMA_ADPCM", 5e-2),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 5e-2),
        ("a.ogg", "OPUS", 5e-2),
        ("a.mp3", "MPEG_LAYER_III", 5e-2),
        ("a.AIFF", "PCM_16", 1e-4),
    ],
)
def test_formats_and_subtypes_are_those_of_libsndfile(tmp_path, name, subtype, tolerance):
    samples = read_sound(write(tmp_path / name, sine(1.0), subtype=subtype)).numpy()
    shift = np.correlate(samples[:12000], sine(0.5), mode="valid")[:2000].argmax()  # encoders may delay
    assert np.abs(samples[shift + 1000 : shift + 7000] - sine(0.5)[1000:7000]).max() < tolerance


def test_a_file_is_read_whatever_its_name(tmp_path, wav):
    for name in ("a.raw", "a.txt", "a", "a.mp3"):
        (tmp_path / name).write_bytes(wav.read_bytes())
        if name == "a.raw":  # the one suffix that soundfile takes as headerless data
            with pytest.raises(DataError, match=r"a\.raw: not a readable sound"):
                read_sound(tmp_path / name)
            assert len(read_sound((tmp_path / name).read_bytes())) == 8000
        else:
            assert len(read_sound(tmp_path / name)) == 8000
    assert ".wav" in SOUND_SUFFIXES


def test_ten_minutes_of_stereo_are_read_and_described(tmp_path):
    tone = np.stack([sine(10.0, rate=44100)] * 2, axis=1)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(tone)
    assert read_sound(tmp_path / "long.flac").shape == (600 * RATE,)
    found = describe_sound(tmp_path / "long.flac")
    assert (found.seconds, found.rate, found.channels) == (600.0, 44100, 2)
    assert found.rms == pytest.approx(0.5 / math.sqrt(2), rel=1e-3)


def damage(tmp_path):
    """Files that cannot be used, and what is said of each."""
    good = write(tmp_path / "good.flac", sine(3.0)).read_bytes()
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.write_bytes(b"")
    text.write_text("no sound at all")
    half, head, cut = tmp_path / "half.flac", tmp_path / "head.wav", tmp_path / "cut.ogg"
    half.write_bytes(good[: len(good) // 2])
    head.write_bytes(write(tmp_path / "good.wav", sine()).read_bytes()[:44])  # a header, and no sample after it
    cut.write_bytes(write(tmp_path / "good.ogg", sine(), format="OGG").read_bytes()[:200])
    none = write(tmp_path / "none.wav", np.zeros(0, np.float32))
    nan, infinite = sine(), sine()
    nan[77], infinite[78] = np.nan, -np.inf
    both = np.stack([infinite, -infinite], axis=1)
    return {
        tmp_path / "absent.wav": "no such file",
        tmp_path: "a folder, where a sound file is expected",
        empty: "not a readable sound",
        text: "not a readable sound",
        half: r"not a readable sound|truncated, .* of 48,000 samples are left",
        head: "without samples",
        cut: "not a readable sound",
        none: "without samples",
        write(tmp_path / "nan.wav", nan, subtype="FLOAT"): "NaN or infinite",
        write(tmp_path / "inf.wav", infinite, subtype="FLOAT"): "NaN or infinite",
        write(tmp_path / "both.wav", both, subtype="FLOAT"): "NaN or infinite",
        write(tmp_path / "large.wav", np.array([1e300, 0.0]), subtype="DOUBLE"): "NaN or infinite",
    }


def test_what_cannot_be_used_is_one_line_that_names_the_file(tmp_path):
    for file, words in damage(tmp_path).items():
        for read in (read_sound, describe_sound):
            with pytest.raises(DataError, match=words) as caught:
                read(file)
            assert str(caught.value).startswith(str(file))
            assert "\n" not in str(caught.value)
        if file.is_file():
            with pytest.raises(DataError, match=rf"^clip 7 of a\.parquet: .*(?:{words})"):
                read_sound(file.read_bytes(), name="clip 7 of a.parquet")


def test_a_file_that_may_not_be_read_is_one_line(wav, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        read_sound(wav)


def test_silent_and_clipped_sounds_are_told(tmp_path):
    def describe(samples, **form):
        return describe_sound(write(tmp_path / "a.wav", samples, **form))

    usual = describe(sine(size=0.5))
    assert not usual.is_silent
    assert not usual.is_clipped
    assert usual.peak == pytest.approx(0.5, abs=1e-3)
    assert usual.rms == pytest.approx(0.5 / math.sqrt(2), rel=1e-3)
    assert (usual.seconds, usual.rate, usual.channels) == (0.5, RATE, 1)
    assert describe(np.zeros(100, np.float32)).is_silent
    assert describe(sine(size=1e-4)).is_silent
    assert not describe(sine(size=1e-3)).is_silent
    loud = describe(np.clip(sine(size=2.0), -1, 1))
    assert loud.is_clipped
    assert loud.full_scale == pytest.approx(2 / 3, abs=0.01)  # a sine is above half its size for 2/3 of its period
    assert describe(np.clip(sine(size=2.0), -1, 1), subtype="PCM_U8").is_clipped
    touched = sine(size=0.5)
    touched[0] = 1.0
    assert not describe(touched).is_clipped
    stereo = describe(np.stack([np.clip(sine(size=2.0), -1, 1), np.zeros(8000)], axis=1))
    assert stereo.full_scale == pytest.approx(1 / 3, abs=0.01)


def test_samples_from_elsewhere_are_checked():
    check_samples(torch.zeros(3))
    for samples, words in (
        (torch.zeros(2, 3), r"shape \(2, 3\) and torch\.float32, expected \(T,\) float32"),
        (torch.zeros(3, dtype=torch.int16), r"torch\.int16, expected"),
        (torch.zeros(0), "without samples"),
        (torch.tensor([0.0, math.nan]), "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=words):
            check_samples(samples)
    torch.testing.assert_close(change_rate(torch.ones(1), rate=48000).shape, (1,))


def test_the_import_needs_neither_soundfile_nor_scipy():
    command = "import clip_common.sounds, sys; print({'soundfile', 'scipy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
