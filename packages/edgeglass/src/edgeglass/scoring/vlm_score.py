"""Score a vision-language model on a split: accuracy by type of question, CIDEr and BLEU of captions, and a control."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clip_common.config import apply_overrides
from clip_common.errors import DataError, check_list, printable
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.files import write_text
from clip_common.runs.folder import is_run
from clip_common.tables import json_lines_text
from edgeglass.config import VlmConfig
from edgeglass.data.conversations import Conversation, read_conversations
from edgeglass.data.records import Source, Turn
from edgeglass.report.answers_page import PageAnswer
from edgeglass.scoring.answers import ALL, AnswerScores, Estimate, majority_answers, score_answers
from edgeglass.scoring.captions import bleu, cider
from edgeglass.scoring.features import move_inputs, read_image_tokens
from edgeglass.vlm.vlm import VLM

Control = Literal["none", "swapped"]
FREE = (
    *(f"data.{name}" for name in ("root", "format", "images", "hold_out", "split_seed", "cache_dir", "on_error")),
    *("split", "runs", "answer.max_new_tokens", "answer.temperature", "answer.batch_size"),
)
"""Settings of a trained run that may still change; its layout and its context are part of the model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a split, after the true answers to those before it.

    Attributes:
        conversation: The conversation.
        turn: The question with its right answers.
        before: Earlier turns.
    """

    conversation: Conversation
    turn: Turn
    before: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of text, with their header and title."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ScoredVlm:
    """Result of `score_vlm`.

    Attributes:
        name: The run's name.
        config: The run's configuration with the overrides.
        asked: The questions.
        answers: The model's answers.
        scores: Scores of them.
        majority: Scores of the most frequent training answer to each question, which sees no image; None if the set
            has no training questions.
        captions: CIDEr and BLEU-4 of a set of captions; empty for one of questions.
        swapped: Scores about another image of the split; None if they were not asked for.
        written: Files that were written.
    """

    name: str
    config: VlmConfig
    asked: list[Asked]
    answers: list[str]
    scores: AnswerScores
    majority: AnswerScores | None
    captions: dict[str, float]
    swapped: AnswerScores | None
    written: list[Path] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the scores for result.json."""
        columns = {"scores": self.scores, "majority": self.majority, "swapped": self.swapped}
        found: dict[str, Any] = {"questions": len(self.asked), "data": str(self.config.data.root)} | self.captions
        for column, scores in columns.items():
            if scores is not None:
                found[column] = {
                    name: {type: value.value for type, value in getattr(scores, name).items()}
                    for name in ("accuracy", "exact", "f1")
                }
        return found

    def by_image(self, count: int) -> dict[str, list[tuple[str, str, str]]]:
        """Return questions with answers and truths by the path of their image, the image with the most of them first.

        Args:
            count: Number of questions in all.
        """
        of_image: dict[Source | None, list[int]] = {}
        for number, one in enumerate(self.asked):
            of_image.setdefault(one.conversation.image, []).append(number)
        chosen = [number for numbers in sorted(of_image.values(), key=len, reverse=True) for number in numbers][:count]
        found: dict[str, list[tuple[str, str, str]]] = {}
        for number in chosen:
            one = self.asked[number]
            image = one.conversation.image
            place = "no image" if image is None else str(image) if isinstance(image, Path) else image.name
            row = (one.turn.question, self.answers[number], one.turn.references[0])
            found.setdefault(place, []).append(row)
        return found

    def page_answers(self, count: int) -> list[PageAnswer]:
        """Return the first answers for a page of them."""
        scores = self.scores.per_question["accuracy"].tolist()
        return [
            PageAnswer(one.conversation.image, one.turn.question, answer, one.turn.references[0], score)
            for one, answer, score in list(zip(self.asked, self.answers, scores, strict=True))[:count]
        ]

    def table(self) -> Table:
        """Return what a person reads: accuracies by type of question, or the scores of captions."""
        where = f"{self.name}: {self.config.split} split of {self.config.data.root}"
        if self.captions:
            return Table(where, ["", ""], [[name, f"{value:.3f}"] for name, value in self.captions.items()])
        header = ["", "questions", "accuracy", "token F1", *(["majority"] if self.majority else [])]
        header += ["swapped image"] if self.swapped else []
        rows = []
        for type, estimate in self.scores.accuracy.items():
            row = [type, f"{estimate.count:,}", _show(estimate), f"{self.scores.f1[type].value:.3f}"]
            row += [f"{self.majority.accuracy[type].value:.3f}"] if self.majority else []
            row += [_show(self.swapped.accuracy[type])] if self.swapped else []
            rows.append(row)
        return Table(where, header, rows)


def score_vlm(
    source: str | Path,
    *,
    overrides: Sequence[str] = (),
    control: Control = "none",
    steps: int | None = None,
    reporter: Reporter = silent,
) -> ScoredVlm:
    """Answer the questions of the split that `split` names, and score the answers.

    The scores of a run are added to its result.json and to the registry of runs; its answers are in
    RUN/answers_SPLIT.jsonl.

    Args:
        source: A run folder (its own configuration applies unless overridden), or a saved model.
        overrides: `data.root=…`, `split=…`, `answer.max_new_tokens=…` and the like.
        control: `swapped` answers every question about another image of the split too.
        steps: Loops of the recursion; None: as the model was trained.
        reporter: Shows progress.

    Raises:
        ValueError: One line: a model that cannot be opened, settings that a trained model keeps, or data that cannot be
            used.
    """
    check_list(overrides, "overrides")
    vlm = VLM.from_pretrained(source, steps=steps)
    config = override_config(vlm.config, overrides)
    vlm.config = config
    sets = read_conversations(config.data)
    conversations = sets.splits[config.split]
    if not conversations:
        raise DataError(f"{printable(str(config.data.root))}: no conversation in {config.split}")
    asked = list_questions(conversations)
    cache = FeatureCache(config.cache_folder / "features")
    answers = answer_questions(vlm, asked, cache=cache, reporter=reporter)
    swapped = None
    if control == "swapped":
        given = answer_questions(vlm, swap_images(asked), cache=cache, reporter=reporter)
        swapped = score(given, asked)
    training = [turn for conversation in sets.splits["train"] for turn in conversation.turns]
    turns = [one.turn for one in asked]
    majority = score(majority_answers(training, turns), asked) if training else None
    captions = score_captions(asked, answers) if is_caption_set(asked) else {}
    name = Path(source).resolve().name
    scored = ScoredVlm(name, config, asked, answers, score(answers, asked), majority, captions, swapped)
    if is_run(Path(source)):
        run = Run.open(source)
        key = config.split if steps is None else f"{config.split}, {steps} steps"
        run.write_result(run.result | {key: scored.as_dict()})
        accuracy = scored.scores.accuracy[ALL].value
        run.register({"split": config.split, "data": str(config.data.root), "accuracy": accuracy} | captions)
        rows = (
            {
                "image": None if one.conversation.image is None else one.conversation.name,
                "question": one.turn.question,
                "answer": answer,
                "truth": list(one.turn.references),
                "type": one.turn.type,
            }
            for one, answer in zip(asked, answers, strict=True)
        )
        file = run.path / f"answers_{config.split}.jsonl"
        write_text(file, json_lines_text(rows))
        scored.written.append(file)
    return scored


def override_config(config: VlmConfig, overrides: Sequence[str]) -> VlmConfig:
    """Return a trained model's configuration with overrides of the settings that may still change.

    Raises:
        ValueError: A setting that a trained model keeps.
    """
    keys = [text.partition("=")[0].strip() for text in overrides]
    settled = [key for key in keys if key not in FREE]
    if settled:
        raise ValueError(
            f"{', '.join(settled)}: the model is trained and keeps its settings; set {', '.join(FREE)}, or train "
            "another one"
        )
    return apply_overrides(config, overrides)


def list_questions(conversations: Sequence[Conversation]) -> list[Asked]:
    """Return every question of the conversations once: an image's several captions answer the same one."""
    found: dict[Any, Asked] = {}
    for conversation in conversations:
        before: tuple[tuple[str, str], ...] = ()
        for turn in conversation.turns:
            image = conversation.image if conversation.image is not None else conversation.id
            found.setdefault((image, before, turn.question), Asked(conversation, turn, before))
            before = (*before, (turn.question, turn.answer))
    return list(found.values())


def answer_questions(vlm: VLM, asked: Sequence[Asked], *, cache: FeatureCache, reporter: Reporter) -> list[str]:
    """Return the model's answers, in the order of the questions; questions of similar lengths are answered together.

    Raises:
        ValueError: One line: an image that cannot be read, or a context without room for a question.
    """
    images = read_image_tokens(
        vlm.model.prefix,
        [one.conversation.image for one in asked],
        cache=cache,
        reporter=reporter,
        what="image features",
    )
    prompts = [
        vlm.encode_question(one.before, one.turn.question, prefix=images.prefix_of(number))
        for number, one in enumerate(asked)
    ]
    order = sorted(range(len(asked)), key=lambda number: len(prompts[number].ids))
    answers = [""] * len(asked)
    size = vlm.config.answer.batch_size
    with reporter("answering") as progress:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            features, owners, _ = images.select(batch)
            shown = None if features is None else move_inputs(features, vlm.device)
            given = vlm.answer_batch(shown, [prompts[number] for number in batch], owners)
            for number, answer in zip(batch, given, strict=True):
                answers[number] = answer
            if progress is not None:
                progress(start + len(batch), len(order))
    return answers


def swap_images(asked: Sequence[Asked]) -> list[Asked]:
    """Return the questions, each about the next image of the split; those without an image stay.

    Raises:
        DataError: Fewer than two images.
    """
    sources = list(dict.fromkeys(one.conversation.image for one in asked if one.conversation.image is not None))
    if len(sources) < 2:
        raise DataError(f"{len(sources)} image(s) in the split: swapping needs at least 2")
    following = dict(zip(sources, [*sources[1:], sources[0]], strict=True))
    return [
        one
        if one.conversation.image is None
        else Asked(
            Conversation(
                id=one.conversation.id,
                name=one.conversation.name,
                split=one.conversation.split,
                image=following[one.conversation.image],
                turns=one.conversation.turns,
            ),
            one.turn,
            one.before,
        )
        for one in asked
    ]


def score(answers: Sequence[str], asked: Sequence[Asked]) -> AnswerScores:
    """Return the scores of answers; intervals draw the questions about one image together."""
    images: list[Any] = [
        one.conversation.image if one.conversation.image is not None else one.conversation.id for one in asked
    ]
    return score_answers(answers, [one.turn for one in asked], images=images)


def is_caption_set(asked: Sequence[Asked]) -> bool:
    """Return whether all questions ask for captions."""
    return all(one.turn.type == "caption" for one in asked)


def score_captions(asked: Sequence[Asked], answers: Sequence[str]) -> dict[str, float]:
    """Return CIDEr and BLEU-4 of captions."""
    references = [one.turn.references for one in asked]
    return {"CIDEr": float(np.mean(cider(answers, references))), "BLEU-4": bleu(answers, references)[3]}


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
