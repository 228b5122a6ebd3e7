"""From the turns of a conversation to token ids: where the image goes, what is supervised, and what is cut.

    plain   [image] question "\\n" answer end  question "\\n" answer end …
    chat    the decoder's chat template, with the image at the start of the first turn of the user

A conversation has a head, which is the same for every conversation about an image (the tokens before the image, then
the image), and its own tokens after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

IMAGE = "<|edgeglass image|>"
"""Stands for the image while a chat template is filled in; it never becomes a token."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """The tokens of one conversation.

    Attributes:
        before: Ids before the image; empty for a conversation without one.
        ids: Ids after the image, or all of them.
        supervised: For each of `ids`, whether the decoder learns to produce it: answers and their ends.
        cut: Tokens that were left out because the conversation was too long.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    cut: int = 0


class TextLayout:
    """Turns to tokens.

    Args:
        tokenizer: A tokenizer of transformers.
        kind: `plain` or `chat`.
        stop_ids: Ids that end an answer, the tokenizer's own end of text first.

    Attributes:
        end: Id that training puts after an answer: the end of text, or, with `chat`, that of a turn.

    Raises:
        ValueError: `chat` with a tokenizer that has no chat template, or one that shows no image or no answer as given.
    """

    def __init__(self, tokenizer: Any, *, kind: Literal["plain", "chat"], stop_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.end = stop_ids[0]
        if kind == "chat":
            if not tokenizer.chat_template:
                raise ValueError(
                    "data.layout=chat: the tokenizer of the decoder has no chat template: set data.layout=plain, or "
                    "take an instruction model"
                )
            self.end = self._find_turn_end(stop_ids)

    @cached_property
    def before_image(self) -> tuple[int, ...]:
        """Ids of the text before an image; they are the same in every conversation about one."""
        return tuple(self._split([("", "")], image=True)[0])

    def encode(self, turns: Sequence[tuple[str, str]], *, image: bool, limit: int | None = None) -> EncodedConversation:
        """Return the tokens of turns of (question, answer), to train on.

        Args:
            turns: At least one; answers are stripped.
            image: Whether the conversation is about an image.
            limit: Most tokens of `before` and `ids` together. The oldest tokens after the image are cut first, then,
                if the last answer alone is too long, its end.

        Raises:
            ValueError: Nothing is left to learn within `limit`.
        """
        before, parts = self._split(turns, image=image)
        ids: list[int] = []
        supervised: list[bool] = []
        for asked, answered in parts:
            ids += [*asked, *answered]
            supervised += [False] * len(asked) + [True] * len(answered)
        return fit_length(before, ids, supervised, limit=limit)

    def encode_question(
        self, turns: Sequence[tuple[str, str]], question: str, *, image: bool, limit: int | None = None
    ) -> EncodedConversation:
        """Return the tokens of earlier turns and of a question that waits for its answer; nothing is supervised."""
        before, parts = self._split([*turns, (question, "")], image=image)
        ids = [token for asked, answered in parts[:-1] for token in (*asked, *answered)] + list(parts[-1][0])
        return fit_length(before, ids, [False] * len(ids), limit=limit)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _split(
        self, turns: Sequence[tuple[str, str]], *, image: bool
    ) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        """Return the ids before the image, and for each turn those before its answer and those of its answer."""
        if self.kind == "plain":
            return [], [(self._ids(f"{question.strip()}\n"), self._answer(answer)) for question, answer in turns]
        before, parts, done = "", [], ""
        messages: list[dict[str, str]] = []
        for number, (question, answer) in enumerate(turns):
            shown = f"{IMAGE}{question.strip()}" if image and number == 0 else question.strip()
            messages.append({"role": "user", "content": shown})
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if not text.startswith(done) or (IMAGE in text) != image:
                raise ValueError(
                    "data.layout=chat: the chat template of the decoder rewrites earlier turns, so that answers cannot "
                    "be told from questions: set data.layout=plain"
                )
            asked = text[len(done) :]
            if image and number == 0:
                before, _, asked = asked.partition(IMAGE)
            parts.append((self._ids(asked), self._answer(answer)))
            messages.append({"role": "assistant", "content": answer.strip()})
            # the end of the answer is the token `end`; the template writes it as text, and what follows it
            done = text + answer.strip() + self.tokenizer.convert_ids_to_tokens(self.end)
        return self._ids(before), parts

    def _find_turn_end(self, stop_ids: Sequence[int]) -> int:
        """Return the stop token that the chat template writes after an answer, or the first one if it writes none."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        after = self._ids(text.rpartition("answer")[2])
        return next((token for token in after if token in stop_ids), stop_ids[0])

    def _answer(self, answer: str) -> list[int]:
        return [*self._ids(answer.strip()), self.end]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def fit_length(
    before: Sequence[int], ids: Sequence[int], supervised: Sequence[bool], *, limit: int | None
) -> EncodedConversation:
    """Return a conversation within `limit` tokens: the oldest tokens after the image are cut first, then the last ones.

    At least one token before the last answer stays, for the answer's first token to be predicted from.

    Raises:
        ValueError: `limit` leaves no place for a question and an answer.
    """
    room = len(ids) if limit is None else limit - len(before)
    cut = max(0, len(ids) - room)
    if cut == 0:
        return EncodedConversation(tuple(before), tuple(ids), tuple(supervised))
    if room < 2:
        raise ValueError(
            f"a context of {limit} tokens leaves {max(room, 0)} for the text: raise data.max_length, or lower the "
            "number of image tokens (prefix.merge)"
        )
    last = next((place for place in range(len(ids) - 1, -1, -1) if not supervised[place]), 0)
    # the question's end is kept where the answer does not fit
    start = min(cut, last) if any(supervised) else cut
    stop = start + room
    return EncodedConversation(tuple(before), tuple(ids[start:stop]), tuple(supervised[start:stop]), cut=cut)
