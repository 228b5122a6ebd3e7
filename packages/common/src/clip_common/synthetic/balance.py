"""Balanced sets of questions, whose words tell nothing about their answers, and the guard that measures this.

A set consists of blocks: one question text, asked once for each answer of its form, each time about another scene. All
answers to a text are therefore equally frequent, and a model that reads the text alone, however it is trained, has an
accuracy of 1 / (answers of the form): exactly, not on average.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from clip_common.synthetic.question_forms import REASONING_TYPES, TYPES, QuestionForm, select_forms
from clip_common.synthetic.questions import Question, questions
from clip_common.synthetic.scenes import Scene, generator

_FORMS_OF = Counter(form.type for form in select_forms((*TYPES, *REASONING_TYPES)))

LEAST = max(len(form.answers) * _FORMS_OF[form.type] for form in select_forms((*TYPES, *REASONING_TYPES)))
"""Smallest number of questions of each type that holds a block of every form."""


class TooFewScenesError(ValueError):
    """The scenes are too few for the requested balanced set: give more."""


def balanced_questions(
    scenes: Sequence[Scene], *, per_type: int, seed: int = 0, types: tuple[str, ...] = TYPES
) -> list[Question]:
    """Sample whole blocks of each form from the `questions` of the scenes; return them ordered by scene.

    Every form of a type gets the same number of questions, every text of a form as nearly as the scenes allow.

    Args:
        scenes: Different scenes, about two hundred more than `per_type`, three hundred with
            `REASONING_TYPES`.
        per_type: Questions of each type, rounded down to whole blocks: of 100 questions with sixteen possible answers,
            96 are sampled.
        seed: Each seed gives another sample.
        types: Some of `TYPES` and `REASONING_TYPES`.

    Raises:
        ValueError: `per_type` is below 16, too few for a whole block of every form; an unknown type, or none.
        TooFewScenesError: There are too few scenes.
    """
    if per_type < LEAST:
        raise ValueError(f"a balanced set has at least {LEAST} questions of each type: got per_type={per_type}")
    random = generator("questions", seed=seed, index=0)
    candidates: dict[QuestionForm, list[Question]] = defaultdict(list)
    for scene in scenes:
        for question in questions(scene, types):
            candidates[question.form].append(question)
    drawn: list[Question] = []
    for form in select_forms(types):
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
    """Return all blocks of a form: first one of each text that has any, in random order, then a second, and so on."""
    cells: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in candidates:
        cells[question.text, question.answer].append(question)
    placed: list[tuple[int, float, tuple[Question, ...]]] = []
    for text in sorted({text for text, _ in cells}):
        columns = [_shuffle(cells[text, answer], random) for answer in form.answers]
        # zip stops at the rarest answer
        placed += [(turn, random.random(), block) for turn, block in enumerate(zip(*columns, strict=False))]
    return [block for _, _, block in sorted(placed, key=lambda entry: entry[:2])]


def _shuffle(asked: Sequence[Question], random: np.random.Generator) -> list[Question]:
    return [asked[i] for i in random.permutation(len(asked))]


def majority_answer_accuracy(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """Return the accuracy of answering each text with its most frequent answer in training: the guard.

    Args:
        train: Questions whose answers are counted. A text that does not occur here gets the most frequent answer of
            its type.
        test: Questions to answer.

    Returns:
        Accuracy, 0 to 1, of each type in `test`, and over all questions as "all".

    Raises:
        ValueError: There is no test question, or a type without training questions.
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
    return accuracy | {type: float(np.mean(right[type])) for type in (*TYPES, *REASONING_TYPES) if type in right}
