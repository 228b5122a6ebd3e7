"""Questions about scenes, in eight forms, and a parser that answers them: the ceiling, always right.

Only questions with a single answer are asked: colour and place of a kind that occurs once, and so on. `balance.py`
selects sets of them whose words alone tell nothing about the answers.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from clip_common.synthetic.captions import WORDS
from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES, Scene, Thing


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """One way to ask: a text with placeholders, the type of question, and the possible answers."""

    text: str
    type: str
    answers: tuple[str, ...]

    def fill(self, **words: str) -> str:
        """Return the text with its placeholders filled in; `a` becomes `an` before a vowel."""
        return re.sub(r"\ba(?= [aeiou])", "an", self.text.format(**words))


_COLOUR = QuestionForm("what colour is the {kind}?", "colour", COLOURS)
_SHAPE = QuestionForm("what is {place}?", "shape", KINDS)
_COUNT = QuestionForm("how many things are there?", "count", ("1", "2", "3", "4"))
# three things of a colour are too rare to ask for
_COUNT_COLOUR = QuestionForm("how many {colour} things are there?", "count", ("0", "1", "2"))
_PLACE = QuestionForm("where is the {kind}?", "place", PLACES)
_ANY_KIND = QuestionForm("is there a {kind}?", "yes/no", ("no", "yes"))
_ANY_COLOUR = QuestionForm("is there anything {colour}?", "yes/no", ("no", "yes"))
_ANY_BOTH = QuestionForm("is there a {colour} {kind}?", "yes/no", ("no", "yes"))

FORMS = (_COLOUR, _SHAPE, _COUNT, _COUNT_COLOUR, _PLACE, _ANY_KIND, _ANY_COLOUR, _ANY_BOTH)

TYPES = tuple(dict.fromkeys(form.type for form in FORMS))
"""colour, shape, count, place, yes/no."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, with its answer."""

    scene: Scene
    form: QuestionForm
    text: str
    answer: str

    @property
    def type(self) -> str:
        """One of `TYPES`."""
        return self.form.type


def questions(scene: Scene) -> list[Question]:
    """Return every question about a scene that has a single answer: each text once, always in the same order.

    "Is there a red mug?" with the answer no is asked only if the scene has a mug or something red, so that looking for
    one of the words does not answer it.
    """
    kinds = Counter(thing.kind for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    both = {(thing.colour, thing.kind) for thing in scene.things}
    asked = [Question(scene, _COUNT, _COUNT.text, str(len(scene.things)))]

    def ask(form: QuestionForm, answer: str, **words: str) -> None:
        asked.append(Question(scene, form, form.fill(**words), answer))

    for thing in scene.things:
        ask(_SHAPE, thing.kind, place=WORDS["place"][thing.place][0])
        if kinds[thing.kind] == 1:
            ask(_COLOUR, thing.colour, kind=thing.kind)
            ask(_PLACE, thing.place, kind=thing.kind)
    for colour in COLOURS:
        ask(_ANY_COLOUR, _yes_or_no(colour in colours), colour=colour)
        if colours[colour] <= 2:
            ask(_COUNT_COLOUR, str(colours[colour]), colour=colour)
    for kind in KINDS:
        ask(_ANY_KIND, _yes_or_no(kind in kinds), kind=kind)
        for colour in COLOURS:
            if kind in kinds or colour in colours:
                ask(_ANY_BOTH, _yes_or_no((colour, kind) in both), colour=colour, kind=kind)
    return asked


def answer(scene: Scene, question: str) -> str:
    """Return the answer to a question of these forms, read from the scene's words.

    Raises:
        ValueError: The question has none of the forms or an unknown word, or no thing or several things fit it.
    """
    form, wanted = read_question(question)
    fitting = [thing for thing in scene.things if all(getattr(thing, name) == wanted[name] for name in wanted)]
    if form.type in ("count", "yes/no"):
        return str(len(fitting)) if form.type == "count" else _yes_or_no(bool(fitting))
    if len(fitting) != 1:
        raise ValueError(f"{question!r} has no single answer: the scene holds {len(fitting)} such things")
    return _READ[form.type](fitting[0])


def read_question(question: str) -> tuple[QuestionForm, dict[str, str]]:
    """Return the form of a question, and the value of each attribute that it names.

    Raises:
        ValueError: The question has none of the forms, or an unknown word.
    """
    for form, pattern in _PATTERNS:
        found = pattern.fullmatch(question.lower())
        if found is not None:
            return form, {name: _find_value(name, phrase, question) for name, phrase in found.groupdict().items()}
    forms = ", ".join(form.text for form in FORMS)
    raise ValueError(f"{question!r} is not a question of the procedural world; ask one of: {forms}")


def _find_value(attribute: str, phrase: str, question: str) -> str:
    for value, phrases in WORDS[attribute].items():
        if phrase in phrases:
            return value
    known = ", ".join(phrases[0] for phrases in WORDS[attribute].values())
    raise ValueError(f"{question!r}: the procedural world knows no {attribute} {phrase!r}, only {known}")


def _compile(form: QuestionForm) -> re.Pattern[str]:
    """Return a regular expression with a group for each placeholder: a kind or colour is one word, a place several."""
    text = re.escape(form.text).replace(r"\ a\ ", r"\ an?\ ")
    text = re.sub(r"\\\{place\\\}", "(?P<place>.+)", text)
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", text))


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


_PATTERNS = [(form, _compile(form)) for form in FORMS]

_READ: dict[str, Callable[[Thing], str]] = {
    "colour": lambda thing: thing.colour,
    "shape": lambda thing: thing.kind,
    "place": lambda thing: thing.place,
}
