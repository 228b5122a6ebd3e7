"""Parts in close-up, as an inspection camera sees them: attributes, defects, and which defects are held out.

A part is one thing that fills most of the picture. It is flawless or has one defect; every part exists in both
versions. Pretraining never shows a defect on some kinds, and never shows one of the six defects on each other kind. It
does show the words for all of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from clip_common.synthetic.scenes import BACKGROUNDS, COLOURS, KINDS, TEXTURES, generator

DEFECTS = ("scratch", "crack", "hole", "stain", "missing part", "misprint")

HELD_KINDS = ("bottle", "bell", "leaf", "key")
"""Kinds on which the tiny CLIP has never seen a defect."""

HELD_PAIRS = {
    kind: DEFECTS[number % len(DEFECTS)] for number, kind in enumerate(kind for kind in KINDS if kind not in HELD_KINDS)
}
"""For each other kind, the one defect that the tiny CLIP has never seen on it."""

Novelty = Literal["known", "held pair", "held kind"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part in close-up, flawless if `defect` is None.

    `seed` and `index` also determine the details that the words leave open.
    """

    seed: int
    index: int
    kind: str
    colour: str
    texture: str
    background: str
    defect: str | None

    def flawless(self) -> "Part":
        """Return the part without its defect: its picture differs only under the defect's mask and in the shadow."""
        return replace(self, defect=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Part":
        """Return the part that `to_dict` describes; other keys are ignored."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


def novelty(kind: str, defect: str) -> Novelty:
    """Return whether the tiny CLIP saw this defect on this kind, on other kinds only, or no defect on this kind."""
    if kind in HELD_KINDS:
        return "held kind"
    return "held pair" if HELD_PAIRS[kind] == defect else "known"


def sample_part(seed: int, index: int, *, kinds: tuple[str, ...] = KINDS, defects: tuple[str, ...] = DEFECTS) -> Part:
    """Return part number `index` of world `seed`, with a defect; `.flawless()` returns it without.

    It depends on the arguments alone: the same at every call, in any order.

    Raises:
        ValueError: `seed` or `index` is negative, or the world lacks a kind or defect.
    """
    for name, given, known in (("kinds", kinds, KINDS), ("defects", defects, DEFECTS)):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"{name} must be some of {', '.join(known)}: got {', '.join(unknown) or 'none'}")
    random = generator("part", seed=seed, index=index)
    return Part(
        seed=seed,
        index=index,
        kind=kinds[random.integers(len(kinds))],
        colour=COLOURS[random.integers(len(COLOURS))],
        texture=TEXTURES[random.integers(len(TEXTURES))] if random.random() < 0.5 else "plain",
        background=BACKGROUNDS[random.integers(len(BACKGROUNDS))],
        defect=defects[random.integers(len(defects))],
    )
