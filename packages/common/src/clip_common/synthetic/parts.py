"""Close-up parts as an inspection camera sees them: what one is, which are damaged, and which damage is held out.

A part is one thing that fills most of the picture. It is flawless or has one defect; the same part exists both ways.
Of some kinds pretraining sees flawless parts only, and of every other kind it never sees one of the defects: their
words are known, their defects are not.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from clip_common.synthetic.scenes import BACKGROUNDS, COLOURS, KINDS, TEXTURES, generator

DEFECTS = ("scratch", "crack", "hole", "stain", "missing part", "misprint")

HELD_KINDS = ("bottle", "bell", "leaf", "key")
"""Kinds of which the tiny CLIP has seen no defect."""

HELD_PAIRS = {
    kind: DEFECTS[number % len(DEFECTS)] for number, kind in enumerate(kind for kind in KINDS if kind not in HELD_KINDS)
}
"""The one defect of each other kind that the tiny CLIP has not seen on it."""

Novelty = Literal["known", "held pair", "held kind"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part in close-up, flawless where `defect` is None; `seed` and `index` also fix what the words leave open."""

    seed: int
    index: int
    kind: str
    colour: str
    texture: str
    background: str
    defect: str | None

    def flawless(self) -> "Part":
        """The same part without its defect: its picture differs in what the defect's mask covers, and in a shadow."""
        return replace(self, defect=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Part":
        """The inverse of `to_dict`; other keys are left alone."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


def novelty(kind: str, defect: str) -> Novelty:
    """Whether the tiny CLIP saw this defect on this kind, on other kinds only, or no defect of this kind at all."""
    if kind in HELD_KINDS:
        return "held kind"
    return "held pair" if HELD_PAIRS[kind] == defect else "known"


def sample_part(seed: int, index: int, *, kinds: tuple[str, ...] = KINDS, defects: tuple[str, ...] = DEFECTS) -> Part:
    """Part number `index` of the world `seed`, with a defect; `.flawless()` is the same one without.

    Always the same for the same arguments, in whatever order parts are drawn.

    Raises:
        ValueError: `seed` or `index` is negative, or a kind or defect that the world does not have.
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
