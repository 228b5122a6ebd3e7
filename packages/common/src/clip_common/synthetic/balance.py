"""Sets of questions in which the words of a question tell nothing about its answer, and the guard that shows it.

A set is made of blocks: one question text, asked once for each answer of its form, each time of another scene. So for
each text every answer is as frequent as any other, and whoever reads the text alone, however trained, is right once in
as many times as the form has answers: exactly, not on average.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from clip_common.synthetic.questions import FORMS, TYPES, Question, QuestionForm, questions
from clip_common.synthetic.scenes import Scene, generator

_FORMS_OF = Counter(form.type for form in FORMS)

LEAST = max(len(form.answers) * _FORMS_OF[form.type] for form in FORMS)
"""Questions of each type that make room for a block of every form."""


class TooFewScenesError(ValueError):
    """The scenes do not hold the balanced set that was asked for; more scenes of the same kind will."""


def balanced_questions(scenes: Sequence[Scene], *, per_type: int, seed: int = 0) -> list[Question]:
    """Whole blocks of each form drawn from `questions` of the scenes, ordered by scene.

    The forms of a type share it equally, and the texts of a form are asked as equally as the scenes allow.

    Args:
        scenes: Different scenes; about as many as `per_type` and two hundred more.
        per_type: Questions of each type; what makes no whole block is left out (of 100 questions for one of sixteen
            kinds, 96 are drawn).
        seed: Another seed is another draw.

    Raises:
        ValueError: `per_type` is below 16, where a form has no whole block; or the scenes are too few
            (`TooFewScenesError`).
    """
    if per_type < LEAST:
        raise ValueError(f"a balanced set has at least {LEAST} questions of each type: got per_type={per_type}")
    random = generator("questions", seed=seed, index=0)
    candidates: dict[QuestionForm, list[Question]] = defaultdict(list)
    for scene in scenes:
        for question in questions(scene):
            candidates[question.form].append(question)
    drawn: list[Question] = []
    for form in FORMS:
        wanted = per_type // _FORMS_OF[form.type] // len(form.answers)
        blocks = _make_blocks(candidates[form], form, random)
        if len(blocks) < wanted:
            raise TooFewScenesError(
                f"{len(scenes)} scenes hold {len(blocks) * len(form.answers)} balanced questions like {form.text!r}, "
                f"per_type={per_type} needs {wanted * len(form.answers)}: give more scenes or ask for fewer questions"
            )
        drawn += [question for block in blocks[:wanted] for question in block]
    order = {(scene.seed, scene.index): row for row, scene in enumerate(scenes)}
    return sorted(drawn, key=lambda question: order[question.scene.seed, question.scene.index])


def _make_blocks(
    candidates: Sequence[Question], form: QuestionForm, random: np.random.Generator
) -> list[tuple[Question, ...]]:
    """All blocks of a form: first one of each text that has any, in an order drawn by lot, then a second, and so on."""
    cells: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in candidates:
        cells[question.text, question.answer].append(question)
    placed: list[tuple[int, float, tuple[Question, ...]]] = []
    for text in sorted({text for text, _ in cells}):
        columns = [_shuffle(cells[text, answer], random) for answer in form.answers]
        # zip ends with the rarest answer
        placed += [(turn, random.random(), block) for turn, block in enumerate(zip(*columns, strict=False))]
    return [block for _, _, block in sorted(placed, key=lambda entry: entry[:2])]


def _shuffle(asked: Sequence[Question], random: np.random.Generator) -> list[Question]:
    return [asked[i] for i in random.permutation(len(asked))]


def majority_answer_accuracy(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """The guard: how often the most frequent answer in training to the same text, or to the type, is right.

    Args:
        train: Where the answers are counted. A text that is not there falls back to its type.
        test: What is answered.

    Returns:
        Accuracy, as a fraction, of each type in `test`, and of all under "all".

    Raises:
        ValueError: Nothing to answer, or a type that has no training question.
    """
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        said[question.text][question.answer] += 1
        said[question.type][question.answer] += 1
    missing = {question.type for question in test} - {question.type for question in train}
    if not test or missing:
        raise ValueError(f"no majority answer: {len(test)} test questions, none in training of {sorted(missing)}")
    right: dict[str, list[bool]] = defaultdict(list)
    for question in test:
        counts = said.get(question.text, said[question.type])
        guess = min(counts, key=lambda answer: (-counts[answer], answer))
        right[question.type].append(guess == question.answer)
    accuracy = {"all": float(np.mean([hit for hits in right.values() for hit in hits]))}
    return accuracy | {type: float(np.mean(right[type])) for type in TYPES if type in right}
