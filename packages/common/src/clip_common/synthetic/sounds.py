"""Sounds of scenes: the things one after another, each as one note or three equal ones that express three attributes.

    kind     voice: one of four spectra, in one of four articulations
    colour   pitch: one of eight, thirds apart
    size     duration

The order is the reading order of the places (top row first, each row from the left), with a pause between things.
Texture and background are not audible, and of the places the order alone, so a sound tells less than a picture;
`sound_oracle.py` computes how much less.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES, SIZES, Scene, Thing, generator

Samples = NDArray[np.float32]
_Floats = NDArray[np.float64]

SAMPLE_RATE = 16_000
"""Samples a second."""

# Alternating major and minor thirds: far enough apart for a coarse filter bank, and pleasant in any order.
PITCH = {
    colour: 196.0 * 2 ** (semitones / 12)
    for colour, semitones in zip(COLOURS, (0, 4, 7, 11, 14, 18, 21, 25), strict=True)
}
"""Fundamental of each colour, Hz."""

SECONDS = {"small": 0.3, "medium": 0.5, "large": 0.8}
"""Duration of each size in seconds."""

PAUSE = 0.15
"""Seconds of silence between two things."""

SPECTRA: dict[str, tuple[tuple[float, float], ...]] = {
    "pure": ((1, 1.0), (2, 0.1), (3, 0.03)),
    "hollow": ((1, 1.0), (3, 0.6), (5, 0.4), (7, 0.25)),
    "full": tuple((n, 1 / n**0.5) for n in range(1, 9)),
    "metallic": ((1, 1.0), (2.76, 0.7), (5.4, 0.5)),
}
"""Partials of each spectrum: (multiple of the fundamental, amplitude)."""


@dataclass(frozen=True, slots=True)
class Articulation:
    """The number of equal notes of a thing, and the loudness of a note as a function of its progress, 0 to 1."""

    notes: int
    loudness: Callable[[_Floats], _Floats]


ARTICULATIONS = {
    "held": Articulation(notes=1, loudness=np.ones_like),
    "struck": Articulation(notes=1, loudness=lambda course: np.exp(-4 * course)),
    "swelling": Articulation(notes=1, loudness=lambda course: 0.02 + 0.98 * course**2),
    "repeated": Articulation(notes=3, loudness=np.ones_like),
}

VOICES = {
    "bottle": ("pure", "held"),
    "fish": ("pure", "struck"),
    "leaf": ("pure", "swelling"),
    "butterfly": ("pure", "repeated"),
    "tree": ("hollow", "held"),
    "mug": ("hollow", "struck"),
    "mushroom": ("hollow", "swelling"),
    "hat": ("hollow", "repeated"),
    "boat": ("full", "held"),
    "house": ("full", "struck"),
    "umbrella": ("full", "swelling"),
    "car": ("full", "repeated"),
    "lamp": ("metallic", "held"),
    "bell": ("metallic", "struck"),
    "star": ("metallic", "swelling"),
    "key": ("metallic", "repeated"),
}
"""Spectrum and articulation of each kind; no two kinds share both."""

_EDGE = 0.01  # seconds of fade at both ends of a note, so that it does not click
_SOUNDING = 0.65  # share of its period that a repeated note sounds


def render_sound(scene: Scene) -> Samples:
    """Return the sound of a scene: mono float32 samples in [-1, 1] at `SAMPLE_RATE`, always the same for a scene.

    A thing lasts 0.3 to 0.9 seconds, a scene 0.3 to 4. Details that the words leave open vary a little: tuning (a fifth
    of a semitone), length (5 %), loudness, timbre, phases, and a faint noise throughout.
    """
    random = generator("sound", seed=scene.seed, index=scene.index)
    parts = [_make_silence(random.uniform(0.02, 0.06))]
    for thing in in_reading_order(scene):
        parts += [_make_tone(thing, random), _make_silence(PAUSE)]
    parts[-1] = _make_silence(random.uniform(0.02, 0.06))
    clean = np.concatenate(parts)
    noise = random.normal(scale=random.uniform(0.001, 0.004), size=len(clean))
    return np.clip(clean + noise, -1, 1).astype(np.float32)


def in_reading_order(scene: Scene) -> list[Thing]:
    """Return the things of a scene in reading order: top row from left to right, then the middle, then the bottom."""
    return sorted(scene.things, key=lambda thing: PLACES.index(thing.place))


def _make_silence(seconds: float) -> _Floats:
    return np.zeros(round(seconds * SAMPLE_RATE))


def _make_tone(thing: Thing, random: np.random.Generator) -> _Floats:
    spectrum, manner = VOICES[thing.kind]
    seconds = SECONDS[thing.size] * random.uniform(0.95, 1.05)
    pitch = PITCH[thing.colour] * 2 ** (random.uniform(-0.2, 0.2) / 12)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    partials = np.array(SPECTRA[spectrum])
    amplitude_P = partials[:, 1] * random.uniform(0.85, 1.15, size=len(partials))
    phase_P = random.uniform(0, 2 * np.pi, size=len(partials))
    waves_PT = np.sin(2 * np.pi * pitch * partials[:, :1] * time + phase_P[:, None])
    tone = amplitude_P @ waves_PT / amplitude_P.sum()
    return random.uniform(0.5, 0.9) * tone * _envelope(time, seconds, ARTICULATIONS[manner])


def _envelope(time: _Floats, seconds: float, articulation: Articulation) -> _Floats:
    """Return the loudness at each time, 0 to 1."""
    period = seconds / articulation.notes
    length = period if articulation.notes == 1 else period * _SOUNDING
    since = time % period
    fade = np.clip(np.minimum(since, length - since) / _EDGE, 0, 1)
    return articulation.loudness(since / length) * fade


assert set(VOICES) == set(KINDS)
assert len(set(VOICES.values())) == len(KINDS)
assert set(SECONDS) == set(SIZES)
