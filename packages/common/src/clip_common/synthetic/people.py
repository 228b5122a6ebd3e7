"""People who walk, in pictures and captions: words that the tiny CLIP has never read, and figures it has never seen.

    caption  = person hair? clothes? motion? wall? floor?
    clothes  = "in a COLOUR shirt", "in CLOTH trousers", "with COLOUR shoes", two of them joined by "and"

A caption makes two to six claims; a set of a few hundred people teaches all of its words.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from clip_common.synthetic.captions import add_article, choose, make_different
from clip_common.synthetic.figure_draw import render_walk
from clip_common.synthetic.figures import HAIRS, TROUSERS, sample_clip, sample_subject
from clip_common.synthetic.scenes import BACKGROUNDS, COLOURS, generator

PERSONS = ("person", "walker", "pedestrian")
MOTIONS = ("walking to the {}", "going {}", "on the way to the {}")
WALLS = ("past a wall of {}", "with {} behind")
FLOORS = ("across {}", "over {}")
CLAIMS = ("hair", "shirt", "trousers", "shoes", "facing", "wall", "floor")


@dataclass(frozen=True, slots=True)
class Person:
    """The words for one walking person; `seed` and `index` determine the body, the step and the rest of the picture."""

    seed: int
    index: int
    hair: str
    shirt: str
    trousers: str
    shoes: str
    facing: str
    wall: str
    floor: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Person":
        """Return the person that `to_dict` describes; other keys are ignored."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


def sample_person(seed: int, index: int) -> Person:
    """Return person number `index` of world `seed`: the same at every call, in any order.

    Raises:
        ValueError: `seed` or `index` is negative.
    """
    clip = sample_clip(sample_subject(seed, index), 0)
    build = clip.subject.build
    return Person(
        seed=seed,
        index=index,
        hair=build.hair,
        shirt=build.shirt,
        trousers=build.trousers,
        shoes=build.shoes,
        facing=clip.facing,
        wall=clip.wall,
        floor=clip.floor,
    )


def render_person(person: Person, *, size: int) -> Image.Image:
    """Draw a person at one moment of the walk, `size` pixels a side.

    Raises:
        ValueError: `size` is below 32.
    """
    clip = sample_clip(sample_subject(person.seed, person.index), 0)
    return Image.fromarray(render_walk(clip, size=size, fps=1)[0])


def person_captions(person: Person, count: int = 5) -> list[str]:
    """Return `count` different captions of a person, always the same for the same person.

    Raises:
        ValueError: `count` is not 1 to 10.
    """
    random = generator("person captions", seed=person.seed, index=person.index)
    return make_different(lambda: _make_caption(person, random), count, what="person")


def _make_caption(person: Person, random: np.random.Generator) -> str:
    shirt = add_article(f"{person.shirt} shirt")
    clothes = [f"in {shirt}", f"in {person.trousers} trousers", f"with {person.shoes} shoes"]
    worn = [clothes[number] for number in sorted(random.permutation(3)[: random.integers(1, 3)])]
    someone = choose(PERSONS, random)
    if random.random() < 0.5:
        someone = f"{person.hair}-haired {someone}"
    words = [add_article(someone), " and ".join(worn)]
    if random.random() < 0.5:
        words.append(choose(MOTIONS, random).format(person.facing))
    if random.random() < 0.5:
        words.append(choose(WALLS, random).format(person.wall))
    if random.random() < 0.5:
        words.append(choose(FLOORS, random).format(person.floor))
    # one piece of clothing alone says too little
    return " ".join(words) if len(words) > 2 else f"{words[0]} {words[1]} going {person.facing}"


def read_person_caption(text: str) -> dict[str, str]:
    """Return the claims of a caption of this grammar, by the names in `CLAIMS`.

    Raises:
        ValueError: It claims nothing about a person.
    """
    found = {name: match[1] for name, pattern in _PATTERNS.items() if (match := re.search(pattern, text))}
    if not found:
        raise ValueError(f"{text!r} says nothing about a person's hair, clothes, direction or surroundings")
    return found


def _one_of(phrases: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return a pattern of any phrase with any value in its place; group 1 is the value."""
    choices = "|".join(values)
    before = "|".join(f"(?<={re.escape(phrase.partition('{}')[0])})" for phrase in phrases)
    return rf"(?:{before})\b({choices})\b"


_PATTERNS = {
    "hair": rf"\b({'|'.join(HAIRS)})-haired",
    "shirt": rf"\b({'|'.join(COLOURS)}) shirt",
    "trousers": rf"\b({'|'.join(TROUSERS)}) trousers",
    "shoes": rf"\b({'|'.join(COLOURS)}) shoes",
    "facing": _one_of(MOTIONS, ("left", "right")),
    "wall": _one_of(WALLS, BACKGROUNDS),
    "floor": _one_of(FLOORS, BACKGROUNDS),
}
