"""Scenes: the words that describe them, and their sampling from (version, seed, index)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

VERSION = 1
"""Increase it whenever the same (seed, index) would give another scene, picture or caption."""

PRETRAINING_SEED = 0
"""Seed of the training data of the tiny CLIP; the writers of other sets default to seed 1."""

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
    """One object of a scene, described by five words."""

    kind: str
    colour: str
    texture: str
    size: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One to four things at different places on a background.

    `seed` and `index` also determine the details that the words leave open.
    """

    seed: int
    index: int
    things: tuple[Thing, ...]
    background: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Scene":
        """Return the scene that `to_dict` describes."""
        things = tuple(Thing(**thing) for thing in row["things"])
        return cls(seed=row["seed"], index=row["index"], things=things, background=row["background"])


def generator(stream: str, *, seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one use (`stream`) of (version, seed, index), independent of all others.

    Raises:
        ValueError: `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative: got seed={seed}, index={index}")
    return np.random.default_rng(np.random.SeedSequence((VERSION, seed, index, *stream.encode())))


def centre(place: str) -> tuple[float, float]:
    """Return (x, y) of a place as fractions of the picture's side, y downwards."""
    row, column = divmod(PLACES.index(place), 3)
    return _COLUMNS[column], _COLUMNS[row]


def sample_scene(seed: int, index: int) -> Scene:
    """Return scene number `index` of world `seed`: the same at every call, in any order.

    Every number of things from one to four is equally frequent. Large things are rarer in full scenes, where they would
    hide others.

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
    """Return True if no two squares overlap by more than `_OVERLAP` allows."""
    centres = [centre(place) for place in places]
    for i, (x, y) in enumerate(centres):
        for j in range(i):
            distance = max(abs(x - centres[j][0]), abs(y - centres[j][1]))
            if (SIDE[sizes[i]] + SIDE[sizes[j]]) / 2 > distance * _OVERLAP:
                return False
    return True
