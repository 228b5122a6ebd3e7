"""Parts to English, in the words with which people ask for defects.

    caption   = opening? article condition? texture? colour? kind (", " | " ") condition_after? background?

Every caption says whether the part is flawless or damaged; about half of those of a damaged part say how.
"""

import numpy as np

from clip_common.synthetic.captions import BACKGROUND_WORDS, read_caption
from clip_common.synthetic.parts import Part
from clip_common.synthetic.scenes import generator

OPENINGS = ("", "a photo of", "a close-up photo of", "a picture of", "an inspection image of", "a cropped photo of")

FLAWLESS = ("flawless", "perfect", "unblemished", "intact", "undamaged")
"""Adjectives of a part without a defect."""
DAMAGED = ("damaged", "broken", "defective", "flawed", "faulty")
"""Adjectives of a part with any defect."""

FLAWLESS_AFTER = ("without flaw", "without defect", "without damage", "in perfect condition")
DAMAGED_AFTER = ("with flaw", "with a defect", "with damage", "in bad condition")

DEFECT_ADJECTIVES = {"scratch": "scratched", "crack": "cracked", "stain": "stained", "misprint": "misprinted"}
DEFECT_AFTER = {
    "scratch": ("with a scratch", "with scratches"),
    "crack": ("with a crack",),
    "hole": ("with a hole",),
    "stain": ("with a stain", "with a dirty spot"),
    "missing part": ("with a missing part", "with a piece missing"),
    "misprint": ("with a misprint", "with a smeared print"),
}
"""How each defect is said."""


def part_captions(part: Part, count: int = 5) -> list[str]:
    """`count` different captions of a part, always the same for the same part.

    Raises:
        ValueError: `count` is not 1 to 10.
    """
    if not 1 <= count <= 10:
        raise ValueError(f"a part has 1 to 10 different captions: got count={count}")
    random = generator(f"part captions {part.defect}", seed=part.seed, index=part.index)
    texts: list[str] = []
    while len(texts) < count:
        text = _make_caption(part, random)
        if text not in texts:
            texts.append(text)
    return texts


def _make_caption(part: Part, random: np.random.Generator) -> str:
    before, after = _choose_condition(part, random)
    words = [before] if before else []
    if random.random() < 0.4:
        words.append(part.texture)
    if random.random() < 0.75:
        words.append(part.colour)
    words.append(part.kind)
    article = "an" if words[0][0] in "aeiou" else "a"
    text = " ".join([article, *words, *([after] if after else [])])
    opening = _one_of(OPENINGS, random)
    text = f"{opening} {text}".strip()
    return f"{text} {_one_of(BACKGROUND_WORDS[part.background], random)}" if random.random() < 0.35 else text


def _choose_condition(part: Part, random: np.random.Generator) -> tuple[str, str]:
    """Words before and after the kind; at least one of them says the condition."""
    if part.defect is None:
        before, after = _one_of(FLAWLESS, random), _one_of(FLAWLESS_AFTER, random)
    else:
        named = random.random() < 0.5
        adjective = DEFECT_ADJECTIVES.get(part.defect)
        before = adjective if named and adjective and random.random() < 0.4 else _one_of(DAMAGED, random)
        after = _one_of(DEFECT_AFTER[part.defect] if named else DAMAGED_AFTER, random)
    said = random.random()
    if said < 0.45:
        return before, ""
    return ("", after) if said < 0.8 else (before, after)


def _one_of(phrases: tuple[str, ...], random: np.random.Generator) -> str:
    return phrases[random.integers(len(phrases))]


def read_part_caption(text: str) -> dict[str, str]:
    """What a caption of this grammar claims: its kind, colour, texture and background as far as said, and a condition.

    The condition is `flawless`, `damaged`, or the defect where one is named.

    Raises:
        ValueError: No thing of the world is named, or no condition.
    """
    claims = read_caption(text)
    said = claims.things[-1] | ({} if claims.background is None else {"background": claims.background})
    for phrase, condition in _CONDITIONS:
        if f" {phrase} " in f" {text.lower().replace(',', '')} ":
            return said | {"condition": condition}
    raise ValueError(f"{text!r} says neither that the part is flawless nor that it is damaged")


# what names a defect comes first: it says more than that there is one
_CONDITIONS = (
    *((phrase, defect) for defect, phrases in DEFECT_AFTER.items() for phrase in phrases),
    *((word, defect) for defect, word in DEFECT_ADJECTIVES.items()),
    *((phrase, "damaged") for phrase in (*DAMAGED, *DAMAGED_AFTER)),
    *((phrase, "flawless") for phrase in (*FLAWLESS, *FLAWLESS_AFTER)),
)
