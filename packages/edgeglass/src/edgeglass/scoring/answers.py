"""Scores of answers to questions: VQA accuracy, exact match and token F1, by type of question, with intervals.

Shapes: Q questions, G images, S bootstrap resamples.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_common.metrics.bootstrap import draw_resamples, percentile_intervals
from edgeglass.data.records import Turn

PEOPLE = 10
"""Number of people whose answers a question of VQA has."""

ALL = "all"
"""Key of the scores over all questions."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_CONTRACTIONS = re.findall(
    r"\S+",
    """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""",
)
_SPELLED = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTIONS for mark in re.finditer("'", word)
}
"""Contraction that lacks one of its apostrophes → the contraction."""


def normalise_answer(text: str) -> str:
    """Return an answer as VQA's evaluation compares it (Antol et al., 2015).

    Lower case; punctuation becomes a space, or nothing if it is beside a space or the text has a number like 1,000;
    periods that no digit follows go; number words up to ten become digits; articles go; contractions get their
    apostrophes.
    """
    text = " ".join(text.lower().split())
    has_thousands = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space or has_thousands else " ")
    kept = re.sub(r"\.(?!\d)", "", kept)
    words = [_NUMBERS.get(word, word) for word in kept.split()]
    return " ".join(_SPELLED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return VQA accuracy: the mean, over the people left out in turn, of min(1, agreeing others / 3).

    All answers are normalised. The first evaluation code left them as they were when all people agreed, so that "Yes"
    was wrong where ten people said "yes".

    Args:
        answer: The answer to score.
        answers: Answers of ten people; at least four.

    Raises:
        ValueError: Fewer than four answers, with which nothing would be quite right.
    """
    if len(answers) < 4:
        raise ValueError(f"VQA accuracy compares with ten answers, at least 4: got {len(answers)}; use exact_match")
    said = normalise_answer(answer)
    agrees = [normalise_answer(other) == said for other in answers]
    return float(np.mean([min(1.0, (sum(agrees) - own) / 3) for own in agrees]))


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """Return 1 if the normalised answer is one of the normalised `answers`, else 0."""
    return float(normalise_answer(answer) in {normalise_answer(other) for other in answers})


def token_f1(answer: str, answers: Sequence[str]) -> float:
    """Return the largest F1 of the words of the normalised answer, 0 to 1, against each of `answers`.

    Words count as often as they occur. Two texts without words are equal.
    """
    said = Counter(normalise_answer(answer).split())
    return max(_overlap(said, Counter(normalise_answer(other).split())) for other in answers)


def _overlap(said: Counter[str], expected: Counter[str]) -> float:
    if not said and not expected:
        return 1.0
    return 2 * (said & expected).total() / (said.total() + expected.total())


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions.

    Attributes:
        value: The mean, 0 to 1.
        low, high: Its 95 % bootstrap interval, in which the questions about one image are drawn together.
        count: Number of questions.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Scores of a list of answers, over all questions (`all`) and for each type of question.

    Attributes:
        accuracy: Type → VQA accuracy where a question has ten answers, else exact match.
        exact: Type → share of answers equal to one of the right ones.
        f1: Type → token F1.
        per_question: `accuracy`, `exact`, `f1` → (Q,) float64, in the order of the questions, for paired comparisons.
    """

    accuracy: dict[str, Estimate]
    exact: dict[str, Estimate]
    f1: dict[str, Estimate]
    per_question: dict[str, NDArray[np.float64]]


def score_answers(
    answers: Sequence[str],
    turns: Sequence[Turn],
    *,
    images: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> AnswerScores:
    """Score answers against the references of their questions.

    Args:
        answers: Q answers.
        turns: Q questions with their right answers.
        images: The image of each question; None: each question has its own.
        samples: Number of bootstrap resamples.
        seed: Seed of the resamples: two systems scored on the same questions see the same ones.

    Raises:
        ValueError: No questions, or not as many answers as questions.
    """
    if not turns or len(answers) != len(turns):
        raise ValueError(f"expected one answer for each question, got {len(answers)} for {len(turns)} questions")
    per_question = {
        "accuracy": np.array([_score_accuracy(answer, turn) for answer, turn in zip(answers, turns, strict=True)]),
        "exact": np.array([exact_match(answer, turn.references) for answer, turn in zip(answers, turns, strict=True)]),
        "f1": np.array([token_f1(answer, turn.references) for answer, turn in zip(answers, turns, strict=True)]),
    }
    number: dict[Hashable, int] = {}
    group_Q = np.array([number.setdefault(image, len(number)) for image in images or range(len(turns))])
    types = [turn.type for turn in turns]
    rows_of = {ALL: np.arange(len(turns))}
    rows_of |= {type: np.flatnonzero([own == type for own in types]) for type in sorted(set(types) - {""})}
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, value_Q in per_question.items():
        sums_KG = np.stack(
            [np.bincount(group_Q[rows], weights=value_Q[rows], minlength=len(number)) for rows in rows_of.values()]
        )
        counts_KG = np.stack([np.bincount(group_Q[rows], minlength=len(number)) for rows in rows_of.values()])
        means_KS = _resample_means(sums_KG, counts_KG, samples=samples, seed=seed)
        estimates[name] = {}
        for (type, rows), mean_S in zip(rows_of.items(), means_KS, strict=True):
            low, high = percentile_intervals({name: mean_S[np.isfinite(mean_S)]})[name]
            estimates[name][type] = Estimate(float(value_Q[rows].mean()), low, high, len(rows))
    return AnswerScores(**estimates, per_question=per_question)


def majority_answers(train: Sequence[Turn], turns: Sequence[Turn]) -> list[str]:
    """Return the most frequent training answer to each question: the baseline that sees no image.

    A text that is not asked in training gets the most frequent answer of its type, and a type that is not, of all.

    Raises:
        ValueError: There are no training questions.
    """
    if not train:
        raise ValueError("no majority answer: there are no training questions")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for turn in train:
        for key in (("text", normalise_answer(turn.question)), ("type", turn.type), (ALL, "")):
            counts[key][turn.answer] += 1
    most = {key: min(said, key=lambda answer: (-said[answer], answer)) for key, said in counts.items()}
    return [
        most.get(("text", normalise_answer(turn.question))) or most.get(("type", turn.type)) or most[ALL, ""]
        for turn in turns
    ]


def _score_accuracy(answer: str, turn: Turn) -> float:
    people = len(turn.answers) == PEOPLE
    return vqa_accuracy(answer, turn.answers) if people else exact_match(answer, turn.references)


def _resample_means(sums_KG: NDArray[Any], counts_KG: NDArray[Any], *, samples: int, seed: int) -> NDArray[np.float64]:
    """Return the mean of each of K types in each resample of images (K, S); NaN where no question is drawn."""
    groups = sums_KG.shape[1]
    parts = []
    for drawn_SG in draw_resamples(groups, samples=samples, seed=seed, width=groups):
        with np.errstate(invalid="ignore"):
            parts.append((sums_KG @ drawn_SG.T) / (counts_KG @ drawn_SG.T))
    return np.concatenate(parts, axis=1)
