"""The forms of questions about scenes, each with its type and possible answers, and a parser of them."""

import re
from dataclasses import dataclass

from clip_common.synthetic.captions import WORDS
from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """One way to ask: a text with placeholders, the type of question, and the possible answers."""

    text: str
    type: str
    answers: tuple[str, ...]

    def fill(self, **words: str) -> str:
        """Return the text with its placeholders filled in; `a` becomes `an` before a vowel."""
        return re.sub(r"\ba(?= [aeiou])", "an", self.text.format(**words))


NO_OR_YES = ("no", "yes")

COLOUR = QuestionForm("what colour is the {kind}?", "colour", COLOURS)
SHAPE = QuestionForm("what is {place}?", "shape", KINDS)
COUNT = QuestionForm("how many things are there?", "count", ("1", "2", "3", "4"))
# three things of a colour are too rare to ask for
COUNT_COLOUR = QuestionForm("how many {colour} things are there?", "count", ("0", "1", "2"))
PLACE = QuestionForm("where is the {kind}?", "place", PLACES)
ANY_KIND = QuestionForm("is there a {kind}?", "yes/no", NO_OR_YES)
ANY_COLOUR = QuestionForm("is there anything {colour}?", "yes/no", NO_OR_YES)
ANY_BOTH = QuestionForm("is there a {colour} {kind}?", "yes/no", NO_OR_YES)

LARGER = QuestionForm("is the {kind} larger than the {other}?", "compare", NO_OR_YES)
SAME_COLOUR = QuestionForm("are the {kind} and the {other} the same colour?", "compare", NO_OR_YES)
COUNT_SIZE = QuestionForm("how many {size} things are there?", "count_if", ("0", "1", "2"))
COUNT_TEXTURE = QuestionForm("how many {texture} things are there?", "count_if", ("0", "1", "2"))
COUNT_LARGER = QuestionForm("how many things are larger than the {kind}?", "count_if", ("0", "1", "2"))
BESIDE = QuestionForm("is the {kind} {direction} the {other}?", "relation", NO_OR_YES)
COLOUR_BESIDE = QuestionForm("what colour is the thing {direction} the {kind}?", "relation", COLOURS)

FORMS = (COLOUR, SHAPE, COUNT, COUNT_COLOUR, PLACE, ANY_KIND, ANY_COLOUR, ANY_BOTH)
"""Questions about one thing, or about all."""

REASONING_FORMS = (LARGER, SAME_COLOUR, COUNT_SIZE, COUNT_TEXTURE, COUNT_LARGER, BESIDE, COLOUR_BESIDE)
"""Questions that compare things, or count those that meet a condition."""

TYPES = tuple(dict.fromkeys(form.type for form in FORMS))
"""colour, shape, count, place, yes/no."""

REASONING_TYPES = tuple(dict.fromkeys(form.type for form in REASONING_FORMS))
"""compare, count_if, relation."""

DIRECTIONS = ("left of", "right of", "above", "below")

_PHRASES = WORDS | {"direction": {direction: (direction,) for direction in DIRECTIONS}}
_ATTRIBUTE_OF = {"other": "kind"}
"""Placeholder → the attribute it names, if it has another name."""


def select_forms(types: tuple[str, ...]) -> tuple[QuestionForm, ...]:
    """Return the forms of these types.

    Raises:
        ValueError: An unknown type, or none.
    """
    unknown = [type for type in types if type not in (*TYPES, *REASONING_TYPES)]
    if unknown or not types:
        known = ", ".join((*TYPES, *REASONING_TYPES))
        raise ValueError(f"types={', '.join(types)}: expected some of the types of questions {known}")
    return tuple(form for form in (*FORMS, *REASONING_FORMS) if form.type in types)


def read_question(question: str) -> tuple[QuestionForm, dict[str, str]]:
    """Return the form of a question, and the value of each placeholder.

    Raises:
        ValueError: The question has none of the forms, or an unknown word.
    """
    for form, pattern in _PATTERNS:
        found = pattern.fullmatch(question.lower())
        if found is not None:
            return form, {name: _find_value(name, phrase, question) for name, phrase in found.groupdict().items()}
    forms = ", ".join(form.text for form in (*FORMS, *REASONING_FORMS))
    raise ValueError(f"{question!r} is not a question of the procedural world; ask one of: {forms}")


def _find_value(placeholder: str, phrase: str, question: str) -> str:
    attribute = _ATTRIBUTE_OF.get(placeholder, placeholder)
    for value, phrases in _PHRASES[attribute].items():
        if phrase in phrases:
            return value
    known = ", ".join(phrases[0] for phrases in _PHRASES[attribute].values())
    raise ValueError(f"{question!r}: the procedural world knows no {attribute} {phrase!r}, only {known}")


def _compile(form: QuestionForm) -> re.Pattern[str]:
    """Return a regular expression with a group for each placeholder: a kind or colour is one word, a place several.

    Sizes, textures and directions are their known phrases, because other forms have a colour in the same position.
    """
    text = re.escape(form.text).replace(r"\ a\ ", r"\ an?\ ")
    text = re.sub(r"\\\{place\\\}", "(?P<place>.+)", text)
    for name in ("size", "texture", "direction"):
        phrases = "|".join(phrase for phrases in _PHRASES[name].values() for phrase in phrases)
        text = text.replace(rf"\{{{name}\}}", f"(?P<{name}>{phrases})")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", text))


_PATTERNS = [(form, _compile(form)) for form in (*REASONING_FORMS, *FORMS)]
