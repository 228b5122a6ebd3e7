"""Sounds in a page: a player that needs no file, and a drawing of the waveform.

Shapes: T samples.
"""

import base64
import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.sounds import RATE, read_sound

SECONDS = 10
"""Length from which sounds are cut, so that a page of many stays small: 10 s are 0.4 MB."""
COLUMNS = 120
"""Lines of a waveform."""


@dataclass(frozen=True)
class SoundPlayer:
    """HTML of a sound.

    Attributes:
        html: The waveform as SVG, and the player with the sound in it.
        note: How much of the sound it plays, such as "first 10 s of 31.5 s"; "2.5 s" for all of it.
    """

    html: str
    note: str


def make_player(path: Path) -> SoundPlayer:
    """Read a sound and return its player and waveform, cut to `SECONDS`.

    Raises:
        DataError: Not a readable sound.
    """
    samples_T = read_sound(path).numpy()
    kept_T = samples_T[: SECONDS * RATE]
    length = f"{len(samples_T) / RATE:,.1f} s"
    return SoundPlayer(
        html=f'{draw_waveform(kept_T)}<audio controls preload="metadata" src="{wav_uri(kept_T)}"></audio>',
        note=length if len(kept_T) == len(samples_T) else f"first {SECONDS} s of {length}",
    )


def wav_uri(samples_T: NDArray[np.float32]) -> str:
    """Return samples at `RATE`, full scale 1, as the data URI of a 16-bit mono WAV; louder samples are clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples_T * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_waveform(samples_T: NDArray[np.float32]) -> str:
    """Return an SVG of vertical lines from the highest to the lowest sample of equal parts; the peak fills it."""
    peak = max(float(np.abs(samples_T).max()), 1e-6)  # silence is a flat line
    down_T = 0 - samples_T / peak  # as y in SVG
    parts = np.array_split(down_T, min(COLUMNS, len(samples_T)))
    lines = "".join(f"M{column + 0.5} {part.min():.3f}V{part.max():.3f}" for column, part in enumerate(parts))
    return (
        f'<svg class="wave" viewBox="0 -1.05 {len(parts)} 2.1" preserveAspectRatio="none" role="img" '
        f'aria-label="waveform"><path d="{lines}"/></svg>'
    )
