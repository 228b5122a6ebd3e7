"""Descriptions of the procedural world with questions and answers, as rows of tokens for the tiny decoder.

A row begins with its context, which tells all about a scene: a description in words, or a grid of vectors, each the sum
of the embeddings of the words for one of 7 × 7 cells. The grid teaches the decoder to read what a projector can make of
the tokens of an image; it is made from the words of the scene, without a picture, and in training it misses words and
names wrong kinds, as a projector does that still learns. Turns of questions and answers follow. In most rows each turn
sees the context and itself only, and its positions go on from the context, as conversations about an image do that are
packed into a row; in the others it sees the turns before it too.

Shapes: R rows, T tokens of a row, K ids whose embeddings are summed at a token.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_common.synthetic import REASONING_TYPES, TYPES, Scene, captions, draw_questions, sample_scene
from clip_common.synthetic.captions import BACKGROUND_WORDS, WORDS, add_article, choose
from clip_common.synthetic.question_forms import FORMS, REASONING_FORMS
from clip_common.synthetic.scenes import KINDS, PLACES, PRETRAINING_SEED, SIDE, Thing, centre

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
GRIDS = 0.7
"""Share of training rows with a grid; the others have a description."""
CHATS = 0.08
"""Share of training rows that are chats."""
APART = 0.7
"""Share of the other ones whose turns do not see each other."""
DROPPED = 0.25
"""Probability that a word is missing in a cell of a grid in training."""
MISTAKEN = 0.1
"""Probability that a cell names a random kind instead of its own."""
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


class Batch(NamedTuple):
    """R rows.

    Attributes:
        ids_RTK: Ids whose embeddings are summed, long; 0 where there are fewer than K.
        counts_RT: Number of ids of each token, at least 1.
        positions_RT: Long.
        owners_RT: Number of the turn of a token in its row; -1 for the context and padding.
        targets_RT: Id of the following token in answers, long; else -100.
        turns_RT: Number of the turn, over all rows, of which a target is a part; -1 elsewhere.
        apart_R: Whether turns do not see each other.
    """

    ids_RTK: Tensor
    counts_RT: Tensor
    positions_RT: Tensor
    owners_RT: Tensor
    targets_RT: Tensor
    turns_RT: Tensor
    apart_R: Tensor

    def weights(self) -> Tensor:
        """Return the weights (R, T, K) of the summed embeddings: 1 / √(number of ids) for each id, else 0."""
        counts_RT1 = self.counts_RT[..., None]
        return (torch.arange(self.ids_RTK.shape[2], device=counts_RT1.device) < counts_RT1) / counts_RT1.sqrt()

    def mask(self) -> Tensor:
        """Return whether a token (first T) attends to another one, as (R, 1, T, T)."""
        length = self.owners_RT.shape[1]
        past_TT = torch.ones(length, length, dtype=torch.bool, device=self.owners_RT.device).tril()
        owner_R1T = self.owners_RT[:, None, :]
        seen_RTT = (owner_R1T == self.owners_RT[:, :, None]) | (owner_R1T == -1) | ~self.apart_R[:, None, None]
        return (seen_RTT & past_TT)[:, None]


class Speaker:
    """Turns scenes into rows of tokens.

    Args:
        tokenizer: Of `make_tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(100_000)(lambda text: tuple(tokenizer(text)["input_ids"]))
        self.end, self.turn_end = (tokenizer.convert_tokens_to_ids(token) for token in (END, TURN_END))
        self.kinds = [self.encode(f" {kind}")[0] for kind in KINDS]

    def __reduce__(self) -> tuple[type["Speaker"], tuple[Any]]:
        """Return what another process makes its own speaker of."""
        return Speaker, (self.tokenizer,)

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
        turns: list[Turn] = []
        for type, text, answer in asked:
            if chat:
                first = not turns
                question = f"{text}{between}" if first else f"\n{before}{text}{between}"
                turns.append(Turn(type, self.encode(question), (*self.encode(answer), self.turn_end)))
            else:
                turns.append(Turn(type, self.encode(f"{text}\n"), (*self.encode(answer), self.end)))
        return turns

    def make_row(self, scene: Scene, count: int, random: np.random.Generator) -> Row:
        """Return a row for training: a grid or a description, turns apart or in succession, now and then as a chat."""
        chat, grid = random.random() < CHATS, random.random() < GRIDS
        context = self.make_context(scene, random, grid=grid)
        if grid:
            context = tuple(self.spoil(ids, random) for ids in context)
        if chat:
            context = (*((number,) for number in self.encode(f"{TURN}user\n")), *context)
        turns = self.make_turns(scene, count, random, chat=chat)
        return Row(context, tuple(turns), apart=not chat and random.random() < APART)

    def spoil(self, ids: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
        """Return the words of a cell with some of them missing, but not all, and perhaps another kind."""
        kinds = self.kinds
        named = [
            kinds[random.integers(len(kinds))] if number in kinds and random.random() < MISTAKEN else number
            for number in ids
        ]
        return tuple(number for number in named if random.random() >= DROPPED) or (named[0],)


def make_batch(rows: Sequence[Row], *, length: int) -> Batch:
    """Return rows as tensors, cut at `length` tokens and padded to the longest."""
    fields: list[tuple[list[Any], ...]] = []
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
        counts = [len(ids) for ids in tokens]
        fields.append(tuple(part[:length] for part in (tokens, counts, positions, owners, targets, numbers)))
    count = max(len(counts) for _, counts, *_ in fields)
    most = max(max(counts) for _, counts, *_ in fields)
    ids_RTK = np.zeros((len(rows), count, most), dtype=np.int64)
    columns = [np.full((len(rows), count), padding) for padding in (1, 0, -1, NOT_SUPERVISED, -1)]
    for number, (tokens, *parts) in enumerate(fields):
        for place, ids in enumerate(tokens):
            ids_RTK[number, place, : len(ids)] = ids
        for column_RT, values in zip(columns, parts, strict=True):
            column_RT[number, : len(values)] = values
    apart_R = torch.tensor([row.apart for row in rows])
    return Batch._make([*map(torch.from_numpy, [ids_RTK, *columns]), apart_R])
