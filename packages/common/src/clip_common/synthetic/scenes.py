"""What is in a scene: its words, and how a scene is drawn by lot from (version, seed, index)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

VERSION = 1
"""Raised whenever the same (seed, index) would give another scene, picture or caption."""

PRETRAINING_SEED = 0
"""The seed of what the tiny CLIP learned from; writers draw seed 1 unless told."""

KINDS = (
    "mug", "star", "fish", "house", "tree", "car", "leaf", "key",
    "bottle", "umbrella", "boat", "lamp", "hat", "bell", "butterfly", "mushroom",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("grass", "sand", "bricks", "wood", "water", "snow")

SIDE = {"small": 0.22, "medium": 0.31, "large": 0.42}
"""Side of a thing's square as a fraction of the picture's."""

_COLUMNS = (0.19, 0.5, 0.81)
_OVERLAP = 1.04  # squares may overlap by this much: a drawing does not fill its square
_MOST_THINGS = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene: five words."""

    kind: str
    colour: str
    texture: str
    size: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One to four things at different places on a background; `seed` and `index` also fix what the words leave open."""

    seed: int
    index: int
    things: tuple[Thing, ...]
    background: str

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Scene":
        """The inverse of `to_dict`."""
        things = tuple(Thing(**thing) for thing in row["things"])
        return cls(seed=row["seed"], index=row["index"], things=things, background=row["background"])


def generator(stream: str, *, seed: int, index: int) -> np.random.Generator:
    """A random generator of its own for each use (`stream`) of each (version, seed, index).

    Raises:
        ValueError: `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative: got seed={seed}, index={index}")
    return np.random.default_rng(np.random.SeedSequence((VERSION, seed, index, *stream.encode())))


def centre(place: str) -> tuple[float, float]:
    """(x, y) of a place as fractions of the picture, y downwards."""
    row, column = divmod(PLACES.index(place), 3)
    return _COLUMNS[column], _COLUMNS[row]


def sample_scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the world `seed`: always the same, in whatever order scenes are drawn.

    Every count from one to four is as frequent; large things are rarer in full scenes, where they would hide others.

    Raises:
        ValueError: `seed` or `index` is negative.
    """
    random = generator("scene", seed=seed, index=index)
    count = int(random.integers(1, _MOST_THINGS + 1))
    while True:
        places = [PLACES[i] for i in random.permutation(len(PLACES))[:count]]
        sizes = [SIZES[i] for i in random.integers(len(SIZES), size=count)]
        if _all_visible(places, sizes):
            break
    things = tuple(
        Thing(
            kind=KINDS[random.integers(len(KINDS))],
            colour=COLOURS[random.integers(len(COLOURS))],
            texture=TEXTURES[random.integers(len(TEXTURES))],
            size=size,
            place=place,
        )
        for place, size in zip(places, sizes, strict=True)
    )
    return Scene(seed=seed, index=index, things=things, background=BACKGROUNDS[random.integers(len(BACKGROUNDS))])


def _all_visible(places: list[str], sizes: list[str]) -> bool:
    centres = [centre(place) for place in places]
    for i, (x, y) in enumerate(centres):
        for j in range(i):
            distance = max(abs(x - centres[j][0]), abs(y - centres[j][1]))
            if (SIDE[sizes[i]] + SIDE[sizes[j]]) / 2 > distance * _OVERLAP:
                return False
    return True
