"""Questions about scenes, from eight forms, and a reader of those forms that answers them: the ceiling, always right.

Only what has one answer is asked: colour and place of a kind that occurs once, and so on. Which of the questions that
could be asked make a set in which the words alone tell nothing is decided in `balance.py`.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from clip_common.synthetic.captions import WORDS
from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES, Scene, Thing


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """One way to ask: a text with words left open, the type of question, and the answers it may have."""

    text: str
    type: str
    answers: tuple[str, ...]

    def fill(self, **words: str) -> str:
        """The question with its words; `a` becomes `an` where it should."""
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
    """Every question that the forms ask of a scene and that has one answer; each text once, always in the same order.

    "Is there a red mug?" is asked in vain only where something is red or a mug is there: a look at either word alone
    does not answer it.
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
    """The answer to a question of these forms, read off the scene's words.

    Raises:
        ValueError: The question has none of the forms or an unknown word, or what it asks for is absent or not alone.
    """
    form, wanted = read_question(question)
    fitting = [thing for thing in scene.things if all(getattr(thing, name) == wanted[name] for name in wanted)]
    if form.type in ("count", "yes/no"):
        return str(len(fitting)) if form.type == "count" else _yes_or_no(bool(fitting))
    if len(fitting) != 1:
        raise ValueError(f"{question!r} has no single answer: the scene holds {len(fitting)} such things")
    return _READ[form.type](fitting[0])


def read_question(question: str) -> tuple[QuestionForm, dict[str, str]]:
    """The form of a question, and the value of each attribute that it names.

    Raises:
        ValueError: The question has none of the forms, or names what is not in the world.
    """
    for form, pattern in _PATTERNS:
        found = pattern.fullmatch(question.lower())
        if found is not None:
            return form, {name: _find_value(name, phrase, question) for name, phrase in found.groupdict().items()}
    forms = ", ".join(form.text for form in FORMS)
    raise ValueError(f"{question!r} is no question of the procedural world; these are: {forms}")


def _find_value(attribute: str, phrase: str, question: str) -> str:
    for value, phrases in WORDS[attribute].items():
        if phrase in phrases:
            return value
    known = ", ".join(phrases[0] for phrases in WORDS[attribute].values())
    raise ValueError(f"{question!r}: the procedural world knows no {attribute} {phrase!r}, only {known}")


def _compile(form: QuestionForm) -> re.Pattern[str]:
    """The form as an expression with a group for each open word: a kind and a colour are one word, a place several."""
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
