"""The one reader of sounds: files and bytes to samples at 16 kHz, or a one-line error that names the file.

Needs soundfile and scipy, of the extra `audio`. Every function may be called from several threads at once.

Shapes: T samples.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_common.errors import DataError, printable

RATE = 16_000
"""Samples per second of everything that is read."""

VERSION = 1
"""Part of every cache key that depends on decoded samples. Raise it when any file decodes to other samples."""

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""Lower-case suffixes of the files that count as sounds in a folder. A file named directly may have any other."""

SILENT = 1e-4
"""RMS, as a share of full scale, up to which a sound counts as silent: -80 dB, below the noise of a quiet room."""

FULL_SCALE = 0.9999
"""Size from which a sample counts as at full scale: the largest of 16 bits is 0.99997."""

CLIPPED = 1e-3
"""Share of samples at full scale from which a sound counts as clipped: a peak touches it in single samples."""

_BLOCK = 2**18
"""Frames decoded at a time, so that a file with many channels or a high rate is never in memory as it is stored."""


@dataclass(frozen=True)
class SoundInfo:
    """What a file of sound holds, measured before channels are mixed and the rate is changed.

    Attributes:
        seconds: Duration.
        rate: Samples per second of the file.
        channels: Channels of the file.
        peak: Largest size of a sample; full scale is 1.
        rms: Root of the mean square of all samples.
        full_scale: Share of samples at full scale.
    """

    seconds: float
    rate: int
    channels: int
    peak: float
    rms: float
    full_scale: float

    @property
    def is_silent(self) -> bool:
        """Whether nothing is to be heard."""
        return self.rms <= SILENT

    @property
    def is_clipped(self) -> bool:
        """Whether the recording was too loud for its format."""
        return self.full_scale >= CLIPPED


def read_sound(source: Path | bytes, *, name: str | None = None) -> Tensor:
    """Read a sound as (T,) float32 samples at `RATE`; full scale is 1.

    Channels are averaged. Another rate is changed by a polyphase filter (`scipy.signal.resample_poly`). Of a WAV or Ogg
    that was cut off, what is left is read, since recorders that are switched off leave such files.

    Args:
        source: A file, or the bytes of one: WAV, FLAC, Ogg, MP3, or anything else that libsndfile reads.
        name: What error messages call it; default: the path.

    Raises:
        DataError: A file that is missing or cannot be opened; not a sound; damaged; without samples; with samples that
            are NaN or infinite.
    """
    name = name or _name(source)
    with _opened(source, name) as (rate, blocks):
        mono_T = np.concatenate([block_TC.mean(axis=1) for block_TC in blocks])
    return change_rate(torch.from_numpy(mono_T), rate=rate)


def describe_sound(source: Path | bytes, *, name: str | None = None) -> SoundInfo:
    """Measure a sound: duration, format and loudness.

    Raises:
        DataError: As for `read_sound`.
    """
    peak, energy, full, frames, channels = 0.0, 0.0, 0, 0, 0
    with _opened(source, name or _name(source)) as (rate, blocks):
        for block_TC in blocks:
            size_TC = np.abs(block_TC)
            peak = max(peak, float(size_TC.max()))
            energy += float(np.square(size_TC, dtype=np.float64).sum())
            full += int((size_TC >= FULL_SCALE).sum())
            frames, channels = frames + len(block_TC), block_TC.shape[1]
    samples = frames * channels
    return SoundInfo(
        seconds=frames / rate,
        rate=rate,
        channels=channels,
        peak=peak,
        rms=math.sqrt(energy / samples),
        full_scale=full / samples,
    )


def change_rate(samples_T: Tensor, *, rate: int) -> Tensor:
    """Return samples (T,) of another rate at `RATE`, through a polyphase filter."""
    if rate == RATE:
        return samples_T
    from scipy.signal import resample_poly

    shared = math.gcd(rate, RATE)
    return torch.from_numpy(resample_poly(samples_T.numpy(), RATE // shared, rate // shared))


def check_samples(samples_T: Tensor, *, name: str = "the sound") -> None:
    """Raise DataError unless `samples_T` is (T,) float32, finite, and has at least one sample."""
    if samples_T.ndim != 1 or samples_T.dtype != torch.float32:
        raise DataError(
            f"{name}: a tensor of shape {tuple(samples_T.shape)} and {samples_T.dtype}, expected (T,) float32 samples "
            f"at {RATE} Hz with full scale 1"
        )
    if not len(samples_T):
        raise DataError(f"{name}: a sound without samples: leave it out")
    if not samples_T.isfinite().all():
        raise DataError(f"{name}: some samples are NaN or infinite: export the sound again")


def _name(source: Path | bytes) -> str:
    return printable(source) if isinstance(source, Path) else "the sound"


@contextmanager
def _stream(source: Path | bytes, name: str) -> Iterator[IO[bytes]]:
    """Open a file or bytes for reading."""
    try:
        stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder, where a sound file is expected") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    with stream:
        yield stream


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[int, Iterator[NDArray[np.float32]]]]:
    """Open a sound; yield its rate and its samples (T, C) in blocks, all of them finite and at least one."""
    import soundfile

    with _stream(source, name) as stream, _one_line_errors(name), soundfile.SoundFile(stream) as sound:
        yield sound.samplerate, _blocks(sound, name)


def _blocks(sound: Any, name: str) -> Iterator[NDArray[np.float32]]:
    frames = 0
    while len(block_TC := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        if not np.isfinite(block_TC).all():
            raise DataError(f"{name}: some samples are NaN or infinite: export the sound again")
        frames += len(block_TC)
        yield block_TC
    if frames == 0:
        raise DataError(f"{name}: a sound without samples: record it again, or leave it out")
    if frames < sound.frames:
        raise DataError(f"{name}: truncated, {frames:,} of {sound.frames:,} samples are left: get the file again")


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn what soundfile raises for a file that it cannot decode into one line."""
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless data in a file that ends in .raw
        reason = " ".join(str(getattr(error, "error_string", error)).split())
        raise DataError(
            f"{name}: not a readable sound ({reason}): expected WAV, FLAC, Ogg or MP3, get the file again"
        ) from error
