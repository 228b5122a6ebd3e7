"""Questions about scenes, and a reader that answers them: the ceiling, always right.

Only questions with a single answer are asked: colour and place of a kind that occurs once, and so on. `balance.py`
selects sets of them whose words alone tell nothing about the answers.

One thing is left of another if its column of the three is further left, above it if its row is higher.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from clip_common.synthetic import question_forms as forms
from clip_common.synthetic.captions import WORDS
from clip_common.synthetic.question_forms import TYPES, QuestionForm, read_question, select_forms
from clip_common.synthetic.scenes import COLOURS, KINDS, PLACES, SIZES, TEXTURES, Scene, Thing


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, with its answer."""

    scene: Scene
    form: QuestionForm
    text: str
    answer: str

    @property
    def type(self) -> str:
        """One of `TYPES` or `REASONING_TYPES`."""
        return self.form.type


def questions(scene: Scene, types: tuple[str, ...] = TYPES) -> list[Question]:
    """Return every question about a scene that has a single answer: each text once, always in the same order.

    "Is there a red mug?" with the answer no is asked only if the scene has a mug or something red, so that looking for
    one of the words does not answer it. Two things are compared in size only if their sizes differ, and in position
    only if their columns (for left and right) or rows differ.

    Args:
        scene: The scene.
        types: Some of `TYPES` and `REASONING_TYPES`.

    Raises:
        ValueError: An unknown type, or none.
    """
    wanted = set(select_forms(types))
    return [
        Question(scene, form, form.fill(**words), answer)
        for ask in (_ask_simple, _ask_reasoning)
        for form, answer, words in ask(scene)
        if form in wanted
    ]


def draw_questions(
    scene: Scene, count: int, *, random: np.random.Generator, types: tuple[str, ...] = TYPES
) -> list[Question]:
    """Draw different questions about a scene, as many of each type as the scene allows; no answer dominates a form.

    Types take turns. Within a type a form is drawn, then one of the answers that the scene allows, then a text: most
    questions of the form "is there a mug?" have the answer no, half of those drawn have the answer yes.

    Args:
        scene: The scene.
        count: Number of questions; all of them if the scene has fewer.
        random: Generator of the draw.
        types: Some of `TYPES` and `REASONING_TYPES`.

    Raises:
        ValueError: An unknown type, or none.
    """
    left: dict[str, dict[QuestionForm, dict[str, list[Question]]]] = {}
    for question in questions(scene, types):
        of_form = left.setdefault(question.type, {}).setdefault(question.form, {})
        of_form.setdefault(question.answer, []).append(question)
    drawn: list[Question] = []
    while left and len(drawn) < count:
        order = [list(left)[i] for i in random.permutation(len(left))]
        for type in order[: count - len(drawn)]:
            form = list(left[type])[random.integers(len(left[type]))]
            answers = left[type][form]
            answer = list(answers)[random.integers(len(answers))]
            drawn.append(answers[answer].pop(random.integers(len(answers[answer]))))
            if not answers[answer]:
                del answers[answer]
            if not answers:
                del left[type][form]
            if not left[type]:
                del left[type]
    return drawn


def answer(scene: Scene, question: str) -> str:
    """Return the answer to a question of these forms, read from the scene's words.

    Raises:
        ValueError: The question has none of the forms or an unknown word, or no thing or several things fit it.
    """
    form, wanted = read_question(question)
    if form in _REASON:
        return _REASON[form](_Reader(scene, question), wanted)
    fitting = [thing for thing in scene.things if all(getattr(thing, name) == wanted[name] for name in wanted)]
    if form.type in ("count", "count_if", "yes/no"):
        return _yes_or_no(bool(fitting)) if form.type == "yes/no" else str(len(fitting))
    return _READ[form.type](_Reader(scene, question).choose(fitting))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A scene, and the question about it for messages."""

    scene: Scene
    question: str

    def find(self, kind: str) -> Thing:
        return self.choose([thing for thing in self.scene.things if thing.kind == kind])

    def choose(self, fitting: list[Thing]) -> Thing:
        if len(fitting) != 1:
            raise ValueError(f"{self.question!r} has no single answer: the scene holds {len(fitting)} such things")
        return fitting[0]


_Asked = tuple[QuestionForm, str, dict[str, str]]
"""Form, answer, and the word of each placeholder."""


def _ask_simple(scene: Scene) -> Iterator[_Asked]:
    kinds = Counter(thing.kind for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    both = {(thing.colour, thing.kind) for thing in scene.things}
    yield forms.COUNT, str(len(scene.things)), {}
    for thing in scene.things:
        yield forms.SHAPE, thing.kind, {"place": WORDS["place"][thing.place][0]}
        if kinds[thing.kind] == 1:
            yield forms.COLOUR, thing.colour, {"kind": thing.kind}
            yield forms.PLACE, thing.place, {"kind": thing.kind}
    for colour in COLOURS:
        yield forms.ANY_COLOUR, _yes_or_no(colour in colours), {"colour": colour}
        if colours[colour] <= 2:
            yield forms.COUNT_COLOUR, str(colours[colour]), {"colour": colour}
    for kind in KINDS:
        yield forms.ANY_KIND, _yes_or_no(kind in kinds), {"kind": kind}
        for colour in COLOURS:
            if kind in kinds or colour in colours:
                yield forms.ANY_BOTH, _yes_or_no((colour, kind) in both), {"colour": colour, "kind": kind}


def _ask_reasoning(scene: Scene) -> Iterator[_Asked]:
    kinds = Counter(thing.kind for thing in scene.things)
    single = [thing for thing in scene.things if kinds[thing.kind] == 1]
    for thing in single:
        larger = sum(_is_larger(other, thing) for other in scene.things)
        if larger <= 2:
            yield forms.COUNT_LARGER, str(larger), {"kind": thing.kind}
        for direction in forms.DIRECTIONS:
            beside = [other for other in scene.things if _is_beside(other, direction, thing)]
            if len(beside) == 1:
                yield forms.COLOUR_BESIDE, beside[0].colour, {"direction": direction, "kind": thing.kind}
        for other in single:
            if other == thing:
                continue
            pair = {"kind": thing.kind, "other": other.kind}
            if other.size != thing.size:
                yield forms.LARGER, _yes_or_no(_is_larger(thing, other)), pair
            yield forms.SAME_COLOUR, _yes_or_no(thing.colour == other.colour), pair
            for direction in forms.DIRECTIONS:
                holds = _is_beside(thing, direction, other)
                if holds or _is_beside(other, direction, thing):
                    yield forms.BESIDE, _yes_or_no(holds), pair | {"direction": direction}
    for form, attribute, values in ((forms.COUNT_SIZE, "size", SIZES), (forms.COUNT_TEXTURE, "texture", TEXTURES)):
        counts = Counter(getattr(thing, attribute) for thing in scene.things)
        for value in values:
            if counts[value] <= 2:
                yield form, str(counts[value]), {attribute: WORDS[attribute][value][0]}


def _is_larger(thing: Thing, other: Thing) -> bool:
    return SIZES.index(thing.size) > SIZES.index(other.size)


def _is_beside(thing: Thing, direction: str, other: Thing) -> bool:
    """Return whether a thing is left of, right of, above or below another, by columns or rows."""
    (row, column), (other_row, other_column) = (divmod(PLACES.index(each.place), 3) for each in (thing, other))
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[direction]


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


def _read_larger(reader: _Reader, wanted: Mapping[str, str]) -> str:
    return _yes_or_no(_is_larger(reader.find(wanted["kind"]), reader.find(wanted["other"])))


def _read_same_colour(reader: _Reader, wanted: Mapping[str, str]) -> str:
    return _yes_or_no(reader.find(wanted["kind"]).colour == reader.find(wanted["other"]).colour)


def _read_beside(reader: _Reader, wanted: Mapping[str, str]) -> str:
    return _yes_or_no(_is_beside(reader.find(wanted["kind"]), wanted["direction"], reader.find(wanted["other"])))


def _read_colour_beside(reader: _Reader, wanted: Mapping[str, str]) -> str:
    thing = reader.find(wanted["kind"])
    return reader.choose(
        [other for other in reader.scene.things if _is_beside(other, wanted["direction"], thing)]
    ).colour


def _count_larger(reader: _Reader, wanted: Mapping[str, str]) -> str:
    thing = reader.find(wanted["kind"])
    return str(sum(_is_larger(other, thing) for other in reader.scene.things))


_REASON: dict[QuestionForm, Callable[[_Reader, Mapping[str, str]], str]] = {
    forms.LARGER: _read_larger,
    forms.SAME_COLOUR: _read_same_colour,
    forms.COUNT_LARGER: _count_larger,
    forms.BESIDE: _read_beside,
    forms.COLOUR_BESIDE: _read_colour_beside,
}
"""Forms about two things → how to answer them; the others are about all things that fit their words."""

_READ: dict[str, Callable[[Thing], str]] = {
    "colour": lambda thing: thing.colour,
    "shape": lambda thing: thing.kind,
    "place": lambda thing: thing.place,
}
