"""Descriptions of the procedural world with questions and answers, as rows of tokens for the tiny decoder.

A row begins with its context, which tells all about a scene: a description in words, or a grid of vectors, each the sum
of the embeddings of the words for one of 7 × 7 cells. The grid teaches the decoder to read what a projector can make of
the tokens of an image; it is made from the words of the scene, without a picture. Turns of questions and answers
follow. In half of the rows each turn sees the context and itself only, and its positions go on from the context, as
conversations about an image do that are packed into a row; in the others it sees the turns before it too.

Shapes: R rows, T tokens of a row, K ids whose embeddings are summed at a token.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_common.synthetic import REASONING_TYPES, TYPES, Scene, captions, draw_questions, sample_scene
from clip_common.synthetic.captions import BACKGROUND_WORDS, WORDS, add_article, choose
from clip_common.synthetic.question_forms import FORMS, REASONING_FORMS
from clip_common.synthetic.scenes import PLACES, PRETRAINING_SEED, SIDE, Thing, centre

ALL_TYPES = (*TYPES, *REASONING_TYPES)
CAPTION = "Describe the image."
"""Question to which a caption is the answer."""
END, TURN, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 704
"""Most tokens; the words of the world need fewer."""
CONTEXT = 1024
CELLS = 7
"""Cells a side of a grid."""
NOT_SUPERVISED = -100


def make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer, a Qwen2Tokenizer, in which every word of the world is one token."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    random = np.random.default_rng(PRETRAINING_SEED)
    scenes = [sample_scene(PRETRAINING_SEED, index) for index in range(1000)]
    texts = [text for scene in scenes for text in (*captions(scene), describe(scene, random))]
    texts += [
        question.text for scene in scenes for question in draw_questions(scene, 20, random=random, types=ALL_TYPES)
    ]
    texts += [answer for form in (*FORMS, *REASONING_FORMS) for answer in form.answers]
    texts += [CAPTION, "system", "user", "assistant", "a photo of an image", "smaller shape texture size background"]
    backend = Qwen2Tokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {word for text in texts for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    # each word once: rare words become tokens like frequent ones
    backend.train_from_iterator(sorted(word.replace("Ġ", " ").replace("Ċ", "\n") for word in known), trainer)
    trained = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[TURN, TURN_END],
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def describe(scene: Scene, random: np.random.Generator) -> str:
    """Return a description in words that names every attribute of every thing and the background, in varied order."""
    things = [describe_thing(scene.things[i], random) for i in random.permutation(len(scene.things))]
    if random.random() < 0.2:  # place by place, as a grid is read
        named = {thing.place: add_article(name_thing(thing, random)) for thing in scene.things}
        things = [f"{choose(WORDS['place'][place], random)} {named.get(place, 'nothing')}" for place in PLACES]
    things.insert(0 if random.random() < 0.3 else len(things), choose(BACKGROUND_WORDS[scene.background], random))
    return ". ".join(things) + "."


def describe_thing(thing: Thing, random: np.random.Generator) -> str:
    """Return all about a thing: "a small red striped mug at the top left"."""
    place = choose(WORDS["place"][thing.place], random)
    words = add_article(name_thing(thing, random))
    return f"{words} {place}" if random.random() < 0.7 else f"{place} {words}"


def name_thing(thing: Thing, random: np.random.Generator) -> str:
    """Return the adjectives of a thing, in any order, and its kind."""
    adjectives = [choose(WORDS[name][getattr(thing, name)], random) for name in ("size", "texture", "colour")]
    if random.random() < 0.5:
        adjectives = [adjectives[i] for i in random.permutation(3)]
    return " ".join([*adjectives, thing.kind])


def name_cells(scene: Scene) -> list[str]:
    """Return the words for each cell of the grid, row by row: its thing, or the background, and its place."""
    texts = []
    for cell in range(CELLS**2):
        y, x = ((number + 0.5) / CELLS for number in divmod(cell, CELLS))
        place = min(PLACES, key=lambda name: math.dist(centre(name), (x, y)))
        covering = [thing for thing in scene.things if covers(thing, x, y)]
        front = min(covering, key=lambda thing: SIDE[thing.size], default=None)  # small things are in front
        words = scene.background if front is None else f"{front.size} {front.texture} {front.colour} {front.kind}"
        texts.append(f" {words} {place}")
    return texts


def covers(thing: Thing, x: float, y: float) -> bool:
    """Return whether the square of a thing holds a point."""
    return max(abs(x - centre(thing.place)[0]), abs(y - centre(thing.place)[1])) <= SIDE[thing.size] / 2


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer, and its type: that of the question, or `caption`."""

    type: str
    question: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A context, of which each token is a sum of embeddings, and turns about it.

    Attributes:
        context: Ids of each token.
        turns: In their order.
        apart: Whether a turn sees the context and itself only.
    """

    context: tuple[tuple[int, ...], ...]
    turns: tuple[Turn, ...]
    apart: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """R rows.

    Attributes:
        ids_RTK: Ids whose embeddings are summed, long; 0 where there are fewer than K.
        weights_RTK: 1 / √(number of ids) for each id, else 0.
        positions_RT: Long.
        mask_R1TT: Whether a token (first T) attends to another one.
        targets_RT: Id of the following token in answers, long; else -100.
        turns_RT: Number of the turn, over all rows, of which a target is a part; -1 elsewhere.
    """

    ids_RTK: Tensor
    weights_RTK: Tensor
    positions_RT: Tensor
    mask_R1TT: Tensor
    targets_RT: Tensor
    turns_RT: Tensor


class Speaker:
    """Turns scenes into rows of tokens.

    Args:
        tokenizer: Of `make_tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.encode = lru_cache(100_000)(lambda text: tuple(tokenizer(text)["input_ids"]))
        self.end, self.turn_end = (tokenizer.convert_tokens_to_ids(token) for token in (END, TURN_END))

    def make_context(self, scene: Scene, random: np.random.Generator, *, grid: bool) -> tuple[tuple[int, ...], ...]:
        """Return the context of a scene: 49 sums, or the tokens of a description, of one id each."""
        if grid:
            return tuple(self.encode(words) for words in name_cells(scene))
        return tuple((number,) for number in self.encode(f"{describe(scene, random)}\n"))

    def make_turns(self, scene: Scene, count: int, random: np.random.Generator, *, chat: bool = False) -> list[Turn]:
        """Return turns about a scene: balanced questions, and once a caption.

        Args:
            scene: The scene.
            count: Number of questions.
            random: Generator of the draw.
            chat: Write the turns as the chat template does, with the context before the first of them.
        """
        asked = [
            (one.type, one.text, one.answer) for one in draw_questions(scene, count, random=random, types=ALL_TYPES)
        ]
        asked.insert(int(random.integers(len(asked))), ("caption", CAPTION, choose(captions(scene), random)))
        before, between = f"{TURN}user\n", f"{TURN_END}\n{TURN}assistant\n"
        turns = []
        for type, text, answer in asked:
            if chat:
                first = not turns
                question = f"{text}{between}" if first else f"\n{before}{text}{between}"
                turns.append(Turn(type, self.encode(question), (*self.encode(answer), self.turn_end)))
            else:
                turns.append(Turn(type, self.encode(f"{text}\n"), (*self.encode(answer), self.end)))
        return turns

    def make_row(self, scene: Scene, count: int, random: np.random.Generator) -> Row:
        """Return a row for training: a description or a grid, turns apart or in succession, now and then as a chat."""
        chat = random.random() < 0.1
        context = self.make_context(scene, random, grid=random.random() < 0.5)
        if chat:
            context = (*((number,) for number in self.encode(f"{TURN}user\n")), *context)
        turns = self.make_turns(scene, count, random, chat=chat)
        return Row(context, tuple(turns), apart=not chat and random.random() < 0.5)


def make_batch(rows: Sequence[Row], *, length: int) -> Batch:
    """Return rows as tensors, cut at `length` tokens and padded to the longest."""
    fields: list[list[Any]] = []
    start = 0
    for row in rows:
        tokens = [*row.context]
        positions = list(range(len(tokens)))
        owners, targets, numbers = [-1] * len(tokens), [NOT_SUPERVISED] * len(tokens), [-1] * len(tokens)
        for number, turn in enumerate(row.turns):
            own = [*turn.question, *turn.answer]
            first = len(row.context) if row.apart else len(tokens)
            positions += range(first, first + len(own))
            tokens += [(one,) for one in own]
            owners += [number] * len(own)
            unlearned = len(turn.question) - 1
            targets += [NOT_SUPERVISED] * unlearned + [*turn.answer, NOT_SUPERVISED]
            numbers += [-1] * unlearned + [start + number] * len(turn.answer) + [-1]
        start += len(row.turns)
        fields.append([part[:length] for part in (tokens, positions, owners, targets, numbers)] + [row.apart])
    count = max(len(row[0]) for row in fields)
    most = max(len(ids) for row in fields for ids in row[0])
    ids_RTK = torch.zeros(len(fields), count, most, dtype=torch.long)
    weights_RTK = torch.zeros(len(fields), count, most)
    positions_RT = torch.zeros(len(fields), count, dtype=torch.long)
    owners_RT, targets_RT, turns_RT = (torch.full((len(fields), count), -1) for _ in range(3))
    targets_RT[:] = NOT_SUPERVISED
    for number, (tokens, positions, owners, targets, turns, _) in enumerate(fields):
        ids_RTK[number, : len(tokens)] = torch.tensor([[*ids, *[0] * (most - len(ids))] for ids in tokens])
        counts_T = torch.tensor([len(ids) for ids in tokens])
        weights_RTK[number, : len(tokens)] = (torch.arange(most) < counts_T[:, None]) / counts_T[:, None].sqrt()
        for tensor, values in (
            (positions_RT, positions),
            (owners_RT, owners),
            (targets_RT, targets),
            (turns_RT, turns),
        ):
            tensor[number, : len(values)] = torch.tensor(values)
    apart_R11 = torch.tensor([row[-1] for row in fields])[:, None, None]
    same_RTT = (owners_RT[:, None, :] == owners_RT[:, :, None]) | (owners_RT[:, None, :] == -1)
    mask_RTT = (same_RTT | ~apart_R11) & torch.ones(count, count, dtype=torch.bool).tril()
    return Batch(ids_RTK, weights_RTK, positions_RT, mask_RTT[:, None], targets_RT, turns_RT)
