"""Captions of scenes: a small grammar that gives five different captions a scene, and a parser of it.

    caption    = things, background? | background ", " things
    things     = thing {", " thing} " and " thing
    thing      = article size? texture? colour? kind place?

Each caption leaves out some details, as people do. The parser turns the rest into claims, from which `oracle.py`
computes the ceiling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES, SIZES, TEXTURES, Scene, Thing, generator

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little"), "medium": ("medium-sized",), "large": ("large", "big")},
    "texture": {name: (name,) for name in TEXTURES},
    "colour": {name: (name,) for name in COLOURS},
    "kind": {name: (name,) for name in KINDS},
    "place": {
        "top left": ("at the top left", "in the upper left corner"),
        "top": ("at the top",),
        "top right": ("at the top right", "in the upper right corner"),
        "left": ("on the left",),
        "centre": ("in the centre", "in the middle"),
        "right": ("on the right",),
        "bottom left": ("at the bottom left", "in the lower left corner"),
        "bottom": ("at the bottom",),
        "bottom right": ("at the bottom right", "in the lower right corner"),
    },
}
"""Phrases for each value of each attribute of a thing; each phrase means one value."""

BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "grass": ("on green grass", "on a lawn"),
    "sand": ("on sand", "on a sandy beach"),
    "bricks": ("in front of a brick wall",),
    "wood": ("on wooden boards", "on a wooden table"),
    "water": ("on water",),
    "snow": ("in the snow",),
}

ADJECTIVES = ("size", "texture", "colour")


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a caption: the named attributes of each thing, and the background if it is named."""

    things: tuple[dict[str, str], ...]
    background: str | None


def captions(scene: Scene, count: int = 5) -> list[str]:
    """Return `count` different captions of a scene, always the same for the same scene.

    Raises:
        ValueError: `count` is not 1 to 10.
    """
    random = generator("captions", seed=scene.seed, index=scene.index)
    return make_different(lambda: _make_caption(scene, random), count, what="scene")


def make_different(make: Callable[[], str], count: int, *, what: str) -> list[str]:
    """Call `make` until it has returned `count` different captions; return them.

    Raises:
        ValueError: `count` is not 1 to 10; a scene of one thing does not have many more.
    """
    if not 1 <= count <= 10:
        raise ValueError(f"a {what} has 1 to 10 different captions: got count={count}")
    texts: list[str] = []
    while len(texts) < count:
        text = make()
        if text not in texts:
            texts.append(text)
    return texts


def naming_caption(scene: Scene) -> str:
    """Return a caption that names the things and nothing else, as in a query: "a photo of a mug and a star"."""
    return f"a photo of {_join([add_article(thing.kind) for thing in scene.things])}"


def read_caption(text: str) -> Claims:
    """Return the claims of a caption of this grammar.

    Raises:
        ValueError: It names no thing of the world.
    """
    found = sorted(_find_phrases(text.lower()), key=lambda occurrence: occurrence[0])
    things: list[dict[str, str]] = []
    waiting: dict[str, str] = {}
    background = None
    for _, attribute, value in found:
        if attribute == "background":
            background = value
        elif attribute == "kind":
            things.append(waiting | {"kind": value})
            waiting = {}
        elif attribute == "place" and things:  # a place follows its thing, adjectives come before theirs
            things[-1]["place"] = value
        else:
            waiting[attribute] = value
    if not things:
        raise ValueError(f"{text!r} names no thing of the procedural world; things are {', '.join(KINDS)}")
    return Claims(things=tuple(things), background=background)


def _find_phrases(text: str) -> list[tuple[int, str, str]]:
    """Return (position, attribute, value) of every phrase in the text; of overlapping phrases the longest."""
    taken = np.zeros(len(text) + 1, dtype=bool)
    found = []
    for phrase, attribute, value in _PHRASES:
        start = text.find(phrase)
        while start >= 0:
            end = start + len(phrase)
            whole_words = (start == 0 or not text[start - 1].isalpha()) and not text[end : end + 1].isalpha()
            if whole_words and not taken[start:end].any():
                taken[start:end] = True
                found.append((start, attribute, value))
            start = text.find(phrase, start + 1)
    return found


_PHRASES = sorted(
    [
        (phrase, attribute, value)
        for attribute, values in {**WORDS, "background": BACKGROUND_WORDS}.items()
        for value, phrases in values.items()
        for phrase in phrases
    ],
    key=lambda entry: -len(entry[0]),
)


def _make_caption(scene: Scene, random: np.random.Generator) -> str:
    order = random.permutation(len(scene.things))
    said = len(order) if len(order) <= 2 or random.random() < 0.6 else len(order) - 1
    phrases = [_make_noun_phrase(scene.things[i], alone=said == 1, random=random) for i in order[:said]]
    listed = _join(phrases)
    if random.random() < (0.9 if said == 1 else 0.5):
        ground = choose(BACKGROUND_WORDS[scene.background], random)
        return f"{listed} {ground}" if random.random() < 0.7 else f"{ground}, {listed}"
    return listed


def _make_noun_phrase(thing: Thing, *, alone: bool, random: np.random.Generator) -> str:
    """Return a noun phrase. A thing named alone is described more fully, so that it still tells scenes apart."""
    adjectives = [
        choose(WORDS[name][getattr(thing, name)], random)
        for name in ADJECTIVES
        if random.random() < (0.95 if alone or name == "colour" else 0.65)
    ]
    place = random.random() < (0.95 if alone else 0.6)
    words = [*adjectives, thing.kind, *([choose(WORDS["place"][thing.place], random)] if place else [])]
    return add_article(" ".join(words))


def add_article(words: str) -> str:
    """Return the words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def choose(phrases: Sequence[str], random: np.random.Generator) -> str:
    """Return one of the phrases at random."""
    return phrases[int(random.integers(len(phrases)))]


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


assert set(WORDS["size"]) == set(SIZES)
assert set(WORDS["place"]) == set(PLACES)
