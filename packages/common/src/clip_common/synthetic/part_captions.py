"""Captions of parts, in the words that people use for defects, and a parser of them.

    caption   = opening? article condition? texture? colour? kind (", " | " ") condition_after? background?

Every caption says whether the part is flawless or damaged; about half of those of damaged parts name the defect.
"""

import numpy as np

from clip_common.synthetic.captions import BACKGROUND_WORDS, add_article, choose, make_different, read_caption
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
"""Phrases that name each defect."""


def part_captions(part: Part, count: int = 5) -> list[str]:
    """Return `count` different captions of a part, always the same for the same part.

    Raises:
        ValueError: `count` is not 1 to 10.
    """
    random = generator(f"part captions {part.defect}", seed=part.seed, index=part.index)
    return make_different(lambda: _make_caption(part, random), count, what="part")


def _make_caption(part: Part, random: np.random.Generator) -> str:
    before, after = _choose_condition(part, random)
    words = [before] if before else []
    if random.random() < 0.4:
        words.append(part.texture)
    if random.random() < 0.75:
        words.append(part.colour)
    words.append(part.kind)
    text = add_article(" ".join([*words, *([after] if after else [])]))
    text = f"{choose(OPENINGS, random)} {text}".strip()
    return f"{text} {choose(BACKGROUND_WORDS[part.background], random)}" if random.random() < 0.35 else text


def _choose_condition(part: Part, random: np.random.Generator) -> tuple[str, str]:
    """Return the words before and after the kind; at least one of them tells the condition."""
    if part.defect is None:
        before, after = choose(FLAWLESS, random), choose(FLAWLESS_AFTER, random)
    else:
        named = random.random() < 0.5
        adjective = DEFECT_ADJECTIVES.get(part.defect)
        before = adjective if named and adjective and random.random() < 0.4 else choose(DAMAGED, random)
        after = choose(DEFECT_AFTER[part.defect] if named else DAMAGED_AFTER, random)
    said = random.random()
    if said < 0.45:
        return before, ""
    return ("", after) if said < 0.8 else (before, after)


def read_part_caption(text: str) -> dict[str, str]:
    """Return the claims of a caption of this grammar: kind, condition, and colour, texture and background if named.

    The condition is `flawless`, `damaged`, or the defect if one is named.

    Raises:
        ValueError: It names no thing of the world, or no condition.
    """
    claims = read_caption(text)
    said = claims.things[-1] | ({} if claims.background is None else {"background": claims.background})
    for phrase, condition in _CONDITIONS:
        if f" {phrase} " in f" {text.lower().replace(',', '')} ":
            return said | {"condition": condition}
    raise ValueError(f"{text!r} says neither that the part is flawless nor that it is damaged: say one of them")


# phrases that name a defect come first: they say more than "damaged"
_CONDITIONS = (
    *((phrase, defect) for defect, phrases in DEFECT_AFTER.items() for phrase in phrases),
    *((word, defect) for defect, word in DEFECT_ADJECTIVES.items()),
    *((phrase, "damaged") for phrase in (*DAMAGED, *DAMAGED_AFTER)),
    *((phrase, "flawless") for phrase in (*FLAWLESS, *FLAWLESS_AFTER)),
)
